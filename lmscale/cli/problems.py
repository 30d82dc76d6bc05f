"""How problems that a person can act on are shown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from lmscale.files.redact import printable, redact


def print_problems(problems: Sequence[str]) -> None:
    """Print each problem on stderr. A user's [brackets] are text, not rich's markup."""
    _print(problems, Text("error: ", style="bold red"))


def print_warnings(warnings: Sequence[str]) -> None:
    """The same for what does not stand in the way."""
    _print(warnings, Text("warning: ", style="bold yellow"))


def _print(problems: Sequence[str], label: Text) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in problems:
        console.print(label + Text(printable(redact(problem)), style="default"))
