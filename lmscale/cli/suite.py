"""``lmscale suite``: tasks for lm-evaluation-harness, made of a corpus' own held-out part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmscale.cli.options import ConfigArgument, JsonOption, SetOption, echo_json
from lmscale.config import load_config
from lmscale.files.printing import count_of, say

app = typer.Typer(help="Held-out documents → tasks to score a model on.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Keeps ``make`` a command of its own, though it is the only one."""


@app.command()
def make(
    config: ConfigArgument,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A new folder for them.", show_default=False)
    ],
    source: Annotated[
        list[str] | None,
        typer.Option(help="A source of the corpus; may be given several times. Default: all."),
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="At most so many for each task.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same files.")] = 0,
    set_: SetOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="In place of those that are there.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make cloze and multiple-choice tasks, and one of bits per byte, of the held-out documents of
    CONFIG's corpus: eight for each language, English (or another one of Latin letters) and Chinese.

    They are files of lm-evaluation-harness: `lmscale evaluate RUN --tasks DIR` reads them, and so
    does `lm_eval run --include_path DIR`. Nothing of it needs a network.
    """
    from lmscale.errors import ConfigError
    from lmscale.evaluation.local_tasks import make_tasks

    corpus = load_config(config, set_ or ()).corpus
    names = source or list(corpus.sources)
    if unknown := [name for name in names if name not in corpus.sources]:
        known = ", ".join(corpus.sources) or "none"
        raise ConfigError(f"--source {', '.join(unknown)}: corpus.sources has {known}.")
    folders = [Path(corpus.folder) / name for name in names]
    made = make_tasks(folders, out, rows=questions, seed=seed, force=force)
    if as_json:
        echo_json({"folder": str(out), "tasks": {task.name: task.rows for task in made}})
        return
    width = max(len(task.name) for task in made)
    for task in made:
        say(f"{task.name:<{width}}  {count_of(task.rows, 'question'):>14}  {task.asks}")
    say(f"{out}: {count_of(len(made), 'task')}. Score them: lmscale evaluate RUN --tasks {out}")
