"""The figures that a run shows: ``metrics.jsonl`` for programs, TensorBoard events for people."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lmscale.errors import LmscaleError, NoSpaceError
from lmscale.files.atomic import writing
from lmscale.files.jsonl import Row, RowFile, renew_rows, sift_rows
from lmscale.files.redact import redact
from lmscale.files.run_files import METRICS_FILE
from lmscale.files.run_rows import FIGURES
from lmscale.runs.loss_curves import LossCurves, open_events, open_loss_curves

if TYPE_CHECKING:
    import numpy as np
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

EVENTS_FOLDER = "events"


class Trackers:
    """Rank 0's figures, to both places at once. Opened by ``open_trackers``."""

    def __init__(
        self, folder: Path, metrics: RowFile, events: SummaryWriter, curves: LossCurves
    ) -> None:
        self._folder = folder
        self._metrics = metrics
        self._events = events
        self._curves = curves
        # What to do in place of raising when a row is refused, as by a full disk: rank 0 logs in
        # the middle of what all ranks do together, so it may not end there alone.
        self.on_refusal: Callable[[LmscaleError], None] | None = None

    def log(
        self,
        step: int,
        values: Mapping[str, float | None],
        *,
        losses: Mapping[str, float | None] = MappingProxyType({}),
        planned: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Record a step's figures. None is left out; one that is not finite is null in JSON.

        ``losses``: those of them that are points of the loss curves, by the curve's name.
        ``planned``: figures that were not measured, which TensorBoard alone shows beside them.
        """
        figures = {name: value for name, value in values.items() if value is not None}
        now = time.time()
        row: dict[str, Any] = {"step": step, "time": round(now, 3), **figures}
        with self._refusing():
            self._metrics.append(row)
            with writing("TensorBoard events", self._folder, no_space=NoSpaceError):
                for name, value in {**figures, **planned}.items():
                    self._events.add_scalar(name, float(value), step, walltime=now)
                self._curves.draw(step, losses, now)

    def log_pages(
        self, step: int, *, texts: Mapping[str, str], pictures: Mapping[str, np.ndarray]
    ) -> None:
        """Show texts, and pictures, uint8 [height, width, 3], of a step in TensorBoard alone."""
        with self._refusing():
            for name, text in texts.items():
                self.log_text(name, text, step=step)
            with writing("TensorBoard events", self._folder, no_space=NoSpaceError):
                for name, picture in pictures.items():
                    self._events.add_image(name, picture, step, dataformats="HWC")

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except LmscaleError as error:
            if self.on_refusal is None:
                raise
            self.on_refusal(error)

    def log_text(self, name: str, text: str, *, step: int = 0) -> None:
        """Show text on TensorBoard's text page, in a fixed-width font as it is."""
        fenced = "\n".join(f"    {line}" for line in redact(text).splitlines())
        with writing("TensorBoard events", self._folder, no_space=NoSpaceError):
            self._events.add_text(name, fenced, step)

    def log_layout(self, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
        """Group curves on TensorBoard's custom page: ``{page: {chart: [name or pattern, …]}}``."""
        layout = {
            page: {title: ["Multiline", names] for title, names in of_page.items()}
            for page, of_page in charts.items()
        }
        self._events.add_custom_scalars(layout)

    def sync(self) -> None:
        """Have the rows of metrics.jsonl outlive the machine. Raises ``DataError``."""
        self._metrics.sync()

    def flush(self) -> None:
        with writing("TensorBoard events", self._folder, no_space=NoSpaceError):
            self._curves.flush()


@contextmanager
def open_trackers(
    folder: str | Path,
    *,
    resumed_step: int = 0,
    every: int = 1,
    tokens: Callable[[], int] = lambda: 0,
    held_out: Sequence[str] = (),
) -> Iterator[Trackers]:
    """Go on with a run's curves from ``resumed_step`` (0 for a new run); on rank 0 only.

    Rows of later steps, written by an attempt that came further than its last checkpoint, are
    dropped from ``metrics.jsonl`` and hidden in TensorBoard, so no step is shown twice. ``every``:
    steps from line to line, by which the log tells of one that was cut. ``tokens``: how many were
    trained on so far. ``held_out``: the sets that have a loss curve.
    """
    folder = Path(folder)
    with writing("metrics and TensorBoard events", folder):
        folder.mkdir(parents=True, exist_ok=True)
        for problem in _find_problems(folder / METRICS_FILE, resumed_step, every):
            logger.warning("%s/%s", folder, problem)
        metrics = renew_rows(folder / METRICS_FILE, resumed_step, no_space=NoSpaceError)
        stack = ExitStack()
        events = stack.enter_context(open_events(folder / EVENTS_FOLDER, done=resumed_step))
        curves = open_loss_curves(
            folder / EVENTS_FOLDER,
            events,
            resumed_step=resumed_step,
            tokens=tokens,
            held_out=held_out,
        )
        trackers = Trackers(folder, metrics, events, stack.enter_context(curves))
    try:
        yield trackers
    finally:
        metrics.close()
        with writing("TensorBoard events", folder, no_space=NoSpaceError):
            stack.close()


def _find_problems(path: Path, step: int, every: int) -> list[str]:
    """Of a long run these rows are gigabytes, which are let go before it trains."""
    sifted = sift_rows(path, FIGURES)
    return [*sifted.problems, *find_cut(sifted.rows, step, every=every)]


def find_cut(rows: Sequence[Row], step: int, *, every: int = 1) -> Iterator[str]:
    """What is missing behind these last rows of ``metrics.jsonl``, if ``step`` steps are done.

    The lines of the newest steps may be on their way: as far apart as lines have been, or will be.
    """
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:  # else the first one may be of a file's end
        steps = [0, *steps]
    spacing = max([every, *(after - before for before, after in itertools.pairwise(steps))])
    if step - steps[-1] > 2 * spacing:
        yield f"{METRICS_FILE} ends at step {steps[-1]:,}, but {step:,} steps are done: it was cut."
