"""What became of every start of a run, from its batch scripts, its attempts and Slurm. Pure."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from launcher.slurm import AccountedJob, parse_duration
from launcher.status import ENDS, is_one_of, last_word

Row = Mapping[str, Any]
SLACK_SECONDS = 5.0  # between the clocks of the controller and of a node
SIGNAL_EARLY_SECONDS = 60.0  # by which Slurm may send a signal before it is due
LOST = "lost: no end was written"
_ACTIONS = {"requeue": "requeued", "chain": "the next job of the chain goes on", "stop": "stopped"}
# What the accounting adds to the batch script's own words. Of the other ends the script knows more.
_CAUSES = ("NODE_FAIL", "PREEMPTED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
_WORDLESS = (*_CAUSES, "CANCELLED", "FAILED")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long a submission's jobs may run."""

    limit_seconds: float | None = None
    signal_seconds: float = 0.0
    """How long before the limit they are asked to stop."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """One start of a run, to its end."""

    began_at: float
    ended_at: float | None
    job: str | None
    """None without Slurm."""
    restart: int
    nodes: str
    ranks: int | None
    """None where no rank came so far."""
    zero_stage: int | None
    first_step: int
    last_step: int
    """As far as a checkpoint reaches; of the start that still goes on, as far as is known."""
    code: int | None
    action: str
    """What the batch script did next; "" where it did not come so far."""
    end: str
    """Why it ended; "" while it goes on."""
    excluded: tuple[str, ...] = ()
    """``node: reason`` of the nodes that it found to be bad."""

    @property
    def line(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.began_at))
        where = f"job {self.job}, {self.nodes}" if self.job else self.nodes
        ranks = "" if self.ranks is None else f", {self.ranks} rank{'s'[: self.ranks > 1]}"
        ranks += "" if self.zero_stage is None else f", ZeRO {self.zero_stage}"
        steps = f"steps {self.first_step:,}-{self.last_step:,}"
        return f"{when} {where}{ranks}, {steps}: {self.end or 'goes on'}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What helps to say why a start ended."""

    accounts: Sequence[AccountedJob] = ()
    limits: Mapping[str, Limits] = field(default_factory=dict)
    """By submission."""
    hangs: Sequence[Row] = ()
    """The watchdog's rows of starts that it ended."""


@dataclass(frozen=True, kw_only=True)
class _Start:
    began_at: float
    event: Row | None
    """The batch script's; None without Slurm."""
    attempt: list[Row]
    """Its rows of attempts.jsonl; none where no rank came so far."""

    @property
    def first_step(self) -> int:
        if self.attempt:
            return int(self.attempt[0]["first_step"])
        return max(0, int(self.event["step"])) if self.event is not None else 0


def plan_history(
    events: Sequence[Row],
    attempts: Sequence[Row],
    evidence: Evidence | None = None,
    *,
    active_step: int | None = None,
) -> tuple[Stretch, ...]:
    """All starts of a run, the oldest first.

    ``events`` are the batch scripts' rows, ``attempts`` those of attempts.jsonl. ``active_step`` is
    where the run is now, if its last start may still go on.
    """
    evidence = evidence or Evidence()
    starts = _find_starts(events, attempts)
    stretches = []
    for start, following in zip_longest(starts, starts[1:]):
        until = math.inf if following is None else following.began_at
        hang = next((h for h in evidence.hangs if start.began_at <= h["time"] < until), None)
        reached = active_step if following is None else following.first_step
        is_active = following is None and active_step is not None
        if start.event is None:
            stretches.append(_local_stretch(start, reached, hang, is_active=is_active))
        else:
            own = _own_events(start.event, events)
            account = _account_of(start.event, evidence.accounts)
            end = next((row for row in own[::-1] if row["event"] == "end"), None)
            limit = evidence.limits.get(str(start.event["submission"]), Limits())
            why = "" if end is None and is_active else _describe_end(start, end, account, limit)
            if hang is not None and why:
                why = f"hung ({hang['text']}): {why}"
            stretches.append(_job_stretch(start, own, reached, account, why))
    return tuple(stretches)


def _find_starts(events: Sequence[Row], attempts: Sequence[Row]) -> list[_Start]:
    starts = [
        _Start(began_at=event["time"], event=event, attempt=[])
        for event in events
        if event["event"] == "start"
    ]
    for rows in _split_attempts(attempts):
        event = _event_of(rows[0], events)
        if event is None:
            starts.append(_Start(began_at=rows[0]["time"], event=None, attempt=rows))
        else:
            next(start for start in starts if start.event is event).attempt.extend(rows)
    return sorted(starts, key=lambda start: start.began_at)


def limits_of_script(script: str) -> Limits:
    """What a submission's own text says of its time limit and of the signal before it."""
    found = dict(re.findall(r"^#SBATCH --(time|signal)=\"?'?([^\s'\"]+)", script, re.MULTILINE))
    lead = found.get("signal", "").rpartition("@")[2]
    return Limits(
        limit_seconds=parse_duration(found.get("time", "")),
        signal_seconds=float(lead) if lead.isdecimal() else 0.0,
    )


def excluded_nodes(events: Sequence[Row]) -> dict[str, str]:
    """The nodes that the newest submission leaves out, and why."""
    submission = next((e["submission"] for e in reversed(events)), None)
    return {
        str(e["nodes"]): str(e["reason"])
        for e in events
        if e["event"] == "exclude" and e["submission"] == submission
    }


def _split_attempts(rows: Sequence[Row]) -> list[list[Row]]:
    runs: list[list[Row]] = []
    for row in rows:
        if row["event"] == "start":
            runs.append([])
        if runs:
            runs[-1].append(row)
    return runs


def _event_of(attempt: Row, events: Sequence[Row]) -> Row | None:
    """The start of a batch script that an attempt belongs to: the last one that had not ended."""
    before = [e for e in events if e["time"] <= attempt["time"] + SLACK_SECONDS]
    last = last_word(before)
    if last is None or (last["event"] == "end" and last["time"] < attempt["time"]):
        return None
    return next(e for e in reversed(before) if e["event"] == "start")


def _local_stretch(
    start: _Start, reached: int | None, hang: Row | None, *, is_active: bool
) -> Stretch:
    first, last = start.attempt[0], start.attempt[-1]
    has_ended = last["event"] == "end"
    lost = LOST if hang is None else f"hung ({hang['text']})"
    return Stretch(
        began_at=start.began_at,
        ended_at=last["time"] if has_ended else None,
        job=None,
        restart=0,
        nodes=str(first["host"]),
        ranks=first["world_size"],
        zero_stage=first["zero_stage"],
        first_step=start.first_step,
        last_step=int(last["step"]) if has_ended else _last_step(start, reached),
        code=None,
        action="",
        end=str(last["reason"]) if has_ended else "" if is_active else lost,
    )


def _last_step(start: _Start, reached: int | None) -> int:
    """Of a start without an end: what it did beyond the next one's begin is undone."""
    if not start.attempt:
        return start.first_step
    last = start.attempt[-1]
    known = last["first_step" if last["event"] == "start" else "step"]
    return int(known) if reached is None else max(reached, start.first_step)


def _job_stretch(
    start: _Start, own: Sequence[Row], reached: int | None, account: AccountedJob | None, why: str
) -> Stretch:
    """``own``: its batch script's rows."""
    event = own[0]
    end = next((row for row in own[::-1] if row["event"] == "end"), None)
    if end is not None:
        last_step = max(start.first_step, int(end["step"]))
    else:
        last_step = _last_step(start, reached)
    return Stretch(
        began_at=start.began_at,
        ended_at=end["time"] if end is not None else account and account.ended_at,
        job=str(event["job"]),
        restart=int(event["restart"]),
        nodes=str(event["nodes"]),
        ranks=start.attempt[0]["world_size"] if start.attempt else None,
        zero_stage=start.attempt[0]["zero_stage"] if start.attempt else None,
        first_step=start.first_step,
        last_step=last_step,
        code=end["code"] if end is not None else None,
        action=str(end["action"]) if end is not None else "",
        end=why,
        excluded=tuple(f"{e['nodes']}: {e['reason']}" for e in own if e["event"] == "exclude"),
    )


def _own_events(start: Row, events: Sequence[Row]) -> list[Row]:
    """From ``start`` on. Two copies of a job may run at once, so by name and not by place."""
    name = (start["job"], start["restart"])
    since = next(number for number, event in enumerate(events) if event is start)
    return [event for event in events[since:] if (event["job"], event["restart"]) == name]


def _account_of(start: Row, accounts: Sequence[AccountedJob]) -> AccountedJob | None:
    """The record of the attempt that wrote ``start``: the last one that had begun by then."""
    job = str(start["job"])
    begun = [
        account
        for account in accounts
        if (account.job == job or is_one_of(account.job, [job]))
        and account.started_at is not None
        and account.started_at <= start["time"] + SLACK_SECONDS
        and (account.ended_at is None or account.ended_at >= start["time"] - SLACK_SECONDS)
    ]
    return max(begun, key=lambda account: account.started_at or 0.0, default=None)


def _describe_end(
    start: _Start, ended: Row | None, account: AccountedJob | None, limit: Limits
) -> str:
    state = account.state if account is not None else ""
    if ended is None:
        cause = ENDS[state] if state in _WORDLESS else ""
        return f"{LOST} ({cause})" if cause else LOST
    cause = ENDS[state] if state in _CAUSES else _cause_by_time(start, ended, limit)
    reason, action = str(ended["reason"]), _ACTIONS.get(ended["action"], "")
    words = [cause if cause not in reason else "", reason]
    return ", ".join(filter(None, [": ".join(filter(None, words)), action]))


def _cause_by_time(start: _Start, ended: Row, limit: Limits) -> str:
    """A job that stopped on request near its limit was asked to for that reason."""
    if limit.limit_seconds is None or ended["code"] != 75 or "fault" in ended:
        return ""
    early = min(SIGNAL_EARLY_SECONDS, limit.limit_seconds / 2)
    due = limit.limit_seconds - limit.signal_seconds - early
    if ended["time"] - start.began_at >= due:
        return ENDS["TIMEOUT"]
    return "preempted or signalled" if re.search("USR1|TERM", str(ended["reason"])) else ""
