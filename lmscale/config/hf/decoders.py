"""Decoders of transformers: GPT-2, Llama, Mistral, Qwen 2 and 3, Starcoder 2, Gemma, Gemma 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmscale.config.hf.architecture import (
    Architecture,
    Form,
    Head,
    Tree,
    UnreadableError,
    demand,
    our_activation,
    read_kinds,
    read_number,
    read_text_classes,
    refuse,
    their_function,
)
from lmscale.config.model import DecoderConfig, RopeScalingConfig, Sizes

_GPT2 = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
    "blocks.{n}.attention_norm": "transformer.h.{n}.ln_1",
    "blocks.{n}.attention.qkv": "transformer.h.{n}.attn.c_attn",
    "blocks.{n}.attention.out": "transformer.h.{n}.attn.c_proj",
    "blocks.{n}.feed_forward_norm": "transformer.h.{n}.ln_2",
    "blocks.{n}.feed_forward.up": "transformer.h.{n}.mlp.c_fc",
    "blocks.{n}.feed_forward.down": "transformer.h.{n}.mlp.c_proj",
}
_ATTENTION, _INNER = "model.layers.{n}.self_attn", "model.layers.{n}.mlp"
_LLAMA = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "blocks.{n}.attention_norm": "model.layers.{n}.input_layernorm",
    "blocks.{n}.attention.qkv": f"{_ATTENTION}.q_proj {_ATTENTION}.k_proj {_ATTENTION}.v_proj",
    "blocks.{n}.attention.query_norm": f"{_ATTENTION}.q_norm",
    "blocks.{n}.attention.key_norm": f"{_ATTENTION}.k_norm",
    "blocks.{n}.attention.out": f"{_ATTENTION}.o_proj",
    "blocks.{n}.feed_forward_norm": "model.layers.{n}.post_attention_layernorm",
    "blocks.{n}.feed_forward.gate_up": f"{_INNER}.gate_proj {_INNER}.up_proj",
    "blocks.{n}.feed_forward.up": f"{_INNER}.c_fc",
    "blocks.{n}.feed_forward.down": f"{_INNER}.down_proj",
}
_STARCODER2 = _LLAMA | {"blocks.{n}.feed_forward.down": f"{_INNER}.c_proj"}
_GEMMA2 = _LLAMA | {  # what is Llama's norm behind attention stands before the sum here
    "blocks.{n}.attention_output_norm": "model.layers.{n}.post_attention_layernorm",
    "blocks.{n}.feed_forward_norm": "model.layers.{n}.pre_feedforward_layernorm",
    "blocks.{n}.feed_forward_output_norm": "model.layers.{n}.post_feedforward_layernorm",
}
_TEXTS: Mapping[Head, Mapping[str, str]] = {
    "texts": {"classifier": "score", "head": ""},  # which has no output of tokens
}
_ROTARY = ("*.rotary_emb.inv_freq",)
_ROPE_KEYS = {  # that are understood, some of one kind alone; the others have no effect on it
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings"),
    *("beta_fast", "beta_slow", "high_freq_factor", "low_freq_factor"),
}
_ROPE_DEFAULTS = {"partial_rotary_factor": 1.0, "truncate": True}  # all that can be read of these
_FACTORS = {  # of rope_scaling → theirs
    "yarn": {"beta_fast": "beta_fast", "beta_slow": "beta_slow"},
    "llama3": {"high_turns": "high_freq_factor", "low_turns": "low_freq_factor"},
}


def _render_gpt2(section: DecoderConfig, sizes: Sizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocab_size,
        "n_positions": sizes.max_positions,
        "n_embd": section.width,
        "n_layer": section.layers,
        "n_head": section.heads,
        "n_inner": section.resolved_ffn_width,
        "activation_function": _gpt2_function(section),
        "layer_norm_epsilon": section.norm_eps,
        "tie_word_embeddings": section.tied_embeddings,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), section.dropout),
    }


def _gpt2_function(section: DecoderConfig) -> str | None:
    function = their_function(section.activation)
    return "gelu_new" if section.activation == "gelu" else function  # as all of its readers know it


def _read_gpt2(tree: Tree) -> dict[str, Any]:
    demand(tree, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    refuse(tree, "add_cross_attention")
    return {
        "layers": tree["n_layer"],
        "width": tree["n_embd"],
        "heads": tree["n_head"],
        "ffn_width": tree["n_inner"] or 4 * tree["n_embd"],
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": tree["layer_norm_epsilon"],
        "activation": our_activation(tree["activation_function"], gated=False),
        "bias": True,
        "tied_embeddings": tree["tie_word_embeddings"],
        "text_classes": read_text_classes(tree),
    }


def _gpt2_form(module: str, ndim: int) -> Form:
    return "transposed" if module.startswith("blocks.") and ndim == 2 else "same"


def _render_rotary(section: DecoderConfig, sizes: Sizes) -> dict[str, Any]:
    """What all but GPT-2 call alike."""
    return {
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.max_positions,
        "hidden_size": section.width,
        "intermediate_size": section.resolved_ffn_width,
        "num_hidden_layers": section.layers,
        "num_attention_heads": section.heads,
        "num_key_value_heads": section.resolved_kv_heads,
        "tie_word_embeddings": section.tied_embeddings,
        "attention_dropout": section.dropout,
        "rope_parameters": _render_rope(section),
    }


def _read_rotary(tree: Tree) -> dict[str, Any]:
    heads = tree["num_attention_heads"]
    return {
        "layers": tree["num_hidden_layers"],
        "width": tree["hidden_size"],
        "heads": heads,
        "kv_heads": tree["num_key_value_heads"] or heads,
        "head_width": tree.get("head_dim"),  # which Qwen 2 and Starcoder 2 need not have
        "ffn_width": tree["intermediate_size"],
        "tied_embeddings": tree["tie_word_embeddings"],
        **_read_rope(tree["rope_parameters"]),
    }


def _render_rope(section: DecoderConfig) -> dict[str, Any]:
    scaling, theta = section.rope_scaling, section.rope_theta
    if scaling.kind in ("none", "ntk"):  # theirs knows ntk by another rule, from a text's length
        return {"rope_type": "default", "rope_theta": theta}
    rope = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor}
    if scaling.original_positions:
        rope["original_max_position_embeddings"] = scaling.original_positions
    for ours, theirs in _FACTORS.get(scaling.kind, {}).items():
        rope[theirs] = getattr(scaling, ours)
    return rope


def _read_rope(rope: Tree) -> dict[str, Any]:
    kind, theta = rope["rope_type"], read_number(rope, "rope_theta")
    odd = [
        f"rope_parameters.{key} = {value!r} cannot be read"
        for key, value in rope.items()
        if key not in _ROPE_KEYS and value is not None and value != _ROPE_DEFAULTS.get(key)
    ]
    if odd:
        raise UnreadableError(odd)
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "yarn", "llama3"):
        raise UnreadableError([f"rope_type = {kind!r}; known are default, linear, yarn and llama3"])
    scaling: dict[str, Any] = {"kind": kind, "factor": read_number(rope, "factor")}
    if original := rope.get("original_max_position_embeddings"):
        scaling["original_positions"] = original
    defaults = RopeScalingConfig()
    for ours, theirs in _FACTORS.get(kind, {}).items():
        is_given = rope.get(theirs) is not None
        scaling[ours] = read_number(rope, theirs) if is_given else getattr(defaults, ours)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _render_llama(section: DecoderConfig, sizes: Sizes) -> dict[str, Any]:
    return _render_rotary(section, sizes) | {
        "head_dim": section.resolved_head_width,
        "rms_norm_eps": section.norm_eps,
        "hidden_act": their_function(section.activation),
        "attention_bias": section.bias,
        "mlp_bias": section.bias,
    }


def _read_llama(tree: Tree) -> dict[str, Any]:
    demand(tree, mlp_bias=tree["attention_bias"])
    return _read_gated(tree) | {"bias": tree["attention_bias"]}


def _read_gated(tree: Tree, act: str = "hidden_act") -> dict[str, Any]:
    return _read_rotary(tree) | {
        "norm_eps": tree["rms_norm_eps"],
        "activation": our_activation(tree[act], gated=True),
    }


def _render_mistral(section: DecoderConfig, sizes: Sizes) -> dict[str, Any]:
    windows = set(section.layer_windows)
    return _render_rotary(section, sizes) | {
        "head_dim": section.resolved_head_width,
        "rms_norm_eps": section.norm_eps,
        "hidden_act": their_function(section.activation),
        "sliding_window": (max(windows) or None) if len(windows) == 1 else None,
    }


def _read_mistral(tree: Tree) -> dict[str, Any]:
    return _read_gated(tree) | {"sliding_windows": _same_everywhere(tree["sliding_window"])}


def _same_everywhere(window: int | None) -> tuple[int, ...]:
    return (window,) if window else ()


def _render_qwen(section: DecoderConfig, sizes: Sizes) -> dict[str, Any]:
    return _render_rotary(section, sizes) | {
        "head_dim": section.resolved_head_width,
        "rms_norm_eps": section.norm_eps,
        "hidden_act": their_function(section.activation),
        **_render_layer_types(section),
        "use_sliding_window": any(section.layer_windows),
        "attention_bias": False,  # of Qwen 3; Qwen 2 always has those of queries, keys and values
    }


def _render_layer_types(section: DecoderConfig) -> dict[str, Any]:
    """Layers with a window and layers without, where all the windows are one."""
    windows = section.layer_windows
    kinds = ["sliding_attention" if window else "full_attention" for window in windows]
    return {"sliding_window": max(windows) or None, "layer_types": kinds}


def _read_layer_types(tree: Tree) -> dict[str, Any]:
    return {"sliding_windows": read_kinds(tree, tree["sliding_window"] or 0)}


def _read_qwen2(tree: Tree) -> dict[str, Any]:
    return _read_gated(tree) | _read_layer_types(tree) | {"qkv_bias": True}


def _read_qwen3(tree: Tree) -> dict[str, Any]:
    demand(tree, attention_bias=False)  # theirs would also be of the output
    return _read_gated(tree) | _read_layer_types(tree) | {"qk_norm": True}


def _render_starcoder2(section: DecoderConfig, sizes: Sizes) -> dict[str, Any]:
    windows = set(section.layer_windows)
    return _render_rotary(section, sizes) | {
        "norm_epsilon": section.norm_eps,
        "hidden_act": their_function(section.activation),
        "use_bias": True,
        "sliding_window": (max(windows) or None) if len(windows) == 1 else None,
        **dict.fromkeys(("residual_dropout", "embedding_dropout"), section.dropout),
    }


def _read_starcoder2(tree: Tree) -> dict[str, Any]:
    demand(tree, use_bias=True)  # their norms have biases without it, too
    return _read_rotary(tree) | {
        "norm": "layernorm",
        "norm_eps": tree["norm_epsilon"],
        "activation": our_activation(tree["hidden_act"], gated=False),
        "bias": True,
        "sliding_windows": _same_everywhere(tree["sliding_window"]),
    }


def _render_gemma(section: DecoderConfig, sizes: Sizes) -> dict[str, Any]:
    return _render_rotary(section, sizes) | {
        "head_dim": section.resolved_head_width,
        "rms_norm_eps": section.norm_eps,
        "hidden_act": their_function(section.activation),
        "attention_bias": False,
    }


def _read_gemma(tree: Tree) -> dict[str, Any]:
    demand(tree, attention_bias=False)
    refuse(tree, "use_bidirectional_attention")
    return _read_gated(tree) | {"scaled_embeddings": True}


def _render_gemma2(section: DecoderConfig, sizes: Sizes) -> dict[str, Any]:
    return _render_rotary(section, sizes) | {
        "head_dim": section.resolved_head_width,
        "rms_norm_eps": section.norm_eps,
        "hidden_activation": their_function(section.activation),
        "attention_bias": False,
        "query_pre_attn_scalar": section.attention_width or section.resolved_head_width,
        "attn_logit_softcapping": section.attention_softcap or None,
        "final_logit_softcapping": section.logit_softcap or None,
        **_render_layer_types(section),
        # Theirs makes the mask of a window whether or not a layer has one, and not of None.
        "sliding_window": max(section.layer_windows) or sizes.max_positions,
    }


def _read_gemma2(tree: Tree) -> dict[str, Any]:
    demand(tree, attention_bias=False)
    refuse(tree, "use_bidirectional_attention")
    return (
        _read_gated(tree, "hidden_activation")
        | _read_layer_types(tree)
        | {
            "scaled_embeddings": True,
            "output_norms": True,
            "attention_width": int(tree["query_pre_attn_scalar"]),
            "attention_softcap": float(tree["attn_logit_softcapping"] or 0),
            "logit_softcap": float(tree["final_logit_softcapping"] or 0),
        }
    )


def _gemma_form(module: str, ndim: int) -> Form:
    return "less_one" if ndim == 1 else "same"


def _rotary(model_type: str, class_name: str, render: Any, read: Any, **more: Any) -> Architecture:
    given = {"names": _LLAMA, "ignored": _ROTARY, "prefix": "model."} | more

    def read_all(tree: Tree) -> dict[str, Any]:
        return read(tree) | {"text_classes": read_text_classes(tree)}

    return Architecture(
        model_type=model_type,
        family="decoder",
        classes={
            "tokens": f"{class_name}ForCausalLM",
            "texts": f"{class_name}ForSequenceClassification",
        },
        head_names=_TEXTS,
        render=render,
        read=read_all,
        **given,
    )


DECODERS = (
    Architecture(
        model_type="gpt2",
        family="decoder",
        classes={"tokens": "GPT2LMHeadModel", "texts": "GPT2ForSequenceClassification"},
        head_names=_TEXTS,
        render=_render_gpt2,
        read=_read_gpt2,
        names=_GPT2,
        forms=_gpt2_form,
        positions_key="n_positions",
        ignored=("*.attn.bias", "*.attn.masked_bias"),
        prefix="transformer.",
    ),
    _rotary("llama", "Llama", _render_llama, _read_llama),
    _rotary("mistral", "Mistral", _render_mistral, _read_mistral),
    _rotary("qwen2", "Qwen2", _render_qwen, _read_qwen2),
    _rotary("qwen3", "Qwen3", _render_qwen, _read_qwen3),
    _rotary("starcoder2", "Starcoder2", _render_starcoder2, _read_starcoder2, names=_STARCODER2),
    _rotary("gemma", "Gemma", _render_gemma, _read_gemma, forms=_gemma_form),
    _rotary("gemma2", "Gemma2", _render_gemma2, _read_gemma2, names=_GEMMA2, forms=_gemma_form),
)
"""In the order in which they are asked whether they can be a section."""
