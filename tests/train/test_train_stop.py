"""Requests to stop that come outside the steps: real launchers, real ranks, real signals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from forked_processes import Process
from tiny_run import (
    children_of,
    committed_steps,
    run_lmscale,
    start_lmscale,
    write_tiny_config,
)

from launcher.rendezvous import environment_for, find_free_port
from lmscale.checkpoint.find import find_sound
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.cli.main import main
from lmscale.files.jsonl import read_rows
from lmscale.ranks.ranks import Ranks
from lmscale.watch.heartbeat import Beat, beat_path, read_beat

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

PATIENCE_SECONDS = 120.0
# A stop takes a second or two, and ten where a loader's worker must be killed. One that does not
# come takes 600 s, or for ever: there is room for what a shared machine does meanwhile.
STOP_SECONDS = 60.0
ENDLESS = 1_000_000  # steps


def until(condition: Callable[[], bool], said: Callable[[], str]) -> None:
    """Wait until it is so; ``said`` tells what to show when it does not come to that."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.01)


class Launched:
    """A run under `launch local` that is stopped on the way."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder, self.run = data, folder, folder / "run"
        self.started: list[Process] = []

    def start(self, overrides: dict, num_ranks: int = 2) -> None:
        overrides = {"watch.heartbeat_seconds": 0.2, **overrides}  # for is_in to tell of now
        self.config = write_tiny_config(self.folder / "tiny.yaml", self.data, self.run, overrides)
        self.exits = self.folder / "exits"
        self.exits.mkdir(exist_ok=True)
        output = self.folder / "output.txt"
        output.unlink(missing_ok=True)
        process = start_lmscale(
            *("launch", "local", self.config, "--nproc", str(num_ranks)),
            output=output,
            environment={
                "LMSCALE_EXITS": str(self.exits),
                # What others have compiled before would make it quick.
                "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "compiled"),
            },
        )
        self.started.append(process)

    @property
    def process(self) -> Process:
        return self.started[-1]

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        def is_so() -> bool:
            assert self.process.poll() is None, self.output
            return condition()

        until(is_so, lambda: self.output)

    def rows(self, name: str) -> list[dict]:
        return read_rows(self.run / name)

    def beat(self, rank: int) -> Beat | None:
        """What the rank of this start says last."""
        beat = read_beat(beat_path(self.run, rank))
        return beat if beat is not None and beat.pid in self.ranks() else None

    def is_in(self, phase: str, *, rank: int = 0, still_seconds: float = 0.0) -> bool:
        """Whether the rank says so, and that it has stood still in it for so long.

        That is time in which it ran: a pause of the whole machine counts for three heartbeats.
        """
        beat = self.beat(rank)
        return beat is not None and beat.phase == phase and beat.still_seconds >= still_seconds

    def ranks(self) -> list[int]:
        return sorted(children_of(self.process.pid))

    def steps_done(self) -> int:
        return len(self.rows("ledger.jsonl"))

    def stop(self, number: int | None = signal.SIGTERM) -> None:
        """Signal the launcher, and wait for its good end."""
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(timeout=STOP_SECONDS)
        assert self.process.returncode == 75, self.output
        assert "Traceback" not in self.output

    def told(self) -> dict[str, str]:
        return {path.name: path.read_text().strip() for path in self.exits.iterdir()}

    def reasons(self) -> list[str]:
        return [row["reason"] for row in self.rows("attempts.jsonl") if "reason" in row]


@pytest.fixture
def launched(tiny_data, tmp_path):
    run = Launched(tiny_data, tmp_path)
    yield run
    for process in run.started:
        process.kill()
        process.wait()


LONG_SETS = {  # half a minute to score, so that its end is no part of any test
    f"evaluation.sets.{name}": "SHARDS/a/train" for name in [f"s{n:02d}" for n in range(32)]
}


def with_long_evaluation(data: Path, **overrides) -> dict:
    sets = {key: place.replace("SHARDS", f"{data}/shards") for key, place in LONG_SETS.items()}
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return {**sets, "batch.micro_windows": 1, **dotted}


def listens(pid: int) -> bool:
    """Whether the process does something of its own about SIGTERM (Linux).

    Just after the fork it still has the launcher's handler, and one thread; what listens in a rank
    is another thread.
    """
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    is_caught = bool(int(status["SigCgt"], 16) >> (signal.SIGTERM - 1) & 1)
    return is_caught and int(status["Threads"]) > 1


@pytest.mark.parametrize("moment", ["begun", "coming up", "claimed", "compiling"])
def test_a_signal_in_start_up_ends_all_ranks_at_once_with_75(launched, moment):
    # Compiling takes a quarter of a minute, so that no step is done before any of these signals.
    launched.start({"train.steps": ENDLESS, "engine.compile": True})
    launched.until(lambda: len(launched.ranks()) == 2)
    if moment == "coming up":
        launched.until(lambda: all(map(listens, launched.ranks())))
    elif moment == "claimed":
        launched.until((launched.run / "lease.json").exists)
    elif moment == "compiling":  # a pass that was compiled takes milliseconds
        launched.until(lambda: launched.is_in("forward", still_seconds=0.5))
    launched.stop()
    assert not committed_steps(launched.run) and launched.steps_done() == 0
    if moment != "begun":  # there a rank may not listen yet, and the signal itself ends it
        assert launched.told() == {"rank-00000": "75", "rank-00001": "75"}
        # Not after the first step, of which there would be something.
        assert "stopped by SIGTERM; there was nothing to save" in launched.output
    if moment == "compiling":
        assert launched.reasons() == ["SIGTERM"]


def test_a_signal_in_an_evaluation_abandons_it_and_saves_the_step(launched, tiny_data):
    overrides = with_long_evaluation(
        tiny_data, train__steps=ENDLESS, evaluation__every_steps=3, checkpoint__every_steps=1000
    )
    launched.run.mkdir()
    (launched.run / "stop").touch()  # from before the start: it stops nothing
    launched.start(overrides)
    launched.until(lambda: launched.is_in("evaluate"))
    assert "was there before this start: removed, and not obeyed" in launched.output
    launched.stop()
    assert committed_steps(launched.run) == [3]
    assert launched.steps_done() == 3
    assert not any("evaluation/s00/loss" in row for row in launched.rows("metrics.jsonl"))
    assert launched.reasons() == ["SIGTERM"]
    assert launched.told() == {"rank-00000": "75", "rank-00001": "75"}


def test_a_signal_in_the_last_evaluation_leaves_it_to_the_next_start(launched, tiny_data):
    overrides = with_long_evaluation(tiny_data, train__steps=3)
    for _ in range(2):  # the next start is stopped in it as well
        launched.start(overrides, num_ranks=1)
        launched.until(lambda: launched.is_in("evaluate"))
        assert committed_steps(launched.run) == [2, 3]
        launched.stop()
    assert "stopped by SIGTERM; there was nothing to save" in launched.output
    assert not any("final/s00/loss" in row for row in launched.rows("metrics.jsonl"))


@pytest.mark.parametrize("how", ["SIGTERM", "stop file"])
def test_a_rank_that_waits_for_data_saves_the_steps_done_when_asked_to_stop(
    launched, tiny_data, how
):
    launched.start({"train.steps": ENDLESS, "stream.workers": 1, "checkpoint.every_steps": 10**6})
    launched.until(lambda: launched.steps_done() >= 3)
    second = launched.beat(1).pid  # it does not watch the file
    (worker,) = children_of(second)
    os.kill(worker, signal.SIGSTOP)
    # It looks for a step four times a second: those that were ready are done.
    launched.until(lambda: launched.is_in("data", rank=1, still_seconds=2.0))
    step = launched.beat(1).step
    assert launched.steps_done() == step - 1  # they have not told each other that it is done
    if how == "stop file":
        (launched.run / "stop").touch()
    launched.stop(signal.SIGTERM if how == "SIGTERM" else None)
    assert committed_steps(launched.run) == [step]
    assert launched.steps_done() == step
    assert launched.reasons() == [how]
    assert main(["runs", "audit", str(launched.run)]) == 0


def test_more_signals_do_not_break_the_save_under_way(launched):
    launched.start({"train.steps": ENDLESS, "model.width": 256, "model.ffn_width": 1024})
    launched.until(lambda: launched.steps_done() >= 3)
    ranks = launched.ranks()

    def is_over_after_more_signals() -> bool:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)
        return launched.process.poll() is not None

    until(is_over_after_more_signals, lambda: launched.output)
    launched.stop(None)
    assert launched.told() == {"rank-00000": "75", "rank-00001": "75"}
    saved = find_sound(LocalPlace(launched.run / "checkpoints"), Ranks())
    assert saved is not None and saved.step == launched.steps_done()


def start_rank(config: Path, rank: int, port: int, folder: Path) -> Process:
    """A rank without a launcher, which would end it when another one fails."""
    environment = environment_for(
        rank,
        world_size=2,
        local_rank=rank,
        local_world_size=2,
        node_rank=0,
        master=("127.0.0.1", port),
    )
    return start_lmscale(
        *("train", config),
        output=folder / f"rank-{rank}.txt",
        environment={**environment, "LMSCALE_EXITS": str(folder)},
    )


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_rank_that_has_lost_another_ends_with_75_if_it_was_asked_to_stop_else_with_1(
    tiny_data, tmp_path, is_asked
):
    run = tmp_path / "run"
    overrides = {"train.steps": ENDLESS, "batch.micro_windows": 1}
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, run, overrides)
    port = find_free_port()
    ranks = [start_rank(config, rank, port, tmp_path) for rank in (0, 1)]
    said = tmp_path / "rank-0.txt"
    try:
        until(lambda: bool(committed_steps(run)), said.read_text)
        # Stopped meanwhile, so that it hears of both at once however long this takes.
        ranks[0].send_signal(signal.SIGSTOP)
        ranks[1].kill()
        if is_asked:
            ranks[0].send_signal(signal.SIGTERM)
        ranks[0].send_signal(signal.SIGCONT)
        code = ranks[0].wait(timeout=STOP_SECONDS)  # a collective waits for 10 minutes
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert code == (75 if is_asked else 1), said.read_text()
    assert (tmp_path / "rank-00000").read_text().strip() == str(code)
    assert "Traceback" not in said.read_text()
    if not is_asked:
        assert "error: Another rank ended, or cannot be reached any more" in said.read_text()
        assert "Traceback" in (run / "logs/rank-00000.log").read_text()


def test_lmscale_evaluate_ends_with_75_when_it_is_asked_to_stop(tiny_data, tmp_path):
    overrides = with_long_evaluation(tiny_data, train__steps=3, evaluation__at_end=False)
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, tmp_path / "run", overrides)
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    said = tmp_path / "said.txt"
    evaluation = start_lmscale("evaluate", tmp_path / "run", output=said)
    try:
        until(lambda: "evaluating s00: " in said.read_text(), said.read_text)
        evaluation.send_signal(signal.SIGUSR1)
        evaluation.wait(timeout=STOP_SECONDS)
    finally:
        evaluation.kill()
        evaluation.wait()
    assert evaluation.returncode == 75, said.read_text()
    assert said.read_text().endswith("stopped by SIGUSR1; nothing was scored\n")
