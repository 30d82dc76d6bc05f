"""Which parameters are decayed goes by the kind of their module, never by their name."""

from itertools import combinations_with_replacement

import pytest
import torch

from lmscale.config.model import DecoderConfig, Sizes
from lmscale.config.training import OptimizerConfig
from lmscale.engine.adafactor import Adafactor, plan_factored, sum_squares
from lmscale.engine.engine import skipping
from lmscale.engine.lion import Lion
from lmscale.engine.optimizer import (
    ParameterGroup,
    build_optimizer,
    plan_parameter_groups,
    reset_states,
)
from lmscale.engine.schedule_free import average_point
from lmscale.model.family import build_model
from lmscale.model.initialize import Declared, declared_parameters

OF_NAMES = {"e": "embedding", "a": "linear", "b": "bias", "n": "norm", "c": "linear", "h": "head"}
KINDS = {name: Declared(kind=kind) for name, kind in OF_NAMES.items()}


def group(method, weight_decay, *names, lr_ratio=1.0) -> ParameterGroup:
    return ParameterGroup(
        method=method, weight_decay=weight_decay, lr_ratio=lr_ratio, names=tuple(names)
    )


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "adam", "lion", "schedule_free", "sgd"])
@pytest.mark.parametrize(
    ("decay", "decayed", "others"),
    [
        (("linear", "embedding"), ("e", "a", "c", "h"), ("b", "n")),
        (("linear",), ("a", "c", "h"), ("e", "b", "n")),
        (("linear", "embedding", "norm", "bias"), ("e", "a", "b", "n", "c", "h"), ()),
        ((), (), ("e", "a", "b", "n", "c", "h")),
    ],
)
def test_the_kinds_that_are_named_are_decayed_and_no_others(kind, decay, decayed, others):
    config = OptimizerConfig(kind=kind, decay=decay, weight_decay=0.3)
    expected = [group(kind, *row) for row in ((0.3, *decayed), (0.0, *others)) if row[1:]]
    assert list(plan_parameter_groups(KINDS, config)) == expected


def test_muon_takes_the_matrices_of_the_blocks_at_a_rate_of_their_own():
    config = OptimizerConfig(kind="muon", weight_decay=0.3, muon_lr_ratio=2.5)
    assert list(plan_parameter_groups(KINDS, config)) == [
        group("muon", 0.3, "a", "c", lr_ratio=2.5),
        group("adamw", 0.3, "e", "h"),
        group("adamw", 0.0, "b", "n"),
    ]


def test_a_model_without_matrices_to_train_leaves_muon_no_group():
    declared = {"e": Declared(kind="embedding")}
    assert list(plan_parameter_groups(declared, OptimizerConfig(kind="muon"))) == [
        group("adamw", 0.1, "e")
    ]


def test_a_ratio_that_is_declared_makes_a_group_of_its_own_whose_decay_a_step_stays_the_same():
    declared = KINDS | {"a": Declared(kind="linear", lr_ratio=0.25)}
    assert list(plan_parameter_groups(declared, OptimizerConfig(weight_decay=0.3))) == [
        group("adamw", 1.2, "a", lr_ratio=0.25),
        group("adamw", 0.3, "e", "c", "h"),
        group("adamw", 0.0, "b", "n"),
    ]


@pytest.mark.parametrize("piece", [2, 3])
def test_lion_changes_nothing_when_a_gradient_is_not_finite(piece, monkeypatch):
    monkeypatch.setattr("lmscale.engine.lion.PIECE", piece)
    parameter = torch.nn.Parameter(torch.ones(3))
    lion = Lion([{"params": [parameter], "lr": 0.1, "weight_decay": 0.5}], betas=(0.9, 0.99))
    parameter.grad = torch.tensor([1.0, -2.0, 0.0])
    with skipping(lion, torch.tensor(True)):
        lion.step()
    assert torch.equal(parameter, torch.ones(3)) and not lion.state
    lion.step()
    assert parameter.tolist() == pytest.approx([0.85, 1.05, 0.95])


def test_frozen_parameters_are_in_no_group():
    parameters = {name: torch.nn.Parameter(torch.ones(2, 2)) for name in KINDS}
    for name in ("a", "b"):
        parameters[name].requires_grad_(False)
    optimizer = build_optimizer(parameters, KINDS, OptimizerConfig())
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert set(grouped) == {id(parameters[name]) for name in ("e", "n", "c", "h")}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_every_parameter_of_a_model_is_in_one_group(tied, positions):
    model = build_model(
        DecoderConfig(
            layers=2,
            width=32,
            heads=4,
            bias=True,
            norm="layernorm",
            positions=positions,
            tied_embeddings=tied,
        ),
        Sizes(vocab_size=64, max_positions=16, sequence_length=16),
    )
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(parameters, declared_parameters(model), OptimizerConfig())
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in parameters.values())
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    # In this model exactly the matrices are linear or embedding.
    assert decayed == {id(p) for p in parameters.values() if p.ndim == 2}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


STATES = {
    "adamw": {"a": {"exp_avg", "exp_avg_sq", "step"}, "e": {"exp_avg", "exp_avg_sq", "step"}},
    "muon": {"a": {"momentum_buffer"}, "e": {"exp_avg", "exp_avg_sq", "step"}},
    "sgd": {"a": {"momentum_buffer"}, "e": {"momentum_buffer"}},
    "sgd without momentum": {"a": set(), "e": set()},
}


@pytest.mark.parametrize("name", STATES)
def test_an_optimizer_begins_at_rate_0_with_states_of_zeros(name):
    parameters = {key: torch.nn.Parameter(torch.ones(3, 2)) for key in ("a", "e")}
    kind, *without = name.split()
    config = OptimizerConfig(
        kind=kind, betas=(0.8, 0.9), eps=1e-5, momentum=0.0 if without else 0.7
    )
    optimizer = build_optimizer(parameters, KINDS_OF_TWO, config)
    masters = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    reset_states(optimizer, masters, config)
    for key, parameter in parameters.items():
        state = optimizer.state[parameter]
        assert set(state) == STATES[name][key]
        assert all(float(value.abs().sum()) == 0 for value in state.values())
        parameter.grad = torch.full((3, 2), 0.5)
    for method, parameter_group in ((g["method"], g) for g in optimizer.param_groups):
        assert parameter_group["lr"] == 0.0
        if method == "adamw":
            assert (parameter_group["betas"], parameter_group["eps"]) == ((0.8, 0.9), 1e-5)
    optimizer.step()
    for parameter in parameters.values():  # rate 0 changes nothing, decay included
        assert torch.equal(parameter.detach(), torch.ones(3, 2))
        assert optimizer.state[parameter].get("step", torch.tensor(1.0)) == 1


@pytest.mark.parametrize(
    ("shape", "rows"), [((5, 3), ()), ((5, 3), (2, 3)), ((15,), ()), ((15,), (4, 1, 10))]
)
def test_the_runs_of_every_part_sum_to_its_rows_and_columns_wherever_the_whole_is_cut(
    shape, rows, monkeypatch
):
    monkeypatch.setattr("lmscale.engine.adafactor.PIECE", 4)
    slopes = torch.arange(1.0, 16.0)
    wholes = [
        part.reshape(-1, shape[-1] if len(shape) > 1 else len(part))
        for part in slopes.square().view(shape).split(rows or shape[0])
    ]
    for first, second in combinations_with_replacement(range(16), 2):  # between three ranks
        sums = [[] for _ in wholes]
        for begin, end in ((0, first), (first, second), (second, 15)):
            master = torch.cat([torch.full((2,), 99.0), slopes[begin:end], torch.full((4,), 99.0)])
            parts = plan_factored("a", shape, rows, held=(begin, end), start=2)
            assert torch.equal(torch.cat([part.of(master) for part in parts]), slopes[begin:end])
            for part, of_ranks in zip(parts, sums, strict=True):
                of_ranks.append(sum_squares(part, master, master))
                if part.elements:
                    assert torch.equal(part.cut(part.pad(part.of(master))), part.of(master))
        for whole, of_ranks in zip(wholes, sums, strict=True):
            by_row, by_column, length = map(sum, zip(*of_ranks, strict=True))
            torch.testing.assert_close(by_row, whole.sum(1))
            torch.testing.assert_close(by_column, whole.sum(0))
            torch.testing.assert_close(length, whole.sum().reshape(1))


def test_adafactor_leaves_alone_what_has_no_gradient_in_its_row_nor_in_its_column(monkeypatch):
    slopes = torch.arange(1.0, 26.0).view(5, 5)
    slopes[3], slopes[:, 2] = 0, 0
    results = []
    for piece in (25, 4):
        monkeypatch.setattr("lmscale.engine.adafactor.PIECE", piece)
        weight = torch.nn.Parameter(torch.ones(5, 5))
        optimizer = Adafactor([{"params": [weight], "lr": 0.1}])
        parts = plan_factored("a", (5, 5), (), held=(0, 25), start=0)
        optimizer.bind({weight: parts}, torch.device("cpu"), is_dealt=False)
        optimizer.state[weight]["step"] = torch.zeros(())
        weight.grad = slopes.clone()
        optimizer.step()
        moved = weight.detach() != 1
        assert torch.isfinite(weight).all() and torch.equal(moved, slopes != 0)
        results.append(weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=0)


KINDS_OF_TWO = {name: KINDS[name] for name in "ae"}


@pytest.mark.parametrize("piece", [2, 7])
def test_the_points_of_schedule_free_begin_at_the_weights_and_average_by_the_largest_rate(
    piece, monkeypatch
):
    monkeypatch.setattr("lmscale.engine.schedule_free.PIECE", piece)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    config = OptimizerConfig(kind="schedule_free", betas=(0.75, 0.5), weight_decay=0.0)
    optimizer = build_optimizer({"a": weight}, {"a": KINDS["a"]}, config)
    (group,) = optimizer.param_groups
    reset_states(optimizer, [(weight, group)], config)
    state, begin = optimizer.state[weight], weight.detach().clone()
    averages = [begin]
    for rate, share in ((0.0, 1.0), (0.1, 1.0), (0.2, 4 / 5), (0.1, 4 / 9)):
        group["lr"] = group["base_lr"] = rate
        weight.grad = torch.tensor([3.0, -1.0, 0.0])
        before = state["z"].clone()
        optimizer.step()
        # The same gradient in every step is divided by itself: one goes by the rate's length.
        torch.testing.assert_close(state["z"], before - rate * weight.grad.sign())
        averages.append((1 - share) * averages[-1] + share * state["z"])
        found = average_point(weight.detach(), state["z"], 0.75)
        torch.testing.assert_close(found, averages[-1])
        torch.testing.assert_close(weight.detach(), 0.25 * state["z"] + 0.75 * averages[-1])
    points = [weight.detach().clone(), state["z"].clone()]
    with skipping(optimizer, torch.tensor(True)):
        optimizer.step()
    assert torch.equal(torch.stack(points), torch.stack([weight.detach(), state["z"]]))
    assert state["step"] == 4
