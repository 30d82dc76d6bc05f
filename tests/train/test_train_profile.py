"""`lmscale train --profile`: what a run of two ranks leaves of two of its steps."""

import gzip
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import launch, losses_of, run_lmscale, write_tiny_config
from torch import nn

from lmscale.cli.runs.look import read_page
from lmscale.cli.runs.view import render_page
from lmscale.ranks.ranks import Ranks
from lmscale.runs.profiles import SUMMARY_FILE, TRACE_FILE, ProfilePlan
from lmscale.train import profiling
from lmscale.train.profiling import StepProfiler, list_named

PLAN = ProfilePlan(first=3, last=4, ranks=None)


def test_inside_a_compiled_module_nothing_is_named():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))
    scoring = nn.Module()
    scoring.model = model
    model[0].compile(backend="eager")
    assert [name for name, _ in list_named(scoring)] == ["model", "0", "1", "1.0"]


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        (profiling, "_naming_phases", "the profile could not be begun: "),
        (profiling.profile, "stop", "the profile could not be ended: "),
        (profiling, "render_page", "the profile could not be written to "),
    ],
)
def test_a_mistake_of_the_profiler_is_told_and_ends_nothing(
    place, name, said, tmp_path, monkeypatch, caplog
):
    real = getattr(place, name)

    def fail(*arguments):
        real(*arguments)
        raise RuntimeError("of torch")

    monkeypatch.setattr(place, name, fail)
    scoring = nn.Sequential(nn.Linear(2, 2))
    run: Any = SimpleNamespace(
        ranks=Ranks(),
        start=SimpleNamespace(step=2),
        folder=tmp_path,
        device=torch.device("cpu"),
        engine=SimpleNamespace(module=scoring, device=torch.device("cpu")),
        config=SimpleNamespace(run=SimpleNamespace(name="a"), train=SimpleNamespace(steps=6)),
    )
    profiler = StepProfiler(PLAN, run, None)
    for step in range(3, 7):
        scoring(torch.ones(1, 2))
        profiler(SimpleNamespace(step=step, stop_reason=None))
    profiler.close()
    (told,) = [each for each in caplog.messages if each.startswith("the profile")]
    assert told.startswith(said) and told.endswith("RuntimeError: of torch")
    assert not scoring[0]._forward_pre_hooks


@pytest.mark.ranks
@pytest.mark.slow
def test_a_profile_shows_each_rank_and_leaves_the_training_as_it_is(tiny_data, tmp_path):
    config = write_tiny_config(
        tmp_path / "tiny.yaml",
        tiny_data,
        tmp_path / "run",
        {"train.steps": 6, "model.activation_checkpoint_every": 2},
    )
    words = ("launch", "local", config, "--nproc", "2", *PLAN.words)
    ended = run_lmscale(*words)
    assert ended.code == 0, ended.output
    assert "tiny, steps 3 to 4, rank 0 on" in ended.output
    for rank in (0, 1):
        folder = PLAN.folder(tmp_path / "run", rank)
        page = (folder / SUMMARY_FILE).read_text()
        for row in ("forward", "backward", "step", "blocks.*.attention.qkv", "head"):
            assert f"    {row} " in page, row
        with gzip.open(folder / TRACE_FILE) as file:
            names = {event.get("name") for event in json.load(file)["traceEvents"]}
        assert {"phase: backward", "module: blocks.1.feed_forward", "[memory]"} <= names

    rows = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    of_step = {row["step"]: row for row in rows if "train/loss" in row}
    marked = {s: (row.get("speed/profiled_steps"), "speed/mfu_dense" in row,
                  "speed/targets_per_second" in row) for s, row in of_step.items()}  # fmt: skip
    assert {s for s, (count, _, has_speed) in marked.items() if count and not has_speed} == {3, 4}
    assert all(has_speed for s, (_, _, has_speed) in marked.items() if s not in (3, 4))
    assert "steps 3 to 4: " in render_page(read_page(tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run/events")).Reload()
    assert {f"profile/rank {rank}/text_summary" for rank in (0, 1)} <= {*events.Tags()["tensors"]}

    plain = tmp_path / "plain"
    ended = launch(config, 2, {"run.folder": plain})
    assert ended.code == 0, ended.output
    assert not (plain / "profiles").exists()
    assert losses_of(plain) == losses_of(tmp_path / "run")
