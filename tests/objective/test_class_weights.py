"""Classes weigh in the loss what is asked, counted once, and by no batch of their own."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_data import ENCODERS, labelled_recipe
from rank_cases import Case, run_cases
from sklearn.utils.class_weight import compute_class_weight
from test_pairs import open_for, run_config, score, scoring_of

from lmscale.config import parse_config
from lmscale.errors import ConfigError, DataError
from lmscale.objective.objective import build_preparation
from lmscale.stream.class_balance import balance, count_labels, expect_classes
from lmscale.train import class_weights

TAGS = ("adjective", "animal", "thing")


def config_of(labelled, kind, **objective):
    settings = ENCODERS[kind]
    return run_config(
        labelled, settings["objective"] | objective, source=kind, model=settings["model"]
    )


@pytest.mark.parametrize(("kind", "smoothing"), [("classes", 0.2), ("tags", 0.0)])
def test_the_loss_is_torch_s_weighted_sum_over_the_count_and_figures_are_without(
    labelled, kind, smoothing
):
    plain = config_of(labelled, kind)
    config = config_of(labelled, kind, **({"label_smoothing": smoothing} if smoothing else {}))
    with open_for(plain) as stream:
        arrays = build_preparation(plain).prepare(stream.read_rows(0, 4)).arrays
    scoring = scoring_of(config)
    seen = {}
    name = "classify" if kind == "classes" else "classify_tokens"
    classify = getattr(scoring.model, name)
    setattr(scoring.model, name, lambda *a, **k: seen.setdefault("logits", classify(*a, **k)))
    weights_C = torch.linspace(0.5, 3, len(config.objective.names))
    scoring.class_weights = weights_C
    weighted = score(scoring, arrays)
    labels_N = torch.from_numpy(arrays["labels"]).long()
    expected = F.cross_entropy(
        seen["logits"], labels_N, weight=weights_C, label_smoothing=smoothing, reduction="sum"
    )
    assert torch.equal(weighted.loss.total, expected)
    assert int(weighted.loss.targets) == len(labels_N)
    nll = F.cross_entropy(seen["logits"], labels_N, reduction="sum")
    assert torch.equal(weighted.figures["loss"].total, nll.detach())
    assert not torch.equal(nll, expected)
    scoring.eval()
    held_out = score(scoring, arrays)
    assert torch.equal(held_out.loss.total.detach(), held_out.figures["loss"].total)
    assert held_out.choices is not None and weighted.choices is None


@settings(deadline=None)  # their first call loads much
@given(st.lists(st.integers(0, 3), min_size=1))
def test_balanced_is_that_of_scikit_learn_and_an_example_weighs_1_on_average(labels):
    labels = [*range(4), *labels]  # of every class one
    counts = np.bincount(labels)
    weights = balance(counts)
    theirs = compute_class_weight("balanced", classes=np.arange(4), y=np.array(labels))
    np.testing.assert_allclose(weights, theirs, rtol=1e-15)
    assert weights @ counts == pytest.approx(len(labels))


def test_labels_are_counted_in_the_shards_and_sources_by_their_share_of_the_windows(labelled):
    config = config_of(labelled, "tags")
    root = Path(labelled.corpus.folder) / "tags" / "train"
    lines = itertools.chain.from_iterable(
        path.read_text(encoding="utf-8").splitlines() for path in root.rglob("*.jsonl")
    )
    tags = Counter(tag for line in lines for tag in json.loads(line)["tags"])
    with open_for(config) as stream:
        (dataset,) = stream.datasets.values()
        counts = count_labels(dataset)
        assert counts.tolist() == [tags[number] for number in range(len(TAGS))]
        np.testing.assert_allclose(
            balance(expect_classes(stream, at=0)), balance(counts), rtol=1e-15
        )
        # Of two sources that are one, with unequal shares, together what each is.
        both = SimpleNamespace(
            datasets={"a": dataset, "b": dataset, "left": None},
            shares_at=lambda n: {"a": 0.75, "b": 0.25, "left": 0.0},
        )
        np.testing.assert_allclose(
            expect_classes(both, at=0), counts / dataset.num_windows, rtol=1e-15
        )


def test_a_class_without_examples_is_told(monkeypatch):
    monkeypatch.setattr(class_weights, "expect_classes", lambda *_, **__: np.array([1.0, 0.0, 2.0]))
    with pytest.raises(DataError, match="hold no example: animal. Name weights, such as {adj"):
        class_weights._balance(SimpleNamespace(datasets={}), TAGS, at=0)


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ("{plant: 2}", "class_weights: 'plant' is none of the classes. There are: a, b"),
        ("{a: 0, b: 0}", "class_weights: all of them are 0"),
        ("{a: -1}", "give balanced, or a number from 0 to a million for some of the classes"),
        ("even", "give balanced, or a number .*; found 'even'"),
    ],
)
def test_weights_of_what_is_no_class_are_told_with_the_configuration(weights, problem):
    with pytest.raises(ConfigError, match=problem):
        parse_config(
            "run: {name: a}\n"
            "model: {family: encoder, pooler: true, text_classes: 2}\n"
            "stream: {packing: best_fit}\n"
            f"objective: {{name: classes, names: [a, b], class_weights: {weights}}}\n"
        )


@pytest.mark.ranks
def test_a_run_keeps_the_weights_that_it_has_counted_over_restarts_and_ranks(
    labelled, tiny_data, tmp_path
):
    recipe = labelled_recipe("tags", labelled) | {"train.steps": 4, "checkpoint.every_steps": 2}
    recipe["objective"] = recipe["objective"] | {"class_weights": "balanced"}

    def case(name: str, folder: str, **more) -> Case:
        return Case(
            name=name, data=str(tiny_data), folder=str(tmp_path / folder), overrides=recipe, **more
        )

    saw = run_cases(
        {
            1: [case("whole", "whole"), case("begun", "cut", stop_after=2)],
            2: [case("resumed", "cut")],
        },
        tmp_path / "starts",
    )
    manifests = [
        json.loads((tmp_path / folder / f"checkpoints/step-{step:09d}/manifest.json").read_text())
        for folder, step in (("whole", 4), ("cut", 2), ("cut", 4))
    ]
    kept = [manifest["state"]["class_weights"]["weights"] for manifest in manifests]
    assert kept[0] == kept[1] == kept[2]
    assert kept[0]["adjective"] < 1 < kept[0]["animal"]
    losses = [[report.loss for report in saw[name]] for name in ("whole", "begun", "resumed")]
    assert losses[1] + losses[2] == pytest.approx(losses[0], rel=1e-5)
