"""From a configuration and a cluster to a job in Slurm's queue: prepare, check, freeze, submit."""

from __future__ import annotations

import itertools
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import launcher
from launcher.checks import describe_unusable_nodes, find_live_jobs
from launcher.job import JobKind, JobRequest, Prepared, SlurmJob
from launcher.options import (
    LaunchOptions,
    find_misfits,
    parse_nodes,
    plan_cluster,
    read_asked,
)
from launcher.plan import plan_folder, plan_job, plan_state_folder
from launcher.preflight import cordon
from launcher.render import render
from launcher.slurm import parse_duration, sbatch, scancel
from launcher.sweep import is_rows, parse_axis, plan_sweep, read_rows
from launcher.upstream import Upstream
from lmscale.config import assets, dump_config, load_config
from lmscale.config.cluster import find_profile
from lmscale.config.load import blaming
from lmscale.config.run import with_absolute_places
from lmscale.config.sbatch_options import Asked
from lmscale.errors import ClusterError, ConfigError, DataError, LmscaleError
from lmscale.files.atomic import to_json_bytes
from lmscale.files.jsonl import append_durable_row
from lmscale.files.locks import locked_file
from lmscale.files.output_folder import new_folder
from lmscale.files.redact import redact_command
from lmscale.files.run_files import SUBMISSIONS_FILE, SWEEP_FILE
from lmscale.runs.environment import collect_code
from lmscale.runs.installed import LOCK_FILE, read_installed, render_lock
from lmscale.runs.sweep_folder import write_sweep

Result = TypeVar("Result")
SCRIPT = "job.sh"
LOCK_SECONDS = 60.0  # a submission takes a second or two


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A row of ``submissions.jsonl``."""

    time: float
    submission: str
    job: str
    jobs: tuple[str, ...]  # numbers of all jobs of a chain; otherwise the one job's
    kind: str
    cluster: str
    nodes: tuple[int, int]
    tasks: int | None
    after: str | None  # what it waits for, as sbatch calls it
    pipeline: tuple[Upstream, ...]  # the stages before it, in their order
    limit_seconds: float | None  # a job's time limit
    signal_seconds: float  # how long before its limit a job is asked to stop
    folder: str  # the frozen copy
    command: tuple[str, ...]
    user: str
    host: str


def prepare(options: LaunchOptions) -> Prepared:
    """Load, plan and render. Raises ``ConfigError`` with the problems of config and profile."""
    now = time.time()
    problems: list[str] = []
    asked = _collect(problems, lambda: read_asked(options))
    known = asked or Asked({}, (), None)
    cluster = _collect(problems, lambda: plan_cluster(options, known))
    config = _collect(
        problems, lambda: with_absolute_places(load_config(options.config, options.overrides))
    )
    nodes = _collect(problems, lambda: parse_nodes(options.nodes))
    texts = [text for text in options.axes if not is_rows(text)]
    axes = [_collect(problems, lambda text=text: parse_axis(text)) for text in texts]
    files = [Path(text) for text in options.axes if is_rows(text)]
    if len(files) > 1:
        problems.append(f"--array {files[1]}: give one file of rows; its keys may be many.")
    rows = _collect(problems, lambda: read_rows(files[0]) if files else ({},))
    problems += find_misfits(options)
    if problems or cluster is None or config is None or nodes is None:
        raise ConfigError(problems)
    sweep = None
    if options.axes:
        axes = [axis for axis in axes if axis is not None]
        rows = rows or ({},)
        sweep = plan_sweep(options.config, options.overrides, axes, rows=rows, name=options.sweep)
    folder = plan_folder(options.kind, config, sweep)
    preflight = cluster.preflight
    cordoned: Iterable[str] = ()
    if preflight.cordon_file is not None:
        cordoned = sorted(cordon.active(preflight.cordon_file, now, preflight.cordon_hours))
    request = JobRequest(
        config=config,
        cluster=cluster,
        cluster_name=Path(options.cluster).stem,
        cluster_file=find_profile(options.cluster).absolute(),
        submission=plan_submission(plan_state_folder(options.kind, folder), options.kind, now),
        python=sys.executable,
        folder=Path.cwd(),
        min_nodes=nodes[0],
        max_nodes=nodes[1],
        takes_whole_nodes=options.kind != "evaluate" or options.nodes is not None,
        excluded=tuple(cordoned),
        tasks=options.tasks or 1,
        only=options.only,
        step=options.step,
        after=known.after,
        is_awaited=options.is_awaited,
        profile=options.profile,
        sweep=sweep,
        ignores_plan=options.ignores_plan,
    )
    with blaming(options.overrides):
        job = plan_job(request, options.kind)
    warnings = describe_unusable_nodes(request, job)
    if request.excluded:
        warnings.append(
            f"{', '.join(request.excluded)} will be left out: found bad by a preflight "
            f"({preflight.cordon_file})."
        )
    return Prepared(request=request, job=job, script=render(job), warnings=tuple(warnings))


def plan_submission(state: Path, kind: JobKind, now: float) -> str:
    """An id made of the time and the kind of job, of which ``state`` has no folder yet."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{kind}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if not (state / name).exists())


def _collect(problems: list[str], make: Callable[[], Result]) -> Result | None:
    """What ``make`` makes; its problems are kept for later, to be told with all others."""
    try:
        return make()
    except LmscaleError as error:
        problems += error.problems
        return None


def submit(prepared: Prepared) -> Submission:
    """Freeze and submit. Raises ``ClusterError`` when a copy was submitted in the meantime."""
    with submitting(prepared.job.state_folder):
        if live := find_live_jobs(prepared.job):
            raise ClusterError(live)
        return submit_held(prepared)


def submit_held(prepared: Prepared, *, pipeline: tuple[Upstream, ...] = ()) -> Submission:
    """The same behind the ``pipeline`` that it waits for, for a caller that is ``submitting`` and
    has looked for copies.
    """
    request, job = prepared.request, prepared.job
    script = freeze(job, request, prepared.script)
    try:
        jobs = _submit_all(script, job.chain)
    except BaseException:
        shutil.rmtree(job.frozen_folder, ignore_errors=True)
        raise
    submission = Submission(
        time=time.time(),
        submission=job.submission,
        job=jobs[0],
        jobs=jobs,
        kind=job.kind,
        cluster=request.cluster_name,
        nodes=(job.min_nodes, job.max_nodes),
        tasks=job.tasks,
        after=job.after,
        pipeline=pipeline,
        limit_seconds=parse_duration(request.cluster.time),
        signal_seconds=float(request.cluster.signal_seconds),
        folder=str(job.frozen_folder),
        command=tuple(redact_command(["lmscale", *sys.argv[1:]])),
        user=cordon.user_name(),
        host=socket.gethostname(),
    )
    append_submission(job.state_folder, submission)
    if request.sweep:
        try:
            write_sweep(request.sweep.model_copy(update={"job": jobs[0]}))
        except OSError as error:
            raise ClusterError(
                f"The job was submitted, but {job.run_folder / SWEEP_FILE} cannot be written: "
                f"{error}. `lmscale runs list --sweep` will not know of it."
            ) from None
    return submission


def freeze(job: SlurmJob, request: JobRequest, script: str) -> Path:
    """Copy what the job runs beside the run, whole or not at all; gives the script.

    So a later change of the clone changes no requeued attempt. In ``RUN/slurm/ID/`` lie job.sh,
    config.yaml, cluster.yaml, code.json, code/, requirements.lock, and the configs/ of a sweep.
    Raises ``ClusterError``.
    """
    final = job.frozen_folder
    texts = {final / SCRIPT: script, job.config: dump_config(request.config)}
    texts[final / "cluster.yaml"] = dump_config(request.cluster)
    if request.cluster.runs_as_submitted:  # else the first attempt writes it
        texts[final / LOCK_FILE] = render_lock(read_installed())
    for member, config in zip(job.members, request.runs, strict=False):
        texts[member.config] = dump_config(config)
    try:
        with new_folder(final) as work:  # an id is new, so nothing is there
            for path, text in texts.items():
                place = work / path.relative_to(final)
                place.parent.mkdir(exist_ok=True)
                place.write_text(text, encoding="utf-8")
            (work / SCRIPT).chmod(0o755)
            (work / "code.json").write_bytes(to_json_bytes(collect_code()))
            copy_code(work / job.code.name)
    except OSError as error:
        raise ClusterError(
            f"{final} cannot be written: {error.strerror or error}. The job needs its frozen copy "
            "there; make room, or set run.folder to another place."
        ) from None
    return final / SCRIPT


def copy_code(folder: Path) -> None:
    """The packages, and the configs and templates beside them, where the copy looks for them.

    With modification times: what this interpreter has compiled counts for the copy as well.
    """
    for source in (Path(assets.__file__).parents[1], Path(launcher.__file__ or "").parent):
        shutil.copytree(source, folder / source.name, ignore=_ignore)
    for name in ("configs", "slurm"):
        shutil.copytree(assets.find_assets(name), folder / name, ignore=_ignore)


def _ignore(place: str, names: list[str]) -> set[str]:
    """Leave out other interpreters' bytecode, editors' files, and an installed package's assets."""
    if Path(place).name == "__pycache__":
        return {name for name in names if not name.endswith(f".{sys.implementation.cache_tag}.pyc")}
    return {
        name
        for name in names
        if name.startswith(".")
        or name.endswith("~")
        or (name == "assets" and Path(place).name == "lmscale")
    }


def append_submission(folder: Path, submission: Submission) -> None:
    """Add a row that is on disk before this returns: Slurm has the job already."""
    path = folder / SUBMISSIONS_FILE
    try:
        append_durable_row(path, asdict(submission))
    except (OSError, DataError) as error:
        raise ClusterError(
            f"Job {submission.job} was submitted, but {path} cannot be written ({error}), so "
            f"`lmscale runs` will not know of it. Cancel it (scancel {submission.job}) and make "
            "room, or leave it."
        ) from None


@contextmanager
def submitting(folder: Path, *, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the right to submit for this folder; the file lock ends with the process."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_file(folder / ".submitting", seconds))
        except BlockingIOError:
            raise ClusterError(
                f"{folder}: another `lmscale launch slurm` has been submitting for this folder for "
                f"{seconds:.0f} s. Wait until it ends."
            ) from None
        except OSError as error:
            raise ClusterError(
                f"{folder} cannot be written: {error.strerror or error}. The job keeps its state "
                "there; set run.folder to another place."
            ) from None
        yield


def _submit_all(script: Path, count: int) -> tuple[str, ...]:
    """All jobs of a chain, or none."""
    jobs: list[str] = []
    try:
        for _ in range(count):
            jobs.append(sbatch(script))
    except BaseException:
        scancel(jobs)
        raise
    return tuple(jobs)
