"""The encoder-decoder's account, its documents and padding, and what it declares."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmscale.config.model import EncoderDecoderConfig, Sizes
from lmscale.model.encoder_decoder import EncoderDecoder
from lmscale.model.family import account_model, build_model
from lmscale.model.initialize import declared_parameters
from lmscale.model.relative import distance_bucket
from lmscale.train.initial import draw_weights, fill_weights

READ, WRITTEN = 16, 10
SIZES = Sizes(vocab_size=53, max_positions=16, sequence_length=20, pair_lengths=(READ, WRITTEN))
BART = {
    "positions": "learned", "norm": "layernorm", "norm_first": False, "activation": "gelu_exact",
    "bias": True, "scaled_logits": False, "init_std": 0.3,
}  # fmt: skip
SWITCHES = {
    "positions": ["relative", "learned"],
    "norm": ["rmsnorm", "layernorm"],
    "norm_first": [True, False],
    "activation": ["relu", "geglu"],
    "bias": [False, True],
    "tied_embeddings": [True, False],
    "head_width": [None, 10],
    "decoder_layers": [None, 1],
}


def settings(**switches) -> EncoderDecoderConfig:
    shape = {"family": "encoder_decoder", "layers": 2, "width": 32, "heads": 4}
    return EncoderDecoderConfig.model_validate(shape | switches)


def build(**switches) -> EncoderDecoder:
    model = build_model(settings(**switches), SIZES)
    assert isinstance(model, EncoderDecoder)
    fill_weights(model, draw_weights(1))
    return model.eval()


def begins_at(*starts: int, length: int) -> torch.Tensor:
    begins_BT = torch.zeros(1, length, dtype=torch.bool)
    begins_BT[0, list(starts)] = True
    return begins_BT


def written(model, source_BS, target_BT, starts=((0,), (0,)), *, lengths_B=None, masked=True):
    begins = (begins_at(*at, length=ids.shape[1]) for at, ids in zip(
        starts, (source_BS, target_BT), strict=True
    ))  # fmt: skip
    source = model.lay_out(next(begins), mask_documents=masked, lengths_B=lengths_B)
    with torch.no_grad():
        return model(target_BT, model.lay_out_target(next(begins), source_BS, source))


def test_the_count_is_the_model_s_for_every_combination_of_switches():
    for values in product(*SWITCHES.values()):
        config = settings(**dict(zip(SWITCHES, values, strict=True)))
        with torch.device("meta"):
            model = build_model(config, SIZES)
        expected = sum(parameter.numel() for parameter in model.parameters())
        assert account_model(config, SIZES).total == expected, values


@pytest.mark.parametrize("switches", [{}, {"activation": "geglu", "decoder_layers": 1}])
def test_forward_flops_are_those_that_torch_counts(switches):
    config, model = settings(**switches), build(**switches)
    source = model.lay_out(torch.zeros(3, READ, dtype=torch.bool), mask_documents=False)
    ids_BS, ids_BT = (torch.zeros(3, n, dtype=torch.int64) for n in (READ, WRITTEN))
    layout = model.lay_out_target(torch.zeros(3, WRITTEN, dtype=torch.bool), ids_BS, source)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.head(model(ids_BT, layout))
    layers = config.resolved_decoder_layers
    # Norm weights are in N, but in no product of matrices.
    scales = 32 * ((2 * config.layers + 1) * READ + (3 * layers + 1) * WRITTEN)
    window = account_model(config, SIZES).flops.dense * SIZES.sequence_length / 3
    assert counter.get_total_flops() == pytest.approx(3 * (window - 2 * scales), rel=1e-12)


@pytest.mark.parametrize("switches", [{}, BART])
def test_packed_pairs_have_the_hidden_states_they_have_alone(switches):
    model = build(**switches)
    source_BS, target_BT = torch.randint(0, 53, (1, READ)), torch.randint(0, 53, (1, WRITTEN))
    edges = (0, 5, 6, READ), (0, 3, 7, WRITTEN)
    packed = written(model, source_BS, target_BT, (edges[0][:-1], edges[1][:-1]))
    for number in range(3):
        read, wrote = (slice(of[number], of[number + 1]) for of in edges)
        alone = written(model, source_BS[:, read], target_BT[:, wrote])
        torch.testing.assert_close(packed[:, wrote], alone)


@pytest.mark.parametrize("switches", [{}, BART])
@pytest.mark.parametrize("masked", [False, True])
def test_padding_of_what_is_read_changes_nothing(switches, masked):
    model = build(**switches)
    source_BS, target_BT = torch.randint(0, 53, (1, READ)), torch.randint(0, 53, (1, WRITTEN))
    padded = written(model, source_BS, target_BT, lengths_B=torch.tensor([9]), masked=masked)
    alone = written(model, source_BS[:, :9], target_BT, masked=masked)
    torch.testing.assert_close(padded, alone)


def test_a_window_of_nothing_gives_finite_states_and_gradients():
    model = build()
    source = model.lay_out(
        torch.zeros(1, READ, dtype=torch.bool), mask_documents=False, lengths_B=torch.tensor([0])
    )
    ids_BS, ids_BT = (torch.zeros(1, n, dtype=torch.int64) for n in (READ, WRITTEN))
    layout = model.lay_out_target(torch.zeros(1, WRITTEN, dtype=torch.bool), ids_BS, source)
    (model(ids_BT, layout).sum() * 0).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_position_of_the_target_sees_all_that_is_read_and_nothing_behind_itself():
    model = build()
    source_BS, target_BT = torch.randint(0, 52, (1, READ)), torch.randint(0, 52, (1, WRITTEN))
    before = written(model, source_BS, target_BT)
    later = target_BT.clone()
    later[0, 6] += 1
    changed = (written(model, source_BS, later) - before).abs().amax(-1)[0] > 0
    assert changed.tolist() == [False] * 6 + [True] * 4
    source_BS[0, -1] += 1
    assert ((written(model, source_BS, target_BT) - before).abs().amax(-1) > 0).all()


def test_half_of_the_buckets_hold_a_distance_each_and_the_far_ones_are_one():
    distance = torch.arange(-200, 201)
    both = distance_bucket(distance, buckets=32, farthest=128, looks_ahead=True)
    assert both[200 - 7 : 200 + 8].tolist() == [7, 6, 5, 4, 3, 2, 1, 0, *range(17, 24)]
    assert set(both[distance <= -128].tolist()) == {15} and set(both[distance >= 128].tolist()) == {
        31
    }
    back = distance_bucket(distance, buckets=32, farthest=128, looks_ahead=False)
    assert back[200 - 15 : 200 + 1].tolist() == list(range(15, -1, -1))
    assert set(back[distance >= 0].tolist()) == {0}
    assert set(back[distance <= -128].tolist()) == {31}


def test_every_parameter_is_declared_and_muon_leaves_the_relative_tables():
    declared = declared_parameters(build())
    tables = {name for name in declared if "relative" in name}
    assert tables == {f"{stack}.relative.table.weight" for stack in ("encoder", "decoder")}
    assert {declared[name].kind for name in tables} == {"embedding"}
    key_value = declared["decoder.blocks.0.cross.key_value.weight"]
    assert (key_value.kind, key_value.parts) == ("linear", (32, 32))


@pytest.mark.parametrize("positions", ["relative", "learned"])
def test_scores_begin_as_large_whether_or_not_they_are_divided(positions):
    attention = build(positions=positions, head_width=16).encoder.blocks[0].attention
    query, key = (
        linear.declare()["weight"].std for linear in (attention.query, attention.key_value)
    )
    # Of normed inputs of 32 numbers: products of 16 queries and keys of variance 1 each.
    variance = 16 * (32 * query**2) * (32 * key**2)
    assert variance * (attention.scale or 16**-0.5) ** 2 == pytest.approx(1)


def test_recomputed_blocks_give_the_same_gradients():
    def gradients(every: int) -> list[torch.Tensor]:
        model = build(activation_checkpoint_every=every, dropout=0.3).train()
        torch.manual_seed(5)
        source = model.lay_out(torch.zeros(1, READ, dtype=torch.bool), mask_documents=False)
        ids_BS, ids_BT = (torch.arange(n)[None] for n in (READ, WRITTEN))
        begins_BT = torch.zeros(1, WRITTEN, dtype=torch.bool)
        model(ids_BT, model.lay_out_target(begins_BT, ids_BS, source)).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for plain, recomputed in zip(gradients(0), gradients(1), strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_block_compiles_to_one_graph():
    model = build()
    source_BS, target_BT = torch.randint(0, 53, (1, READ)), torch.randint(0, 53, (1, WRITTEN))
    expected = written(model, source_BS, target_BT)
    for block in model.blocks_to_compile():
        block.compile(backend="eager", fullgraph=True)  # fullgraph: a break is an error
    torch.testing.assert_close(written(model, source_BS, target_BT), expected)


@pytest.mark.parametrize("switches", [{}, BART], ids=["t5", "bart"])
@torch.no_grad()
def test_what_is_written_step_by_step_is_what_a_full_pass_gives(switches):
    model = build(**switches)
    source_BS, target_BT = torch.randint(0, 53, (2, READ)), torch.randint(0, 53, (2, WRITTEN))
    state = model.build_state(batch=2, capacity=WRITTEN)
    model.read_source(source_BS, state)
    biases = []
    if model.decoder.relative is not None:
        table = model.decoder.relative.table
        table.register_forward_hook(lambda _, given, out: biases.append(tuple(given[0].shape)))
    steps = [model.extend(ids_BT, state) for ids_BT in target_BT.split([3, 1, 1, 5], dim=1)]
    # Of the new tokens alone: a whole table for each would be the cube of a text's length.
    assert biases in ([], [(3, 3), (1, 4), (1, 5), (5, 10)])
    whole_BTD = written(model, source_BS, target_BT, masked=False)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole_BTD)
    assert model.generates(sees_prompt_whole=False) and not model.generates(sees_prompt_whole=True)


def test_t5_drops_within_the_feed_forward_and_bart_does_not():
    for switches, dropped in (({}, True), (BART, False)):
        inner = build(dropout=0.5, **switches).train().decoder.blocks[0].feed_forward
        seen = []
        inner.down.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs))
        inner(torch.rand(4, 8, 32))
        zeros = (seen[0][0] == 0).float().mean()  # half of relu's outputs are zeros by themselves
        assert zeros > 0.65 if dropped else zeros < 0.1
