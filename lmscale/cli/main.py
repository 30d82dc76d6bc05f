"""The ``lmscale`` command: its groups in the order of the flow, and what becomes of errors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import lmscale
from lmscale.cli import checkpoint, config, corpus, launch, runs, shards, stream, tokenizer
from lmscale.cli.demo import demo
from lmscale.cli.doctor import doctor
from lmscale.cli.evaluate import evaluate
from lmscale.cli.generate import generate
from lmscale.cli.problems import print_problems
from lmscale.cli.train import train
from lmscale.config.exit_file import record_exit
from lmscale.errors import EXIT_FAILED, EXIT_FINISHED, LmscaleError

COMMANDS: dict[str, typer.Typer | Callable[..., None]] = {
    "corpus": corpus.app,
    "tokenizer": tokenizer.app,
    "shards": shards.app,
    "stream": stream.app,
    "checkpoint": checkpoint.app,
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "launch": launch.app,
    "runs": runs.app,
    "doctor": doctor,
    "config": config.app,
    "demo": demo,
}


class FlowGroup(TyperGroup):
    """Lists commands in the order of the flow; typer alone would put groups after commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)


app = typer.Typer(
    name="lmscale",
    cls=FlowGroup,
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


for _name, _command in COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name)
    else:
        app.command(_name)(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, told to the batch script too if there is one.

    An ``LmscaleError`` is told without a traceback; any other exception passes through, as a bug.
    """
    try:
        code = _run(arguments)
    except BaseException:
        record_exit(EXIT_FAILED)
        raise
    record_exit(code)
    return code


def _run(arguments: Sequence[str] | None) -> int:
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
