"""``lmscale finetune``: a pretrained model and labelled files → a model for a task."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.options import NprocOption, SetOption, print_problems, print_warnings
from lmscale.errors import EXIT_FINISHED, ConfigError, LmscaleError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.config import RunConfig
    from lmscale.config.finetune import FinetuneConfig
    from lmscale.finetune.base import Base
    from lmscale.finetune.plan import Plan
    from lmscale.finetune.survey import Survey
    from lmscale.ranks.gpus import Gpus

ConfigArgument = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        help="A short YAML: base, task, data (docs/fine-tuning.md).",
        show_default=False,
    ),
]


def finetune(
    config: ConfigArgument,
    nproc: NprocOption = "auto",
    set_: SetOption = None,
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Where the whole configuration is written."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing of it.")
    ] = False,
) -> None:
    """Train a pretrained model for a task: look at the data, plan a run, build, train, evaluate.

    What is there already is not done again: the same command goes on where it was stopped. A folder
    of Hugging Face's is imported first, also for --dry-run.
    """
    from launcher.local_ranks import parse_nproc
    from lmscale.config.finetune import load_finetune
    from lmscale.finetune.tasks import find_base_problems, find_task_problems
    from lmscale.ranks.gpus import find_gpus

    num_ranks = parse_nproc(nproc)
    asked = load_finetune(config, set_ or ())
    problems = list(find_task_problems(asked))
    try:
        base = _find_base(asked)
    except LmscaleError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems := [*problems, *find_base_problems(asked, base.model)]:
        raise ConfigError(problems)
    survey = _survey(asked, base)
    plan = _plan(asked, base, survey, find_gpus())
    path, run = _write_plan(asked, plan, write, dry_run=dry_run)
    if dry_run:
        return
    _build_data(run, path)
    from launcher.local import launch_local

    outcome = launch_local(path, [], num_ranks=num_ranks)
    print_problems(outcome.problems)
    if outcome.exit_code != EXIT_FINISHED:
        raise typer.Exit(outcome.exit_code)
    _show_result(run, asked, survey)


def _find_base(config: FinetuneConfig) -> Base:
    """The base as it is, or as it is imported now."""
    from lmscale.finetune.base import find_hf_folder, import_place, is_imported, read_base

    folder = find_hf_folder(config)
    if folder is None:
        return read_base(config)
    place = import_place(config, folder)
    if not is_imported(place, folder):
        _call("import", "hf", str(folder), "--out", str(place))
    return read_base(config, imported=place)


def _survey(config: FinetuneConfig, base: Base) -> Survey:
    from lmscale.files.progress import progress
    from lmscale.finetune.base import read_template
    from lmscale.finetune.survey import survey_data
    from lmscale.tokenizer.codec import load_configured

    tokenizer = load_configured(base.tokenizer)
    template = read_template(config, base, tokenizer)
    with progress("reading the data", None, "documents") as advance:
        return survey_data(
            config, tokenizer, has_bos=base.has_bos, template=template, advance=advance
        )


def _plan(config: FinetuneConfig, base: Base, survey: Survey, gpus: Gpus) -> Plan:
    from lmscale.finetune.checks import find_doubts, find_left_out
    from lmscale.finetune.plan import plan_run
    from lmscale.finetune.render import describe_survey
    from lmscale.ranks.device import usual_precision, usual_setting

    for line in describe_survey(config, survey):
        say(line)
    has_gpu, precision = gpus.count > 0, usual_setting(usual_precision(gpus.name))
    plan = plan_run(config, base, survey, has_gpu=has_gpu, precision=precision)
    doubts = find_doubts(config, base.model, survey)
    print_warnings([*find_left_out(config, survey, plan.limit), *doubts])
    return plan


def _write_plan(
    config: FinetuneConfig, plan: Plan, write: Path | None, *, dry_run: bool
) -> tuple[Path, RunConfig]:
    """The file of the whole configuration, which is checked before it is told and written."""
    from lmscale.config import parse_config
    from lmscale.files.atomic import write_bytes, writing
    from lmscale.finetune.changes import find_changed_wishes
    from lmscale.finetune.checks import find_other_data
    from lmscale.finetune.render import describe_plan, render_plan
    from lmscale.runs.beginnings import check_start

    path = write or Path(config.data_folder) / f"{config.name}.yaml"
    text = render_plan(config, plan)
    run = parse_config(text, name=f"the run that is planned, with its settings ({path})")
    if problems := find_other_data(run.corpus):
        raise ConfigError(problems)
    check_start(run, partial(find_changed_wishes, config))
    for line in describe_plan(config, plan):
        say(line)
    if not dry_run or write:
        with writing("the configuration", path, ConfigError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, text.encode())
        say(f"written   {path}, the whole configuration")
    return path, run


def _build_data(run: RunConfig, path: Path) -> None:
    """Corpus and shards, as far as they are missing; ``path`` is of the whole configuration."""
    from lmscale.corpus.build import build_corpus
    from lmscale.shards.build import build_shards

    for name, built in build_corpus(run.corpus).built.items():
        if dropped := built.manifest.dropped:
            counts = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
            told = f"{path} --source {name}"
            print_warnings([f"data.{name}: left out: {counts} (lmscale corpus dropped {told})"])
    build_shards(run)


def find_best_step(run: RunConfig) -> int:
    """The step whose checkpoint is kept as the best; the newest one where none was measured."""
    from lmscale.checkpoint.retention import find_kept_best
    from lmscale.runs.commits import read_commits

    best = find_kept_best(run.checkpoint, run.folder)
    return max(commit.step for commit in read_commits(run.folder)) if best is None else best


def read_scores(run: RunConfig, step: int) -> dict[str, dict[str, float]]:
    """Set → the figures that the run's loop has measured of it after a step."""
    from lmscale.files.jsonl import sift_rows
    from lmscale.files.run_files import METRICS_FILE
    from lmscale.files.run_rows import FIGURES

    names = (*run.objective.set_figures, *run.objective.held_out)
    rows = sift_rows(run.folder / METRICS_FILE, FIGURES).rows
    found = {name: value for row in rows if row["step"] == step for name, value in row.items()}
    scores: dict[str, dict[str, float]] = {}
    for part in run.evaluation.of_loop:
        figures = {name: found.get(f"evaluation/{part}/{name}") for name in names}
        scores[part] = {name: value for name, value in figures.items() if value is not None}
    return scores


def _show_result(run: RunConfig, config: FinetuneConfig, survey: Survey) -> None:
    from lmscale.finetune.render import render_scores

    step = find_best_step(run)
    folder = str(run.folder)
    scores = read_scores(run, step) | _score_test(run, step)
    say(f"\n{folder}@{step}, the best checkpoint by {run.checkpoint.keep_best.metric}:")
    say(render_scores(scores, survey))
    say("\nNext:")
    for words in _name_next(run, config, step):
        say(f"  lmscale {shlex.join(words)}")


def _score_test(run: RunConfig, step: int) -> dict[str, dict[str, float]]:
    """The figures of the sets that nothing was decided by: of the chosen checkpoint alone."""
    sets = run.evaluation.only_at_end
    if not sets:
        return {}
    names = [word for each in sets for word in ("--set-name", each)]
    words = ("evaluate", str(run.folder), "--step", str(step), *names, "--json")
    rows = json.loads(_call(*words, captures=True))
    known = (*run.objective.set_figures, *run.objective.held_out)
    return {each: {n: v for n, v in row.items() if n in known} for each, row in rows.items()}


def _name_next(run: RunConfig, config: FinetuneConfig, step: int) -> Iterator[list[str]]:
    from lmscale.finetune.tasks import is_labelled

    folder, at = str(run.folder), ["--step", str(step)]
    yield ["evaluate", folder, *at]
    if config.task == "answers":
        yield ["answer", folder, "--question", "…", "--context", "FILE", *at]
    elif config.task == "dialogue":
        yield ["chat", folder, *at]
    elif not is_labelled(config.task):
        yield ["generate", folder, "--prompt", "…", *at]
    yield ["export", folder, "--out", f"exported/{config.name}", *at]
    yield ["runs", "audit", folder]


def _call(*words: str, captures: bool = False) -> str:
    """Another command of lmscale, in a process of its own: this one loads no torch. What it has
    written to standard output, where that is asked for.
    """
    command = [sys.executable, "-m", "lmscale", *words]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE if captures else None)
    if done.returncode != EXIT_FINISHED:
        raise typer.Exit(done.returncode)
    return done.stdout.decode() if captures else ""
