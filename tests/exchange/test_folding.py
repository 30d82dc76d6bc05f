"""What transformers cannot say and weights can take up: the folded model computes the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from handmade_runs import make_run
from theirs import difference, draw_weights, import_transformers, open_theirs
from tiny_run import tiny_config

from lmscale.config import RunConfig
from lmscale.config.hf.folding import plan_folding
from lmscale.config.model import FAMILIES, Sizes
from lmscale.errors import ConfigError, DataError
from lmscale.exchange import plan_export
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.folding import read_folded
from lmscale.model.encoder_decoder import EncoderDecoder
from lmscale.model.family import build_model
from lmscale.tokenizer.codec import load_tokenizer

import_transformers()
VOCAB, LENGTH = 101, 20
SIZES = Sizes(vocab_size=VOCAB, max_positions=32, sequence_length=LENGTH)
MUP = {"base_width": 16, "base_head_width": 6}
NTK = {"kind": "ntk", "factor": 4.0}
CASES = {
    "mup": ("llama", {"mup": MUP, "kv_heads": 2}, "muP's factors"),
    "mup, tied, with biases": (
        "gpt2",
        {"mup": MUP, "positions": "learned", "norm": "layernorm", "activation": "gelu"}
        | {"bias": True, "tied_embeddings": True},
        "muP's factors",
    ),
    "mup and qk_norm": ("qwen3", {"mup": MUP, "qk_norm": True}, "muP's factors"),
    "mup of the head alone": ("llama", {"mup": {"base_width": 16}}, "muP's factors"),
    "ntk": ("llama", {"rope_scaling": NTK, "rope_theta": 500.0}, "as ntk raises it"),
    "attention_width": ("llama", {"attention_width": 30}, "weights of the queries"),
    "scaled embeddings": (
        "mistral", {"scaled_embeddings": True, "sliding_windows": (5,)}, "multiplied by √width"
    ),
    "windows of some layers": ("qwen2", {"sliding_windows": (5, 0)}, "queries, keys and values"),
    "qwen2's biases": ("llama", {"qkv_bias": True, "kv_heads": 2}, "biases of 0 are added"),
    "nanoGPT's GPT-2": (
        "gpt2",
        {"positions": "learned", "norm": "layernorm", "activation": "gelu"},
        "biases of 0 are added",
    ),
    "no types": ("bert", {"family": "encoder"}, "one type of tokens"),
    "no types, no biases": ("bert", {"family": "encoder", "bias": False}, "one type of tokens"),
    "tied, not scaled": (
        "t5", {"family": "encoder_decoder", "scaled_logits": False}, "takes back"
    ),
    "bart without biases": (
        "bart",
        {"family": "encoder_decoder", "positions": "learned", "norm": "layernorm"}
        | {"norm_eps": 1e-5, "norm_first": False, "scaled_logits": False},
        "biases of 0",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # theirs, of tied weights
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_folded_model_gives_the_logits_of_the_run(case, tmp_path):
    model_type, settings, told = CASES[case]
    avoided = {"qwen2"} - {model_type}
    shape = {"family": "decoder", "layers": 2, "width": 48, "heads": 4, "ffn_width": 96}
    tree = shape | settings
    section = FAMILIES.own[tree["family"]](**tree)
    architecture, folding = plan_folding(section, SIZES, avoided=avoided)
    assert architecture.model_type == model_type
    assert told in " ".join(folding.told)
    model, folded = (build_model(each, SIZES).eval() for each in (section, folding.section))
    draw_weights(model)
    held, names = dict(model.named_parameters()), dict(folded.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in names.items()}
    read = read_folded(model.get_parameter, folding, held=held, shapes=shapes)
    for name, value in names.items():
        value.copy_(read(name))
    special = {f"{name}_token_id": 0 for name in ("bos", "eos", "pad", "decoder_start")}
    theirs, _ = open_theirs(tmp_path, folded, architecture, folding.section, SIZES, **special)

    ids_BT = torch.randint(1, VOCAB, (2, LENGTH))
    begins_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    layout = model.lay_out(begins_BT, mask_documents=False)
    more = {}
    if isinstance(model, EncoderDecoder):
        layout, more = (
            model.lay_out_target(begins_BT, ids_BT, layout),
            {"decoder_input_ids": ids_BT},
        )
    assert difference(model.head(model(ids_BT, layout)), theirs(ids_BT, **more).logits) < 1e-5


def test_what_is_some_architecture_as_it_is_is_not_folded():
    section = FAMILIES.own["decoder"]()
    assert plan_folding(section, SIZES)[1].told == ()
    section = FAMILIES.own["decoder"](qk_norm=True, bias=True, mup={"base_width": 16})
    with pytest.raises(ConfigError, match=r"change these to have it: qk_norm = true \(there false"):
        plan_folding(section, SIZES)


def test_what_can_be_folded_is_not_told_to_be_changed():
    """Of a GPT-2 without biases only that its keys are grouped; of learned positions, no theta."""
    tree = {"positions": "learned", "norm": "layernorm", "activation": "gelu", "kv_heads": 4}
    with pytest.raises(ConfigError) as caught:
        plan_folding(FAMILIES.own["decoder"](**tree), SIZES)
    assert "is gpt2; change these to have it: kv_heads = 4 (there 12)." in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        plan_folding(FAMILIES.own["decoder"](positions="learned"), SIZES)
    assert "have it: positions = 'learned' (there 'rope')." in str(caught.value)


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> RunConfig:
    overrides = {"model.mup": {"base_width": 8, "base_head_width": 4}, "model.qkv_bias": True}
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("folding") / "run", overrides)
    make_run(config, load_tokenizer(tiny_data / "tokenizer"))
    return config


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_export_whose_weights_are_folded_is_compared_with_the_run_s_own_model(
    run, dtype, tmp_path, monkeypatch
):
    request = ExportRequest(folder=run.folder, out=tmp_path / "out", dtype=dtype)
    exported = export_run(request)
    assert exported.plan.target.folding.told and exported.check.parity.error < 1e-5
    if dtype == "bf16":
        assert exported.check.rounding < 0.02  # of the run's own model, in fp32
        return

    def read_unscaled(read, folding, **named):
        return read_folded(read, replace(folding, scales=()), **named)

    monkeypatch.setattr(plan_export, "read_folded", read_unscaled)
    with pytest.raises(DataError, match="transformers gives other answers"):
        export_run(replace(request, out=tmp_path / "wrong"))
