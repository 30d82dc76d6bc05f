"""``lmscale doctor``: whether this machine has what a run needs, and what to do if not."""

from __future__ import annotations

from typing import Annotated

import typer

from lmscale.cli.options import JsonOption
from lmscale.errors import EXIT_USER


def doctor(
    folder: Annotated[
        list[str] | None,
        typer.Option("--folder", help="Also check that a run could write here."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: packages, devices, compiler, network, folders. Exit code 2: a problem."""
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.text import Text

    from lmscale.cli.diagnosis import diagnose

    findings = diagnose(folder or [])
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        console = Console(soft_wrap=True, highlight=False)
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            mark = Text("ok      ", "green") if finding.is_ok else Text("problem ", "bold red")
            console.print(mark + Text(f"{finding.subject:{width}}  {finding.found}", "default"))
            if finding.advice:
                console.print(Text(f"{'':8}{'':{width}}  → {finding.advice}", "default"))
    if not all(finding.is_ok for finding in findings):
        raise typer.Exit(EXIT_USER)
