"""Other families and objectives train the same at every ZeRO stage, and learn more than counts.

One start of two ranks, and one of a single rank.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rank_cases import Case, run_cases
from tiny_run import tiny_config

from lmscale.stream.stream import open_stream

pytestmark = pytest.mark.ranks

LSTM = {"family": "recurrent", "layers": 2, "width": 32}
ENCODER = {"family": "encoder", "layers": 2, "width": 32, "heads": 4}
PAIRS = {"family": "encoder_decoder", "layers": 1, "width": 32, "heads": 4}
BART = {"positions": "learned", "norm": "layernorm", "norm_first": False, "bias": True}
ORDER = {"pooler": True, "token_types": 2, "text_classes": 2}
CASES = {
    "lstm": {"model": LSTM},
    "transformer_xl": {"model.sliding_windows": [9], "model.segments": 4},
    "mup": {"model.mup.base_width": 8},  # matrices have a learning rate of their own
    "prefix": {"objective.name": "prefix"},
    "fill_middle": {"objective.name": "fill_middle"},
    "masked": {"model": ENCODER | {"activation_checkpoint_every": 1}, "objective.name": "masked"},
    "masked_order": {  # a loss of two terms
        "model": ENCODER | ORDER,
        "objective.name": "masked_order",
        "stream.mask_documents": False,
    },
    "spans": {  # T5
        "model": PAIRS | {"activation_checkpoint_every": 1},
        "objective.name": "spans",
        "stream.mask_documents": False,
    },
    "infill": {
        "model": PAIRS | BART | {"scaled_logits": False, "init_std": 0.1},
        "objective.name": "infill",
        "stream.mask_documents": False,
    },
}
# On two ranks. Every stage has two, ZeRO 3 every family: the LSTM there is "whole".
STAGES = {
    "lstm": 2, "transformer_xl": 3, "prefix": 0, "fill_middle": 1,
    "masked": 3, "masked_order": 2, "spans": 3, "infill": 1,
}  # fmt: skip
SHORT = {"train.steps": 3, "checkpoint.every_steps": 3}
RESUMED = {"model": LSTM, "objective.name": "fill_middle", "train.steps": 4}
LEARNING = {"model": LSTM | {"layers": 1, "width": 64}, "engine.optimizer.lr": 0.02}
LEARNING |= {"batch.micro_windows": 12, "train.steps": 100, "checkpoint.every_steps": 100}


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """Name of a case → what was seen of its steps."""
    root = tmp_path_factory.mktemp("families")

    def case(name, overrides):
        return Case(name=name, data=str(tiny_data), folder=str(root / name), overrides=overrides)

    shared = [
        case(name, CASES[name] | SHORT | {"engine.zero_stage": STAGES[name]})
        for name in sorted(CASES, key=STAGES.__getitem__)  # ZeRO 3 last: it changes torch for good
    ]
    whole = case("whole", RESUMED | {"engine.zero_stage": 3})
    begun = replace(whole, name="begun", folder=str(root / "resumed"), stop_after=2)
    ended = replace(case("ended", RESUMED), folder=begun.folder)  # at ZeRO 1, on one rank
    alone = [
        case(f"{name} alone", CASES[name] | SHORT | {"engine.zero_stage": 0}) for name in CASES
    ]
    starts = {2: [*shared, whole, begun], 1: [*alone, case("learning", LEARNING), ended]}
    return run_cases(starts, root / "starts")


@pytest.mark.parametrize("name", CASES)
def test_every_term_of_the_loss_is_its_mean_on_any_number_of_ranks_at_any_stage(trained, name):
    for report, other in zip(trained[name], trained[f"{name} alone"], strict=True):
        # Sums of fp32 in another order.
        assert report.loss == pytest.approx(other.loss, rel=1e-5)
        assert report.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


def test_an_lstm_goes_on_at_another_stage_and_number_of_ranks(trained):
    """With documents that are rearranged by their samples' numbers."""
    resumed = [*trained["begun"], *trained["ended"]]
    assert [report.step for report in resumed] == [1, 2, 3, 4]
    for report, other in zip(resumed, trained["whole"], strict=True):
        assert report.loss == pytest.approx(other.loss, rel=1e-6)
        assert (report.targets, report.digest) == (other.targets, other.digest)


def test_an_lstm_comes_below_the_entropy_of_its_tokens(trained, tiny_data, tmp_path):
    reports = trained["learning"]
    config = tiny_config(tiny_data, tmp_path)
    with open_stream(config.stream, seed=1) as stream:
        rows = stream.read_rows(0, config.batch.global_windows * len(reports))
    share = np.bincount(rows.tokens[:, 1:].flatten()) / rows.tokens[:, 1:].size
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert np.mean([report.loss for report in reports[-5:]]) < entropy - 0.5
