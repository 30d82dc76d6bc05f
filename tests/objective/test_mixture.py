"""A mixture: each sample is what its own part makes of it, and each part has a term of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from recipes import BART, ENCODER, ONE_TEXT, PAIRS
from tiny_run import tiny_config

from lmscale.config import RunConfig
from lmscale.model.family import build_model
from lmscale.objective.mixture import MixturePreparation
from lmscale.objective.objective import build_preparation, build_scoring
from lmscale.objective.scores import to_device
from lmscale.stream.batches import Prepared, Rows, take_rows
from lmscale.stream.stream import open_stream
from lmscale.train.initial import draw_weights, fill_weights

ROWS = 300
SCORED = {"z_loss": 0.01, "label_smoothing": 0.1, "chunk_tokens": 50}


def parts(*weighted: tuple[float, dict[str, Any]]) -> dict[str, Any]:
    named = {f"part_{n}": {"weight": w, "objective": o} for n, (w, o) in enumerate(weighted)}
    return {"name": "mixture", "parts": named}


CAUSAL = parts((0.5, {"name": "causal"}), (0.3, {"name": "fill_middle"}), (0.2, {"name": "prefix"}))
MASKED = parts(
    (1, {"name": "masked"}),
    (3, {"name": "masked", "rate": 0.4, "unit": "spans", "shuffle": 0.05}),
)
WRITTEN = parts((1, {"name": "spans", "sentinels": 20}), (1, {"name": "infill"}))
CASES = {
    "causal": {"objective": CAUSAL | SCORED},
    "causal, unmasked": {"objective": CAUSAL | SCORED, **ONE_TEXT},
    "masked": {"objective": MASKED | {"chunk_tokens": 50}, "model": ENCODER},
    "pairs": {"objective": WRITTEN | SCORED, "model": PAIRS | BART, **ONE_TEXT},
}


class Case:
    """A configuration, what prepares its rows, some of them, and what was made of those."""

    config: RunConfig
    mixture: MixturePreparation
    rows: Rows
    prepared: Prepared

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        mixture = build_preparation(config)
        assert isinstance(mixture, MixturePreparation)
        self.mixture = mixture
        with open_stream(config.stream, seed=1, shape=config.window) as stream:
            self.rows = stream.read_rows(10**9, ROWS)
        self.prepared = mixture.prepare(self.rows)

    def of_part(self, number: int) -> tuple[np.ndarray, Prepared]:
        """The part's rows, and what it makes of them alone."""
        places = np.flatnonzero(self.prepared.arrays["parts"] == number)
        return places, self.mixture.parts[number].prepare(take_rows(self.rows, places))


@pytest.fixture(scope="module", params=CASES)
def case(request, tiny_data, tmp_path_factory) -> Case:
    return Case(tiny_config(tiny_data, tmp_path_factory.mktemp("mixture"), CASES[request.param]))


def test_each_sample_is_what_its_part_makes_of_it(case):
    arrays, width = case.prepared.arrays, case.rows.tokens.shape[1]
    assert case.prepared.targets == sum(case.prepared.more_targets)
    for number, share in enumerate(case.mixture.shares):
        places, alone = case.of_part(number)
        assert case.prepared.more_targets[number] == alone.targets > 0
        # Three standard deviations of a share of a half are 0.09.
        assert len(places) / ROWS == pytest.approx(share, abs=0.09)
        for name in (field.name for field in case.mixture.fields if field.shape[0] == "B"):
            if name in alone.arrays:
                assert np.array_equal(arrays[name][places], alone.arrays[name])
        for name, value in (("positions", "labels"), ("starts", "prefixes")):
            if name in alone.arrays and value in alone.arrays:
                is_its = np.isin(arrays[name] // width, places)
                where = arrays[name][is_its]
                flat = np.searchsorted(places, where // width) * width + where % width
                assert flat.tolist() == alone.arrays[name].tolist()
                assert np.array_equal(arrays[value][is_its], alone.arrays[value])


def test_the_text_to_predict_is_that_of_all_parts(case):
    ids = case.mixture.target_ids(case.prepared.arrays)
    own = case.config.tokenizer.vocab_size
    each = [
        (case.mixture.parts[n], case.of_part(n)[1].arrays) for n in range(len(case.mixture.parts))
    ]
    expected = np.concatenate([part.target_ids(arrays) for part, arrays in each])
    assert sorted(ids) == sorted(expected[expected < own])


def test_each_term_is_its_part_s_own_loss_by_its_share(case):
    config = case.config
    with torch.random.fork_rng():
        model = build_model(config.model, config.sizes)
        fill_weights(model, draw_weights(1))
    few = take_rows(case.rows, np.arange(40))
    arrays = case.mixture.prepare(few).arrays
    scores = build_scoring(model, config)(**to_device(arrays, torch.device("cpu")))
    assert {*scores.figures} >= {*config.objective.figures}
    counts = torch.tensor([term.targets for term in scores.more_losses])
    scores.terms()[1:].div(counts).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = torch.zeros(())
    for number, part in enumerate(config.objective.parts.values()):
        settings = {key: getattr(config.objective, key) for key in SCORED}
        settings = {key: settings[key] for key in settings if hasattr(part.objective, key)}
        alone = config.model_copy(update={"objective": part.objective.model_copy(update=settings)})
        places = np.flatnonzero(arrays["parts"] == number)
        made = case.mixture.parts[number].prepare(take_rows(few, places)).arrays
        own = build_scoring(model, alone)(**to_device(made, torch.device("cpu")))
        figure, of_mixture = own.figures["loss"], scores.figures[f"loss/part_{number}"]
        torch.testing.assert_close(of_mixture.total, figure.total)
        assert of_mixture.targets == figure.targets == scores.more_losses[number].targets
        expected = expected + case.mixture.shares[number] * own.loss.total / own.loss.targets
    expected.backward()
    assert scores.loss.targets == counts.sum() and scores.loss.total == 0
    torch.testing.assert_close((scores.terms()[1:] / counts).sum(), expected)
    for name, gradient in gradients.items():
        theirs = model.get_parameter(name).grad
        torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=1e-6)  # sums in other orders


def problems_of(tiny_data, tmp_path, overrides) -> str:
    with pytest.raises(ValueError) as caught:
        tiny_config(tiny_data, tmp_path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("objective", "told"),
    [
        (
            parts((1, {"name": "causal", "z_loss": 0.1}), (1, {"name": "masked_order"}),
                  (2, {"name": "masked"}), (1, {"name": "spans"})),
            ["part_0.objective.z_loss = 0.1: all parts are scored alike; set objective.z_loss",
             "part_1.objective.name = 'masked_order' cannot be mixed with others",
             "causal (next tokens), masked (masked), spans (pairs)"],
        ),
        (
            parts((1, {"name": "masked"}), (0, {"name": "mixture"})) | {"z_loss": 0.1},
            ["greater than 0", "'mixture' is not known. Known: causal"],
        ),
        (
            parts((1, {"name": "masked"}), (1, {"name": "masked"})),
            ["objective.parts.part_0.objective.name = 'masked' needs model.family: encoder",
             "objective.parts.part_1.objective.name = 'masked' needs model.family: encoder"],
        ),
        (
            parts((1, {"name": "masked"}), (1, {"name": "masked"})) | {"z_loss": 0.1},
            ["z_loss and label_smoothing are not of masked tokens"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_told_together(tiny_data, tmp_path, objective, told):
    said = problems_of(tiny_data, tmp_path, {"objective": objective})
    for part in told:
        assert part in said


def test_the_window_is_the_shortest_and_ids_with_one_name_are_one(tiny_data, tmp_path):
    objective = parts(
        (1, {"name": "infill"}), (1, {"name": "denoisers", "sentinels": 30}),
        (2, {"name": "spans", "sentinels": 40}),
    )  # fmt: skip
    settings = {"objective": objective, "model": PAIRS, **ONE_TEXT}
    config = tiny_config(tiny_data, tmp_path, settings)
    assert config.window.stride == 31 and config.objective.shares == (0.25, 0.25, 0.5)
    names = list(config.added_ids)
    assert names[:3] == ["start", "end", "mask"] and len(names) == 3 + 3 + 40
    assert names[-40:] == [f"sentinel_{number}" for number in range(40)]
    assert max(config.pair_lengths or ()) == 32
    assert config.objective.figures[3:] == ("loss/part_0", "loss/part_1", "loss/part_2")
