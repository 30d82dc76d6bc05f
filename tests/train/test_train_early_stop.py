"""A run ends early by its held-out figures alone, however often it was interrupted."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import committed_steps, launch, ledger_of, run_lmscale, settings, write_tiny_config

from launcher.status import judge_run
from lmscale.checkpoint.retention import read_figures
from lmscale.config.training import EarlyStopConfig
from lmscale.errors import ConfigError
from lmscale.runs.run_folder import read_status
from lmscale.train.early_stop import find_early_stop

LOSS = "evaluation/b/loss"
# No loss falls by 100 nats: the first evaluation, after step 2, stays the best one.
STOP = {"metric": LOSS, "patience": 2, "min_delta": 100.0}
WHY = f"stopped early at step 6: {LOSS} did not fall by more than 100 since step 2"


def stop_of(**values) -> EarlyStopConfig:
    return EarlyStopConfig.model_validate({"metric": "m", "patience": 2, **values})


@pytest.mark.parametrize(
    ("figures", "settings", "why"),
    [
        ({10: 3.0, 20: 2.0, 30: 2.5}, {}, None),  # one is not enough
        ({10: 3.0, 20: 2.0, 30: 2.5, 40: 2.0}, {}, "at step 40: m did not fall since step 20 (2)"),
        ({10: 3.0, 20: 2.0, 30: 2.5, 40: 1.9, 50: 2.0}, {}, None),
        ({10: 0.5, 20: 0.4, 30: 0.5}, {"mode": "max"}, "at step 30: m did not rise since step 10"),
        ({10: 3.0, 20: 2.9, 30: 2.8}, {"min_delta": 0.5}, "by more than 0.5 since step 10 (3)"),
        ({10: 3.0, 20: 2.7, 30: 2.4}, {"min_delta": 0.5}, None),  # both together are enough
        ({10: 3.0, 20: math.nan, 30: math.inf}, {}, "at step 30: m did not fall since step 10"),
        ({10: math.nan, 20: math.nan}, {}, "at step 20: m did not fall at all"),
        ({}, {}, None),
    ],
)
def test_a_run_ends_with_the_evaluation_that_uses_its_patience_up(figures, settings, why):
    found = find_early_stop(figures, stop_of(**settings))
    assert (found is None) == (why is None)
    assert why is None or why in str(found)


@given(losses=st.lists(st.floats(0, 9), max_size=12), patience=st.integers(1, 4))
def test_more_patience_never_ends_a_run_before_less_does(losses, patience):
    figures = dict(enumerate(losses, start=1))
    if find_early_stop(figures, stop_of(patience=patience + 1)) is not None:
        assert find_early_stop(figures, stop_of(patience=patience)) is not None


@pytest.mark.parametrize(
    ("evaluation", "problem"),
    [
        ({"stop": STOP}, "evaluation.stop.metric = 'evaluation/b/loss' is never measured"),
        ({"stop": STOP, "sets": {"b": "x"}}, "set evaluation.every_steps"),
    ],
)
def test_a_figure_that_is_not_measured_is_told_with_the_configuration(
    tiny_data, tmp_path, evaluation, problem
):
    with pytest.raises((ConfigError, ValueError), match=problem):
        write_tiny_config(
            tmp_path / "c.yaml",
            tiny_data,
            tmp_path / "run",
            {
                "evaluation": evaluation,
            },
        )


def evaluations_of(run) -> list[int]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["step"] for row in rows if LOSS in row]


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """A run that ends early, submitted again; and one that was killed before the evaluation of a
    step that it had saved, and went on with two ranks.
    """
    root = tmp_path_factory.mktemp("early")
    overrides = {
        "train.steps": 40,
        "checkpoint.every_steps": 4,
        "evaluation": {
            "sets": {"b": f"{tiny_data}/shards/b/heldout"},
            "every_steps": 2,
            "max_windows": 4,
            "stop": STOP,
        },
    }
    whole, cut = root / "whole", root / "cut"
    config = write_tiny_config(root / "whole.yaml", tiny_data, whole, overrides)
    first = run_lmscale("train", config)
    kept = {name: (whole / name).read_bytes() for name in ("ledger.jsonl", "attempts.jsonl")}
    again = run_lmscale("train", config)
    config = write_tiny_config(root / "cut.yaml", tiny_data, cut, overrides)
    begun = settings({"train.steps": 4, "evaluation.at_end": False})
    assert run_lmscale("train", config, *begun).code == 0
    lines = (cut / "metrics.jsonl").read_text().splitlines(keepends=True)
    (cut / "metrics.jsonl").write_text("".join(x for x in lines if '"step": 4' not in x))
    assert evaluations_of(cut) == [2]
    return whole, first, again, kept, cut, launch(config, 2)


@pytest.mark.ranks
def test_a_run_that_gets_no_better_ends_well_with_a_checkpoint_and_its_whole_sets_scored(runs):
    whole, first, *_ = runs
    assert first.code == 0, first.output
    assert WHY in first.output and "finished" not in first.output
    assert committed_steps(whole)[-1] == len(ledger_of(whole)) == 6
    assert list(read_figures(whole, "final/b/loss")) == [6]


@pytest.mark.ranks
def test_the_same_command_says_so_again_and_does_nothing(runs):
    whole, _, again, kept, *_ = runs
    assert again.code == 0 and WHY in again.output
    assert {name: (whole / name).read_bytes() for name in kept} == kept


@pytest.mark.ranks
def test_an_evaluation_that_a_kill_has_taken_is_made_up_for_so_that_the_end_is_the_same(runs):
    whole, *_, cut, last = runs
    assert last.code == 0 and WHY in last.output, last.output
    assert evaluations_of(cut) == evaluations_of(whole) == [2, 4, 6]
    assert ledger_of(cut) == ledger_of(whole)


@pytest.mark.ranks
def test_the_state_of_the_run_says_why_it_ended(runs):
    status = read_status(runs[0])
    assert status.is_finished
    assert judge_run(status, None, 0.0).line.startswith(f"finished: {WHY}")
