"""How problems that a person can act on are shown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text


def print_problems(problems: Sequence[str]) -> None:
    """Print each problem on stderr. A user's [brackets] are text, not rich's markup."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in problems:
        console.print(Text("error: ", style="bold red") + Text(problem, style="default"))


def print_warnings(warnings: Sequence[str]) -> None:
    """The same for what does not stand in the way."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for warning in warnings:
        console.print(Text("warning: ", style="bold yellow") + Text(warning, style="default"))
