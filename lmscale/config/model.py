"""The section ``model``: the families of models and their settings.

``FAMILIES`` has one line a family. A family's settings name what builds its models, which needs
torch and is imported when a model is built (``lmscale/model/family.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from lmscale.config.data import MAX_POSITIONS, MAX_VOCABULARY
from lmscale.config.kinds import Ability, Kinds, KindSection

MAX_WIDTH = 2**20


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model takes from the rest of a run's configuration."""

    vocab_size: int  # rows of the embedding
    max_positions: int  # the longest sequence that the model can be asked for
    sequence_length: int  # of the windows that it is trained on


class ModelConfig(KindSection):
    """The keys of every family; each family's section adds its own."""

    offers: ClassVar[frozenset[Ability]] = frozenset()
    """What the family's models offer to an objective."""

    family: str
    vocab_size: PositiveInt | None = Field(default=None, le=MAX_VOCABULARY)
    """Rows of the embedding; default: the tokenizer's, rounded up to a multiple of 128."""
    max_positions: PositiveInt | None = Field(default=None, le=MAX_POSITIONS)
    """Longest sequence the model can be asked for; default: stream.sequence_length."""


class DecoderConfig(ModelConfig):
    """A decoder Transformer. The switches are those by which GPT-2 and Llama differ."""

    offers = frozenset({Ability.CAUSAL})
    implementation = "lmscale.model.decoder:DECODER"
    free = frozenset({"activation_checkpoint_every", "attention", "dropout"})

    family: Literal["decoder"] = "decoder"
    layers: PositiveInt = Field(default=12, le=10_000)
    width: PositiveInt = Field(default=768, le=MAX_WIDTH)
    heads: PositiveInt = Field(default=12, le=MAX_WIDTH)
    kv_heads: PositiveInt | None = Field(default=None, le=MAX_WIDTH)
    """Key/value heads (grouped-query attention); default: as many as ``heads``."""
    head_width: PositiveInt | None = Field(default=None, le=MAX_WIDTH)
    """Default: width / heads."""
    ffn_width: PositiveInt | None = Field(default=None, le=16 * MAX_WIDTH)
    """Inner width; default: 4 × width for gelu, 8/3 × width rounded up to 256 for swiglu."""
    positions: Literal["rope", "learned"] = "rope"
    rope_theta: float = Field(default=10_000.0, ge=1, le=1e12)
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = Field(default=1e-5, ge=1e-30, le=1)
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    """Biases in linear layers and LayerNorms."""
    qk_norm: bool = False
    """RMSNorm of queries and keys per head, before the rotation."""
    tied_embeddings: bool = False
    attention: Literal["auto", "sdpa"] = "auto"
    """``auto``: FlexAttention where documents are masked on CUDA without dropout, SDPA elsewhere.
    ``sdpa`` needs no compiler on the node.
    """
    dropout: float = Field(default=0.0, ge=0, le=0.99)
    init_std: float = Field(default=0.02, gt=0, le=100)
    """Standard deviation of weights; / sqrt(2 × layers) where they write to the residual stream."""
    activation_checkpoint_every: int = Field(default=0, ge=0)
    """Recompute every n-th block in the backward pass; 0 recomputes none, 1 all."""

    def find_problems(self) -> Iterator[str]:
        if self.head_width is None and self.width % self.heads:
            yield (
                f"width = {self.width} is not a multiple of heads = {self.heads}; change one of "
                "them or give head_width"
            )
        if self.kv_heads is not None and self.heads % self.kv_heads:
            yield (
                f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}; each "
                "key/value head serves equally many queries"
            )
        if self.positions == "rope" and self.resolved_head_width % 2:
            yield (
                f"head_width = {self.resolved_head_width}, or width / heads, is odd; rope rotates "
                "pairs, so it must be even"
            )

    @property
    def resolved_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def resolved_head_width(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def residual_std(self) -> float:
        """Of the 2 · layers matrices that write to the residual stream, each of which adds its
        variance (GPT-2, section 2.3).
        """
        return self.init_std / math.sqrt(2 * self.layers)

    @property
    def resolved_ffn_width(self) -> int:
        if self.ffn_width is not None:
            return self.ffn_width
        if self.activation == "gelu":
            return 4 * self.width
        return -(-8 * self.width // 3 // 256) * 256


FAMILIES = Kinds(
    ModelConfig,
    key="family",
    group="lmscale.families",
    own={"decoder": DecoderConfig},
)
