"""The settings of a GGUF file: what llama.cpp is told of a decoder."""

from __future__ import annotations

from typing import Any

from lmscale.config.hf.llama_cpp import LlamaCpp, local_windows
from lmscale.config.model import DecoderConfig, Sizes


def add_settings(writer: Any, there: LlamaCpp, section: DecoderConfig, sizes: Sizes) -> None:
    """Give a ``gguf.GGUFWriter`` all but the tokenizer."""
    writer.add_context_length(sizes.max_positions)
    writer.add_embedding_length(section.width)
    writer.add_block_count(section.layers)
    writer.add_feed_forward_length(section.resolved_ffn_width)
    writer.add_head_count(section.heads)
    writer.add_head_count_kv(section.resolved_kv_heads)
    writer.add_key_length(section.resolved_head_width)
    writer.add_value_length(section.resolved_head_width)
    if section.norm == "rmsnorm":
        writer.add_layer_norm_rms_eps(section.norm_eps)
    else:
        writer.add_layer_norm_eps(section.norm_eps)
    if section.positions == "rope":
        _add_rope(writer, section)
    if there.has_local_layers:
        window = max(local_windows(section, sizes))
        writer.add_sliding_window(window or sizes.max_positions)
        writer.add_attn_logit_softcapping(section.attention_softcap)
        writer.add_final_logit_softcapping(section.logit_softcap)


def _add_rope(writer: Any, section: DecoderConfig) -> None:
    import gguf

    writer.add_rope_dimension_count(section.resolved_head_width)
    writer.add_rope_freq_base(section.rope_theta)
    scaling = section.rope_scaling
    if scaling.kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)
    elif scaling.kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(scaling.original_positions)
        writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
