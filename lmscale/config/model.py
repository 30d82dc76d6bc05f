"""The section ``model``: the families of models and their settings.

``FAMILIES`` has one line a family. A family's settings name what builds its models, which needs
torch and is imported when a model is built (``lmscale/model/family.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from lmscale.config.base import Section
from lmscale.config.data import MAX_POSITIONS, StreamConfig
from lmscale.config.encoder import EncoderConfig
from lmscale.config.kinds import Ability, Kinds
from lmscale.config.model_base import (
    MAX_WIDTH,
    RECOMPUTATION,
    Activation,
    ModelConfig,
    Saves,
    find_head_problems,
    find_window_problems,
    plan_ffn_width,
    plan_windows,
)
from lmscale.config.training import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a model takes from the rest of a run's configuration."""

    vocab_size: int  # rows of the embedding
    max_positions: int  # the longest sequence that the model can be asked for
    sequence_length: int  # of the windows that it is trained on
    pair_lengths: tuple[int, int] | None = None
    """Tokens that an encoder-decoder reads and writes of a window; None: both as long as it."""


class RopeScalingConfig(Section):
    """How rope reaches beyond the positions that a model was trained on before."""

    kind: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
    """``linear`` divides every frequency by ``factor``, ``ntk`` raises rope_theta instead, so that
    the fastest frequency stays; ``yarn`` and ``llama3`` divide only the slow frequencies.
    """
    factor: float = Field(default=1.0, ge=1, le=1e6)
    """How many times as many positions."""
    original_positions: NonNegativeInt = Field(default=0, le=MAX_POSITIONS)
    """Positions of the training before; yarn and llama3 need them."""
    beta_fast: float = Field(default=32.0, gt=0)
    """yarn: turns within the original positions from which on a frequency stays."""
    beta_slow: float = Field(default=1.0, gt=0)
    """yarn: turns up to which it is divided."""
    high_turns: float = Field(default=4.0, gt=0)
    """llama3: the same as beta_fast, high_freq_factor in Llama's own settings."""
    low_turns: float = Field(default=1.0, gt=0)
    """llama3: the same as beta_slow, low_freq_factor."""

    def find_problems(self) -> Iterator[str]:
        if self.kind in ("yarn", "llama3") and not self.original_positions:
            yield f"kind = {self.kind} needs original_positions, those of the training before"
        if self.kind == "none" and self.factor != 1:
            yield f"factor = {self.factor:g} needs a kind: linear, ntk, yarn or llama3"
        for low, high in (("beta_slow", "beta_fast"), ("low_turns", "high_turns")):
            if getattr(self, low) >= getattr(self, high):
                yield (
                    f"{low} = {getattr(self, low):g} must be less than {high} = "
                    f"{getattr(self, high):g}"
                )


class MupConfig(Section):
    """muP: models of all widths share their best learning rate (Yang et al. 2022)."""

    base_width: NonNegativeInt = Field(default=0, le=MAX_WIDTH)
    """Width of the model by which ``engine.optimizer.lr`` and ``init_std`` were chosen: this one
    takes them as a wider one has to. Let heads × head_width and ffn_width grow as the width does.
    0: no muP.
    """
    base_head_width: NonNegativeInt = Field(default=0, le=MAX_WIDTH)
    """That model's head_width; 0: this one's, where a wider model has more heads."""

    def find_problems(self) -> Iterator[str]:
        if self.base_head_width and not self.base_width:
            yield "base_head_width is of a model whose base_width is to be given, too"


class DecoderConfig(ModelConfig):
    """A decoder Transformer. The switches are those by which GPT, Llama, Qwen and others differ."""

    offers = frozenset({Ability.CAUSAL, Ability.PREFIX, Ability.CLASSES})
    implementation = "lmscale.model.decoder:DECODER"
    planning = "lmscale.plan.families.decoder:DECODER"
    free = RECOMPUTATION | {"attention", "dropout", "segments"}
    later = frozenset(
        ("rope_scaling", "qkv_bias", "sliding_windows", "attention_softcap", "logit_softcap", "mup")
        + ("output_norms", "attention_width", "scaled_embeddings", "text_classes")
    )

    family: Literal["decoder"] = "decoder"
    layers: PositiveInt = Field(default=12, le=10_000)
    width: PositiveInt = Field(default=768, le=MAX_WIDTH)
    heads: PositiveInt = Field(default=12, le=MAX_WIDTH)
    kv_heads: PositiveInt | None = Field(default=None, le=MAX_WIDTH)
    """Key/value heads (grouped-query attention); default: as many as ``heads``."""
    head_width: PositiveInt | None = Field(default=None, le=MAX_WIDTH)
    """Default: width / heads."""
    ffn_width: PositiveInt | None = Field(default=None, le=16 * MAX_WIDTH)
    """Inner width; default: 4 × width; of a gated one 8/3 × width rounded up to 256."""
    positions: Literal["rope", "learned"] = "rope"
    rope_theta: float = Field(default=10_000.0, ge=1, le=1e12)
    rope_scaling: RopeScalingConfig = RopeScalingConfig()
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = Field(default=1e-5, ge=1e-30, le=1)
    activation: Activation = "swiglu"
    """``gelu`` is the approximation by tanh, as in GPT-2. Gated are those with glu in their names:
    ``reglu`` by relu, ``geglu`` by gelu, ``swiglu`` by silu, ``glu`` by sigmoid.
    """
    bias: bool = False
    """Biases in linear layers and LayerNorms."""
    qkv_bias: bool = False
    """Biases of queries, keys and values even without ``bias``, as in Qwen 2."""
    output_norms: bool = False
    """Norms also of what attention and feed-forward give, before it is added (Gemma 2)."""
    qk_norm: bool = False
    """RMSNorm of queries and keys per head, before the rotation."""
    attention_width: PositiveInt | None = Field(default=None, le=MAX_WIDTH)
    """Attention's scores are divided by its root; default: head_width. Gemma 2's
    query_pre_attn_scalar.
    """
    sliding_windows: tuple[NonNegativeInt, ...] = Field(default=(), max_length=1000, strict=False)
    """How many tokens a token sees, itself included, in each layer; fewer numbers than layers are
    repeated, and 0 sees all. [4096] is Mistral's and Starcoder 2's, [4096, 0] Gemma 2's local and
    global layers in turn. [M + 1] is Transformer-XL's memory of M tokens.
    """
    segments: PositiveInt = Field(default=1, le=10_000)
    """Equal parts of a window, in training, into which no gradient flows from a later one, as in
    Transformer-XL; what the model computes stays the same.
    """
    attention_softcap: float = Field(default=0.0, ge=0)
    """Attention scores become softcap · tanh(score / softcap), as in Gemma 2; 0: they stay. Without
    FlexAttention the scores of a whole head exist at once.
    """
    logit_softcap: float = Field(default=0.0, ge=0)
    """The same of the logits."""
    tied_embeddings: bool = False
    scaled_embeddings: bool = False
    """Embeddings are multiplied by √width (Gemma)."""
    text_classes: NonNegativeInt = Field(default=0, le=MAX_WIDTH)
    """Outputs of a layer over the state of a document's last token, for the class of the document
    (GPT-1, Radford et al. 2018).
    """
    attention: Literal["auto", "flex", "sdpa"] = "auto"
    """Where documents are masked on CUDA without dropout. ``auto``: flash attention of cut
    sequences, where torch has it, in bf16 and fp16 without soft caps; else ``flex``, which is
    FlexAttention and needs a compiler on the node; else, and always for ``sdpa``, SDPA with a mask
    of all pairs.
    """
    dropout: float = Field(default=0.0, ge=0, le=0.99)
    """Of the embeddings, of the shares of attention, and of what each part adds."""
    init_std: float = Field(default=0.02, gt=0, le=100)
    """Standard deviation of weights; / sqrt(2 × layers) where they write to the residual stream."""
    mup: MupConfig = MupConfig()
    activation_checkpoint_every: int = Field(default=0, ge=0)
    """Recompute every n-th block in the backward pass; 0 recomputes none, 1 all."""
    activation_checkpoint_saves: Saves = "nothing"
    """What is kept of a block that is recomputed: ``attention``'s results, small and dear to
    compute; with ``products`` those of matrix products as well. Not with `engine.compile`, which
    has `engine.activation_memory_budget`.
    """

    def find_problems(self) -> Iterator[str]:
        yield from find_head_problems(self.width, self.heads, self.head_width)
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
        if self.positions != "rope" and self.rope_scaling.kind != "none":
            yield f"rope_scaling.kind = {self.rope_scaling.kind} needs positions: rope"
        if self.rope_scaling.kind == "yarn" and self.rope_theta == 1:
            yield "rope_theta = 1 gives all pairs one frequency, among which yarn cannot choose"
        yield from find_window_problems(self.sliding_windows, self.layers)
        if self.mup.base_width and self.scaled_embeddings:
            yield "scaled_embeddings grow with the width, as none of mup's may: choose one of them"
        if self.mup.base_head_width and self.attention_width:
            yield "attention_width and mup.base_head_width both scale attention: choose one of them"

    def find_training_problems(
        self, stream: StreamConfig, optimizer: OptimizerConfig
    ) -> Iterator[str]:
        if stream.sequence_length % self.segments:
            yield (
                f"model.segments = {self.segments} does not cut stream.sequence_length = "
                f"{stream.sequence_length} into equal parts; give a divisor of it"
            )
        if self.mup.base_width and optimizer.kind in ("adafactor", "muon", "sgd"):
            yield (
                "model.mup scales learning rates as Adam and its like need it, not "
                f"{optimizer.kind}: set engine.optimizer.kind to adamw, adam, lion or schedule_free"
            )

    def describe_doubts(self) -> Iterator[str]:
        if self.width_ratio < 1:
            yield (
                f"model.mup.base_width = {self.mup.base_width} is more than model.width = "
                f"{self.width}: the matrices' learning rates are {1 / self.width_ratio:g} times "
                "engine.optimizer.lr. It is meant to be the width of a smaller model, by which lr "
                "was chosen"
            )

    @property
    def layer_windows(self) -> tuple[int, ...]:
        """The sliding window of every layer; 0: none."""
        return plan_windows(self.sliding_windows, self.layers)

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
        return self.ffn_width or plan_ffn_width(self.width, self.activation)

    @property
    def width_ratio(self) -> float:
        """How many times as wide as muP's base; 1 without muP."""
        return self.width / (self.mup.base_width or self.width)

    @property
    def attention_scale(self) -> float | None:
        """What attention's scores are multiplied by; None: 1 / √head_width."""
        base, width = self.mup.base_head_width, self.resolved_head_width
        if self.attention_width not in (None, width):
            return self.attention_width**-0.5
        return None if base in (0, width) else math.sqrt(base) / width


class EncoderDecoderConfig(ModelConfig):
    """An encoder, and a decoder that reads it. The switches are those by which T5 and BART differ;
    the defaults are T5's.
    """

    offers = frozenset({Ability.CROSS})
    implementation = "lmscale.model.encoder_decoder:ENCODER_DECODER"
    planning = "lmscale.plan.families.encoder_decoder:ENCODER_DECODER"
    free = RECOMPUTATION | {"dropout"}

    family: Literal["encoder_decoder"]
    layers: PositiveInt = Field(default=12, le=10_000)
    """Blocks of the encoder."""
    decoder_layers: PositiveInt | None = Field(default=None, le=10_000)
    """Blocks of the decoder; default: as many as ``layers``."""
    width: PositiveInt = Field(default=768, le=MAX_WIDTH)
    heads: PositiveInt = Field(default=12, le=MAX_WIDTH)
    head_width: PositiveInt | None = Field(default=None, le=MAX_WIDTH)
    """Default: width / heads."""
    ffn_width: PositiveInt | None = Field(default=None, le=16 * MAX_WIDTH)
    """Inner width; default: 4 × width, of a gated one 8/3 × width rounded up to 256."""
    positions: Literal["relative", "learned"] = "relative"
    """``relative``: a bias of the scores by the distance, one table for the blocks of a stack; the
    scores are not divided by √head_width (T5). ``learned``: a vector for each position (BART).
    """
    relative_buckets: int = Field(default=32, ge=4, le=2**16)
    """Distances that are told apart, half of them in each direction where both are seen."""
    relative_distance: int = Field(default=128, ge=4, le=MAX_POSITIONS)
    """Distances from here on are one."""
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    norm_eps: float = Field(default=1e-6, ge=1e-30, le=1)
    norm_first: bool = True
    """Norms stand before each part, and one at a stack's end (T5). Else they follow each part's
    sum, and the embeddings (BART).
    """
    activation: Activation = "relu"
    bias: bool = False
    """Biases in linear layers and LayerNorms."""
    tied_embeddings: bool = True
    scaled_logits: bool = True
    """With tied embeddings, hidden states are divided by √width before the head (T5)."""
    dropout: float = Field(default=0.0, ge=0, le=0.99)
    """Of the embeddings, of the shares of attention, of what each part adds, of what a stack gives,
    and with ``norm_first`` within the feed-forward (T5).
    """
    init_std: float | None = Field(default=None, gt=0, le=100)
    """Standard deviation of weights; default: of each matrix by its inputs, 1 of the embeddings, as
    T5 has it.
    """
    activation_checkpoint_every: int = Field(default=0, ge=0)
    """Recompute every n-th block in the backward pass; 0 recomputes none, 1 all."""
    activation_checkpoint_saves: Saves = "nothing"
    """What is kept of a block that is recomputed: ``attention``'s results, small and dear to
    compute; with ``products`` those of matrix products as well. Not with `engine.compile`, which
    has `engine.activation_memory_budget`.
    """

    def find_problems(self) -> Iterator[str]:
        yield from find_head_problems(self.width, self.heads, self.head_width)
        if self.relative_buckets % 4 or self.relative_distance <= self.relative_buckets // 2:
            yield (
                f"relative_buckets = {self.relative_buckets} must be a multiple of 4, and its half "
                f"less than relative_distance = {self.relative_distance}"
            )

    @property
    def resolved_decoder_layers(self) -> int:
        return self.decoder_layers or self.layers

    @property
    def resolved_head_width(self) -> int:
        return self.head_width or self.width // self.heads

    @property
    def resolved_ffn_width(self) -> int:
        return self.ffn_width or plan_ffn_width(self.width, self.activation)


class RecurrentConfig(ModelConfig):
    """A recurrent language model; a document begins with a state of zeros."""

    offers = frozenset({Ability.CAUSAL})
    implementation = "lmscale.model.recurrent:RECURRENT"
    planning = "lmscale.plan.families.recurrent:RECURRENT"
    free = frozenset({"dropout"})

    family: Literal["recurrent"] = "recurrent"
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    """``rnn`` is Elman's, with tanh."""
    layers: PositiveInt = Field(default=2, le=10_000)
    width: PositiveInt = Field(default=650, le=MAX_WIDTH)
    """Of the embedding and of every layer."""
    tied_embeddings: bool = False
    dropout: float = Field(default=0.0, ge=0, le=0.99)
    """Between layers, behind the embedding and before the head."""
    init_std: float | None = Field(default=None, gt=0, le=100)
    """Standard deviation of weights; default: 1 / sqrt(3 × width), that of torch's own cells."""

    def find_problems(self) -> Iterator[str]:
        if self.lora.rank:
            yield f"lora.rank = {self.lora.rank}, but no recurrent model has adapters; leave it out"

    @property
    def resolved_init_std(self) -> float:
        return self.init_std or 1 / math.sqrt(3 * self.width)


FAMILIES = Kinds(
    ModelConfig,
    key="family",
    group="lmscale.families",
    own={
        "decoder": DecoderConfig,
        "encoder": EncoderConfig,
        "encoder_decoder": EncoderDecoderConfig,
        "recurrent": RecurrentConfig,
    },
)
