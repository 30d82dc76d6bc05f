"""Two live copies of one Slurm job on one folder: real launchers and ranks, without Slurm."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tiny_run import (
    children_of,
    committed_steps,
    launch,
    ledger_of,
    settings,
    start_lmscale,
    tiny_config,
    write_tiny_config,
)

from lmscale.cli.main import main
from lmscale.config import plan_batches
from lmscale.files.jsonl import read_rows
from lmscale.objective.causal import CausalPreparation
from lmscale.stream.loader import digest_steps
from lmscale.stream.stream import open_stream

PREPARATION = CausalPreparation(mask_documents=True)

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

ENDLESS = 1_000_000  # steps
PATIENCE_SECONDS = 120.0


class Copies:
    """Copies of one run, which are started and stopped; they end with the test."""

    def __init__(self, data: Path, folder: Path, stack: ExitStack) -> None:
        self.data, self.run, self._stack = data, folder / "run", stack
        overrides = {"batch.micro_windows": 6, "checkpoint.every_steps": 4}
        # No rewind, for which retention would keep the older copy's checkpoints for many steps.
        overrides |= {"guard.on_divergence": "stop"}
        self.config = write_tiny_config(folder / "tiny.yaml", data, self.run, overrides)
        self._logs = folder

    def start(self, attempt: str, num_ranks: int = 2) -> Copy:
        log = self._logs / f"{attempt}.log"
        exits = self._logs / f"exits-{attempt}"
        exits.mkdir()
        process = start_lmscale(
            *("launch", "local", self.config, "--nproc", str(num_ranks)),
            *settings({"train.steps": ENDLESS}),
            output=log,
            environment={"LMSCALE_ATTEMPT": attempt, "LMSCALE_EXITS": str(exits)},
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return Copy(process, log, exits)

    def holder(self) -> str:
        try:
            return json.loads((self.run / "lease.json").read_text())["attempt"]
        except FileNotFoundError:
            return ""

    def writers(self) -> set[str]:
        """The attempts whose files the committed checkpoints name."""
        found = set()
        for path in self.run.glob("checkpoints/step-*/manifest.json"):
            try:
                names = [row["name"] for row in json.loads(path.read_text())["files"]]
            except FileNotFoundError:  # deleted by the rule of retention
                continue
            found |= {name.removesuffix(".safetensors").split(".", 1)[1] for name in names}
        return found

    def saves_under_way(self) -> list[str]:
        folders = (self.run / "checkpoints").glob("step-*")
        return [path.name for path in folders if not (path / "manifest.json").exists()]

    def steps_done(self) -> int:
        try:
            return len(ledger_of(self.run))
        except FileNotFoundError:
            return 0

    def finish(self, capsys: pytest.CaptureFixture[str]) -> None:
        """End the run in peace; it must be as if there had been one copy of it only."""
        steps = self.steps_done() + 3
        ended = launch(self.config, 1, {"train.steps": steps})
        assert ended.code == 0, ended.output
        assert main(["runs", "audit", str(self.run)]) == 0, capsys.readouterr().out
        assert ledger_of(self.run) == self.undisturbed(steps)

    def undisturbed(self, steps: int) -> list[str]:
        """The ledger of a run that nobody interrupts, as it follows from the shards alone."""
        config = tiny_config(self.data, self.run)
        plan = plan_batches(global_windows=12, micro_windows=12, data_ranks=1)
        with open_stream(config.stream, seed=config.run.seed) as stream:
            rows = digest_steps(
                stream, plan, preparation=PREPARATION, first_step=0, num_steps=steps, workers=0
            )
        return [row.to_line().rstrip("\n") for row in rows]


class Copy:
    """One of them."""

    def __init__(self, process, log: Path, exits: Path) -> None:
        self.process, self._log, self._exits = process, log, exits

    @property
    def output(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], bool], pause: float = 0.02) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(pause)

    def ends_with(self) -> tuple[int, dict[str, str]]:
        """The launcher's exit code, and what the ranks have left for a batch script."""
        code = self.process.wait(timeout=PATIENCE_SECONDS)
        return code, {path.name: path.read_text().strip() for path in self._exits.iterdir()}

    def signal_ranks(self, number: int) -> None:
        for rank in children_of(self.process.pid):
            os.kill(rank, number)


@pytest.fixture
def copies(tiny_data, tmp_path):
    with ExitStack() as stack:
        yield Copies(tiny_data, tmp_path, stack)


GOOD_STOP = (75, {"rank-00000": "75", "rank-00001": "75"})


def test_the_older_of_two_live_copies_ends_and_commits_nothing_after_the_take_over(copies, capsys):
    older = copies.start("7.0")
    older.until(lambda: len(committed_steps(copies.run)) > 1)
    assert copies.holder() == "7.0" and copies.writers() == {"7.0"}
    newer = copies.start("7.1")
    newer.until(lambda: copies.holder() == "7.1")
    taken_at = time.time()
    assert older.ends_with() == GOOD_STOP
    assert "taken over by attempt 7.1" in older.output and "Traceback" not in older.output
    newer.until(lambda: copies.writers() == {"7.1"})
    assert "resumed from" in newer.output and "has not let go" not in newer.output
    newer.process.send_signal(signal.SIGTERM)
    assert newer.ends_with() == GOOD_STOP
    rows = read_rows(copies.run / "attempts.jsonl")
    # The older one's rows end before its loss was noticed: it has not even said that it ended.
    assert [row["event"] for row in rows if row["event"] != "progress"] == ["start", "start", "end"]
    assert rows[-1]["reason"] == "SIGTERM" and rows[-1]["time"] > taken_at
    copies.finish(capsys)


@contextmanager
def frozen(copy: Copy):
    """As a copy on a node that was suspended, or that has lost the network."""
    copy.signal_ranks(signal.SIGSTOP)
    try:
        yield
    finally:
        copy.signal_ranks(signal.SIGCONT)


def test_a_copy_that_was_frozen_in_a_save_and_wakes_up_later_commits_nothing(copies, capsys):
    older = copies.start("7.0")
    older.until(lambda: bool(committed_steps(copies.run)))
    older.until(lambda: bool(copies.saves_under_way()), pause=0)
    with frozen(older):
        # The lock of a node that is not reached is not seen: the newer one would wait for it.
        (copies.run / ".lock").unlink()
        saved = committed_steps(copies.run)[-1]
        newer = copies.start("7.1", num_ranks=1)
        newer.until(lambda: "7.1" in copies.writers())
    assert older.ends_with() == GOOD_STOP, older.output
    assert "taken over by attempt 7.1" in older.output and "Traceback" not in older.output
    assert f"at step {saved}" in newer.output
    newer.until(lambda: copies.writers() == {"7.1"})
    newer.process.send_signal(signal.SIGTERM)
    assert newer.ends_with() == (75, {"rank-00000": "75"})
    assert not copies.saves_under_way()
    copies.finish(capsys)
