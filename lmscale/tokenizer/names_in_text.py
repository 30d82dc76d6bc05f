"""Where a text reads like special tokens: to keep them out of it, or to find them on purpose."""

from __future__ import annotations

import re
from collections.abc import Iterable


def pattern_inside(names: Iterable[str]) -> str:
    """A regular expression that matches the first character of every name in a text, so that a cut
    behind it leaves none whole; empty: no name has two characters.
    """
    after: dict[str, list[str]] = {}
    for name in names:
        if len(name) > 1:
            after.setdefault(name[0], []).append(re.escape(name[1:]))
    return "|".join(
        f"{re.escape(first)}(?=(?:{'|'.join(sorted(rest))}))" for first, rest in after.items()
    )


def split_at_names(text: str, names: Iterable[str]) -> list[str]:
    """Text, name, text, …, text: where several begin, the longest name."""
    longest_first = sorted(filter(None, names), key=len, reverse=True)
    if not longest_first:
        return [text]
    return re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
