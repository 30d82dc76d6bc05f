"""A run's folder, as the tests of the commands look at it."""

import pytest
from tiny_run import log_commit

from lmscale.files.jsonl import append_row
from lmscale.runs.attempts import AttemptLog


@pytest.fixture
def run(tmp_path):
    """A run's folder after a stop and a restart that still goes on."""
    folder = tmp_path / "runs" / "first"
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").write_text("run: {name: first}\ntrain: {steps: 1000}\n")
    for step in range(12):
        append_row(folder / "ledger.jsonl", {"step": step})
    for step, loss in ((10, 3.25), (12, 3.0)):
        figures = {"train/loss": loss, "train/tokens": 12_288, "speed/targets_per_second": 99.5}
        append_row(folder / "metrics.jsonl", {"step": step, "time": 1.0, **figures})
    append_row(folder / "metrics.jsonl", {"step": 12, "time": 2.0, "evaluation/heldout/loss": 3.5})
    clock, spent = iter(range(1000, 2000, 100)).__next__, {}
    with AttemptLog(
        folder, first_step=0, world_size=2, zero_stage=1, clock=clock, phase_seconds=spent.copy
    ) as attempt:
        spent["forward"] = 50.0
        attempt.step(10, 50.0)
        attempt.end("SIGTERM")
    for rank in range(2):
        (folder / "logs" / f"rank-{rank:05d}.log").write_text(f"line of rank {rank}\n")
    log_commit(folder, 10)
    return folder
