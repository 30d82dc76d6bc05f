"""The section ``model`` of the encoder family."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from lmscale.config.kinds import Ability
from lmscale.config.model_base import (
    MAX_WIDTH,
    RECOMPUTATION,
    Activation,
    ModelConfig,
    Saves,
    find_window_problems,
    plan_ffn_width,
    plan_windows,
)


class EncoderConfig(ModelConfig):
    """An encoder Transformer, which sees both sides of a token. The switches are those by which
    BERT, RoBERTa and ModernBERT differ; the defaults are BERT's.
    """

    offers = frozenset({Ability.BIDIRECTIONAL, Ability.CLASSES})
    implementation = "lmscale.model.encoder:ENCODER"
    planning = "lmscale.plan.families.encoder:ENCODER"
    free = RECOMPUTATION | {"attention", "dropout"}
    later = frozenset({"token_classes"})
    # What the parts that it shares with the decoder ask for, and no encoder here has.
    qk_norm: ClassVar[bool] = False
    qkv_bias: ClassVar[bool] = False
    attention_softcap: ClassVar[float] = 0.0
    attention_scale: ClassVar[float | None] = None

    family: Literal["encoder"]
    layers: PositiveInt = Field(default=12, le=10_000)
    width: PositiveInt = Field(default=768, le=MAX_WIDTH)
    heads: PositiveInt = Field(default=12, le=MAX_WIDTH)
    ffn_width: PositiveInt | None = Field(default=None, le=16 * MAX_WIDTH)
    """Inner width; default: 4 × width; of a gated one 8/3 × width rounded up to 256."""
    positions: Literal["rope", "learned"] = "learned"
    rope_theta: float = Field(default=10_000.0, ge=1, le=1e12)
    local_rope_theta: float | None = Field(default=None, ge=1, le=1e12)
    """Of the layers with a sliding window; default: ``rope_theta``."""
    sliding_windows: tuple[NonNegativeInt, ...] = Field(default=(), max_length=1000, strict=False)
    """How far a token sees to either side in each layer, itself included; fewer numbers than layers
    are repeated, and 0 sees all. [0, 65, 65] is ModernBERT's.
    """
    token_types: NonNegativeInt = Field(default=0, le=MAX_WIDTH)
    """Kinds of tokens with a vector each, such as those of the first and the second sentence."""
    norm: Literal["rmsnorm", "layernorm"] = "layernorm"
    norm_eps: float = Field(default=1e-12, ge=1e-30, le=1)
    norm_first: bool = False
    """Norms stand before each part, and one after the last (ModernBERT); the first attention has
    that of the embeddings. Else they follow each part's sum (BERT).
    """
    activation: Activation = "gelu_exact"
    bias: bool = True
    """Biases in linear layers and LayerNorms; the output always has one."""
    pooler: bool = False
    """A layer over the first token's state, for what is said of a whole text."""
    text_classes: NonNegativeInt = Field(default=0, le=MAX_WIDTH)
    """Outputs of a layer behind the pooler, such as for the two orders of ``masked_order``."""
    token_classes: NonNegativeInt = Field(default=0, le=MAX_WIDTH)
    """Outputs of a layer over every token's state, for the tags of words; two of them for where an
    answer begins and ends.
    """
    tied_embeddings: bool = True
    attention: Literal["auto", "flex", "sdpa"] = "auto"
    """On CUDA without dropout. ``auto``: flash attention of cut sequences, where torch has it, in
    bf16 and fp16; else ``flex``, which is FlexAttention; else, and always for ``sdpa``, SDPA with a
    mask of all pairs.
    """
    dropout: float = Field(default=0.0, ge=0, le=0.99)
    """Of the embeddings, of the shares of attention, of what each part adds, and before the layers
    of classes.
    """
    init_std: float = Field(default=0.02, gt=0, le=100)
    """Standard deviation of weights; with ``norm_first`` / sqrt(2 × layers) where they write to the
    residual stream.
    """
    activation_checkpoint_every: int = Field(default=0, ge=0)
    """Recompute every n-th block in the backward pass; 0 recomputes none, 1 all."""
    activation_checkpoint_saves: Saves = "nothing"
    """What is kept of a block that is recomputed: ``attention``'s results, small and dear to
    compute; with ``products`` those of matrix products as well. Not with `engine.compile`, which
    has `engine.activation_memory_budget`.
    """

    def find_problems(self) -> Iterator[str]:
        if self.text_classes and not self.pooler:
            yield f"text_classes = {self.text_classes} are told by the pooled state: pooler: true"
        if self.width % self.heads:
            yield f"width = {self.width} is not a multiple of heads = {self.heads}; change one"
        elif self.positions == "rope" and self.resolved_head_width % 2:
            yield f"width / heads = {self.resolved_head_width} is odd; rope rotates pairs"
        yield from find_window_problems(self.sliding_windows, self.layers)

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """The sliding window of every layer; 0: none."""
        return plan_windows(self.sliding_windows, self.layers)

    @property
    def resolved_kv_heads(self) -> int:
        return self.heads

    @property
    def resolved_head_width(self) -> int:
        return self.width // self.heads

    @property
    def residual_std(self) -> float:
        return self.init_std / (math.sqrt(2 * self.layers) if self.norm_first else 1)

    @property
    def resolved_ffn_width(self) -> int:
        return self.ffn_width or plan_ffn_width(self.width, self.activation)
