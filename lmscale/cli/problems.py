"""How problems that a person can act on are shown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from lmscale.files.redact import printable, redact


def print_problems(problems: Sequence[str]) -> None:
    """Print each problem on stderr. A user's [brackets] are text, not rich's markup."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in problems:
        console.print(Text("error: ", style="bold red") + Text(_safe(problem), style="default"))


def print_warnings(warnings: Sequence[str]) -> None:
    """The same for what does not stand in the way."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for warning in warnings:
        console.print(
            Text("warning: ", style="bold yellow") + Text(_safe(warning), style="default")
        )


def _safe(text: str) -> str:
    return printable(redact(text))
