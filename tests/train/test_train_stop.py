"""Requests to stop that come outside the steps: real launchers, real ranks, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from forked_ranks import run_starts
from tiny_run import (
    children_of,
    committed_steps,
    run_lmscale,
    start_lmscale,
    write_tiny_config,
)

from launcher.rendezvous import environment_for, find_free_port
from lmscale.checkpoint import LocalPlace
from lmscale.checkpoint.find import find_sound
from lmscale.cli.main import main
from lmscale.runtime.heartbeat import read_beat
from lmscale.runtime.jsonl import read_rows

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

HERE = Path(__file__).parent
PATIENCE_SECONDS = 120.0
ENDLESS = 1_000_000  # steps


class Launched:
    """A run under `launch local` that is stopped on the way."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder, self.run = data, folder, folder / "run"
        self.process: subprocess.Popen[str] | None = None

    def start(self, overrides: dict, num_ranks: int = 2) -> None:
        self.config = write_tiny_config(self.folder / "tiny.yaml", self.data, self.run, overrides)
        self.exits = self.folder / "exits"
        self.exits.mkdir(exist_ok=True)
        with open(self.folder / "output.txt", "w") as output:
            self.process = start_lmscale(
                *("launch", "local", self.config, "--nproc", str(num_ranks)),
                output=output,
                environment={"LMSCALE_EXITS": str(self.exits)},
            )

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output
            time.sleep(0.01)

    def rows(self, name: str) -> list[dict]:
        return read_rows(self.run / name)

    def is_in(self, phase: str) -> bool:
        """Whether rank 0 says so."""
        beat = read_beat(self.run / "heartbeats" / "rank-00000.json")
        return beat is not None and beat.phase == phase and beat.pid in self.ranks()

    def ranks(self) -> list[int]:
        return sorted(children_of(self.process.pid))

    def steps_done(self) -> int:
        return len(self.rows("ledger.jsonl"))

    def stop(self, number: int | None = signal.SIGTERM) -> float:
        """Signal the launcher, wait for its end, and say how long that took."""
        began = time.monotonic()
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(timeout=60)
        seconds = time.monotonic() - began
        assert self.process.returncode == 75, self.output
        assert "Traceback" not in self.output
        return seconds

    def told(self) -> dict[str, str]:
        return {path.name: path.read_text().strip() for path in self.exits.iterdir()}

    def reasons(self) -> list[str]:
        return [row["reason"] for row in self.rows("attempts.jsonl") if "reason" in row]


@pytest.fixture
def launched(tiny_data, tmp_path):
    run = Launched(tiny_data, tmp_path)
    yield run
    if run.process is not None:
        run.process.kill()
        run.process.wait()


LONG_SETS = {  # a dozen seconds to score
    f"evaluation.sets.{name}": "SHARDS/a/train" for name in ("a", "b", "c", "d", "e", "f", "g", "h")
}


def with_long_evaluation(data: Path, **overrides) -> dict:
    sets = {key: place.replace("SHARDS", f"{data}/shards") for key, place in LONG_SETS.items()}
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return {**sets, "batch.micro_windows": 1, **dotted}


@pytest.mark.parametrize("moment", ["coming up", "claimed", "compiling"])
def test_a_signal_in_start_up_ends_all_ranks_at_once_with_75(launched, moment):
    overrides = {"engine.compile": moment == "compiling", "watch.heartbeat_seconds": 0.2}
    launched.start({"train.steps": ENDLESS, **overrides})
    if moment == "coming up":
        launched.until(lambda: len(launched.ranks()) == 2)
        time.sleep(1.0)
    elif moment == "claimed":
        launched.until((launched.run / "lease.json").exists)
    else:
        launched.until(lambda: launched.is_in("forward"))
        time.sleep(1.0)
    seconds = launched.stop()
    assert seconds < 5
    assert not committed_steps(launched.run)
    if moment != "coming up":  # there a rank may not listen yet, and the signal itself ends it
        assert launched.told() == {"rank-00000": "75", "rank-00001": "75"}
        assert "stopped by SIGTERM; there was nothing to save" in launched.output
    if moment == "compiling":
        assert launched.steps_done() == 0
        assert launched.reasons() == ["SIGTERM"]


@pytest.fixture(scope="module")
def stopped(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopping")
    (folder / "data.txt").write_text(str(tiny_data))
    run_starts(HERE / "stopping_ranks.py", folder, (2,))
    return json.loads((folder / "saw.json").read_text())


@pytest.mark.parametrize(
    ("moment", "steps", "saved"),
    [
        ("starting", 0, []),
        ("saved 2", 2, [2]),  # no further step is begun
        ("scoring 3", 3, [2, 3]),
        ("stalled after 1", 1, [1]),
        ("scoring 6", 6, [4, 6]),
    ],
)
def test_one_ranks_request_outside_a_step_stops_all_and_all_steps_are_saved(
    stopped, moment, steps, saved
):
    assert stopped[moment] == [["SIGUSR1"] * 2, ["SIGUSR1"], steps, saved]


def test_a_signal_in_an_evaluation_abandons_it_and_saves_the_step(launched, tiny_data):
    overrides = with_long_evaluation(
        tiny_data, train__steps=ENDLESS, evaluation__every_steps=3, checkpoint__every_steps=1000
    )
    launched.run.mkdir()
    (launched.run / "stop").touch()  # from before the start: it stops nothing
    launched.start(overrides)
    launched.until(lambda: launched.steps_done() == 3)
    assert "was there before this start: removed, and not obeyed" in launched.output
    time.sleep(0.3)
    assert launched.stop() < 10
    assert committed_steps(launched.run) == [3]
    assert launched.steps_done() == 3
    assert not any("evaluation/a/loss" in row for row in launched.rows("metrics.jsonl"))
    assert launched.reasons() == ["SIGTERM"]
    assert launched.told() == {"rank-00000": "75", "rank-00001": "75"}


def test_a_signal_in_the_last_evaluation_leaves_it_to_the_next_start(launched, tiny_data):
    overrides = with_long_evaluation(tiny_data, train__steps=3, watch__heartbeat_seconds=0.2)
    launched.start(overrides, num_ranks=1)
    launched.until(lambda: committed_steps(launched.run) == [2, 3])
    time.sleep(0.3)
    assert launched.stop() < 10
    launched.start(overrides, num_ranks=1)  # which is stopped in it as well
    launched.until(lambda: launched.is_in("evaluate"))
    assert launched.stop() < 10
    assert "stopped by SIGTERM; there was nothing to save" in launched.output
    assert not any("final/a/loss" in row for row in launched.rows("metrics.jsonl"))


@pytest.mark.parametrize("how", ["SIGTERM", "stop file"])
def test_a_rank_that_waits_for_data_saves_the_steps_done_when_asked_to_stop(
    launched, tiny_data, how
):
    launched.start({"train.steps": ENDLESS, "stream.workers": 1, "checkpoint.every_steps": 10**6})
    launched.until(lambda: launched.steps_done() >= 3)
    second = launched.ranks()[1]  # it does not watch the file
    (worker,) = children_of(second)
    os.kill(worker, signal.SIGSTOP)
    before = -1
    while before != (before := launched.steps_done()):  # until the steps it had ready are done
        time.sleep(0.5)
    if how == "stop file":
        (launched.run / "stop").touch()
    # A second or two, and the time after which a worker that does not answer is killed.
    assert launched.stop(signal.SIGTERM if how == "SIGTERM" else None) < 15
    # Of the last of these steps the ranks had not heard from each other that it was done.
    assert committed_steps(launched.run) == [before + 1]
    assert launched.steps_done() == before + 1
    assert launched.reasons() == [how]
    assert main(["runs", "audit", str(launched.run)]) == 0


def test_more_signals_do_not_break_the_save_under_way(launched):
    launched.start({"train.steps": ENDLESS, "model.width": 256, "model.ffn_width": 1024})
    launched.until(lambda: launched.steps_done() >= 3)
    ranks = launched.ranks()
    while launched.process.poll() is None:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.kill(rank, signal.SIGTERM)
        time.sleep(0.01)
    assert launched.stop(None) < 30
    assert launched.told() == {"rank-00000": "75", "rank-00001": "75"}
    saved = find_sound(LocalPlace(launched.run / "checkpoints"))
    assert saved is not None and saved.step == launched.steps_done()


def start_rank(config: Path, rank: int, port: int, folder: Path) -> subprocess.Popen[str]:
    """A rank without a launcher, which would end it when another one fails."""
    environment = environment_for(
        rank,
        world_size=2,
        local_rank=rank,
        local_world_size=2,
        node_rank=0,
        master=("127.0.0.1", port),
    )
    with open(folder / f"rank-{rank}.txt", "w") as output:
        return start_lmscale(
            *("train", config),
            output=output,
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
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not committed_steps(run) and time.monotonic() < deadline:
            time.sleep(0.01)
        ranks[1].kill()
        if is_asked:
            ranks[0].send_signal(signal.SIGTERM)
        began = time.monotonic()
        code = ranks[0].wait(timeout=60)
        seconds = time.monotonic() - began
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    said = (tmp_path / "rank-0.txt").read_text()
    assert code == (75 if is_asked else 1), said
    assert (tmp_path / "rank-00000").read_text().strip() == str(code)
    assert ("Traceback" in said) is not is_asked
    assert seconds < 15


def test_lmscale_evaluate_ends_with_75_when_it_is_asked_to_stop(tiny_data, tmp_path):
    overrides = with_long_evaluation(tiny_data, train__steps=3, evaluation__at_end=False)
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, tmp_path / "run", overrides)
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    said = tmp_path / "said.txt"
    with open(said, "w") as output:
        evaluation = start_lmscale("evaluate", tmp_path / "run", output=output)
    try:
        while evaluation.poll() is None and "evaluating a: " not in said.read_text():
            time.sleep(0.01)  # the first of the sets; the others take longer than the test may
        evaluation.send_signal(signal.SIGUSR1)
        evaluation.wait(timeout=10)
    finally:
        evaluation.kill()
        evaluation.wait()
    assert evaluation.returncode == 75, said.read_text()
    assert said.read_text().endswith("stopped by SIGUSR1; nothing was scored\n")
