"""Every family by every kind of objective trains the same at any ZeRO stage and on any number of
ranks, and goes on elsewhere as if it had not stopped. One start of two ranks, and one of one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from labelled_data import LABELLED, labelled_recipe
from rank_cases import Case, run_cases
from recipes import LSTM, RECIPES, family_of
from tiny_run import tiny_config

from lmscale.stream.stream import open_stream

pytestmark = pytest.mark.ranks

SHORT = {"train.steps": 3, "checkpoint.every_steps": 3}
AT_ONCE = {"engine.zero_stage": 0, "batch.micro_windows": 12}
STOP = 1  # two ranks; then two steps of one, whose second shows what the loaded moments did
LEARNING = {"model": LSTM | {"layers": 1, "width": 64}, "engine.optimizer.lr": 0.02}
LEARNING |= {"batch.micro_windows": 12, "train.steps": 100, "checkpoint.every_steps": 100}
STAGES = dict(zip(LABELLED, (2, 1, 2, 3, 0, 1, 2, 3), strict=True))


@pytest.fixture(scope="module")
def trained(tiny_data, labelled, tmp_path_factory):
    """Name of a case → what was seen of its steps."""
    root = tmp_path_factory.mktemp("families")

    def case(name, overrides):
        return Case(name=name, data=str(tiny_data), folder=str(root / name), overrides=overrides)

    recipes = {**RECIPES, **{name: labelled_recipe(name, labelled) for name in LABELLED}}
    begun, ended = [], []
    for name, overrides in recipes.items():
        stage = stage_of(name)
        first = case(name, {**overrides, **SHORT, "engine.zero_stage": stage})
        other = {**first.overrides, "engine.zero_stage": (stage + 2) % 4}
        begun.append(replace(first, name=f"{name} begun", stop_after=STOP))
        ended.append(replace(first, name=f"{name} ended", overrides=other))
    whole = [
        case(f"{name} whole", {**overrides, **SHORT, **AT_ONCE})
        for name, overrides in recipes.items()
    ]
    alone = [*whole, case("learning", LEARNING), *ended]
    # ZeRO 3 last: it changes torch for good.
    starts = {
        2: begun,
        1: sorted(alone, key=lambda case: case.overrides.get("engine.zero_stage", 1)),
    }
    return run_cases(starts, root / "starts")


def stage_of(recipe: str) -> int:
    """The first recipe of every family begins at ZeRO 3."""
    if recipe in STAGES:
        return STAGES[recipe]
    same = [name for name in RECIPES if family_of(name) == family_of(recipe)]
    return (3, 2, 1, 0)[same.index(recipe) % 4]


@pytest.mark.parametrize("recipe", [*RECIPES, *LABELLED])
def test_a_run_goes_on_at_another_stage_and_number_of_ranks(trained, recipe):
    """Every term of the loss is its mean over all ranks, and what samples become is theirs."""
    resumed = [*trained[f"{recipe} begun"], *trained[f"{recipe} ended"]]
    assert [report.step for report in resumed] == [1, 2, 3]
    for report, other in zip(resumed, trained[f"{recipe} whole"], strict=True):
        assert (report.targets, report.digest) == (other.targets, other.digest)
        assert report.more_targets == other.more_targets
        # Sums of fp32 in another order.
        assert report.loss == pytest.approx(other.loss, rel=1e-5)
        assert report.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


def test_an_lstm_comes_below_the_entropy_of_its_tokens(trained, tiny_data, tmp_path):
    reports = trained["learning"]
    config = tiny_config(tiny_data, tmp_path)
    with open_stream(config.stream, seed=1) as stream:
        rows = stream.read_rows(0, config.batch.global_windows * len(reports))
    share = np.bincount(rows.tokens[:, 1:].flatten()) / rows.tokens[:, 1:].size
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert np.mean([report.loss for report in reports[-5:]]) < entropy - 0.5
