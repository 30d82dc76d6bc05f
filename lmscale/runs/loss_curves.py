"""The loss curves that TensorBoard opens on: one chart over steps, one over tokens.

TensorBoard gives a colour to a run, not to a tag, and has one x axis a series. So the held-out sets
are runs of their own below the training's, which draw the same tag in other colours; and the curves
over tokens are a run whose steps are tokens. A resume hides what an earlier attempt drew beyond its
checkpoint by a step, which in that run is a number of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# A capital letter sorts before the groups of all other figures: first on every page.
BY_STEP, BY_TOKENS = "Loss/by_step", "Loss/by_tokens"
TRAINED = ""  # the curve of the training; the others have the names of held-out sets
HELD_OUT_FOLDER, TOKENS_FOLDER = "heldout", "by_tokens"  # as TensorBoard calls these runs
# A killed run loses at most this much of the curves; metrics.jsonl loses nothing.
FLUSH_SECONDS = 10


class LossCurves:
    """The writers of all curves, by name; ``by_step[TRAINED]`` takes every other figure too."""

    def __init__(
        self,
        by_step: Mapping[str, SummaryWriter],
        by_tokens: SummaryWriter,
        tokens: Callable[[], int],
    ) -> None:
        self._by_step, self._by_tokens, self._tokens = by_step, by_tokens, tokens

    def draw(self, step: int, losses: Mapping[str, float | None], now: float) -> None:
        """A point of each of these curves; ``tokens()`` were trained on by then."""
        for name, loss in losses.items():
            if loss is None:
                continue
            tag = BY_TOKENS if name == TRAINED else f"{BY_TOKENS}/{name}"
            self._by_step[name].add_scalar(BY_STEP, float(loss), step, walltime=now)
            self._by_tokens.add_scalar(tag, float(loss), self._tokens(), walltime=now)

    def flush(self) -> None:
        for writer in (*self._by_step.values(), self._by_tokens):
            writer.flush()


@contextmanager
def open_loss_curves(
    folder: Path,
    events: SummaryWriter,
    *,
    resumed_step: int,
    tokens: Callable[[], int],
    held_out: Sequence[str],
) -> Iterator[LossCurves]:
    """Go on with the curves in ``folder``, in which ``events`` writes the training's."""
    with ExitStack() as stack:

        def open_(place: Path, done: int) -> SummaryWriter:
            return stack.enter_context(open_events(place, done=done))

        sets = {name: open_(folder / HELD_OUT_FOLDER / name, resumed_step) for name in held_out}
        by_tokens = open_(folder / TOKENS_FOLDER, tokens())
        yield LossCurves({TRAINED: events, **sets}, by_tokens, tokens)


def open_events(folder: Path, *, done: int) -> SummaryWriter:
    """A writer that goes on after step ``done``: what earlier attempts wrote of later ones is
    hidden; before the first checkpoint, all of it.
    """
    # torch's writer adds 0.4 s to a rank that has loaded torch anyway, and it knows the text and
    # custom-scalar plugins; the bare tensorboard writer would need those protocol buffers here.
    from torch.utils.tensorboard import SummaryWriter

    _outlast_second(folder)
    return SummaryWriter(str(folder), purge_step=done + 1, flush_secs=FLUSH_SECONDS)


def _outlast_second(events: Path) -> None:
    """Wait until the next file of events sorts behind those that are there.

    TensorBoard reads them in the order of their names: the second, and then the host and the
    numbers of the process and the file as text, so that of two of one second (a rewind soon after
    the start) the newer may come first and be hidden (tensorboard 2.21). Waits for one second at
    most: a host whose clock is further behind is not waited for.
    """
    prefix = "events.out.tfevents."
    newest = max((path.name for path in events.glob(f"{prefix}*")), default="")
    deadline = time.monotonic() + 1
    while newest > f"{prefix}{int(time.time()):010d}" and time.monotonic() < deadline:
        time.sleep(0.01)
