"""Packages that not everybody needs, by the extra that brings them."""

from __future__ import annotations


def install_extra(extra: str) -> str:
    """What to type, in the clone: an editable installation stays one, and versions as tested."""
    return f"pip install -e '.[{extra}]' -c constraints.txt"
