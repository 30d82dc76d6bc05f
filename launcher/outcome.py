"""What the ends of all ranks mean together: one exit code, and the one error to show. Pure."""

from __future__ import annotations

import math
import signal
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from lmscale.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_GUARD, EXIT_RESUMABLE, EXIT_USER
from lmscale.ranks.exits import says_peer_gone

EXIT_INTERRUPTED = 130  # the shell's 128 + SIGINT
MOMENT_SECONDS = 1.0  # failures this close together may have one cause
TAIL_LINES = 30
CALM = (EXIT_FINISHED, EXIT_RESUMABLE)
# How a rank ends that has lost another one.
_COLLATERAL_CODES = (EXIT_FAILED, EXIT_USER, -signal.SIGABRT)


@dataclass(frozen=True, kw_only=True)
class RankEnd:
    rank: int
    code: int  # its exit code; the negative number of a signal that killed it
    ended_at: float  # seconds on the launcher's clock
    was_told: bool = False  # whether the launcher had told it to end because of another rank


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the launcher exits with and says; rank 0's own words are on the terminal already."""

    exit_code: int
    problems: tuple[str, ...] = ()


def judge(
    ends: Sequence[RankEnd],
    *,
    forwarded: Sequence[int] = (),
    overdue: Mapping[int, str] | None = None,
    outputs: Mapping[int, tuple[str, str]] | None = None,
) -> Outcome:
    """Weigh the ends of all ranks.

    ``forwarded`` are the signals passed on to them, in order; ``overdue`` says why ranks that would
    not end were killed; ``outputs`` gives each rank's (file, text) unless the terminal has it.
    """
    outputs = outputs or {}
    bad = [end for end in ends if not end.was_told and end.code not in CALM]
    # A rank that dies of a forwarded signal had not yet installed its handler: nothing is lost. It
    # takes its peers' connections with it, and they end as if something were wrong. Ends are seen
    # in the order of the ranks, so a failure just before may still follow from it.
    stopped = [end.ended_at for end in bad if _was_stopped(end.code, forwarded)]
    since = min(stopped) - MOMENT_SECONDS if stopped else math.inf
    culprits = [
        end
        for end in bad
        if not _was_stopped(end.code, forwarded)
        and (end.code not in _COLLATERAL_CODES or end.ended_at < since)
    ]
    aborted = list(forwarded).count(signal.SIGINT) > 1
    if aborted and any(end.code not in CALM for end in ends):
        return Outcome(exit_code=EXIT_INTERRUPTED)
    if culprits:
        culprit = find_culprit(culprits, outputs)
        code = culprit.code if culprit.code in (EXIT_USER, EXIT_GUARD) else EXIT_FAILED
        return Outcome(exit_code=code, problems=_describe(culprit, outputs))
    if overdue:
        return Outcome(
            exit_code=EXIT_FAILED,
            problems=tuple(f"rank {rank} {why}" for rank, why in sorted(overdue.items())),
        )
    all_finished = all(end.code == 0 for end in ends)
    return Outcome(exit_code=EXIT_FINISHED if all_finished else EXIT_RESUMABLE)


def _was_stopped(code: int, forwarded: Collection[int]) -> bool:
    """Whether a forwarded signal ended a rank that did not listen yet."""
    return -code in forwarded or (code == EXIT_INTERRUPTED and signal.SIGINT in forwarded)


def find_culprit(failures: Sequence[RankEnd], outputs: Mapping[int, tuple[str, str]]) -> RankEnd:
    """The failure that caused the other failures: the first, or a later one that explains it.

    A rank whose error tells the user what to do comes first, then a killed rank, then a rank whose
    last words are about more than a lost connection.
    """
    first = min(end.ended_at for end in failures)
    near = [end for end in failures if end.ended_at - first <= MOMENT_SECONDS]

    def order(end: RankEnd) -> tuple[int, int, float, int]:
        if end.code in (EXIT_USER, EXIT_GUARD):
            return (0, 0, 0.0, end.rank)  # agreed by all ranks: the lowest is on the terminal
        if end.code < 0:
            return (1, 0, end.ended_at, end.rank)
        if end.rank not in outputs:
            return (2, 1, end.ended_at, end.rank)
        last_words = "\n".join(outputs[end.rank][1].splitlines()[-TAIL_LINES:])
        return (2, 2 if says_peer_gone(last_words) else 0, end.ended_at, end.rank)

    return min(near, key=order)


def _describe(end: RankEnd, outputs: Mapping[int, tuple[str, str]]) -> tuple[str, ...]:
    on_terminal = end.rank not in outputs
    if on_terminal and end.code in (EXIT_USER, EXIT_GUARD):
        return ()
    what = f"rank {end.rank} {describe_code(end.code)}"
    if on_terminal:
        return (f"{what}. What it said is above.",)
    path, text = outputs[end.rank]
    # A rank that an error ended which may pass has explained itself too, with the code of a bug.
    has_explained = end.code in (EXIT_USER, EXIT_GUARD) or (
        end.code == EXIT_FAILED and "Traceback" not in text
    )
    tail = render_tail(text, only_errors=has_explained)
    return (f"{what}. The end of {path}:\n{tail}" if tail else f"{what}. {path} is empty.",)


def describe_code(code: int) -> str:
    """``ended with exit code 1`` or ``was killed by SIGKILL (out of memory?)``."""
    if code >= 0:
        return f"ended with exit code {code}"
    signals = {int(number): number.name for number in signal.Signals}
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was killed by {signals.get(-code, f'signal {-code}')}{hint}"


def render_tail(text: str, *, only_errors: bool) -> str:
    """The last lines, indented; from the first ``error:`` on where the rank explained itself."""
    lines = text.rstrip().splitlines()[-TAIL_LINES:]
    if only_errors:
        starts = [n for n, line in enumerate(lines) if line.startswith("error:")]
        lines = lines[starts[0] :] if starts else lines
    return "\n".join(f"  {line}" for line in lines)
