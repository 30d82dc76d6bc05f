"""What became of every start of a run, in words: its own rows, and Slurm's accounting. Pure."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from launcher.slurm import AccountedJob
from launcher.status import ENDS, Row
from lmscale.files.printing import count_of, render_duration
from lmscale.runs.goodput import STEP
from lmscale.runs.starts import Event, Start, is_one_of

SLACK_SECONDS = 5.0  # between the clocks of the controller and of a node
SIGNAL_EARLY_SECONDS = 60.0  # by which Slurm may send a signal before it is due
LOST = "lost: no end was written"
_ACTIONS = {"requeue": "requeued", "chain": "the next job of the chain goes on", "stop": "stopped"}


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One start of a run, to its end."""

    began_at: float
    ended_at: float | None
    job: str | None  # None without Slurm
    restart: int
    nodes: str
    ranks: int | None  # None where no rank came so far
    zero_stage: int | None
    first_step: int
    last_step: int  # as far as a checkpoint reaches; while the start goes on, as far as is known
    code: int | None
    action: str  # what the batch script did next; "" where it did not come so far
    end: str  # why it ended; "" while it goes on
    lost_steps: int = 0  # done beyond ``last_step``, which the next start does again
    lost_seconds: float = 0.0  # in these, and in one that was not finished
    excluded: tuple[str, ...] = ()  # ``node: reason`` of the nodes that it found to be bad

    @property
    def line(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.began_at))
        where = f"job {self.job}, {self.nodes}" if self.job else self.nodes
        ranks = "" if self.ranks is None else f", {self.ranks} rank{'s' if self.ranks > 1 else ''}"
        ranks += "" if self.zero_stage is None else f", ZeRO {self.zero_stage}"
        steps = f"steps {self.first_step:,}-{self.last_step:,}"
        if self.lost_steps:
            steps += f", {describe_lost(self.lost_steps, self.lost_seconds)}"
        return f"{when} {where}{ranks}, {steps}: {self.end or 'goes on'}"


def describe_lost(steps: int, seconds: float) -> str:
    return f"{count_of(steps, 'step')} lost, {render_duration(seconds)}"


def plan_history(
    starts: Sequence[Start],
    *,
    saved_step: int | None = None,
    done_step: int | None = None,
    accounts: Sequence[AccountedJob] = (),
    submissions: Sequence[Row] = (),
    active_step: int | None = None,
) -> tuple[Stretch, ...]:
    """Every start with its end. ``active_step`` is where the run is, if its last start goes on;
    ``saved_step`` that of its newest checkpoint, from which a next one would; ``done_step`` as far
    as it has come.
    """
    rows = {row["submission"]: row for row in submissions}
    stretches = []
    for start, following in zip_longest(starts, starts[1:]):
        is_active = following is None and active_step is not None
        account = _find_account(start, accounts)
        reached = active_step if following is None else following.first_step
        kept = saved_step if following is None and not is_active else reached
        found = following.found_step if following else done_step
        lost_steps, lost_seconds = (0, 0.0) if is_active else _find_lost(start, kept, found)
        end = ""
        if start.ended_at is not None or not is_active:
            end = _describe_end(start, account, rows.get(start.submission, {}))
        stretches.append(
            Stretch(
                began_at=start.began_at,
                ended_at=start.ended_at or (account and account.ended_at),
                job=start.job,
                restart=start.restart,
                nodes=start.nodes,
                ranks=start.attempt[0]["world_size"] if start.attempt else None,
                zero_stage=start.attempt[0]["zero_stage"] if start.attempt else None,
                first_step=start.first_step,
                last_step=kept if lost_steps and kept is not None else _last_step(start, reached),
                code=start.script_end and start.script_end.code,
                action=start.script_end.action if start.script_end else "",
                end=end,
                lost_steps=lost_steps,
                lost_seconds=lost_seconds,
                excluded=tuple(f"{node.nodes}: {node.reason}" for node in start.excluded),
            )
        )
    return tuple(stretches)


def excluded_nodes(starts: Sequence[Start]) -> dict[str, str]:
    """The nodes that the newest submission leaves out, and why."""
    submission = next((s.submission for s in reversed(starts) if s.submission is not None), None)
    mine = (start for start in starts if start.submission == submission)
    return {node.nodes: node.reason for start in mine for node in start.excluded}


def _find_account(start: Start, accounts: Sequence[AccountedJob]) -> AccountedJob | None:
    """The accounting's record of a start: the last attempt of its job that had begun by then."""
    begun = [
        account
        for account in accounts
        if start.job is not None
        and is_one_of(account.job, [start.job])
        and account.started_at is not None
        and account.started_at <= start.began_at + SLACK_SECONDS
        and (account.ended_at is None or account.ended_at >= start.began_at - SLACK_SECONDS)
    ]
    return max(begun, key=lambda account: account.started_at or 0.0, default=None)


def _last_step(start: Start, reached: int | None) -> int:
    """Of a start without an end: what it did beyond the next one's begin is undone."""
    if start.script_end is not None:
        return max(start.first_step, start.script_end.step)
    if start.ended_at is None and reached is not None and start.attempt:
        return max(reached, start.first_step)
    return start.attempt[-1].get("step", start.first_step) if start.attempt else start.first_step


def _find_lost(start: Start, kept: int | None, found: int | None) -> tuple[int, float]:
    """Steps of a start beyond ``kept``, and the seconds in them. ``found``: how many were done by
    the ledger; None: as rank 0's rows tell, which end up to 15 s before a killed attempt does.
    """
    if kept is None or not start.attempt:
        return 0, 0.0
    kept = max(kept, start.first_step)
    done, spans = start.first_step, list[tuple[int, int, float]]()  # from, to, seconds in between
    for row in start.attempt[1:]:
        spans.append((done, row["step"], row.get("seconds", {}).get(STEP, 0.0)))
        done = row["step"]
        if row["event"] == "rewind":  # what it undid was lost to the guard, not to the end
            done, spans = row["to_step"], []
    steps = max(done, found or 0) - kept
    if steps <= 0:
        return 0, 0.0
    told = [span for span in spans if span[1] > span[0]]
    each = sum(span[2] for span in told) / max(1, sum(span[1] - span[0] for span in told))
    seconds = sum(
        (last - max(first, kept)) / (last - first) * spent
        for first, last, spent in told
        if last > kept
    )
    return steps, seconds + max(0, steps - max(0, done - kept)) * each


def _describe_end(start: Start, account: AccountedJob | None, submission: Row) -> str:
    hung = f"hung ({start.hang})" if start.hang is not None else ""
    if start.job is None:
        return hung or start.attempt_end or LOST
    hung += ": " if hung else ""
    state = account.state if account is not None else ""
    end = start.script_end
    if end is None:
        cause = f" ({ENDS[state]})" if state in ENDS else ""
        return f"{hung}{LOST}{cause}"
    # Of the other two the script itself knows more.
    is_told = state in ENDS and state not in ("CANCELLED", "FAILED")
    cause = ENDS[state] if is_told else _cause_by_time(start, end, submission)
    cause = f"{cause}: " if cause and cause not in end.reason else ""
    action = f", {_ACTIONS[end.action]}" if end.action in _ACTIONS else ""
    return f"{hung}{cause}{end.reason}{action}"


def _cause_by_time(start: Start, end: Event, submission: Row) -> str:
    """A job that stopped on request near its limit was asked to for that reason."""
    limit = submission.get("limit_seconds")
    if limit is None or end.code != 75 or end.fault:
        return ""
    early = min(SIGNAL_EARLY_SECONDS, limit / 2)
    if end.time - start.began_at >= limit - submission.get("signal_seconds", 0.0) - early:
        return ENDS["TIMEOUT"]
    return "preempted or signalled" if re.search("USR1|TERM", end.reason) else ""
