"""The section ``objective``: what is predicted, and how it is scored."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from lmscale.config.data import WindowShape
from lmscale.config.kinds import Ability, Kinds, KindSection


class ObjectiveConfig(KindSection):
    """The keys of every objective; each objective's section adds its own."""

    needs: ClassVar[frozenset[Ability]] = frozenset()
    """What the model's family must offer."""
    figures: ClassVar[tuple[str, ...]] = ("loss",)
    """What a step reports, as ``train/<name>``, in the order in which the ranks add the sums. The
    first is ``loss``, in nats per target: what the log shows and the guard judges.
    """
    held_out: ClassVar[tuple[str, ...]] = ()
    """Those that an evaluation reports beside loss, perplexity and bits per byte."""

    name: str

    @property
    def added_ids(self) -> tuple[str, ...]:
        """Names of the ids that it needs beside the tokenizer's, such as a mask's. They are
        numbered from ``tokenizer.vocab_size`` on, so that the same shards serve every objective.
        """
        return ()

    def window(self, sequence_length: int) -> WindowShape:
        """Which tokens of a shard become a sample, for a model of so many positions."""
        return WindowShape(stride=sequence_length, overlap=1)


class CausalConfig(ObjectiveConfig):
    """Causal language modelling: predict the next token."""

    needs = frozenset({Ability.CAUSAL})
    implementation = "lmscale.objective.causal:CAUSAL"
    free = frozenset({"z_loss", "chunk_tokens"})
    figures = ("loss", "z_loss")

    name: Literal["causal"] = "causal"
    z_loss: float = Field(default=0.0, ge=0, le=1000)
    """Weight of log(Z)², which keeps the logits' scale in check (PaLM, section 5)."""
    chunk_tokens: PositiveInt = 2048
    """Tokens whose logits exist at once."""


OBJECTIVES = Kinds(
    ObjectiveConfig,
    key="name",
    group="lmscale.objectives",
    own={"causal": CausalConfig},
)
