"""torch.profiler around some steps of a run: a trace, memory, and a page of what took the time.

A hook of the loop, called on every rank where a profile was asked for, and not there at all
otherwise. What fails in it is told and never ends the run.
"""

from __future__ import annotations

import gc
import gzip
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from lmscale.engine.engine import MODEL_PREFIX, Engine
from lmscale.engine.step_report import StepReport
from lmscale.errors import LmscaleError
from lmscale.files.atomic import atomic_path, write_bytes
from lmscale.ranks.collectives import gather_json
from lmscale.ranks.device import device_name
from lmscale.runs.profiles import SNAPSHOT_FILE, SUMMARY_FILE, TRACE_FILE, ProfilePlan
from lmscale.runs.trackers import Trackers
from lmscale.train.assemble import Run
from lmscale.train.profile_page import render_lines, render_page
from lmscale.train.profile_summary import (
    MODULE,
    PHASE,
    Allocation,
    Event,
    Recording,
    summarize,
)
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)

MAX_EVENTS = 200_000  # of a memory snapshot: some hundred megabytes
_MEMORY = "[memory]"  # torch's name of an allocation in a trace


class StepProfiler:
    """Profiles the planned steps that are still to come. All ranks call it after every step."""

    def __init__(self, plan: ProfilePlan, run: Run, trackers: Trackers | None) -> None:
        self._plan, self._run, self._trackers = plan, run, trackers
        self._is_chosen = plan.is_for(run.ranks.rank)
        self._recorder: Recorder | None = None
        self._first = max(plan.first, run.start.step + 1)
        if self._first > plan.last and run.ranks.is_first:
            logger.warning(
                "steps %d to %d are done already: nothing is profiled", plan.first, plan.last
            )
        self._begin_before(run.start.step + 1)

    def __call__(self, report: StepReport) -> None:
        is_end = report.stop_reason is not None or report.step == self._run.config.train.steps
        is_last = is_end or report.step == self._plan.last
        if is_last and self._first <= report.step <= self._plan.last:
            self._end(report.step)
        elif not is_end:
            self._begin_before(report.step + 1)

    def close(self) -> None:
        """Leave a profile that has not come to its end, as by a rewind."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            with _surviving("the profile could not be left"):
                recorder.close()

    def _begin_before(self, step: int) -> None:
        if self._is_chosen and step == self._first and step <= self._plan.last:
            with _surviving("the profile could not be begun"), ExitStack() as undoing:
                recorder = Recorder(self._run.engine)
                undoing.callback(recorder.close)
                recorder.start()
                undoing.pop_all()
                self._recorder = recorder

    def _end(self, step: int) -> None:
        """Write what was recorded. The ranks wait for each other, so that the next step's time is
        that of a step.
        """
        page, recorder, run = "", self._recorder, self._run
        self._recorder = None
        if recorder is not None:
            with _surviving("the profile could not be ended"):
                recorder.stop()
        heartbeat.phase("profile")
        if recorder is not None:
            folder = self._plan.folder(run.folder, run.ranks.rank)
            title = (
                f"{run.config.run.name}, steps {self._first} to {step}, rank {run.ranks.rank} on "
                f"{device_name(run.device)}"
            )
            with _surviving(f"the profile could not be written to {folder}"), closing(recorder):
                page = _write(recorder, folder, title, steps=step - self._first + 1)
        pages = gather_json(page)
        if self._trackers is not None:
            texts = {f"profile/rank {rank}": text for rank, text in enumerate(pages) if text}
            self._trackers.log_pages(step, texts=texts, pictures={})


@contextmanager
def open_profiler(
    plan: ProfilePlan | None, run: Run, trackers: Trackers | None
) -> Iterator[tuple[StepProfiler, ...]]:
    """The hook, to stand behind all others, which are then no part of its first step; or none."""
    if plan is None:
        yield ()
        return
    profiler = StepProfiler(plan, run, trackers)
    try:
        yield (profiler,)
    finally:
        profiler.close()


@contextmanager
def _surviving(failed: str) -> Iterator[None]:
    """A block whose failure is told, and ends nothing: torch's profiler may raise anything."""
    try:
        yield
    except Exception as error:
        is_plain = isinstance(error, OSError | LmscaleError)
        said = error if is_plain else f"{type(error).__name__}: {error}"
        logger.warning("%s: %s", failed, said, exc_info=not is_plain)


def _write(recorder: Recorder, folder: Path, title: str, *, steps: int) -> str:
    """The page, which lies in the folder beside the trace and the memory's history."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder.export(folder)
    heartbeat.tick()
    summary = summarize(recorder.read(title, steps=steps))
    heartbeat.tick()
    page = render_page(summary)
    write_bytes(folder / SUMMARY_FILE, page.encode())
    for line in (*render_lines(summary), f"the whole page: {folder / SUMMARY_FILE}"):
        logger.info("%s", line)
    return page


class Recorder:
    """One recording: phases as the loop names them, modules, operations, kernels, allocations."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._device = engine, engine.device
        self._stack = ExitStack()
        is_cuda = self._device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
        self._profiler = profile(activities=activities, profile_memory=True)

    def start(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.memory._record_memory_history(max_entries=MAX_EVENTS)
        gc.collect()  # else what is freed within the steps would be that of before
        self._profiler.start()
        self._stack.callback(self._profiler.stop)
        if self._device.type == "cuda":
            self._stack.callback(torch.cuda.synchronize, self._device)
        self._stack.enter_context(_naming_modules(self._engine))
        self._stack.enter_context(_naming_phases())

    def stop(self) -> None:
        self._stack.close()

    def close(self) -> None:
        """Also stops the recording of memory, which ``export`` reads."""
        self.stop()
        if self._device.type == "cuda":
            torch.cuda.memory._record_memory_history(enabled=None)

    def export(self, folder: Path) -> None:
        """Write the trace, for https://ui.perfetto.dev or chrome://tracing, and on CUDA the memory
        snapshot, for https://pytorch.org/memory_viz. Raises ``OSError``.
        """
        with atomic_path(folder / TRACE_FILE, durable=False) as path:
            # torch compresses by a name's ending, and leaves out what cannot be written.
            plain = path.with_name(f"{path.name}.json")
            self._profiler.export_chrome_trace(str(plain))
            with open(plain, "rb") as trace, gzip.open(path, "wb", compresslevel=3) as file:
                shutil.copyfileobj(trace, file)
            plain.unlink()
        if self._device.type == "cuda":
            with atomic_path(folder / SNAPSHOT_FILE, durable=False) as path:
                torch.cuda.memory._dump_snapshot(str(path))

    def read(self, title: str, *, steps: int) -> Recording:
        """What was recorded, in plain values."""
        events = self._profiler.events() or ()
        own = [each for each in events if each.device_type == DeviceType.CPU]
        kernels = [each for each in events if each.device_type != DeviceType.CPU]
        spans = [_span(each) for each in kernels if not _is_range(each.name)]
        return Recording(
            title=title,
            steps=steps,
            events=[_read_event(each) for each in own if each.name != _MEMORY],
            allocations=list(self._read_allocations()),
            device_spans=spans,
        )

    def _read_allocations(self) -> Iterator[Allocation]:
        """torch's list of events has these added to the operations, one sum each."""
        results: Any = self._profiler.profiler.kineto_results  # pyright: ignore
        began = results.trace_start_ns()
        kind = DeviceType.CUDA if self._device.type == "cuda" else DeviceType.CPU
        for each in results.events():
            if each.name() == _MEMORY and each.device_type() == kind:
                seconds = (each.start_ns() - began) / 1e9
                yield Allocation(each.nbytes(), seconds, each.start_thread_id())


def _is_range(name: str) -> bool:
    return name.startswith((PHASE, MODULE))


def _span(event: Any) -> tuple[float, float]:
    return event.time_range.start / 1e6, event.time_range.end / 1e6


def _read_event(event: Any) -> Event:
    start, end = _span(event)
    kernels = [each for each in event.kernels if not _is_range(each.name)]
    return Event(
        name=event.name,
        thread=event.thread,
        start=start,
        end=end,
        sequence=event.sequence_nr,
        forward_thread=event.fwd_thread or None,  # torch counts threads from 1
        kernels=tuple((each.name, each.duration / 1e6) for each in kernels),
    )


@contextmanager
def _naming_phases() -> Iterator[None]:
    """Ranges of the loop's phases, one after the other."""
    current: list[record_function] = []

    def begin(phase: str) -> None:
        end()
        current.append(record_function(PHASE + phase))
        current[-1].__enter__()

    def end() -> None:
        while current:
            current.pop().__exit__(None, None, None)

    try:
        with heartbeat.listening(begin):
            yield
    finally:
        end()


@contextmanager
def _naming_modules(engine: Engine) -> Iterator[None]:
    """A range around the forward pass of every module; of a compiled one around the whole, since
    inside there are no modules any more.
    """
    with ExitStack() as stack:
        for name, module in list_named(engine.module):
            stack.callback(_name_module(module, name))
        yield


def list_named(scoring: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that can be told apart, by the names that their parameters have."""
    compiled: list[str] = []
    for name, module in scoring.named_modules():
        if not name or isinstance(module, nn.Identity):
            continue
        if any(name.startswith(f"{outer}.") for outer in compiled):
            continue
        if is_compiled(module):
            compiled.append(name)
        yield name.removeprefix(MODEL_PREFIX), module


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of it go to what ``module.compile()`` has made."""
    return module._compiled_call_impl is not None


def _name_module(module: nn.Module, name: str) -> Callable[[], None]:
    """Begin to name a module's calls; the function that ends it."""
    label = MODULE + name
    if is_compiled(module):
        # torch.compile has taken the module's hooks in, and looks for no new ones.
        compiled: Any = module._compiled_call_impl

        def named(*args: Any, **more: Any) -> Any:
            with record_function(label):
                return compiled(*args, **more)

        def restore() -> None:
            module._compiled_call_impl = compiled

        module._compiled_call_impl = named  # pyright: ignore[reportAttributeAccessIssue]
        return restore
    open_ranges: list[record_function] = []

    def begin(*_: Any) -> None:
        open_ranges.append(record_function(label))
        open_ranges[-1].__enter__()

    def end(*_: Any) -> None:
        if open_ranges:  # a pass that failed before it reached this module has none
            open_ranges.pop().__exit__(None, None, None)

    handles: Sequence[Any] = (
        module.register_forward_pre_hook(begin),
        # Also where recomputation has what it wants and leaves the module by an exception.
        module.register_forward_hook(end, always_call=True),
    )

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove
