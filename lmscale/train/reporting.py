"""What rank 0 shows of a run: figures for the trackers and the log, progress on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from lmscale.config import dump_config
from lmscale.engine.step_report import StepReport, mean_figures
from lmscale.files.progress import terminal
from lmscale.model.family import account_model
from lmscale.ranks.device import device_name, peak_memory_bytes, peak_tflops
from lmscale.runs.attempts import AttemptLog
from lmscale.runs.goodput import PHASE, PROFILED_STEPS, STEP_PHASES, STEP_SECONDS
from lmscale.runs.loss_curves import TRAINED
from lmscale.runs.profiles import ProfilePlan
from lmscale.runs.trackers import Trackers
from lmscale.stream.mixture_changes import describe_change, find_changes
from lmscale.train.assemble import Run
from lmscale.train.charts import plan_charts
from lmscale.train.pace import Pace
from lmscale.train.planned import plan_figures
from lmscale.train.progress import Hook, ProgressCounter
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)

SPEEDS = (
    "speed/targets_per_second",
    "speed/positions_per_second",
    "speed/mfu_dense",
    "speed/mfu_causal",
    "speed/peak_tflops",
    STEP_SECONDS,
    "speed/data_wait_seconds",
    "speed/data_wait_fraction",
)


class MetricsHook:
    """Every ``log_every_steps``: the figures since the last line, to the trackers and the log.

    ``attempt`` is the record of this attempt, which goes on over rewinds. ``more_figures`` are
    asked for with every line, such as the guard's.
    """

    def __init__(
        self,
        run: Run,
        counter: ProgressCounter,
        trackers: Trackers,
        attempt: AttemptLog,
        more_figures: Callable[[], Mapping[str, float]],
        pace: Pace,
        profile: ProfilePlan | None = None,
    ) -> None:
        self._profile = profile
        self._run, self._counter, self._more_figures = run, counter, more_figures
        self._pace = pace
        self._trackers, self._attempt = trackers, attempt
        self._since: list[StepReport] = []
        self._phases = heartbeat.phase_seconds()
        config = run.config
        trackers.log_text("config", dump_config(config), step=run.start.step)
        self._peak = config.train.peak_tflops or peak_tflops(
            device_name(run.device), config.engine.precision
        )
        trackers.log_layout(
            plan_charts(config, world_size=run.ranks.world_size, has_peak=self._peak is not None)
        )
        if changes := [describe_change(change) for change in find_changes(run.stream.segments)]:
            trackers.log_text("mixture", "\n".join(changes), step=run.start.step)
        self._flops = account_model(config.model, config.sizes).flops
        self._planned = plan_figures(config, run.ranks, run.device)

    def __call__(self, report: StepReport) -> None:
        self._attempt.step(report.step, report.step_seconds, is_skipped=report.is_skipped)
        self._since.append(report)
        self._pace(report)
        is_last = report.step == self._run.config.train.steps or report.stop_reason is not None
        if report.step % self._run.config.train.log_every_steps == 0 or is_last:
            values = self._values(report)
            planned = self._planned.figures(self._counter.now.tokens) if self._planned else {}
            losses = {TRAINED: values["train/loss"]}
            self._trackers.log(report.step, values, losses=losses, planned=planned)
            logger.info(
                "step %d/%d  loss %.4f  lr %.2e  norm %.3f  %s %s/s  waited %.1f %%%s",
                report.step,
                self._run.config.train.steps,
                values["train/loss"],
                report.learning_rate,
                report.gradient_norm,
                render_speed(values["speed/targets_per_second"]),
                self._run.config.objective.targets_are,
                100 * (values["speed/data_wait_fraction"] or 0),
                self._pace.told(),
            )
            self._since.clear()

    def _values(self, report: StepReport) -> dict[str, float | None]:
        rows = self._since
        profile = self._profile
        # What a profiler slows down tells no speed.
        timed = [row for row in rows if profile is None or not profile.covers(row.step)]
        goodput = self._attempt.goodput()
        return {
            **{f"train/{name}": value for name, value in mean_figures(rows).items()},
            "train/learning_rate": report.learning_rate,
            "train/gradient_norm": report.gradient_norm,
            "train/loss_scale": report.loss_scale,
            "train/tokens": self._counter.now.tokens,
            "train/skipped_steps": self._counter.now.skipped_steps,
            **self._speeds(timed),
            **self._phase_figures(len(rows), is_profiled=len(timed) < len(rows)),
            PROFILED_STEPS: len(rows) - len(timed) or None,
            "speed/goodput": goodput.fraction,
            "speed/running_goodput": goodput.running_fraction,
            **{f"goodput/{cause}": round(v, 5) for cause, v in goodput.fractions.items()},
            **heartbeat.slowest_figures(),
            "memory/peak_bytes": peak_memory_bytes(self._run.device),
            **self._mixture_figures(report.first_n + report.samples),
            **self._more_figures(),
        }

    def _speeds(self, rows: Sequence[StepReport]) -> dict[str, float | None]:
        if not rows:
            return dict.fromkeys(SPEEDS)
        seconds = sum(row.step_seconds for row in rows)
        positions = sum(row.samples for row in rows) * self._run.config.stream.sequence_length
        # Both MFUs count every position of a window, padding included, as everybody's do.
        achieved = positions / seconds / self._run.ranks.world_size / 1e12  # per device, × FLOPs
        waited = sum(row.wait_seconds for row in rows)
        figures = (
            sum(row.targets for row in rows) / seconds,
            positions / seconds,
            achieved * self._flops.dense / self._peak if self._peak else None,
            achieved * self._flops.causal / self._peak if self._peak else None,
            self._peak,
            seconds / len(rows),
            waited / len(rows),
            waited / seconds,
        )
        return dict(zip(SPEEDS, figures, strict=True))

    def _phase_figures(self, steps: int, *, is_profiled: bool) -> dict[str, float | None]:
        """Seconds of a step in each of its phases, as this rank's host goes through them."""
        before, self._phases = self._phases, heartbeat.phase_seconds()
        return {
            f"{PHASE}{name}_seconds": None
            if is_profiled
            else (self._phases.get(name, 0.0) - before.get(name, 0.0)) / steps
            for name in STEP_PHASES
        }

    def _mixture_figures(self, n: int) -> dict[str, float]:
        """Of every source its share of the samples up to ``n``, and how often it was read."""
        stream = self._run.stream
        shares, epochs = stream.shares_at(n - 1), stream.epochs_at(n)
        return {f"mixture/{name}/share": share for name, share in shares.items()} | {
            f"mixture/{name}/epochs": times for name, times in epochs.items()
        }


def render_speed(targets_per_second: float | None) -> str:
    """For a line of the log, where all steps of a line may have been profiled."""
    return "-" if targets_per_second is None else f"{targets_per_second:,.0f}"


@contextmanager
def progress_hook(run: Run) -> Iterator[Hook]:
    """rich's progress on rank 0's terminal: steps, loss, tokens trained on, speed, time to go."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = terminal()
    if not console.is_terminal:
        yield lambda report: None  # the log's lines are there already
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    total = run.config.train.steps
    with Bar(*columns, console=console) as bar:
        task = bar.add_task(run.config.run.name, total=total, completed=run.start.step, figures="")

        counter = ProgressCounter(run.start)

        def hook(report: StepReport) -> None:
            counter(report)
            tokens, speed = counter.now.tokens, report.targets / report.step_seconds
            bar.update(
                task,
                completed=report.step,
                figures=f"loss {report.loss:.3f} · {tokens:,} tokens trained on · {speed:,.0f}/s",
            )

        yield hook
