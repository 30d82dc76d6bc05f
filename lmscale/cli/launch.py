"""``lmscale launch``: start the ranks of a run."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lmscale.cli.data_tasks import Stage, missing_tasks
from lmscale.cli.options import (
    ConfigArgument,
    JsonOption,
    SetOption,
    print_problems,
    print_warnings,
)
from lmscale.config import load_config
from lmscale.errors import EXIT_USER
from lmscale.files.printing import say

if TYPE_CHECKING:
    from launcher.checks import Findings
    from launcher.job import SlurmJob
    from launcher.submit import LaunchOptions, Submission

app = typer.Typer(help="Start the ranks of a run.", no_args_is_help=True)


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

    outcome = launch_local(config, set_ or (), num_ranks=num_ranks)
    print_problems(outcome.problems)
    raise typer.Exit(outcome.exit_code)


ClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="PROFILE",
        help="A profile's name (slurm/profiles/NAME.yaml) or path.",
        show_default=False,
    ),
]
NodesOption = Annotated[
    str, typer.Option("--nodes", metavar="N|MIN-MAX", help="Nodes; of a range, what is free.")
]
TimeOption = Annotated[
    str | None,
    typer.Option("--time", metavar="T", help="Limit of one job in place of the profile's."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the batch script and do nothing else.")
]
CheckOption = Annotated[bool, typer.Option("--check", help="Make all checks and submit nothing.")]
Job = Literal["train", "evaluate", "corpus", "shards"]
JobOption = Annotated[Job, typer.Option("--job", help="What is submitted.")]
TasksOption = Annotated[
    int | None,
    typer.Option("--tasks", metavar="N", min=1, help="Jobs that share a corpus or shards."),
]
PreflightOption = Annotated[
    bool, typer.Option("--preflight-only", help="Look at the nodes alone, train nothing.")
]
ArrayOption = Annotated[
    list[str] | None,
    typer.Option(
        "--array",
        metavar="A.B=C,D",
        help="Train one run for each value; several times: for each combination.",
    ),
]
SweepOption = Annotated[
    str | None,
    typer.Option("--sweep", metavar="NAME", help="Of the --array; default: RUN-sweep."),
]
ChainOption = Annotated[
    int | None,
    typer.Option(
        "--chain", metavar="N", min=1, help="Jobs in a row, where a job may not be requeued."
    ),
]
StepOption = Annotated[
    int | None,
    typer.Option(
        "--step", metavar="N", min=0, help="The checkpoint to evaluate; default: the newest then."
    ),
]
AfterOption = Annotated[
    str | None,
    typer.Option("--after", metavar="JOB", help="Evaluate when this job has ended, not at once."),
]


@app.command()
def slurm(
    config: ConfigArgument,
    cluster: ClusterOption,
    nodes: NodesOption = "1",
    time: TimeOption = None,
    set_: SetOption = None,
    dry_run: DryRunOption = False,
    check: CheckOption = False,
    job: JobOption = "train",
    tasks: TasksOption = None,
    preflight_only: PreflightOption = False,
    array: ArrayOption = None,
    sweep: SweepOption = None,
    chain: ChainOption = None,
    step: StepOption = None,
    after: AfterOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit CONFIG to Slurm: checked, frozen into the run's folder, requeued until it is done.

    Everything that can be known before is looked at first, and all problems are told at once. What
    runs is a copy of code, configuration and script; the run may be changed and launched again when
    no copy is queued or running.
    """
    from launcher.checks import check as check_prepared
    from launcher.submit import LaunchOptions, prepare, submit

    options = LaunchOptions(
        config=config,
        cluster=cluster,
        overrides=tuple(set_ or ()),
        kind="preflight" if preflight_only else job,
        nodes=nodes,
        time=time,
        chain=chain,
        tasks=tasks,
        axes=tuple(array or ()),
        sweep=sweep,
        step=step,
        after=after,
    )
    if tasks and job in ("corpus", "shards") and not dry_run:
        options = replace(options, only=_find_missing(options, job, as_json=as_json))
    prepared = prepare(options)
    if dry_run:
        print_warnings(prepared.warnings)
        say(prepared.script, end="")
        return
    findings = check_prepared(prepared)
    print_warnings(findings.warnings)
    if findings.problems:
        print_problems(findings.problems)
        raise typer.Exit(EXIT_USER)
    if check:
        _print_findings(findings, prepared.job, as_json=as_json)
        return
    submission = submit(prepared)
    _print_submission(submission, prepared.job, findings, as_json=as_json)


def _find_missing(options: LaunchOptions, job: Stage, *, as_json: bool) -> tuple[int, ...]:
    """The unfinished tasks of a data job. Exits the command when none is left."""
    config = load_config(options.config, options.overrides)
    missing = missing_tasks(config, job, options.tasks or 1)
    if not missing:
        sentence = f"Nothing is missing from the {job} of {options.config}; nothing was submitted."
        say(json.dumps({"job": None}) if as_json else sentence)
        raise typer.Exit()
    return missing


def _print_findings(findings: Findings, job: SlurmJob, *, as_json: bool) -> None:
    if as_json:
        rows = {"job": job.name, "passed": findings.passed, "warnings": findings.warnings}
        say(json.dumps(rows, indent=1))
        return
    for passed in findings.passed:
        say(f"ok: {passed}")
    say("Nothing was submitted.")


def _print_submission(
    submission: Submission, job: SlurmJob, findings: Findings, *, as_json: bool
) -> None:
    from launcher.checks import describe_rest

    output = job.output.replace("%%", "\0").replace("%j", submission.job)
    output = output.replace("%A", submission.job).replace("%a", "*").replace("\0", "%")
    places = {"script": str(Path(submission.folder) / "job.sh"), "output": output}
    if not job.members and job.kind == "train":
        places["logs"] = str(job.run_folder / "logs")
    commands = _next_commands(submission, job)
    if as_json:
        row = {
            "job": submission.job,
            "jobs": list(submission.jobs),
            "name": job.name,
            "submission": submission.submission,
            "run": str(job.run_folder),
            **places,
            "warnings": findings.warnings,
            "next": commands,
        }
        say(json.dumps(row, indent=1))
        return
    chain = f" and {len(submission.jobs) - 1} more of its chain" if len(submission.jobs) > 1 else ""
    say(f"submitted job {submission.job}{chain}: {job.name}")
    if rest := describe_rest(job):
        say(f"  {rest}; the others are done")
    for name, place in places.items():
        say(f"  {name:<8}{place}")
    for number, command in enumerate(commands):
        say(f"  {'' if number else 'next':<8}{command}")


def _next_commands(submission: Submission, job: SlurmJob) -> list[str]:
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
