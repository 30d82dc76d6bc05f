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
from lmscale.runs.trackers import Trackers
from lmscale.train.assemble import Run
from lmscale.train.progress import Hook, ProgressCounter
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)

# TensorBoard's "custom scalars" page: what a person looks at first, side by side, by patterns.
CHARTS: dict[str, dict[str, list[str]]] = {
    "learning": {
        "loss, trained and held out": ["train/loss", "evaluation/.*/loss"],
        "gradient norm": ["train/gradient_norm"],
        "learning rate": ["train/learning_rate"],
    },
    "speed": {
        "tokens per second": ["speed/tokens_per_second"],
        "MFU, both conventions": ["speed/mfu_.*"],
        "waiting for data": ["speed/data_wait_fraction"],
        "goodput, of the wall time and of the running time": ["speed/.*goodput"],
        "slowest rank, times the median's work": ["speed/slowest_ratio"],
    },
    "goodput": {
        "where the wall time went, all of it": ["goodput/.*"],
        "what was lost": ["goodput/(redone|undone|down)"],
        "what held the steps up": ["goodput/(stalls|saves|evaluation|other)"],
        "getting to the first step": ["goodput/(start|load)"],
    },
    "checkpoints": {
        "seconds in which a save held the steps up": ["checkpoint/(stopped|waited|copy)_seconds"],
        "seconds until it was committed": ["checkpoint/commit_seconds"],
        "bytes": ["checkpoint/bytes"],
        "GB/s": ["checkpoint/gigabytes_per_second"],
    },
    "guard": {
        "steps that were not finite, spikes, skipped steps": [
            "guard/(nonfinite|spike|skipped)_steps",
            "train/skipped_steps",
        ],
        "rewinds": ["guard/rewinds"],
        "samples jumped": ["guard/jumped_samples"],
    },
}


def plan_charts(figures: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """``CHARTS``, and of an objective's other figures one of the shares that were right and one of
    the losses of its terms and parts.
    """
    others = [name for name in figures if name != "loss"]
    shares = [name for name in others if "accuracy" in name]
    losses = [name for name in others if name not in shares]
    more = {
        title: [f"(train|evaluation/.*)/{name}" for name in names]
        for title, names in (("accuracy", shares), ("terms and parts of the loss", losses))
        if names
    }
    return {**CHARTS, "learning": CHARTS["learning"] | more}


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
    ) -> None:
        self._run, self._counter, self._more_figures = run, counter, more_figures
        self._trackers, self._attempt = trackers, attempt
        self._since: list[StepReport] = []
        config = run.config
        trackers.log_text("config", dump_config(config), step=run.start.step)
        trackers.log_layout(plan_charts(config.objective.figures))
        self._peak = config.train.peak_tflops or peak_tflops(
            device_name(run.device), config.engine.precision
        )
        self._flops = account_model(config.model, config.sizes).flops

    def __call__(self, report: StepReport) -> None:
        self._attempt.step(report.step, report.step_seconds, is_skipped=report.is_skipped)
        self._since.append(report)
        is_last = report.step == self._run.config.train.steps or report.stop_reason is not None
        if report.step % self._run.config.train.log_every_steps == 0 or is_last:
            values = self._values(report)
            self._trackers.log(report.step, values)
            logger.info(
                "step %d/%d  loss %.4f  lr %.2e  norm %.3f  %s tokens/s  waited %.1f %%",
                report.step,
                self._run.config.train.steps,
                values["train/loss"],
                report.learning_rate,
                report.gradient_norm,
                f"{values['speed/tokens_per_second']:,.0f}",
                100 * (values["speed/data_wait_fraction"] or 0),
            )
            self._since.clear()

    def _values(self, report: StepReport) -> dict[str, float | None]:
        rows = self._since
        seconds = sum(row.step_seconds for row in rows)
        targets = sum(row.targets for row in rows)
        positions = sum(row.samples for row in rows) * self._run.config.stream.sequence_length
        # Both MFUs count every position of a window, padding included, as everybody's do.
        achieved = positions / seconds / self._run.ranks.world_size / 1e12  # per device, × FLOPs
        mfu = {
            f"speed/mfu_{name}": achieved * flops / self._peak if self._peak else None
            for name, flops in (("dense", self._flops.dense), ("causal", self._flops.causal))
        }
        goodput = self._attempt.goodput()
        return {
            **{f"train/{name}": value for name, value in mean_figures(rows).items()},
            "train/learning_rate": report.learning_rate,
            "train/gradient_norm": report.gradient_norm,
            "train/loss_scale": report.loss_scale,
            "train/tokens": self._counter.now.tokens,
            "train/skipped_steps": self._counter.now.skipped_steps,
            "speed/tokens_per_second": positions / seconds,
            "speed/targets_per_second": targets / seconds,
            **mfu,
            "speed/peak_tflops": self._peak,
            "speed/step_seconds": seconds / len(rows),
            "speed/data_wait_seconds": sum(row.wait_seconds for row in rows) / len(rows),
            "speed/data_wait_fraction": sum(row.wait_seconds for row in rows) / seconds,
            "speed/goodput": goodput.fraction,
            "speed/running_goodput": goodput.running_fraction,
            **{f"goodput/{cause}": round(v, 5) for cause, v in goodput.fractions.items()},
            **heartbeat.slowest_figures(),
            "memory/peak_bytes": peak_memory_bytes(self._run.device),
            **self._more_figures(),
        }


@contextmanager
def progress_hook(run: Run) -> Iterator[Hook]:
    """rich's progress on rank 0's terminal: steps, tokens, tokens/s, loss, time to go."""
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

        def hook(report: StepReport) -> None:
            tokens = run.config.samples_after(report.step) * run.config.window.stride
            positions = report.samples * run.config.stream.sequence_length
            speed = positions / report.step_seconds
            bar.update(
                task,
                completed=report.step,
                figures=f"loss {report.loss:.3f} · {tokens:,} tokens · {speed:,.0f}/s",
            )

        yield hook
