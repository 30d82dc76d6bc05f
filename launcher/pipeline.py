"""From raw text to a model by jobs in a row: each begins when the one before has ended well.

A stage is done, or its jobs are queued or running already and stay, or it is submitted. A stage
that fails ends those behind it (``kill-on-invalid-dep``); the same command again submits what is
missing. A task that goes back into the queue counts as not ended, so that nothing begins early.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from launcher.checks import live_jobs
from launcher.job import JobKind, Prepared
from launcher.plan import plan_job
from launcher.render import render
from launcher.slurm import QueuedJob, scancel
from launcher.submit import Submission, submit_held, submitting
from launcher.upstream import Upstream
from lmscale.errors import ClusterError

STAGES: tuple[JobKind, ...] = ("corpus", "tokenizer", "shards", "train")
NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One of ``STAGES``, and what is to be done about it."""

    kind: JobKind
    prepared: Prepared | None = None  # None: it is done
    note: str = ""  # what there is to say of one that is done
    kept: tuple[str, ...] = ()  # jobs of it that are queued or running, and stay
    replaced: tuple[str, ...] = ()  # jobs of it that wait for what will not come, and go
    is_refused: bool = False  # it has problems, which are told, and is as little there as a new one

    @property
    def is_new(self) -> bool:
        return self.prepared is not None and not self.kept


def plan_stage(
    prepared: Prepared,
    live: Mapping[str, QueuedJob],
    *,
    after: str | None,
    before: Stage | None,
) -> Stage:
    """What to do about a stage that is not done. ``live``: its jobs; ``after``: what the newest of
    them was submitted behind; ``before``: the stage that it needs, if that is not done either.

    Raises ``ClusterError`` where its jobs run already while what they need is still to be made.
    """
    kind = prepared.job.kind
    stage = Stage(kind=kind, prepared=prepared)
    if not live:
        return stage
    numbers = tuple(dict.fromkeys(map(array_of, live)))
    waits = all(job.state == "PENDING" for job in live.values())
    if before is None:
        is_doomed = any(job.reason == NEVER for job in live.values())
        return replace(stage, replaced=tuple(live)) if is_doomed else replace(stage, kept=numbers)
    if not waits and not before.is_refused:  # of which its own problems tell, and it is kept
        raise ClusterError(
            f"job {', '.join(numbers)} ({kind}) has begun, and its {before.kind} is not whole: "
            f"wait until it has ended, or end it with `scancel {' '.join(numbers)}`."
        )
    needed = set(before.kept)
    if before.is_new or not needed <= set(re.findall(r"\d+", after or "")):
        return replace(stage, replaced=tuple(live))
    return replace(stage, kept=numbers)


def array_of(job: str) -> str:
    """12 of 12, of 12_3 and of 12_[4-7]."""
    return job.partition("_")[0]


def behind(prepared: Prepared, jobs: Collection[str]) -> Prepared:
    """The same job, to begin when all of ``jobs`` have ended well: of an array all its tasks."""
    if not jobs:
        return prepared
    request = replace(prepared.request, after=f"afterok:{':'.join(jobs)}")
    job = plan_job(request, prepared.job.kind)
    return replace(prepared, request=request, job=job, script=render(job))


def submit_stages(stages: Sequence[Stage]) -> dict[JobKind, Submission]:
    """Submit what is new, in its order; all of it, or nothing.

    Meanwhile nobody else submits for any of its folders. Raises ``ClusterError`` where somebody has
    since they were looked at.
    """
    undone = [stage.prepared.job.state_folder for stage in stages if stage.prepared]
    with ExitStack() as held:
        for folder in dict.fromkeys(undone):  # in one order, so that two do not wait for each other
            held.enter_context(submitting(folder))
        _refuse_changes(stages)
        return _submit_stages(stages)


def _refuse_changes(stages: Sequence[Stage]) -> None:
    """Raise ``ClusterError`` where the queue is not as it was when the stages were planned."""
    problems: list[str] = []
    for stage in stages:
        if stage.prepared is None:
            continue
        live = live_jobs(stage.prepared.job)
        numbers = {*map(array_of, live)}
        if stage.is_new and live.keys() - {*stage.replaced}:
            problems.append(
                f"job {', '.join(sorted(numbers))} ({stage.kind}) was submitted meanwhile."
            )
        elif gone := {*stage.kept} - numbers:
            problems.append(f"job {', '.join(sorted(gone))} ({stage.kind}) has ended meanwhile.")
    if problems:
        again = "So nothing was submitted here: give the same command again, which looks anew."
        raise ClusterError([*problems, again])


def _submit_stages(stages: Sequence[Stage]) -> dict[JobKind, Submission]:
    made: dict[JobKind, Submission] = {}
    pipeline: list[Upstream] = []
    last: tuple[str, ...] = ()
    try:
        for stage in stages:
            if stage.prepared is None:
                continue
            if stage.is_new:
                scancel(stage.replaced)
                ready = behind(stage.prepared, last)
                made[stage.kind] = submit_held(ready, pipeline=tuple(pipeline))
            last = made[stage.kind].jobs if stage.is_new else stage.kept
            output_of = stage.prepared.job.output_of
            pipeline += [Upstream(kind=stage.kind, job=j, output=output_of(j)) for j in last]
    except BaseException:
        scancel([job for submission in made.values() for job in submission.jobs])
        raise
    return made
