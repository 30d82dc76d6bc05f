"""Arguments, options and output that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="The run's YAML file.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="A.B=C", help="Override one key of the YAML; may be given several times."
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def echo_json(content: object) -> None:
    """Print what ``--json`` asks for."""
    typer.echo(json.dumps(content, indent=1))
