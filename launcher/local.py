"""The ranks of a run on this machine: signals are passed on to all, and a failure ends all."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.data_checks import find_missing_data
from launcher.local_ranks import plan_local_ranks
from launcher.outcome import CALM, MOMENT_SECONDS, Outcome, RankEnd, judge
from launcher.rendezvous import environment_for, find_free_port, unset_defaults
from lmscale.config import RunConfig, load_config
from lmscale.config.load import blaming
from lmscale.errors import EXIT_USER, ClusterError, ConfigError
from lmscale.files.jsonl import read_tail
from lmscale.files.printing import say
from lmscale.ranks.device import num_cores
from lmscale.ranks.gpus import find_gpus
from lmscale.ranks.ranks import LOOPBACK
from lmscale.runs.attempts import find_good_end, read_attempts
from lmscale.runs.beginnings import check_start
from lmscale.runs.leftovers import remove_leftovers
from lmscale.runs.profiles import ProfilePlan

POLL_SECONDS = 0.05
FAILURE_SECONDS = 5.0  # to end after another rank has failed: nothing is left to save together
STOP_SECONDS = 600.0  # after a signal, or another rank's good end: a checkpoint may be on its way
SAVE_SIGNAL = signal.SIGUSR2  # asks the ranks for a save, and nobody to stop
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Loaded before any fork: the child may not take the loader's locks between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    rank: int
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)  # added to the launcher's own
    output: Path | None = None  # for stdout and stderr, appended; None: the launcher's terminal


def plan_ranks(
    argv: Sequence[str],
    *,
    num_ranks: int,
    logs: Path,
    port: int,
    cores: int,
    environ: Mapping[str, str],
) -> tuple[RankPlan, ...]:
    """What to start for ``num_ranks`` ranks that all run ``argv``; rank 0 keeps the terminal."""
    defaults = unset_defaults(max(1, cores // num_ranks), environ)
    return tuple(
        RankPlan(
            rank=rank,
            argv=tuple(argv),
            environment=defaults
            | environment_for(
                rank,
                world_size=num_ranks,
                local_rank=rank,
                local_world_size=num_ranks,
                node_rank=0,
                master=(LOOPBACK, port),
            ),
            output=logs / f"rank-{rank:05d}.out" if rank else None,
        )
        for rank in range(num_ranks)
    )


def train_argv(
    config_path: str | Path, overrides: Sequence[str], profile: ProfilePlan | None = None
) -> tuple[str, ...]:
    settings = [part for override in overrides for part in ("--set", override)]
    words = (*settings, *(profile.words if profile else ()))
    return (sys.executable, "-m", "lmscale.cli.main", "train", str(config_path), *words)


def launch_local(
    config_path: str | Path,
    overrides: Sequence[str],
    *,
    num_ranks: int | None,
    profile: ProfilePlan | None = None,
    before_ranks: Callable[[RunConfig], object] = lambda config: None,
) -> Outcome:
    """Train on this machine with ``num_ranks`` ranks, until all have ended. None: as many as the
    machine has GPUs, or its cores allow; that is said.

    The configuration, its division among the ranks, whose folder it names and that there is what it
    reads are checked before any rank starts or anything is written; problems raise ``ConfigError``.
    Then ``before_ranks`` is called, for what the launcher does not know.
    """
    if num_ranks is not None and num_ranks < 1:
        raise ConfigError(f"--nproc {num_ranks}: at least one rank is needed.")
    config = load_config(config_path, overrides)
    if num_ranks is None:
        num_ranks, why = plan_local_ranks(
            config.batch.step_sizes, gpus=find_gpus(), cores=num_cores()
        )
        say(why, err=True)
    with blaming(overrides):
        config.batch.plan(num_ranks)
        if profile is not None:
            profile.check(steps=config.train.steps, world_size=num_ranks)
        check_start(config)
        _check_data(config)
    before_ranks(config)
    logs = config.folder / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClusterError(
            f"The run's folder {config.folder} cannot be made: {error}. Set run.folder."
        ) from None
    plans = plan_ranks(
        train_argv(config_path, overrides, profile),
        num_ranks=num_ranks,
        logs=logs,
        port=find_free_port(),
        cores=num_cores(),
        environ=os.environ,
    )
    outcome = run_ranks(plans)
    if outcome.exit_code == EXIT_USER:
        remove_leftovers(config.folder)
    return outcome


def _check_data(config: RunConfig) -> None:
    """Raise ``ConfigError`` for data that is not there. A run that has ended well reads its
    held-out sets only where one is still to be scored: what it misses is for its ranks to tell.
    """
    if find_good_end(read_attempts(config.folder)):
        return
    if problems := find_missing_data(config):
        raise ConfigError(problems)


def run_ranks(plans: Sequence[RankPlan]) -> Outcome:
    """Start the planned processes, forward signals to them, and wait for their common end."""
    with Supervisor() as supervisor:
        for plan in plans:
            supervisor.start(plan)
        return supervisor.wait()


@dataclass(kw_only=True)
class _Rank:
    plan: RankPlan
    process: subprocess.Popen[bytes]
    output_start: int
    end: RankEnd | None = None


class Supervisor:
    """Owns the processes of all ranks for the time of a ``with`` block, in the main thread."""

    def __init__(self) -> None:
        self._ranks: dict[int, _Rank] = {}
        self._arrived: list[int] = []
        self._forwarded: list[int] = []
        self._forwarded_at = 0.0
        self._told = False
        self._overdue: dict[int, str] = {}
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Supervisor:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, SAVE_SIGNAL):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish stands
                self._previous[number] = signal.signal(number, self._remember)
        # `lmscale` blocks it from its first line on; what has come since then is heard now.
        self._previous_mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, (SAVE_SIGNAL,))
        return self

    def __exit__(self, *exception: object) -> None:
        for rank in self._ranks.values():
            _signal_group(rank.process.pid, signal.SIGKILL)
            rank.process.wait()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._previous_mask)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def start(self, plan: RankPlan) -> None:
        """Start a rank in a session of its own. Raises ``ClusterError`` when it cannot start."""
        try:
            with open(plan.output, "ab") if plan.output else nullcontext() as file:
                start = file.tell() if file else 0  # before the rank moves it, which shares it
                process = subprocess.Popen(
                    plan.argv,
                    env={**os.environ, **plan.environment},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT if file else None,
                    # The terminal's Ctrl-C reaches the launcher alone, which passes it on once.
                    start_new_session=True,
                    preexec_fn=_die_with(os.getpid()),
                )
        except OSError as error:
            raise ClusterError(f"rank {plan.rank} could not be started: {error}") from error
        self._ranks[plan.rank] = _Rank(plan=plan, process=process, output_start=start)

    def wait(self) -> Outcome:
        """Return when every rank has ended, by itself or by force."""
        while self._running():
            self._reap()
            self._forward()
            self._hurry()
            if self._running() and not self._arrived:
                time.sleep(POLL_SECONDS)
        ends = [rank.end for rank in self._ranks.values() if rank.end]
        outputs = {}
        for number, rank in self._ranks.items():
            if output := rank.plan.output:  # earlier attempts have written to the same file
                tail = read_tail(output, start=rank.output_start)
                outputs[number] = (str(output), tail.decode("utf-8", "replace"))
        return judge(ends, forwarded=self._forwarded, overdue=self._overdue, outputs=outputs)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._arrived.append(number)

    def _running(self) -> dict[int, _Rank]:
        return {number: rank for number, rank in self._ranks.items() if rank.end is None}

    def _reap(self) -> None:
        for number, rank in self._running().items():
            code = rank.process.poll()
            if code is not None:
                _signal_group(rank.process.pid, signal.SIGKILL)  # loader workers that are left
                now = time.monotonic()
                rank.end = RankEnd(rank=number, code=code, ended_at=now, was_told=self._told)

    def _forward(self) -> None:
        """Pass on what has arrived; the ranks know when they can stop."""
        while self._arrived:
            number = self._arrived.pop(0)
            # A closed terminal should end in a checkpoint, and the ranks handle SIGTERM.
            number = signal.SIGTERM if number == signal.SIGHUP else number
            if number != SAVE_SIGNAL:
                self._forwarded.append(number)
                self._forwarded_at = time.monotonic()
            for rank in self._running().values():
                # To the rank alone: its workers are its own to end.
                rank.process.send_signal(number)

    def _hurry(self) -> None:
        now = time.monotonic()
        ends = [rank.end for rank in self._ranks.values() if rank.end]
        bad = [e.ended_at for e in ends if e.code not in CALM]
        if bad:
            # The others' own failures are awaited for a moment: one of them may be the cause.
            if not self._told and now - min(bad) >= MOMENT_SECONDS:
                self._told = True
                self._signal_running(signal.SIGTERM)
            if now - min(bad) >= MOMENT_SECONDS + FAILURE_SECONDS:
                self._signal_running(signal.SIGKILL)
            return
        interrupts = self._forwarded.count(signal.SIGINT)
        if interrupts > 1:  # the second asks each rank to abort; the third does not ask
            patience = FAILURE_SECONDS if interrupts == 2 else 0.0
            if now - self._forwarded_at >= patience:
                self._signal_running(signal.SIGKILL)
            return
        since = [end.ended_at for end in ends] + ([self._forwarded_at] if self._forwarded else [])
        if since and now - max(since) >= STOP_SECONDS:
            after = "it was asked to stop" if self._forwarded else "other ranks had ended"
            why = f"was still running {STOP_SECONDS:.0f} s after {after}, and was killed."
            self._overdue.update(dict.fromkeys(self._running(), why))
            self._told = True
            self._signal_running(signal.SIGKILL)

    def _signal_running(self, number: int) -> None:
        for rank in self._running().values():
            if number == signal.SIGKILL:
                _signal_group(rank.process.pid, number)
            else:
                rank.process.send_signal(number)


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # gone already; macOS says so by EPERM
        pass


def _die_with(launcher: int) -> Callable[[], None]:
    """For the child between fork and exec: the kernel kills it when the launcher is gone.

    The parent for this purpose is the thread that forks, hence the main one. And a request for a
    save waits until the rank is ready to listen.
    """

    def arrange() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (SAVE_SIGNAL,))
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != launcher:  # it went before the line above took hold
                os._exit(1)

    return arrange
