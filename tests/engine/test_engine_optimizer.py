"""Which parameters are decayed goes by the kind of their module, never by their name."""

import pytest
import torch

from lmscale.config.model import ModelConfig
from lmscale.config.training import OptimizerConfig
from lmscale.engine.optimizer import (
    ELEMENT_STATES,
    build_optimizer,
    plan_parameter_groups,
    reset_states,
)
from lmscale.model import build_model, parameter_kinds

KINDS = {"e": "embedding", "a": "linear", "b": "bias", "n": "norm", "c": "linear"}


@pytest.mark.parametrize(
    ("decay", "decayed", "others"),
    [
        (("linear", "embedding"), ("e", "a", "c"), ("b", "n")),
        (("linear",), ("a", "c"), ("e", "b", "n")),
        (("linear", "embedding", "norm", "bias"), ("e", "a", "b", "n", "c"), ()),
        ((), (), ("e", "a", "b", "n", "c")),
    ],
)
def test_the_kinds_that_are_named_are_decayed_and_no_others(decay, decayed, others):
    config = OptimizerConfig(decay=decay, weight_decay=0.3)
    expected = [group for group in ((0.3, decayed), (0.0, others)) if group[1]]
    assert list(plan_parameter_groups(KINDS, config)) == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", ["learned", "rope"])
def test_every_parameter_of_a_model_is_in_one_group(tied, positions):
    model = build_model(
        ModelConfig(
            layers=2,
            width=32,
            heads=4,
            bias=True,
            norm="layernorm",
            positions=positions,
            tied_embeddings=tied,
        ),
        vocab_size=64,
        max_positions=16,
    )
    parameters = dict(model.named_parameters())
    kinds = parameter_kinds(model)
    optimizer = build_optimizer(parameters, kinds, OptimizerConfig())
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in parameters.values())
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    # In this model exactly the matrices are linear or embedding.
    assert decayed == {id(p) for p in parameters.values() if p.ndim == 2}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]


def test_the_optimizer_begins_at_rate_0_with_states_of_zeros():
    parameter = torch.nn.Parameter(torch.ones(3))
    config = OptimizerConfig(betas=(0.8, 0.9), eps=1e-5)
    optimizer = build_optimizer({"a": parameter}, {"a": "linear"}, config)
    reset_states(optimizer, [parameter])
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.0, (0.8, 0.9), 1e-5)
    state = optimizer.state[parameter]
    assert set(state) == {"step", *ELEMENT_STATES}
    assert all(float(value.abs().sum()) == 0 for value in state.values())
    parameter.grad = torch.full((3,), 0.5)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(3))  # rate 0 changes nothing, decay included
    assert float(state["step"]) == 1
