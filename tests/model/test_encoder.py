"""An encoder's documents see themselves alone, to both sides, and its parameters are counted."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from lmscale.config.model import EncoderConfig, Sizes
from lmscale.model.encoder import Encoder
from lmscale.model.family import account_model, build_model
from lmscale.model.initialize import parameter_kinds
from lmscale.model.layout import build_layout, mark_starts
from lmscale.train.initial import draw_weights, fill_weights

VOCAB = 61
MODERN = {
    "positions": "rope",
    "norm_first": True,
    "bias": False,
    "sliding_windows": (0, 3),
    "local_rope_theta": 100.0,
}


def make_model(**switches) -> Encoder:
    config = EncoderConfig(
        **{"family": "encoder", "layers": 2, "width": 32, "heads": 2, "init_std": 0.3} | switches
    )
    model = build_model(config, Sizes(vocab_size=VOCAB, max_positions=32, sequence_length=16))
    assert isinstance(model, Encoder)
    fill_weights(model, draw_weights(1))
    return model.eval()


@pytest.mark.parametrize(
    ("backend", "switches"),
    [("dense", {}), ("dense", {"token_types": 2}), ("dense", MODERN), ("flex", MODERN)],
)
def test_packed_documents_have_the_hidden_states_they_have_alone(backend, switches, monkeypatch):
    monkeypatch.setattr("lmscale.model.encoder.attention_backend", lambda **_: backend)
    model = make_model(**switches)
    ids_BT = torch.randint(0, VOCAB, (2, 16))
    rows, lengths_B = ([0, 5, 6, 13], [0, 8]), torch.tensor([16, 12])
    starts = torch.tensor([row * 16 + start for row in (0, 1) for start in rows[row]])
    begins_BT = mark_starts(starts, batch=2, length=16)
    layout = model.lay_out(begins_BT, mask_documents=True, lengths_B=lengths_B)
    with torch.no_grad():
        packed_BTD = model(ids_BT, layout)
        for row, length in enumerate(lengths_B.tolist()):
            for start, end in zip(rows[row], [*rows[row][1:], length], strict=True):
                begins = torch.ones(1, end - start, dtype=torch.bool).tril(0)
                own = model.lay_out(begins, mask_documents=False)
                alone_BTD = model(ids_BT[row : row + 1, start:end], own)
                torch.testing.assert_close(packed_BTD[row, start:end], alone_BTD[0])


@pytest.mark.parametrize("switches", [{}, MODERN])
@pytest.mark.parametrize("mask_documents", [False, True])
def test_padding_changes_no_hidden_state(switches, mask_documents):
    model = make_model(**switches)
    ids_BT = torch.randint(0, VOCAB, (1, 16))
    begins_BT = mark_starts(torch.tensor([0, 4]), batch=1, length=16)
    layout = model.lay_out(begins_BT, mask_documents=mask_documents, lengths_B=torch.tensor([9]))
    with torch.no_grad():
        before_BTD = model(ids_BT, layout)
        ids_BT[0, 9:] = torch.randint(0, VOCAB, (7,))
        after_BTD = model(ids_BT, layout)
    assert torch.equal(before_BTD[0, :9], after_BTD[0, :9])
    assert before_BTD.isfinite().all()  # also where there is only padding to see


def test_a_token_sees_what_follows_it():
    model = make_model()
    ids_BT = torch.randint(0, VOCAB, (1, 16))
    layout = model.lay_out(torch.zeros(1, 16, dtype=torch.bool), mask_documents=False)
    with torch.no_grad():
        before_BTD = model(ids_BT, layout)
        ids_BT[0, 15] = (ids_BT[0, 15] + 1) % VOCAB
        assert (model(ids_BT, layout)[0, 0] - before_BTD[0, 0]).abs().max() > 1e-3


def test_a_sliding_window_reaches_as_far_ahead_as_back():
    begins_BT = torch.zeros(1, 6, dtype=torch.bool)
    begins_BT[0, 0] = True
    mask = build_layout(begins_BT, "dense", [2], sees_ahead=True).masks[2]
    assert mask[0, 0].int().tolist() == [
        [int(abs(query - key) < 2) for key in range(6)] for query in range(6)
    ]


def test_the_count_is_the_model_s_for_every_combination_of_switches():
    switches = {
        "positions": ["rope", "learned"], "token_types": [0, 2], "norm": ["rmsnorm", "layernorm"],
        "norm_first": [False, True], "activation": ["gelu_exact", "geglu"], "bias": [False, True],
        "pooler": [False, True], "tied_embeddings": [False, True],
    }  # fmt: skip
    sizes = Sizes(vocab_size=53, max_positions=17, sequence_length=17)
    for values in product(*switches.values()):
        chosen = dict(zip(switches, values, strict=True))
        config = EncoderConfig(family="encoder", layers=2, width=32, heads=4, **chosen)
        with torch.device("meta"):
            model = build_model(config, sizes)
        count = sum(parameter.numel() for parameter in model.parameters())
        assert account_model(config, sizes).total == count, chosen


def test_only_the_blocks_and_the_layers_beside_them_are_matrices_for_muon():
    kinds = parameter_kinds(make_model(token_types=2, pooler=True))
    matrices = {name for name, kind in kinds.items() if kind == "linear"}
    assert {name.partition(".")[0] for name in matrices} == {"blocks", "pooler", "head"}
    assert kinds["type_embedding.weight"] == kinds["embedding.weight"] == "embedding"
    assert kinds["head.bias"] == "bias"


def test_recomputed_blocks_give_the_same_gradient():
    ids_BT = torch.randint(0, VOCAB, (2, 16))
    gradients = []
    for every in (0, 1):
        model = make_model(**MODERN, activation_checkpoint_every=every).train()
        layout = model.lay_out(torch.zeros(2, 16, dtype=torch.bool), mask_documents=False)
        model(ids_BT, layout).square().sum().backward()
        gradients.append(model.blocks[0].attention.qkv.weight.grad)
    assert torch.equal(*gradients)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width = 32 is not a multiple of heads = 5"):
        EncoderConfig(family="encoder", width=32, heads=5)
    with pytest.raises(ValueError, match="is odd; rope rotates pairs"):
        EncoderConfig(family="encoder", width=36, heads=4, positions="rope")
