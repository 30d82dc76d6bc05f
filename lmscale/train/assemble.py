"""Configuration → everything a run needs, resumed from its newest good checkpoint if it has one."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lmscale.checkpoint.find import Candidate, Search
from lmscale.checkpoint.load import load_checkpoint
from lmscale.checkpoint.manifest import read_state
from lmscale.checkpoint.places.local_tier import open_node_place
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.places.run_place import open_place, prepare_place
from lmscale.config import BatchPlan, RunConfig
from lmscale.engine.build import check_precision
from lmscale.engine.engine import Engine
from lmscale.errors import CheckpointError, DataError, RefusedError
from lmscale.files.atomic import writing
from lmscale.files.printing import count_of
from lmscale.files.strangers import checked
from lmscale.guard.state import GuardState, read_guard_state
from lmscale.history.history import HISTORY, History, pending_jumps, read_history, record_resume
from lmscale.model.family import account_model
from lmscale.objective.objective import build_preparation
from lmscale.ranks.collectives import broadcast_object, failing_together
from lmscale.ranks.device import device_name
from lmscale.ranks.mesh import Mesh, plan_mesh
from lmscale.ranks.ranks import Ranks
from lmscale.runs.continuation import identity_of
from lmscale.runs.goodput import FINISHED
from lmscale.runs.lease import NO_LEASE, Lease
from lmscale.runs.origins import BRANCH, INITIAL, ORIGINS, Origin, save_origins
from lmscale.stream.batches import Preparation
from lmscale.stream.loader import StepLoader, open_loader
from lmscale.stream.mixture_changes import MixtureChange, describe_change, find_changes
from lmscale.stream.overlong import describe_overlong
from lmscale.stream.stream import Stream, StreamState, open_stream
from lmscale.stream.worker import LoaderJob
from lmscale.tokenizer.base import Tokenizer
from lmscale.train.class_weights import CLASS_WEIGHTS, STORED, ClassWeights, bring_class_weights
from lmscale.train.early_stop import find_early_stop, read_stop_figures
from lmscale.train.folder import freeze_run, log_changes
from lmscale.train.initial import begin_engine, build_run_engine
from lmscale.train.probe import find_probe_difference, measure_probe
from lmscale.train.progress import STREAM, Progress, describe_steps, read_progress
from lmscale.train.run_tokenizer import choose_template, load_run_tokenizer
from lmscale.train.teacher import TEACHER, bring_teacher
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run is made of, wherever it goes on."""

    config: RunConfig
    ranks: Ranks
    mesh: Mesh
    device: torch.device
    plan: BatchPlan
    tokenizer: Tokenizer
    place: Place  # of its checkpoints
    identity: dict[str, Any]
    history: History  # as it was at the start: all its rewinds are behind that
    lease: Lease  # this rank's
    should_stop: Callable[[], bool]  # asked while a rank waits for data

    @property
    def folder(self) -> Path:
        return self.config.folder


@dataclass(frozen=True, kw_only=True)
class Run(Setting):
    """A run that is ready for its next step."""

    stream: Stream
    preparation: Preparation  # of the stream's rows, for the objective
    loader: StepLoader
    engine: Engine
    start: Progress  # where it goes on: zeros for a new run
    guard_state: GuardState | None  # at the start, as the guard had left it
    origin: Origin | None  # which checkpoint of another run its first weights were
    branch: Origin | None  # … or of which run it is a branch, and from where on
    teacher: Origin | None  # of a distillation
    class_weights: ClassWeights | None  # that balance its classes
    stop_figures: Mapping[int, float]  # step → figure of evaluation.stop, up to the start
    passed_over: frozenset[int] = frozenset()  # steps of checkpoints that this start did not take

    def find_early_stop(self, figures: Mapping[int, float], *, step: int) -> str | None:
        """Why the run ends with ``step`` though it is not its last one, by its figures so far."""
        if step >= self.config.train.steps:
            return None
        return find_early_stop(figures, self.config.evaluation.stop, step=step)

    @property
    def good_end(self) -> str | None:
        """Why nothing was left to train before this start, in the words of attempts.jsonl: all
        steps were done, or all that were worth it.
        """
        if self.start.step >= self.config.train.steps:
            return FINISHED
        return self.find_early_stop(self.stop_figures, step=self.start.step)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run goes on, as a checkpoint's manifest says; without arguments its beginning."""

    is_new: bool = True
    rewinds: int = 0  # that had happened when the checkpoint was written
    progress: Progress = Progress()
    stream: StreamState | None = None
    guard: GuardState | None = None
    origin: Origin | None = None
    branch: Origin | None = None
    teacher: Origin | None = None
    class_weights: ClassWeights | None = None


@contextmanager
def open_run(
    config: RunConfig,
    ranks: Ranks,
    device: torch.device,
    *,
    lease: Lease = NO_LEASE,
    should_stop: Callable[[], bool] = lambda: False,
    engine: Engine | None = None,
) -> Iterator[Run]:
    """Open a run on all ranks together, in a folder that it has claimed (``claim_folder``).

    It goes on from the newest checkpoint that verifies, is of this run, was not undone by a rewind,
    and turns out right once it is loaded; every one that is passed over is named with the reason.
    ``engine``: one of the same run to load it into, for a rewind; else one is built. The process
    group must be there. ``should_stop`` is asked while a rank waits for data. Raises the same
    ``LmscaleError`` on every rank when any of them cannot go on.
    """
    mesh = plan_mesh(ranks)
    plan = config.batch.plan(mesh.data.size)
    if ranks.is_first:
        for advice in (*config.batch.describe_small(plan), *config.describe_doubts()):
            logger.warning("%s", advice)
    check_precision(config.engine, device)
    with failing_together():
        tokenizer = load_run_tokenizer(config)
        heartbeat.tick()
    place = _prepare_place(config, ranks, lease)
    history = History()
    with failing_together():
        if ranks.is_first:  # who alone reads it: a stale copy elsewhere may not count
            history = read_history(config.folder)
    setting = Setting(
        config=config,
        ranks=ranks,
        mesh=mesh,
        device=device,
        plan=plan,
        tokenizer=tokenizer,
        place=place,
        identity=identity_of(config, tokenizer.fingerprint),
        history=checked(HISTORY, broadcast_object(asdict(history))),
        lease=lease,
        should_stop=should_stop,
    )
    with ExitStack() as stack:
        search = _search(setting)
        try:
            run, candidate = _resume(setting, search, engine, stack)
        except CheckpointError:  # on all ranks; `runs status` is to show why nothing goes on
            if ranks.is_first:
                record_resume(config.folder, None, search.passed_over)
            raise
        with failing_together():
            if ranks.is_first:
                lease.check()
                changed = None
                if candidate is not None:
                    log_changes(config, run.start.step)
                    changed = log_mixture_change(run)
                freeze_run(config, tokenizer, choose_template(config, run.stream))
                save_origins(config.folder, {INITIAL: run.origin, BRANCH: run.branch})
                record_resume(config.folder, candidate, search.passed_over, mixture=changed)
            heartbeat.tick()
        _tell_start(run)
        name_of = setting.place.name_of
        passed = {over.step for over in search.passed_over if over.name == name_of(over.step)}
        yield replace(run, passed_over=frozenset(passed))


def _prepare_place(config: RunConfig, ranks: Ranks, lease: Lease) -> Place:
    """Where the checkpoints are, once no older copy of the run can commit anything there."""
    place = open_place(config)
    with failing_together():
        if ranks.is_first:
            lease.check()  # else this is the older copy
            with writing("checkpoints", place.location, CheckpointError):
                prepare_place(config, place)
        heartbeat.tick()
    return place


def _search(setting: Setting) -> Search:
    ranks, engine = setting.ranks, setting.config.engine
    node_place = None
    with failing_together():
        node_place = open_node_place(setting.config)
    return Search(
        [setting.place] if node_place is None else [node_place, setting.place],
        ranks,
        identity=setting.identity,
        undone=setting.history.undone,
        topology={
            "world_size": ranks.world_size,
            "zero_stage": engine.zero_stage,
            "precision": engine.precision,
        },
    )


def _resume(
    setting: Setting, search: Search, given: Engine | None, stack: ExitStack
) -> tuple[Run, Candidate | None]:
    """The run at its newest good checkpoint; at its beginning where nothing was ever saved."""
    engine = given
    for candidate in search:
        try:
            start = _read_start(candidate)
        except RefusedError:  # of a newer lmscale, not damaged
            raise
        except CheckpointError as error:  # on all ranks alike: they have the same manifest
            search.reject(candidate, error.problems)
            continue
        with ExitStack() as trial:
            run = _open_at(setting, start, engine, trial)
            problems = _load(candidate, run)
            if problems:
                engine = run.engine
                del run
                search.reject(candidate, problems)
                continue
            stack.enter_context(trial.pop_all())
            location, step = candidate.place.location, candidate.manifest.step
            logger.info("resumed from %s at step %d", location, step)
            return run, candidate
    if given is not None:
        raise CheckpointError(
            f"No checkpoint of {setting.place.location} could be gone back to; the log above says "
            "why of each. Start the same command again."
        )
    if engine is not None:  # it has tried the nodes' own disks in vain, and has no first weights
        engine = None
        gc.collect()  # it refers to itself
    return _open_at(setting, Start(), None, stack), None


def _read_start(candidate: Candidate) -> Start:
    """Raises ``CheckpointError`` for a checkpoint that does not say where the run was."""
    manifest, where = candidate.manifest, candidate.name
    return Start(
        is_new=False,
        rewinds=manifest.rewinds,
        progress=read_progress(manifest, where=where),
        stream=StreamState.from_json(manifest.state.get(STREAM)),
        guard=read_guard_state(manifest, where=where),
        origin=read_state(manifest, INITIAL, ORIGINS, where=where),
        branch=read_state(manifest, BRANCH, ORIGINS, where=where),
        teacher=read_state(manifest, TEACHER, ORIGINS, where=where),
        class_weights=read_state(manifest, CLASS_WEIGHTS, STORED, where=where),
    )


def _open_at(setting: Setting, start: Start, engine: Engine | None, stack: ExitStack) -> Run:
    """The run at ``start``; an engine that is built here has first weights only in a new run."""
    config, progress = setting.config, start.progress
    with failing_together():
        stream = open_stream(
            config.stream,
            seed=config.run.seed,
            shape=config.window,
            state=start.stream,
            jumps=pending_jumps(setting.history.rewinds, rewinds_in_history=start.rewinds),
            tokenizer_fingerprint=setting.tokenizer.fingerprint,
            # 512 ranks × 100,000 shards would be 51 million stats
            check_files=setting.ranks.is_first,
        )
        stack.enter_context(stream)
        heartbeat.tick()
    with failing_together():
        preparation = build_preparation(config)
    job = LoaderJob(
        stream=stream,
        preparation=preparation,
        plan=setting.plan,
        data_rank=setting.mesh.data.rank,
        first_n=progress.n,
        num_steps=max(0, config.train.steps - progress.step),
        first_step=progress.step,
    )
    loader = open_loader(job, workers=config.stream.workers, should_stop=setting.should_stop)
    stack.enter_context(loader)
    heartbeat.tick()
    origin, teacher = start.origin, start.teacher
    if engine is None:
        engine, origin, teacher = _build_engine(setting, start)
    class_weights = bring_class_weights(
        engine, config, setting.ranks, stream, first_n=progress.n, before=start.class_weights
    )
    return Run(
        **vars(setting),
        stream=stream,
        preparation=preparation,
        loader=loader,
        engine=engine,
        start=progress,
        guard_state=start.guard,
        origin=origin,
        branch=start.branch,
        teacher=teacher,
        class_weights=class_weights,
        stop_figures=read_stop_figures(config, setting.ranks, last_step=progress.step),
    )


def _build_engine(setting: Setting, start: Start) -> tuple[Engine, Origin | None, Origin | None]:
    """An engine, whose first weights they were, and whose its teacher's."""
    config, ranks, fingerprint = setting.config, setting.ranks, setting.tokenizer.fingerprint
    build = partial(build_run_engine, config, setting.plan, setting.mesh, setting.device)
    origin = start.origin
    if start.is_new:
        engine, origin = begin_engine(build, config, ranks, tokenizer_fingerprint=fingerprint)
    else:
        engine = build(fill=False)
    teacher = bring_teacher(
        engine, config, ranks, tokenizer_fingerprint=fingerprint, before=start.teacher
    )
    return engine, origin, teacher


def _load(candidate: Candidate, run: Run) -> Sequence[str]:
    """Load a checkpoint. Why what was loaded is not what was saved, though its files are sound."""
    heartbeat.phase("load")
    try:
        load_checkpoint(candidate.place, candidate.manifest, run.engine)
    except CheckpointError as error:
        return error.problems
    saved, difference = candidate.manifest.probe, None
    if saved is not None:
        try:
            now = measure_probe(run.engine, run.stream, run.preparation, windows=saved.windows)
            difference = find_probe_difference(saved, now)
        except DataError as error:  # such as of a source that has left the mixture since
            logger.warning(
                "%s: its known loss could not be measured again: %s", candidate.name, error
            )
    heartbeat.phase("start")
    return [] if difference is None else [f"{candidate.name}: {difference}."]


def log_mixture_change(run: Run) -> MixtureChange | None:
    """Tell the change of the mixture that this start makes."""
    changes = find_changes(run.stream.segments)
    change = next((change for change in changes if change.from_n == run.start.n), None)
    if change is not None:
        logger.warning("the mixture changes %s", describe_change(change, run.start.step + 1))
    return change


def _tell_start(run: Run) -> None:
    if run.ranks.is_first:
        for told in describe_overlong(run.stream.datasets, "stream.sources"):
            logger.warning("%s", told)
    logger.info(describe_start(run))


def describe_start(run: Run) -> str:
    """What is about to train, in one line."""
    config, plan, device = run.config, run.plan.at(run.start.step), run.device
    grows = plan.global_windows < config.batch.global_windows
    grown = f", and by batch.warmup up to {config.tokens_per_step:,}" if grows else ""
    count = account_model(config.model, config.sizes).total
    name = "CPU" if device.type == "cpu" else device_name(device)
    return (
        f"{config.run.name}: {count:,} parameters, {count_of(run.mesh.size, 'rank')} on {name}, "
        f"{config.engine.precision}, ZeRO {config.engine.zero_stage}, "
        f"{plan.global_windows * config.window.stride:,} tokens a step{grown} "
        f"(micro-batches a rank: {plan.accumulation} of {count_of(plan.micro_windows, 'window')}), "
        f"bos: {'none' if run.stream.bos_id is None else run.stream.bos_id}, "
        f"{describe_steps(run.start.step, config.train.steps)}, in {config.folder}"
    )
