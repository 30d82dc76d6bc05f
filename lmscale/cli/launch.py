"""``lmscale launch``: start the ranks of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from lmscale.cli.options import ConfigArgument, SetOption

app = typer.Typer(help="Start the ranks of a run.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Start the ranks of a run."""  # with a callback, a lone command stays a sub-command


@app.command()
def local(
    config: ConfigArgument,
    num_ranks: Annotated[
        int, typer.Option("--nproc", metavar="N", help="Ranks to start; with GPUs, one for each.")
    ],
    set_: SetOption = None,
) -> None:
    """Train CONFIG with N ranks on this machine.

    Ctrl-C, SIGTERM or SIGUSR1 saves a checkpoint and ends with exit code 75; the same command goes
    on from there. A second Ctrl-C ends without saving.
    """
    from launcher.local import launch_local
    from lmscale.cli.problems import print_problems

    outcome = launch_local(config, set_ or (), num_ranks=num_ranks)
    print_problems(outcome.problems)
    raise typer.Exit(outcome.exit_code)
