"""The commands of ``lmscale`` and their groups, in the order of the flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

import lmscale
from lmscale.cli import (
    checkpoint,
    config,
    corpus,
    launch,
    plan,
    shards,
    show,
    stream,
    suite,
    tokenizer,
)
from lmscale.cli.answer import answer
from lmscale.cli.chat import chat
from lmscale.cli.compare import compare
from lmscale.cli.demo import demo
from lmscale.cli.distill import distill
from lmscale.cli.doctor import doctor
from lmscale.cli.evaluate import evaluate
from lmscale.cli.export import export
from lmscale.cli.finetune import finetune
from lmscale.cli.generate import generate
from lmscale.cli.groups import HintingGroup
from lmscale.cli.import_ import app as import_app
from lmscale.cli.init import init
from lmscale.cli.probe import app as probe_app
from lmscale.cli.prune import prune
from lmscale.cli.quantize import quantize
from lmscale.cli.runs import commands as runs
from lmscale.cli.train import train
from lmscale.files.printing import say

COMMANDS: dict[str, typer.Typer | Callable[..., None]] = {
    "init": init,
    "corpus": corpus.app,
    "tokenizer": tokenizer.app,
    "shards": shards.app,
    "stream": stream.app,
    "plan": plan.app,
    "checkpoint": checkpoint.app,
    "import": import_app,
    "train": train,
    "finetune": finetune,
    "suite": suite.app,
    "evaluate": evaluate,
    "generate": generate,
    "answer": answer,
    "probe": probe_app,
    "chat": chat,
    "show": show.app,
    "quantize": quantize,
    "prune": prune,
    "distill": distill,
    "compare": compare,
    "export": export,
    "launch": launch.app,
    "runs": runs.app,
    "doctor": doctor,
    "config": config.app,
    "demo": demo,
}

GROUPS = {"plan": plan.PlanGroup}  # of another class than the others


class FlowGroup(HintingGroup):
    """Lists commands in the order of the flow; typer alone would put groups after commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)


app = typer.Typer(
    name="lmscale",
    cls=FlowGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a bug keeps Python's own traceback, whole, for the report
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        say(f"lmscale {lmscale.__version__}")
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
        app.add_typer(_command, name=_name, cls=GROUPS.get(_name, HintingGroup))
    else:
        app.command(_name)(_command)
