"""The commands of ``lmscale`` and their groups, in the order of the flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import lmscale
from lmscale.cli import checkpoint, config, corpus, launch, shards, show, stream, suite, tokenizer
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


class HintingGroup(TyperGroup):
    """Answers a word that is no command of its own with commands of that name in other groups."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if not (word.startswith("-") or get_close_matches(word, self.commands)):
            paths = list(_list_commands(ctx.find_root().command, "lmscale"))
            names = {path.rpartition(" ")[2] for path in paths}
            near = get_close_matches(word, names, cutoff=0.8)
            if meant := [repr(path) for path in paths if path.rpartition(" ")[2] in near[:1]]:
                ctx.fail(f"No such command {word!r}. Did you mean {' or '.join(meant)}?")
        return super().resolve_command(ctx, args)


def _list_commands(group: Any, path: str) -> Iterator[str]:
    """The words of every command below, those of groups as well."""
    for name, command in getattr(group, "commands", {}).items():
        yield f"{path} {name}"
        yield from _list_commands(command, f"{path} {name}")


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
        app.add_typer(_command, name=_name, cls=HintingGroup)
    else:
        app.command(_name)(_command)
