"""The switches make T5 and BART: logits, loss and gradients are those of Hugging Face's modules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from theirs import import_transformers
from torch import Tensor

from lmscale.config.model import EncoderDecoderConfig, Sizes
from lmscale.model.encoder_decoder import EncoderDecoder
from lmscale.model.family import build_model

transformers = import_transformers()

VOCAB, WIDTH, LAYERS, HEADS, INNER, POSITIONS = 97, 48, 2, 4, 80, 40
SHAPE = {"layers": LAYERS, "width": WIDTH, "heads": HEADS, "ffn_width": INNER}
GATES = {"relu": "relu", "geglu": "gated-gelu", "swiglu": "gated-silu"}
START = 2  # the id that stands before the target
T5_SHAPE = SHAPE | {"head_width": 16, "relative_distance": 24}  # less than the sequences are long
BART_SHAPE = SHAPE | {
    "positions": "learned", "norm": "layernorm", "norm_eps": 1e-5, "norm_first": False,
    "activation": "gelu_exact", "bias": True, "scaled_logits": False,
}  # fmt: skip
T5_PARTS = {
    "attention.query": ["0.SelfAttention.q"],
    "attention.key_value": ["0.SelfAttention.k", "0.SelfAttention.v"],
    "attention.out": ["0.SelfAttention.o"],
    "attention_norm": ["0.layer_norm"],
    "cross.query": ["1.EncDecAttention.q"],
    "cross.key_value": ["1.EncDecAttention.k", "1.EncDecAttention.v"],
    "cross.out": ["1.EncDecAttention.o"],
    "cross_norm": ["1.layer_norm"],
    "feed_forward.up": ["@.DenseReluDense.wi"],
    "feed_forward.gate_up": ["@.DenseReluDense.wi_0", "@.DenseReluDense.wi_1"],
    "feed_forward.down": ["@.DenseReluDense.wo"],
    "feed_forward_norm": ["@.layer_norm"],
}
BART_PARTS = {
    "attention.query": ["self_attn.q_proj"],
    "attention.key_value": ["self_attn.k_proj", "self_attn.v_proj"],
    "attention.out": ["self_attn.out_proj"],
    "attention_norm": ["self_attn_layer_norm"],
    "cross.query": ["encoder_attn.q_proj"],
    "cross.key_value": ["encoder_attn.k_proj", "encoder_attn.v_proj"],
    "cross.out": ["encoder_attn.out_proj"],
    "cross_norm": ["encoder_attn_layer_norm"],
    "feed_forward.up": ["fc1"],
    "feed_forward.down": ["fc2"],
    "feed_forward_norm": ["final_layer_norm"],
}


def t5_names(name: str) -> list[str]:
    """Theirs of one of our parameters, whose rows ours holds one after the other."""
    stack, _, rest = name.partition(".")
    if stack in ("embedding", "head"):
        return [{"embedding": "shared.weight", "head": "lm_head.weight"}[stack]]
    if rest == "relative.table.weight":
        return [f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    if rest == "norm.weight":
        return [f"{stack}.final_layer_norm.weight"]
    _, number, part = rest.removesuffix(".weight").split(".", 2)
    last = "2" if stack == "decoder" else "1"
    return [
        f"{stack}.block.{number}.layer.{theirs.replace('@', last)}.weight"
        for theirs in T5_PARTS[part]
    ]


def bart_names(name: str) -> list[str]:
    stack, _, rest = name.partition(".")
    if stack == "embedding":
        return ["model.shared.weight"]
    if rest == "position_embedding.weight":
        return [f"model.{stack}.embed_positions.weight"]
    if rest.startswith("embedding_norm."):
        return [f"model.{stack}.layernorm_{rest.replace('_norm', '')}"]
    _, number, *part, leaf = rest.split(".")
    return [f"model.{stack}.layers.{number}.{p}.{leaf}" for p in BART_PARTS[".".join(part)]]


def t5_config(config: EncoderDecoderConfig) -> dict:
    # Of configs made in Python an untied one is silently tied (transformers 5); of files it is not.
    return {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": VOCAB,
        "d_model": WIDTH, "d_kv": 16, "d_ff": INNER, "num_layers": LAYERS, "num_heads": HEADS,
        "num_decoder_layers": LAYERS, "relative_attention_max_distance": 24, "dropout_rate": 0.0,
        "feed_forward_proj": GATES[config.activation],
        "tie_word_embeddings": config.tied_embeddings, "decoder_start_token_id": START,
        "pad_token_id": START, "eos_token_id": 1, "is_encoder_decoder": True,
    }  # fmt: skip


def bart_config(config: EncoderDecoderConfig) -> dict:
    return {
        "model_type": "bart", "architectures": ["BartForConditionalGeneration"],
        "vocab_size": VOCAB, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
        "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "dropout": 0.0,
        "encoder_ffn_dim": INNER, "decoder_ffn_dim": INNER, "max_position_embeddings": POSITIONS,
        "decoder_start_token_id": START, "pad_token_id": 1, "eos_token_id": START,
        "bos_token_id": 0, "is_encoder_decoder": True, "activation_function": "gelu",
    }  # fmt: skip


def split_rows(name: str, value: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Ours as theirs. BART's table of positions begins with two rows that nobody reads."""
    if "embed_positions" in names[0]:
        value = torch.cat([value.new_zeros(2, value.shape[1]), value])
    return dict(zip(names, (part.contiguous() for part in value.chunk(len(names))), strict=True))


def stack_rows(values: dict[str, Tensor], names: list[str]) -> Tensor:
    value = torch.cat([values[name] for name in names])
    return value[2:] if "embed_positions" in names[0] else value


def build_both(config: EncoderDecoderConfig, names, their_config: dict, folder: Path):
    """Our module with random weights, and theirs, which read them from files."""
    sizes = Sizes(vocab_size=VOCAB, max_positions=POSITIONS, sequence_length=POSITIONS)
    ours = build_model(config, sizes).eval()
    assert isinstance(ours, EncoderDecoder)
    state = {}
    for name, parameter in ours.named_parameters():
        # Norms around 1: around 0 the gradient would be ill-conditioned.
        is_norm = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(is_norm), std=0.1)
        state |= split_rows(name, parameter.detach().clone(), names(name))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(their_config))
    return ours, transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.filterwarnings("ignore")  # theirs, of tied weights
@pytest.mark.parametrize(
    ("switches", "names", "their_config"),
    [
        (T5_SHAPE, t5_names, t5_config),
        (T5_SHAPE | {"activation": "geglu", "tied_embeddings": False}, t5_names, t5_config),
        (T5_SHAPE | {"activation": "geglu"}, t5_names, t5_config),
        (T5_SHAPE | {"activation": "swiglu", "tied_embeddings": False}, t5_names, t5_config),
        (BART_SHAPE, bart_names, bart_config),
    ],
    ids=["t5", "t5 gated untied", "t5 gated tied", "ul2", "bart"],
)
def test_logits_loss_and_gradients_are_theirs(switches, names, their_config, tmp_path):
    config = EncoderDecoderConfig(family="encoder_decoder", **switches)
    ours, theirs = build_both(config, names, their_config(config), tmp_path)
    ids_BS, labels_BT = torch.randint(4, VOCAB, (3, 37)), torch.randint(4, VOCAB, (3, 21))
    lengths_B = torch.tensor([37, 20, 30])
    keep_BS = torch.arange(37) < lengths_B[:, None]
    source = ours.lay_out(
        torch.zeros(3, 37, dtype=torch.bool), mask_documents=False, lengths_B=lengths_B
    )
    layout = ours.lay_out_target(torch.zeros(3, 21, dtype=torch.bool), ids_BS, source)
    logits_BTV = ours.head(ours(F.pad(labels_BT[:, :-1], (1, 0), value=START), layout))
    loss = F.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten())
    output = theirs(input_ids=ids_BS, attention_mask=keep_BS.long(), labels=labels_BT)
    assert relative_error(logits_BTV, output.logits) < 1e-5
    assert float(loss) == pytest.approx(float(output.loss), rel=1e-5)
    loss.backward()
    output.loss.backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, parameter in ours.named_parameters():
        gradient, expected = parameter.grad, stack_rows(gradients, names(name))
        assert gradient is not None
        if name.endswith("key_value.bias"):
            # A key's bias moves all of a query's scores alike: its gradient is rounding alone.
            (of_keys, gradient), (_, expected) = gradient.chunk(2), expected.chunk(2)
            assert of_keys.norm() < 1e-5 * gradient.norm()
        assert relative_error(gradient, expected) < 1e-5, name
