"""Encoder-decoders of transformers: T5 and its 1.1, mT5, BART."""

from __future__ import annotations

from typing import Any

from lmscale.config.hf.architecture import (
    Architecture,
    Form,
    Tree,
    UnreadableError,
    demand,
    our_activation,
    their_function,
)
from lmscale.config.model import EncoderDecoderConfig, Sizes
from lmscale.config.model_base import GATED

_BLOCKS = ".blocks.{n}."


def _t5_stack(stack: str) -> dict[str, str]:
    block, last = f"{stack}.block.{{n}}.layer", "2" if stack == "decoder" else "1"
    own, cross, inner = (
        f"{block}.0.SelfAttention",
        f"{block}.1.EncDecAttention",
        f"{block}.{last}.DenseReluDense",
    )
    names = {
        "attention_norm": f"{block}.0.layer_norm",
        "attention.query": f"{own}.q",
        "attention.key_value": f"{own}.k {own}.v",
        "attention.out": f"{own}.o",
        "cross_norm": f"{block}.1.layer_norm",
        "cross.query": f"{cross}.q",
        "cross.key_value": f"{cross}.k {cross}.v",
        "cross.out": f"{cross}.o",
        "feed_forward_norm": f"{block}.{last}.layer_norm",
        "feed_forward.up": f"{inner}.wi",
        "feed_forward.gate_up": f"{inner}.wi_0 {inner}.wi_1",
        "feed_forward.down": f"{inner}.wo",
    }
    relative = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
    return {
        f"{stack}.relative.table": relative,
        f"{stack}.norm": f"{stack}.final_layer_norm",
        **{stack + _BLOCKS + ours: theirs for ours, theirs in names.items()},
    }


_T5 = {"embedding": "shared", "head": "lm_head", **_t5_stack("encoder"), **_t5_stack("decoder")}


def _bart_stack(stack: str) -> dict[str, str]:
    whole = f"model.{stack}"
    block = f"{whole}.layers.{{n}}"
    own, cross = f"{block}.self_attn", f"{block}.encoder_attn"
    names = {
        "attention_norm": f"{block}.self_attn_layer_norm",
        "attention.query": f"{own}.q_proj",
        "attention.key_value": f"{own}.k_proj {own}.v_proj",
        "attention.out": f"{own}.out_proj",
        "cross_norm": f"{block}.encoder_attn_layer_norm",
        "cross.query": f"{cross}.q_proj",
        "cross.key_value": f"{cross}.k_proj {cross}.v_proj",
        "cross.out": f"{cross}.out_proj",
        "feed_forward_norm": f"{block}.final_layer_norm",
        "feed_forward.up": f"{block}.fc1",
        "feed_forward.down": f"{block}.fc2",
    }
    return {
        f"{stack}.position_embedding": f"{whole}.embed_positions",
        f"{stack}.embedding_norm": f"{whole}.layernorm_embedding",
        **{stack + _BLOCKS + ours: theirs for ours, theirs in names.items()},
    }


_BART = {"embedding": "model.shared", **_bart_stack("encoder"), **_bart_stack("decoder")}


def _render_t5(section: EncoderDecoderConfig, sizes: Sizes) -> dict[str, Any]:
    is_gated = section.activation in GATED
    function = their_function(section.activation)
    if function == "gelu_pytorch_tanh":
        function = "gelu" if is_gated else "gelu_new"  # whose "gated-gelu" is by tanh
    return {
        "vocab_size": sizes.vocab_size,
        "d_model": section.width,
        "d_kv": section.resolved_head_width,
        "d_ff": section.resolved_ffn_width,
        "num_layers": section.layers,
        "num_decoder_layers": section.resolved_decoder_layers,
        "num_heads": section.heads,
        "relative_attention_num_buckets": section.relative_buckets,
        "relative_attention_max_distance": section.relative_distance,
        "feed_forward_proj": f"gated-{function}" if is_gated else function,
        "layer_norm_epsilon": section.norm_eps,
        "dropout_rate": section.dropout,
        "is_encoder_decoder": True,
        # transformers 5 ties in any case, unless a file has both matrices: to it the key says only
        # whether hidden states are divided by √width. Older ones tie by it, too.
        "tie_word_embeddings": section.tied_embeddings,
        "scale_decoder_outputs": section.tied_embeddings and section.scaled_logits,
    }


def _read_t5(tree: Tree) -> dict[str, Any]:
    # That of T5 is scaled and tied, that of 1.1 neither.
    return _read_t5_stacks(tree) | {"tied_embeddings": tree["scale_decoder_outputs"]}


def _read_mt5(tree: Tree) -> dict[str, Any]:
    return _read_t5_stacks(tree) | {"tied_embeddings": False}


def _read_t5_stacks(tree: Tree) -> dict[str, Any]:
    gate, _, function = tree["feed_forward_proj"].rpartition("-")
    if gate not in ("", "gated"):
        raise UnreadableError([f"feed_forward_proj = {tree['feed_forward_proj']!r}"])
    is_by_tanh = gate and function == "gelu"
    return {
        "layers": tree["num_layers"],
        "decoder_layers": tree["num_decoder_layers"],
        "width": tree["d_model"],
        "heads": tree["num_heads"],
        "head_width": tree["d_kv"],
        "ffn_width": tree["d_ff"],
        "positions": "relative",
        "relative_buckets": tree["relative_attention_num_buckets"],
        "relative_distance": tree["relative_attention_max_distance"],
        "norm": "rmsnorm",
        "norm_eps": tree["layer_norm_epsilon"],
        "norm_first": True,
        "activation": our_activation("gelu_new" if is_by_tanh else function, gated=bool(gate)),
        "bias": False,
    }


def _render_bart(section: EncoderDecoderConfig, sizes: Sizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.max_positions,
        "d_model": section.width,
        "encoder_layers": section.layers,
        "decoder_layers": section.resolved_decoder_layers,
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), section.heads),
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), section.resolved_ffn_width),
        "activation_function": their_function(section.activation),
        **dict.fromkeys(("dropout", "attention_dropout"), section.dropout),
        "activation_dropout": 0.0,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "is_encoder_decoder": True,
        "forced_eos_token_id": None,  # theirs is an id of BART's own tokenizer
    }


def _read_bart(tree: Tree) -> dict[str, Any]:
    demand(
        tree,
        scale_embedding=False,
        tie_word_embeddings=True,
        decoder_attention_heads=tree["encoder_attention_heads"],
        decoder_ffn_dim=tree["encoder_ffn_dim"],
    )
    return {
        "layers": tree["encoder_layers"],
        "decoder_layers": tree["decoder_layers"],
        "width": tree["d_model"],
        "heads": tree["encoder_attention_heads"],
        "ffn_width": tree["encoder_ffn_dim"],
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": 1e-5,  # theirs have no other
        "norm_first": False,
        "activation": our_activation(tree["activation_function"], gated=False),
        "bias": True,
        "tied_embeddings": True,
        "scaled_logits": False,
    }


def _bart_form(module: str, ndim: int) -> Form:
    return "padded" if module.endswith(".position_embedding") else "same"


def _t5(model_type: str, class_name: str, read: Any, *, exports: bool = True) -> Architecture:
    return Architecture(
        model_type=model_type,
        family="encoder_decoder",
        classes={"pairs": f"{class_name}ForConditionalGeneration"},
        render=_render_t5,
        read=read,
        names=_T5,
        positions_key="",
        exports=exports,
        ignored=(
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        ),
    )


ENCODER_DECODERS = (
    _t5("t5", "T5", _read_t5),
    Architecture(
        model_type="bart",
        family="encoder_decoder",
        classes={"pairs": "BartForConditionalGeneration"},
        render=_render_bart,
        read=_read_bart,
        names=_BART,
        forms=_bart_form,
        padding_rows=2,
        counts_padding=False,
        ignored=(
            "final_logits_bias",
            "model.encoder.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
        ),
        prefix="model.",
    ),
    _t5("mt5", "MT5", _read_mt5, exports=False),  # T5 1.1 by another name
)
"""In the order in which they are asked whether they can be a section."""
