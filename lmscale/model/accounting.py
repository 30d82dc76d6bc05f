"""Exact parameter counts and FLOPs of a configuration, without building it."""

from __future__ import annotations

from dataclasses import dataclass

from lmscale.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Numbers of parameters; a tied matrix counts once, as ``embedding``."""

    embedding: int
    """Token embedding."""
    positions: int
    """Table of learned positions; 0 for RoPE."""
    blocks: int
    """All layers: matrices, biases, norms."""
    norm: int
    """The final norm."""
    head: int
    """Output matrix; 0 when tied."""

    @property
    def total(self) -> int:
        return self.embedding + self.positions + self.blocks + self.norm + self.head

    @property
    def non_embedding(self) -> int:
        """All but the tables that are looked up or produce logits: what scaling laws call N."""
        return self.blocks + self.norm

    @property
    def computing(self) -> int:
        """Parameters that a token is multiplied with: the N of ``flops_per_token``.

        All but the position table and, when the head has a matrix of its own, the token embedding:
        a look-up multiplies nothing. With tied embeddings this is nanoGPT's ``get_num_params()``.
        """
        return self.blocks + self.norm + (self.head or self.embedding)


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs per token of a forward and a backward pass, without recomputation: the M of MFU."""

    dense: float
    """6N + 12·L·d·T, d = heads × head width: every token sees the whole window (PaLM, app. B)."""
    causal: float
    """6N + 6·L·d·T: attention over the half that the causal mask leaves."""

    @property
    def forward(self) -> float:
        """A forward pass alone, by the dense convention: 2N + 4·L·d·T."""
        return self.dense / 3


def count_parameters(config: ModelConfig, vocab_size: int, max_positions: int) -> ParameterCount:
    """The numbers that ``build_model`` would give."""
    width, inner = config.width, config.resolved_ffn_width
    queries = config.heads * config.resolved_head_width
    rows = queries + 2 * config.resolved_kv_heads * config.resolved_head_width
    first = 2 * inner if config.activation == "swiglu" else inner
    matrices = width * rows + queries * width + width * first + inner * width
    biases = rows + width + first + width if config.bias else 0
    norm = 2 * width if config.norm == "layernorm" and config.bias else width
    qk_norms = 2 * config.resolved_head_width if config.qk_norm else 0
    return ParameterCount(
        embedding=vocab_size * width,
        positions=max_positions * width if config.positions == "learned" else 0,
        blocks=config.layers * (matrices + biases + 2 * norm + qk_norms),
        norm=norm,
        head=0 if config.tied_embeddings else vocab_size * width,
    )


def flops_per_token(config: ModelConfig, *, vocab_size: int, sequence_length: int) -> Flops:
    """Training FLOPs per token by both conventions; N is ``ParameterCount.computing``.

    A multiplication and an addition are two FLOPs; the backward pass costs twice the forward.
    Masked documents shorten attention further; neither convention counts that.
    """
    parameters = count_parameters(config, vocab_size, sequence_length).computing
    attention = 12 * config.layers * config.heads * config.resolved_head_width * sequence_length
    return Flops(dense=6 * parameters + attention, causal=6 * parameters + attention / 2)
