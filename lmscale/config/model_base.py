"""What the sections of all families share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt

from lmscale.config.data import MAX_POSITIONS, MAX_VOCABULARY, StreamConfig
from lmscale.config.kinds import Ability, KindSection
from lmscale.config.lora import LoraConfig
from lmscale.config.training import OptimizerConfig

MAX_WIDTH = 2**20
FLEX_MIN_HEAD_WIDTH = 16  # the smallest tile of a dot product in FlexAttention's kernels

Saves = Literal["nothing", "attention", "products"]  # of blocks that are recomputed
RECOMPUTATION = frozenset({"activation_checkpoint_every", "activation_checkpoint_saves"})
Activation = Literal[
    "relu",
    "gelu",
    "gelu_exact",
    "silu",
    "sigmoid",
    "tanh",
    "reglu",
    "geglu",
    "geglu_exact",
    "swiglu",
    "glu",
    "tanh_glu",
]
"""``gelu`` is GPT-2's approximation by tanh, ``gelu_exact`` BERT's."""
GATED = {
    "reglu": "relu",
    "geglu": "gelu",
    "geglu_exact": "gelu_exact",
    "swiglu": "silu",
    "glu": "sigmoid",
    "tanh_glu": "tanh",
}
"""Gated activation → the function of its gate."""


def plan_ffn_width(width: int, activation: Activation) -> int:
    """The inner width where none is given: 4 × width, of a gated one, which has three matrices
    instead of two, 8/3 × width rounded up to 256.
    """
    return -(-8 * width // 3 // 256) * 256 if activation in GATED else 4 * width


class ModelConfig(KindSection):
    """The keys of every family; each family's section adds its own."""

    offers: ClassVar[frozenset[Ability]] = frozenset()
    """What the family's models offer to an objective."""
    planning: ClassVar[str] = ""
    """``module:NAME`` of a ``PlannedFamily`` (lmscale/plan/families): what `lmscale plan` knows of
    the family's parameters and operators. Empty: nothing.
    """
    later = frozenset({"lora"})

    family: str
    vocab_size: PositiveInt | None = Field(default=None, le=MAX_VOCABULARY)
    """Rows of the embedding; default: the tokenizer's and those that the objective adds,
    rounded up to a multiple of 128.
    """
    max_positions: PositiveInt | None = Field(default=None, le=MAX_POSITIONS)
    """Longest sequence the model can be asked for; default: stream.sequence_length."""
    lora: LoraConfig = LoraConfig()

    @property
    def without_adapters(self) -> ModelConfig:
        """That of the model whose matrices the adapters were merged into."""
        return self.model_copy(update={"lora": LoraConfig()})

    def find_training_problems(
        self, stream: StreamConfig, optimizer: OptimizerConfig
    ) -> Iterator[str]:
        """Why it cannot be trained on such windows, or by such an optimizer."""
        return iter(())

    def describe_doubts(self) -> Iterator[str]:
        """What may be and was hardly meant."""
        return iter(())


def find_window_problems(sliding_windows: Sequence[int], layers: int) -> Iterator[str]:
    """Why a pattern of sliding windows is not one of so many layers."""
    if len(sliding_windows) > layers:
        yield (
            f"sliding_windows has {len(sliding_windows)} numbers for layers = {layers}; leave out "
            "those that no layer would take"
        )


def plan_windows(sliding_windows: Sequence[int], layers: int) -> tuple[int, ...]:
    """The pattern, repeated over the layers; without one, 0 everywhere: no window."""
    pattern = sliding_windows or (0,)
    return tuple(pattern[layer % len(pattern)] for layer in range(layers))


def find_head_problems(width: int, heads: int, head_width: int | None) -> Iterator[str]:
    """Why the width cannot be shared among the heads."""
    if head_width is None and width % heads:
        yield (
            f"width = {width} is not a multiple of heads = {heads}; change one of them or give "
            "head_width"
        )


def find_recompute_problems(config: Any) -> Iterator[str]:
    """What does not go together of a run's ``model``'s recomputation and ``engine``'s settings."""
    model, compiles = config.model, config.engine.compile
    budget = config.engine.activation_memory_budget
    every = getattr(model, "activation_checkpoint_every", 0)
    saves = getattr(model, "activation_checkpoint_saves", "nothing")
    if saves != "nothing" and not every:
        yield (
            f"model.activation_checkpoint_saves = {saves}, but no block is recomputed: set "
            "model.activation_checkpoint_every to 1 for all"
        )
    if saves != "nothing" and compiles:
        yield (
            f"model.activation_checkpoint_saves = {saves} with engine.compile: a compiled block "
            "has no single operations. Leave it out, and set engine.activation_memory_budget, such "
            "as 0.5, without model.activation_checkpoint_every"
        )
    if budget < 1 and every:
        yield (
            f"engine.activation_memory_budget = {budget:g} with model.activation_checkpoint_every "
            f"= {every}: blocks that are recomputed whole keep nothing anyway. Leave one of them "
            "out"
        )
