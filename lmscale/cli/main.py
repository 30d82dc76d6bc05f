"""The ``lmscale`` command: its groups in the order of the flow, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import lmscale
from lmscale.cli import config, corpus, launch, runs, shards, stream, tokenizer
from lmscale.cli.doctor import doctor
from lmscale.cli.evaluate import evaluate
from lmscale.cli.generate import generate
from lmscale.cli.problems import print_problems
from lmscale.cli.train import train
from lmscale.errors import EXIT_FINISHED, LmscaleError

app = typer.Typer(
    name="lmscale",
    help="Pretraining of language models: raw text to a trained, resumable model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug keeps Python's own traceback, whole, for the report
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"lmscale {lmscale.__version__}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Pretraining of language models: raw text to a trained, resumable model."""


app.add_typer(corpus.app, name="corpus")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(shards.app, name="shards")
app.add_typer(stream.app, name="stream")
app.command("train")(train)
app.command("evaluate")(evaluate)
app.command("generate")(generate)
app.add_typer(launch.app, name="launch")
app.add_typer(runs.app, name="runs")
app.command("doctor")(doctor)
app.add_typer(config.app, name="config")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An ``LmscaleError`` is told without a traceback; any other exception passes through, as a bug.
    """
    try:
        app(args=arguments, prog_name="lmscale")
    except LmscaleError as error:
        print_problems(error.problems)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:  # how typer ends a command, a usage error (2) included
        return stop.code if isinstance(stop.code, int) else EXIT_FINISHED
    return EXIT_FINISHED


if __name__ == "__main__":
    sys.exit(main())
