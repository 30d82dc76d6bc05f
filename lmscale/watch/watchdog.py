"""Says which rank holds the others up, and ends a run that stands still.

Every rank has a watchdog in its heartbeat's thread. Rank 0's watchdog reads all heartbeats; should
rank 0 fall silent, the first rank of another node (the deputy) reads them. Findings go to the log
and to ``RUN/watch.jsonl``. A hang is reported first, and all ranks dump their stacks; if no rank
has moved by the limit, all ranks end with exit code 1, so that the launcher starts the run again.
The judgement itself is in ``lmscale.watch.standstill``. Loads no torch until a run opens it.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lmscale.config.training import WatchConfig
from lmscale.errors import EXIT_FAILED, LmscaleError
from lmscale.files.atomic import writing
from lmscale.files.jsonl import Row, append_row, read_value
from lmscale.files.run_files import WATCH_FILE
from lmscale.files.strangers import Count, Text
from lmscale.ranks import exits
from lmscale.ranks.attempt import attempt_from_environment, node_name
from lmscale.ranks.ranks import PROCESS_GROUP_TIMEOUT, Ranks
from lmscale.watch import heartbeat
from lmscale.watch.heartbeat import END, HEARTBEATS_FOLDER, Beat, Heartbeat
from lmscale.watch.stacks import StackDumps, children_of
from lmscale.watch.standstill import (
    Hang,
    Member,
    Sighting,
    describe_place,
    find_stragglers,
    judge_heartbeats,
    judge_pace,
    limits,
    silent_seconds,
)

logger = logging.getLogger(__name__)

REQUEST_FILE = "request.json"  # in the folder of heartbeats: what all ranks are asked to do
AFTERWARDS_SECONDS = 120.0  # by which collectives wait longer than the limit: see group_timeout
UNWATCHED_TIMEOUT = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What all ranks of a start are asked to do; of two the one with the greater number counts."""

    number: Count
    start: Text
    kind: Text  # ``hang``: dump the stacks; ``end``: and end
    silent: tuple[Count, ...]
    text: Text


_REQUEST = TypeAdapter(Request)


class Watchdog:
    """A rank's watchdog: obeys requests to all ranks, and watches them when its turn comes."""

    def __init__(
        self,
        folder: Path,
        rank: int,
        members: Sequence[Member],
        watch: WatchConfig,
        *,
        interval: float,
        stacks: StackDumps,
    ) -> None:
        self._folder, self._rank, self._watch = folder, rank, watch
        self._members = {member.rank: member for member in members}
        self._deputies = order_deputies(members)
        self._request_path = folder / HEARTBEATS_FOLDER / REQUEST_FILE
        # By which this start's requests differ from those of another copy of the job.
        self._start_name = f"{self._members[0].host}:{self._members[0].pid}"
        self._interval, self._stacks = interval, stacks
        self._now, self._clock = 0.0, time.monotonic()
        self._sightings: dict[int, Sighting] = {}
        self._hang: Hang | None = None  # the one that was told
        self._stragglers: set[int] = set()
        self._obeyed = 0

    def __call__(self, beat: Beat) -> None:
        clock = time.monotonic()
        # A process that was stopped for an hour has seen nobody be silent meanwhile.
        most = heartbeat.MAX_INTERVALS_AT_ONCE * self._interval
        self._now += min(clock - self._clock, most)
        self._clock = clock
        self._arm(beat)
        request = read_value(self._request_path, _REQUEST)
        if request and request.start == self._start_name and request.number > self._obeyed:
            self._obey(request, beat)
        is_my_turn = self._is_my_turn()
        if not is_my_turn and self._hang is None:
            return
        sighting = Sighting(member=self._members[self._rank], beat=beat, changed_at=self._now)
        others = [self._look_at(rank) for rank in self._members if rank != self._rank]
        self._judge([sighting, *others], beat, is_my_turn=is_my_turn)

    def close(self) -> None:
        self._stacks.close()

    def _arm(self, beat: Beat) -> None:
        """Set the net for a stuck interpreter, a little later than the other ranks would act. It
        may also fire when a job goes on that was suspended for longer than the limit.
        """
        _, limit = limits(self._watch, is_starting=beat.is_starting, interval=self._interval)
        seconds = limit if limit < math.inf else self._watch.report_seconds
        if seconds:
            self._stacks.arm(seconds + 2 * self._interval, is_last=limit < math.inf)

    def _is_my_turn(self) -> bool:
        """Whether every rank that would watch before this one is silent, or has ended."""
        if self._rank not in self._deputies:
            return False
        silence = silent_seconds(self._watch, self._interval)
        earlier = self._deputies[: self._deputies.index(self._rank)]
        return all(
            (seen.beat is not None and seen.beat.phase == END)
            or seen.silent_seconds(self._now) >= silence
            for seen in map(self._look_at, earlier)
        )

    def _look_at(self, rank: int) -> Sighting:
        """Read a rank's file, unless it is of an earlier start or of another copy of the job."""
        member = self._members[rank]
        unseen = Sighting(member=member, beat=None, changed_at=self._now)
        last = self._sightings.setdefault(rank, unseen)
        beat = heartbeat.read_beat(heartbeat.beat_path(self._folder, rank))
        if beat is None or (beat.host, beat.pid) != (member.host, member.pid):
            return last
        if last.beat is None or beat.beat != last.beat.beat:
            self._sightings[rank] = Sighting(member=member, beat=beat, changed_at=self._now)
        return self._sightings[rank]

    def _judge(self, sightings: Sequence[Sighting], beat: Beat, *, is_my_turn: bool) -> None:
        hang = judge_heartbeats(sightings, self._watch, now=self._now, interval=self._interval)
        if hang is None:
            if self._hang is not None:
                logger.warning("the ranks move again, after: %s", self._hang.text)
                self._record("moving", text=self._hang.text, step=beat.step)
                self._hang = None
            if self._watch.straggler_ratio and is_my_turn:
                self._judge_pace([s.beat for s in sightings if s.beat is not None], beat.step)
            return
        if not is_my_turn or (self._hang is not None and not hang.is_over_limit):
            return
        self._hang = hang
        kind = "end" if hang.is_over_limit else "hang"
        logger.error("%s%s", hang.text, ": the run ends" if hang.is_over_limit else "")
        self._record(
            kind,
            text=hang.text,
            ranks=list(hang.ranks),
            hosts=list(dict.fromkeys(self._members[rank].host for rank in hang.ranks)),
            phase=hang.phase,
            step=hang.step,
            seconds=round(hang.seconds, 1),
        )
        self._request(kind, hang, beat)

    def _judge_pace(self, beats: Sequence[Beat], step: int) -> None:
        seconds = {b.rank: b.forward_seconds for b in beats if b.forward_seconds is not None}
        paces = judge_pace(seconds)
        if not paces:
            return
        heartbeat.set_slowest(paces[0].rank, paces[0].ratio)
        slow = find_stragglers(paces, self._stragglers, self._watch.straggler_ratio)
        for pace in paces:
            rank, host = pace.rank, self._members[pace.rank].host
            if (rank in slow) == (rank in self._stragglers):
                continue
            text = (
                f"rank {rank} on {host} {'is a straggler' if rank in slow else 'keeps pace again'}:"
                f" its own work takes {pace.seconds:.3f} s a step, {pace.ratio:.2f} times the "
                f"median rank's {pace.median_seconds:.3f} s"
            )
            logger.warning("%s", text)
            event = "straggler" if rank in slow else "pace"
            ratio = round(pace.ratio, 3)
            self._record(event, text=text, ranks=[rank], hosts=[host], step=step, ratio=ratio)
        self._stragglers = slow

    def _record(self, event: str, **row: Any) -> None:
        entry: Row = {"event": event, "time": round(time.time(), 3), "by": self._rank}
        entry |= {"attempt": attempt_from_environment().name, **row}
        try:
            append_row(self._folder / WATCH_FILE, entry)
        except (OSError, LmscaleError) as error:  # the log has it; a full disk ends no watch
            logger.warning("%s could not be written: %s", WATCH_FILE, error)

    def _request(self, kind: str, hang: Hang, beat: Beat) -> None:
        """Ask all ranks, which look once an interval, and begin with this rank."""
        last = read_value(self._request_path, _REQUEST)
        request = Request(
            number=1 + (last.number if last else self._obeyed),
            start=self._start_name,
            kind=kind,
            silent=hang.silent,
            text=hang.text,
        )
        try:
            heartbeat.overwrite(self._request_path, asdict(request))
        except OSError as error:
            logger.warning("%s could not be written: %s", self._request_path, error)
        self._obey(request, beat)

    def _obey(self, request: Request, beat: Beat) -> None:
        self._obeyed = request.number
        host = self._members[self._rank].host
        here = [member for member in self._members.values() if member.host == host]
        silent = {member.rank: member.pid for member in here if member.rank in request.silent}
        awake = [member.rank for member in here if member.rank not in silent]
        self._stacks.dump(
            f"rank {beat.rank} in {describe_place(beat)} for {beat.still_seconds:.0f} s, because "
            f"of: {request.text}",
            others=silent if self._rank == min(awake, default=None) else {},
        )
        if request.kind == "end":
            self._end(request.text)

    def _end(self, text: str) -> None:
        """End this process, even if its main thread hangs."""
        exits.record_exit(EXIT_FAILED)
        # The first to end takes the others with it: by then all have read the request.
        ends_at = time.monotonic() + max(2 * self._interval, 1.0)
        self._stacks.wait(2 * self._interval)
        time.sleep(max(0.0, ends_at - time.monotonic()))
        for child in children_of(os.getpid()):  # a loader worker that is stopped would stay
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        where = f"The stacks of all ranks are in {self._folder}/logs."
        exits.leave(EXIT_FAILED, f"error: {text}. {where}")


def order_deputies(members: Sequence[Member]) -> list[int]:
    """The ranks that may watch, in order: the first of each node, and rank 1 on a single node."""
    firsts = [member.rank for member in members if member.is_first_on_node or member.rank == 0]
    return firsts + [member.rank for member in members if member.rank == 1 and 1 not in firsts]


def group_timeout(watch: WatchConfig) -> timedelta:
    """Time limit of a collective: the watchdog must be able to name the missing rank before it.

    Where the watchdog lets a standstill last, no collective ends the run in its place.
    """
    limits = (watch.limit_seconds, watch.start_limit_seconds)
    if not watch.heartbeat_seconds or not all(limits):
        return UNWATCHED_TIMEOUT
    return max(PROCESS_GROUP_TIMEOUT, timedelta(seconds=max(limits) + AFTERWARDS_SECONDS))


@contextmanager
def open_watch(folder: Path, watch: WatchConfig, ranks: Ranks) -> Iterator[None]:
    """Open this process's heartbeat and watchdog. All ranks together, in a claimed folder."""
    if not watch.heartbeat_seconds:
        yield
        return
    from lmscale.ranks.collectives import failing_together, gather_json

    with failing_together(), writing("heartbeats", folder):
        if ranks.is_first:
            _clear(folder / HEARTBEATS_FOLDER)
        stacks = StackDumps(folder, ranks.rank)
    this_rank = [node_name(), os.getpid(), ranks.is_first_on_node]
    members = [
        Member(rank=rank, host=host, pid=pid, is_first_on_node=is_first)
        for rank, (host, pid, is_first) in enumerate(gather_json(this_rank))
    ]
    interval = heartbeat.beat_seconds(watch.heartbeat_seconds, ranks.world_size)
    watchdog = Watchdog(folder, ranks.rank, members, watch, interval=interval, stacks=stacks)
    steps = watch.straggler_steps
    with Heartbeat(folder, ranks, interval=interval, recent_steps=steps, hooks=[watchdog]):
        yield


def _clear(folder: Path) -> None:
    """Remove the files of earlier starts, which may have had more ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.json"):
        path.unlink(missing_ok=True)
    # There from the beginning: some network file systems remember for a minute what was missing.
    heartbeat.overwrite(folder / REQUEST_FILE, {})
