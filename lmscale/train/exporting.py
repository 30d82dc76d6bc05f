"""Exports while a run trains: by ``lmscale export`` in a process of low priority, beside rank 0.

It shares nothing with the training but the checkpoint that it reads: whatever becomes of it, the
training goes on. Other ranks have nothing to do with it.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from lmscale.config import RunConfig
from lmscale.config.export import ExportConfig
from lmscale.engine.step_report import StepReport
from lmscale.errors import EXIT_USER, ConfigError, LmscaleError
from lmscale.files.extras import install_extra
from lmscale.runs.commits import Commit
from lmscale.runs.exports import EXPORTS, State, export_place, find_due, record_export
from lmscale.train.assemble import Run
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)
LOG = "export.log"  # in the run's logs/
POLL_SECONDS = 0.2
END_SECONDS = 10.0  # for a process that was asked to end
# An export of 70 billion parameters over a slow line takes some hours; one that hangs, for ever.
LIMIT_SECONDS = 12 * 3600.0
# What an export needs beside lmscale, and the extra that brings it.
_PACKAGES = {
    "hf": (("transformers", "hf"),),
    "gguf": (("gguf", "gguf"), ("xllamacpp", "gguf")),
    "peft": (("transformers", "hf"), ("peft", "peft")),
}
# What tells a process that it is one of some ranks, or which GPU is its own.
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Exporter:
    """A hook of the loop, which costs a step nothing to speak of; rank 0's is the active one."""

    def __init__(
        self, config: RunConfig, *, committed_step: Callable[[], int | None], is_active: bool
    ) -> None:
        self._is_active = is_active
        self._config, self._folder = config, config.folder
        self._committed_step = committed_step
        self._seen_step: int | None = -1  # at which what is due was worked out
        self._given_up: Commit | None = None  # at this start
        # Also of those that no row could be written of: a full disk begins none of them again.
        self._ended: set[tuple[int, str]] = set()
        self._running: tuple[Commit, subprocess.Popen[bytes]] | None = None
        self._limit = 0.0  # on time.monotonic's clock, of the running one
        self._is_asked = False  # to end, as it takes too long

    def __call__(self, report: StepReport) -> None:
        self._look()

    def finish(self, stop: Callable[[], bool]) -> None:
        """Wait for what is due, up to ``export.finish_minutes`` and until a stop is asked for."""
        self._seen_step = -1
        deadline = time.monotonic() + 60 * self._config.export.finish_minutes
        if self._look():
            logger.info("waiting for the export of the last checkpoint")
        while self._look():
            if stop() or time.monotonic() > deadline:
                logger.warning("the last export is not finished: lmscale export %s", self._folder)
                return
            heartbeat.tick()
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """End what is under way; the next start of the run does it anew."""
        if self._running is None:
            return
        process, self._running = self._running[1], None
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _look(self) -> bool:
        """Take note of an end, and begin what is due; whether one is under way now."""
        if not self._is_active:
            return False
        if self._running is not None:
            commit, process = self._running
            code = process.poll()
            if code is None:
                self._end_late(commit, process)
                return True
            self._running, self._seen_step = None, -1
            self._end(commit, code)
        committed = self._committed_step()
        if committed == self._seen_step:
            return False
        self._seen_step = committed
        due = find_due(self._config.export, self._folder)
        *late, newest = [each for each in due if _key(each) not in self._ended] or (None,)
        for commit in late:
            self._record(commit, "left out")
            logger.warning("step %d is not exported: a newer one is due", commit.step)
        return newest not in (None, self._given_up) and self._begin(newest)

    def _begin(self, commit: Commit) -> bool:
        log = self._folder / "logs" / LOG
        command = ["nice", "-n", "19", *plan_command(self._config, commit.step)]
        environment = {k: v for k, v in os.environ.items() if k not in _OF_A_RANK}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        try:
            with log.open("ab") as file:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,  # a key in the terminal is for the run
                )
        except OSError as error:
            logger.warning("step %d is not exported: %s", commit.step, error)
            self._record(commit, "failed")
            return False
        self._running, self._limit = (commit, process), time.monotonic() + LIMIT_SECONDS
        self._is_asked = False
        return True

    def _end_late(self, commit: Commit, process: subprocess.Popen[bytes]) -> None:
        """Ask a process that takes too long to end, and then make it; no step waits for it."""
        late_seconds = time.monotonic() - self._limit
        if late_seconds > END_SECONDS:
            process.kill()
        elif late_seconds > 0 and not self._is_asked:
            self._is_asked = True
            logger.warning("the export of step %d takes too long and is ended", commit.step)
            process.terminate()

    def _end(self, commit: Commit, code: int) -> None:
        log = self._folder / "logs" / LOG
        if code == 0:
            place = export_place(self._config, commit.step)
            logger.info("exported step %d to %s", commit.step, place)
            self._record(commit, "done")
            return
        is_final = code == EXIT_USER  # what another start would refuse too (cli/export.py)
        logger.warning(
            "step %d is not exported (exit code %d): %s. %sAll of it: %s",
            *(commit.step, code, _last_line(log).rstrip(".")),
            "" if is_final else "The next start of the run tries again. ",
            log,
        )
        if is_final:
            self._record(commit, "failed")
        else:
            self._given_up = commit

    def _record(self, commit: Commit, state: State) -> None:
        self._ended.add(_key(commit))
        try:
            record_export(self._folder, commit, state)
        except (OSError, LmscaleError) as error:
            logger.warning("exports.jsonl: %s", error)


def check_packages(config: ExportConfig) -> None:
    """Raises ``ConfigError`` where a run that exports lacks a package for it."""
    missing = [
        f"export.format = {config.format!r} with export.every_steps needs the package {package}, "
        f"which is not installed: {install_extra(extra)}"
        for package, extra in (_PACKAGES[config.format] if config.format else ())
        if config.every_steps and find_spec(package) is None
    ]
    if missing:
        raise ConfigError(missing)


def _key(commit: Commit) -> tuple[int, str]:
    return commit.step, commit.sha256


def plan_command(config: RunConfig, step: int) -> list[str]:
    """The command of a step's export, which ends with the process that starts it."""
    settings = config.export
    command = [sys.executable, "-m", "lmscale", "export", str(config.folder)]
    command += ["--out", export_place(config, step), "--work", str(config.folder / EXPORTS)]
    command += ["--step", str(step), "--format", str(settings.format), "--dtype", settings.dtype]
    command += ["--base", settings.base] if settings.base else []
    command += ["--keep", str(settings.keep)] if settings.keep else []
    return [*command, "--beside", str(os.getpid())]


@contextmanager
def open_exporter(run: Run, committed_step: Callable[[], int | None]) -> Iterator[Exporter]:
    """``committed_step``: the run's newest checkpoint, which is asked for after every step."""
    is_active = run.ranks.is_first and run.config.export.every_steps > 0
    exporter = Exporter(run.config, committed_step=committed_step, is_active=is_active)
    try:
        yield exporter
    finally:
        exporter.close()


def _last_line(path: Path) -> str:
    with suppress(OSError):
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[:300]
    return ""
