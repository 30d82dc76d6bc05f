"""What was planned of a run, as TensorBoard shows it beside what was measured."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import tiny_config

from lmscale.plan.losses import BESIROGLU
from lmscale.ranks.ranks import Ranks
from lmscale.runs.trackers import open_trackers
from lmscale.train.planned import LOSS, MEMORY, SPEED, Planned, plan_figures


def test_a_loss_is_foretold_where_the_law_was_measured_and_nowhere_else():
    planned = Planned(positions_per_second=5.0, memory_bytes=7, parameters=10**9)
    assert planned.figures(10**6) == {SPEED: 5.0, MEMORY: 7.0}
    assert planned.figures(10**10) == {SPEED: 5.0, MEMORY: 7.0, LOSS: BESIROGLU.loss(10**9, 10**10)}
    without = Planned(positions_per_second=5.0, memory_bytes=7, parameters=None)
    assert without.figures(10**10) == {SPEED: 5.0, MEMORY: 7.0}


def test_a_run_on_a_cpu_has_a_planned_speed(tmp_path: Path):
    config = tiny_config(tmp_path, tmp_path / "run")
    ranks = Ranks(rank=0, world_size=2, local_rank=0, local_world_size=2)
    planned = plan_figures(config, ranks, torch.device("cpu"))
    assert planned is not None and min(planned.figures(0).values()) > 0
    uneven = Ranks(rank=0, world_size=5, local_rank=0, local_world_size=5)
    assert plan_figures(config, uneven, torch.device("cpu")) is None


def test_planned_figures_are_drawn_and_not_written_down_as_measured(tmp_path: Path):
    with open_trackers(tmp_path) as trackers:
        trackers.log(1, {"speed/positions_per_second": 4.0}, planned={SPEED: 5.0})
        trackers.flush()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [event.value for event in events.Scalars(SPEED)] == pytest.approx([5.0])
    assert "plan/" not in (tmp_path / "metrics.jsonl").read_text()
