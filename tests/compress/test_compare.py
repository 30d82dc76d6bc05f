"""``lmscale compare``: which models it sets against each other, and what it calls them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from handmade_runs import make_run
from tiny_run import tiny_config

from lmscale.cli.compare import check_comparable, name_apart
from lmscale.compress.measure import Measured, Speeds
from lmscale.compress.table import render_table
from lmscale.config.objective import CausalConfig, DistillConfig, PrefixConfig
from lmscale.errors import ConfigError
from lmscale.evaluation.found import FoundRun, find_run
from lmscale.evaluation.perplexity import SetScore
from lmscale.tokenizer.codec import load_tokenizer


@pytest.fixture(scope="module")
def found(tiny_data: Path, tmp_path_factory) -> FoundRun:
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("compare") / "run")
    make_run(config, load_tokenizer(tiny_data / "tokenizer"))
    return find_run(config.folder, step=None)


def with_objective(found: FoundRun, objective: object) -> FoundRun:
    return replace(found, config=found.config.model_copy(update={"objective": objective}))


def test_losses_are_compared_of_the_same_targets_alone(found):
    student = DistillConfig(name="distill", teacher="a", teacher_share=0.3)
    smooth = CausalConfig(label_smoothing=0.1, chunk_tokens=16)
    check_comparable([found, *(with_objective(found, each) for each in (student, smooth))])
    prefix = with_objective(found, PrefixConfig(name="prefix"))
    with pytest.raises(ConfigError, match="its objective, prefix, scores other targets .* causal"):
        check_comparable([found, prefix])


def test_two_checkpoints_of_one_run_and_two_runs_of_one_name_are_told_apart(found):
    later = replace(found, manifest=replace(found.manifest, step=9))
    other = found.config.run.model_copy(update={"name": "other"})
    renamed = replace(found, config=found.config.model_copy(update={"run": other}))
    assert name_apart([found, renamed]) == ["tiny", "other"]
    assert name_apart([found, renamed, later]) == ["tiny@7", "other", "tiny@9"]
    elsewhere = find_run(found.folder, step=None)
    assert name_apart([found, elsewhere]) == [found.name, elsewhere.name]


@pytest.mark.parametrize(
    ("measured", "others", "title", "figure"),
    [
        (("loss", "perplexity", "bits_per_byte"), {}, "bits/byte", "2.0000"),
        (("loss", "perplexity"), {"accuracy": 0.25, "f1_macro": 0.1}, "accuracy", "0.2500"),
        (("loss",), {}, "bits/byte", "-"),
    ],
)
def test_beside_the_loss_stands_what_the_objective_measures_first(measured, others, title, figure):
    score = SetScore(
        windows=1, targets=2, bytes=1, nll=2 * math.log(2), measured=measured, others=others
    )
    row = Measured(
        name="a",
        parameters=4,
        zeros=1,
        dtype="fp32",
        bytes=16,
        engine="torch",
        speeds=Speeds(scoring=2.0, generating=None),
        sets={"h": score},
    )
    titles, line = render_table([row], [(1.0, None)]).splitlines()
    assert titles.split()[-2:] == ["loss", title]
    assert line.split() == ["a", "4", "25.0%", "16", "B", "fp32", "1.00×", "-", "0.6931", figure]
