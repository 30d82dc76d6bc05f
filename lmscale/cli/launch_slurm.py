"""What ``lmscale launch slurm`` does: one job, or all of them from raw text to a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import typer

from launcher.checks import cancel_command, check, known_jobs
from launcher.data_checks import find_others_shards
from launcher.job import DATA_KINDS
from launcher.pipeline import STAGES, Stage, array_of, behind, plan_stage, submit_stages
from launcher.standing import describe_other_options, refuse_failed, refuse_other_settings
from launcher.submit import prepare, submit
from launcher.sweep import name_keys
from lmscale.cli.data_work import DataStage, Work, find_work
from lmscale.cli.launch_output import (
    print_all_findings,
    print_findings,
    print_stages,
    print_submission,
)
from lmscale.cli.options import print_notes, print_problems, print_warnings
from lmscale.errors import EXIT_USER, ConfigError, LmscaleError
from lmscale.files.printing import count_of, say
from lmscale.files.run_files import read_submissions

if TYPE_CHECKING:
    from launcher.data_checks import Findings
    from launcher.job import JobKind, Prepared
    from launcher.options import LaunchOptions


class How(NamedTuple):
    """Whether it is submitted, and how it is told."""

    dry_run: bool
    check: bool
    as_json: bool


class Told:
    """Problems and warnings of the stages; what several have in common is told once."""

    def __init__(self) -> None:
        self._problems: dict[str, list[JobKind]] = {}
        self._warnings: dict[str, list[JobKind]] = {}

    def take(self, kind: JobKind, problems: Iterable[str], warnings: Iterable[str] = ()) -> None:
        for kept, texts in ((self._problems, problems), (self._warnings, warnings)):
            for text in texts:
                kept.setdefault(text, []).append(kind)

    def stop_at_problems(self) -> None:
        """Print all; exits the command where a problem is among it."""
        print_warnings(_name_stages(self._warnings))
        if self._problems:
            print_problems(_name_stages(self._problems))
            raise typer.Exit(EXIT_USER)


def _name_stages(texts: Mapping[str, list[JobKind]]) -> list[str]:
    return [t if len(kinds) > 1 else f"{kinds[0]}: {t}" for t, kinds in texts.items()]


def launch_one(options: LaunchOptions, how: How) -> None:
    """One job, if there is something for it to do."""
    prepared = prepare(options)
    if options.kind in DATA_KINDS:
        prepared, work = _measure(options, prepared, how)
        if work.is_done and not how.dry_run:
            what = f"Nothing is missing from the {options.kind} of {options.config}"
            say(json.dumps({"job": None}) if how.as_json else f"{what}; nothing was submitted.")
            return
    if how.dry_run:
        print_warnings(prepared.warnings)
        say(prepared.script, end="")
        return
    findings = check(prepared)
    print_warnings(findings.warnings)
    if findings.problems:
        print_problems(findings.problems)
        raise typer.Exit(EXIT_USER)
    if how.check:
        print_findings(findings, prepared.job, as_json=how.as_json)
        return
    print_submission(submit(prepared), prepared.job, findings, as_json=how.as_json)


def launch_all(options: LaunchOptions, how: How) -> None:
    """All that is missing from raw text to a model, each job behind the one before."""
    if problems := _find_misfits(options):
        raise ConfigError(problems)
    told = Told()
    stages = list(_plan_stages(options, how, told))
    _tell_others_shards(stages, told)
    if how.dry_run:
        told.stop_at_problems()
        _print_scripts(stages)
        return
    findings: dict[JobKind, Findings] = {
        stage.kind: check(stage.prepared, besides=stage.replaced)
        for stage in stages
        if stage.prepared and stage.is_new
    }
    for kind, found in findings.items():
        told.take(kind, found.problems, found.warnings)
    told.stop_at_problems()
    if how.check:
        print_all_findings(stages, findings, as_json=how.as_json)
        return
    print_stages(stages, submit_stages(stages), findings, as_json=how.as_json)


def _tell_others_shards(stages: Iterable[Stage], told: Told) -> None:
    for stage in stages:
        if stage.kind == "train" and stage.prepared is not None and stage.is_new:
            runs = stage.prepared.request.runs
            warnings = [warning for config in runs for warning in find_others_shards(config)]
            told.take("train", (), dict.fromkeys(warnings))


def _find_misfits(options: LaunchOptions) -> list[str]:
    problems = (
        [] if options.step is None else ["--step has no meaning for --job all; leave it out."]
    )
    for key in (key for text in options.axes for key in name_keys(text)):
        if key.partition(".")[0] in DATA_KINDS:
            problems.append(
                f"--array {key}: --job all makes the data once, for all runs of a sweep. Give each "
                f"value a command of its own, with --set {key}=VALUE and folders of its own."
            )
    return problems


def _plan_stages(options: LaunchOptions, how: How, told: Told) -> Iterator[Stage]:
    """Every stage; ``told`` hears of what is wrong with one, and the others go on."""
    before: Stage | None = None  # the last one that is not done
    for kind in STAGES:
        try:
            stage = _plan_next(options, kind, how, before)
        except LmscaleError as error:
            told.take(kind, error.problems)
            stage = Stage(kind=kind, is_refused=True)
        yield stage
        if stage.prepared is not None or stage.is_refused:
            before = stage


def _plan_next(options: LaunchOptions, kind: JobKind, how: How, before: Stage | None) -> Stage:
    own = _options_of(options, kind, awaits=before is not None)
    prepared = prepare(own)
    if kind in DATA_KINDS:
        if not prepared.request.config.corpus.sources:
            return Stage(kind=kind, note="the configuration names no corpus.sources")
        prepared, work = _measure(own, prepared, how)
        if work.is_done:
            return Stage(kind=kind, note=work.note)
    elif not prepared.job.members and _is_finished(prepared):
        return Stage(kind=kind, note=f"{prepared.job.run_folder} has finished")
    if how.dry_run:
        return Stage(kind=kind, prepared=prepared)
    return _compare_with_queue(prepared, before)


def _compare_with_queue(prepared: Prepared, before: Stage | None) -> Stage:
    """What to do about a stage by its jobs there; those that stay must do what is asked for."""
    job = prepared.job
    queue = known_jobs(job)
    live = {queued.job: queued for queued in queue if queued.is_active}
    numbers = {array_of(number) for number in live}
    rows = [row for row in read_submissions(job.state_folder) if row["kind"] == job.kind]
    row = next((row for row in reversed(rows) if numbers & {*map(str, row["jobs"])}), None)
    stage = plan_stage(prepared, live, after=(row or {}).get("after"), before=before)
    if not stage.kept:
        return stage
    refuse_failed(prepared, stage.kept, queue)
    if row is None or not row.get("folder"):  # it was cut off before it was written down
        return stage
    refuse_other_settings(prepared, row, cancel_command(job, *stage.kept))
    return replace(stage, note=describe_other_options(prepared, row))


def _options_of(options: LaunchOptions, kind: JobKind, *, awaits: bool) -> LaunchOptions:
    """Those of one stage: what is said of ranks and runs is the training's, and so on."""
    own = replace(options, kind=kind, is_awaited=awaits, after=None if awaits else options.after)
    if kind == "train":
        return replace(own, tasks=None)
    own = replace(own, nodes="1", axes=(), sweep=None, chain=None)
    return own if kind != "tokenizer" else replace(own, tasks=None)


def _measure(options: LaunchOptions, prepared: Prepared, how: How) -> tuple[Prepared, Work]:
    """The job with as many tasks as there is work for, and the work."""
    kind = cast("DataStage", options.kind)
    config, cores = prepared.request.config, prepared.job.cpus_per_task
    warnings: list[str] = []

    def find(*, awaits: bool) -> Work:
        return find_work(config, kind, asked=options.tasks, cores=cores, awaits=awaits)

    try:
        work = find(awaits=options.is_awaited)
    except LmscaleError as error:
        if not (how.dry_run or options.after):
            raise
        tasks = options.tasks or 1
        work = Work(tasks=tasks, missing=tuple(range(tasks)))
        if not how.dry_run:  # what another job makes is not there yet
            warnings += error.problems
        elif not options.is_awaited:  # it may be far from the data
            print_notes(f"{problem} So {count_of(tasks, 'task')}." for problem in error.problems)
    if work.note and not work.is_done:
        warnings.append(work.note)
    only = () if len(work.missing) == work.tasks else work.missing
    if kind != "tokenizer":
        prepared = prepare(replace(options, tasks=work.tasks, only=only))
    return replace(prepared, warnings=(*prepared.warnings, *warnings)), work


def _is_finished(prepared: Prepared) -> bool:
    from lmscale.runs.run_folder import read_status

    try:
        status = read_status(prepared.job.run_folder)
        steps = prepared.request.config.train.steps
        return status.is_finished and steps <= status.config.train.steps
    except LmscaleError:  # no run is there yet; or what the checks tell
        return False


def _print_scripts(stages: list[Stage]) -> None:
    """Every script, in order; the numbers of the jobs that each waits for are not known yet."""
    before: tuple[str, ...] = ()
    for stage in stages:
        if stage.prepared is None:
            print_notes([f"{stage.kind}: nothing is missing"])
            continue
        prepared = behind(stage.prepared, before)
        print_warnings([f"{stage.kind}: {warning}" for warning in prepared.warnings])
        say(prepared.script)
        before = (f"JOB_OF_{stage.kind.upper()}",)
