"""What ``lmscale launch slurm`` prints of a job: as text, or as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmscale.cli.options import echo_json
from lmscale.files.printing import count_of, say

if TYPE_CHECKING:
    from launcher.data_checks import Findings
    from launcher.job import JobKind, SlurmJob
    from launcher.pipeline import Stage
    from launcher.submit import Submission


def print_findings(findings: Findings, job: SlurmJob, *, as_json: bool) -> None:
    if as_json:
        echo_json(findings_to_json(findings, job))
        return
    for passed in findings.passed:
        say(f"ok: {passed}")
    say("Nothing was submitted.")


def findings_to_json(findings: Findings, job: SlurmJob) -> dict[str, Any]:
    return {"job": job.name, "passed": findings.passed, "warnings": findings.warnings}


def print_submission(
    submission: Submission, job: SlurmJob, findings: Findings, *, as_json: bool
) -> None:
    commands = next_commands(submission, job)
    if as_json:
        echo_json({**submission_to_json(submission, job, findings), "next": commands})
        return
    say_submitted(submission, job)
    for number, command in enumerate(commands):
        say(f"  {'' if number else 'next':<8}{command}")


def say_submitted(submission: Submission, job: SlurmJob) -> None:
    from launcher.checks import describe_rest

    chain = f" and {len(submission.jobs) - 1} more of its chain" if len(submission.jobs) > 1 else ""
    say(f"submitted job {submission.job}{chain}: {job.name}")
    if rest := describe_rest(job):
        say(f"  {rest}; the others are done")
    for name, place in _places(submission, job).items():
        say(f"  {name:<8}{place}")


def submission_to_json(submission: Submission, job: SlurmJob, findings: Findings) -> dict[str, Any]:
    return {
        "job": submission.job,
        "jobs": list(submission.jobs),
        "name": job.name,
        "submission": submission.submission,
        "run": str(job.run_folder),
        **_places(submission, job),
        "after": submission.after,
        "warnings": findings.warnings,
    }


def _places(submission: Submission, job: SlurmJob) -> dict[str, str]:
    places = {"script": str(Path(submission.folder) / "job.sh")}
    places["output"] = job.output_of(submission.job)
    if not job.members and job.kind == "train":
        places["logs"] = str(job.run_folder / "logs")
    return places


def next_commands(submission: Submission, job: SlurmJob) -> list[str]:
    """What a person wants to type now."""
    from launcher.checks import cancel_command

    cancel = cancel_command(job, *submission.jobs)
    run = shlex.quote(str(job.run_folder))
    if job.members:
        parent = shlex.quote(str(job.run_folder.parent))
        return [f"lmscale runs list {parent} --sweep {shlex.quote(job.run_folder.name)}", cancel]
    if job.kind == "train":
        return [f"lmscale runs status {run}", f"lmscale runs logs {run} -f", cancel]
    return [f"squeue --jobs={','.join(submission.jobs)}", cancel]


def print_all_findings(
    stages: Sequence[Stage], findings: Mapping[JobKind, Findings], *, as_json: bool
) -> None:
    """Of every stage of a pipeline."""
    if as_json:
        rows = [
            {"kind": stage.kind, **findings_to_json(findings[stage.kind], stage.prepared.job)}
            if stage.prepared and stage.is_new
            else _describe_old(stage)
            for stage in stages
        ]
        echo_json({"stages": rows})
        return
    for stage in stages:
        if not stage.is_new:
            say(f"{stage.kind}: {_say_old(stage)}")
        for passed in findings[stage.kind].passed if stage.is_new else ():
            say(f"{stage.kind}: ok: {passed}")
    say("Nothing was submitted.")


def print_stages(
    stages: Sequence[Stage],
    made: Mapping[JobKind, Submission],
    findings: Mapping[JobKind, Findings],
    *,
    as_json: bool,
) -> None:
    """What became of every stage of a pipeline, and what a person wants to type now."""
    commands = _pipeline_commands(stages, made)
    if as_json:
        rows = [
            {"kind": stage.kind, "state": "submitted"}
            | submission_to_json(made[stage.kind], stage.prepared.job, findings[stage.kind])
            if stage.prepared and stage.is_new
            else _describe_old(stage)
            for stage in stages
        ]
        jobs = {stage.kind: _jobs_of(stage, made) for stage in stages}
        echo_json({"jobs": jobs, "stages": rows, "next": commands})
        return
    for stage in stages:
        say(f"{stage.kind:<10}{_say_stage(stage, made)}")
    for number, command in enumerate(commands):
        say(f"{'' if number else 'next':<10}{command}")


def _say_stage(stage: Stage, made: Mapping[JobKind, Submission]) -> str:
    if stage.prepared is None or not stage.is_new:
        return _say_old(stage)
    submission, job = made[stage.kind], stage.prepared.job
    parts = [f"job {submission.job}"]
    if len(submission.jobs) > 1:
        parts.append(f"and {len(submission.jobs) - 1} more of its chain")
    if job.tasks:
        parts.append(f"of {count_of(len(job.only) or job.tasks, 'task')}")
    if submission.after:
        parts.append(f"({submission.after})")
    if stage.replaced:
        parts.append(f"in place of {', '.join(stage.replaced)}, which could not have begun")
    if stage.kind == "train" and stage.prepared.request.is_awaited:
        parts.append("- what these make for it is looked at when it begins")
    return " ".join(parts)


def _say_old(stage: Stage) -> str:
    if stage.kept:
        first, *rest = stage.kept
        chain = f" (and {len(rest)} more of its chain)" if rest else ""
        note = f" {stage.note}" if stage.note else ""
        return f"job {first}{chain} is queued or running already, and stays{note}"
    return f"nothing is missing{f': {stage.note}' if stage.note else ''}"


def _describe_old(stage: Stage) -> dict[str, Any]:
    state = "kept" if stage.kept else "done"
    return {"kind": stage.kind, "state": state, "jobs": list(stage.kept), "note": stage.note}


def _jobs_of(stage: Stage, made: Mapping[JobKind, Submission]) -> list[str]:
    return list(made[stage.kind].jobs if stage.kind in made else stage.kept)


def _pipeline_commands(stages: Sequence[Stage], made: Mapping[JobKind, Submission]) -> list[str]:
    data = [job for stage in stages if stage.kind != "train" for job in _jobs_of(stage, made)]
    *_, train = stages
    commands = [f"scancel {' '.join(data)}"] if data else []
    if train.prepared is None:
        return commands
    from launcher.checks import cancel_command

    job = train.prepared.job
    if job.members:
        parent = shlex.quote(str(job.run_folder.parent))
        status = f"lmscale runs list {parent} --sweep {shlex.quote(job.run_folder.name)}"
    else:
        status = f"lmscale runs status {shlex.quote(str(job.run_folder))}"
    return [status, cancel_command(job), *commands]
