"""Arguments, options and output that several commands share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from lmscale.config.assets import find_config
from lmscale.files.locations import find_run
from lmscale.files.printing import say
from lmscale.files.redact import printable, redact

ConfigArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="The run's YAML file, or the name of one of lmscale's (lmscale config list).",
        show_default=False,
        callback=find_config,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=C", help="Override one key of the YAML; may be given several times."
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="A run's folder, or the name of one in runs.",
        show_default=False,
        callback=find_run,
    ),
]
NprocOption = Annotated[
    str,
    typer.Option(
        "--nproc",
        metavar="N|auto",
        help="Ranks to start; auto: one for each GPU, or what the cores allow.",
    ),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="A:B",
        help="Trace steps A to B: RUN/profiles has where their time and memory went.",
    ),
]
ProfileRanksOption = Annotated[
    str | None,
    typer.Option("--profile-ranks", metavar="N,N|all", help="Which ranks trace; default: 0 alone."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def find_file_problems(option: str, path: Path, *endings: str) -> list[str]:
    """Why the file that an option names cannot be written, known before any work is done for it."""
    problems = []
    if path.suffix not in endings:
        problems.append(f"{option} {path}: name a file that ends in {' or '.join(endings)}.")
    if path.is_dir():
        problems.append(f"{option} {path}: it is a folder; name a file in it.")
    if not path.absolute().parent.is_dir():
        problems.append(f"{option} {path}: there is no folder {path.absolute().parent}.")
    return problems


def echo_json(content: object) -> None:
    """Print what ``--json`` asks for."""
    say(json.dumps(content, indent=1))


def render_line(name: str, text: object) -> str:
    """One line, whatever a file's text has in it."""
    return f"{name:16} {' '.join(str(text).splitlines())}"


def print_problems(problems: Sequence[str]) -> None:
    """Print each problem on stderr. A user's [brackets] are text, not rich's markup."""
    _print(problems, Text("error: ", style="bold red"))


def print_warnings(warnings: Sequence[str]) -> None:
    """The same for what does not stand in the way."""
    _print(warnings, Text("warning: ", style="bold yellow"))


def print_notes(notes: Iterable[str]) -> None:
    """The same for what a person may want to know."""
    _print(list(notes), Text("note: "))


def _print(problems: Sequence[str], label: Text) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in problems:
        console.print(label + Text(printable(redact(problem)), style="default"))
