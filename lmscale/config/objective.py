"""The section ``objective``: what is predicted, and how it is scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from lmscale.config.data import WindowShape
from lmscale.config.kinds import Ability, Kinds, KindSection
from lmscale.config.model import ModelConfig


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

    def find_model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Why it cannot train the model of a run, though that offers what is needed."""
        return iter(())

    def window(self, sequence_length: int) -> WindowShape:
        """Which tokens of a shard become a sample, for a model of so many positions."""
        return WindowShape(stride=sequence_length, overlap=1)


class NextTokenConfig(ObjectiveConfig):
    """The keys of objectives that predict the next token."""

    needs = frozenset({Ability.CAUSAL})
    free = frozenset({"z_loss", "label_smoothing", "chunk_tokens"})
    figures = ("loss", "z_loss")

    z_loss: float = Field(default=0.0, ge=0, le=1000)
    """Weight of log(Z)², which keeps the logits' scale in check (PaLM, section 5)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of every target that is dealt to all ids alike (Szegedy et al. 2016). Of what is
    trained; the losses that are reported are those of the targets themselves.
    """
    chunk_tokens: PositiveInt = 2048
    """Tokens whose logits exist at once."""


class CausalConfig(NextTokenConfig):
    """Causal language modelling: predict the next token."""

    implementation = "lmscale.objective.causal:CAUSAL"

    name: Literal["causal"] = "causal"


class PrefixConfig(NextTokenConfig):
    """Prefix language modelling: see a document's beginning as a whole, and predict its rest."""

    needs = frozenset({Ability.PREFIX})
    implementation = "lmscale.objective.prefix:PREFIX"

    name: Literal["prefix"] = "prefix"

    def find_model_problems(self, model: ModelConfig) -> Iterator[str]:
        if getattr(model, "segments", 1) > 1:
            yield (
                "objective.name = 'prefix' shows a prefix as a whole, but model.segments = "
                f"{getattr(model, 'segments', 1)} cuts the window. Set model.segments to 1"
            )


class FillMiddleConfig(NextTokenConfig):
    """Fill-in-the-middle: documents whose middle stands behind what follows it (Bavarian et al.
    2022), among others as they are.
    """

    implementation = "lmscale.objective.fill_middle:FILL_MIDDLE"

    name: Literal["fill_middle"] = "fill_middle"
    rate: float = Field(default=0.5, ge=0, le=1)
    """Share of the documents that are rearranged."""
    suffix_first: float = Field(default=0.5, ge=0, le=1)
    """Share of these whose suffix comes before the prefix (SPM), rather than behind it (PSM)."""

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("prefix", "suffix", "middle")


class MaskedConfig(ObjectiveConfig):
    """Masked language modelling: predict hidden tokens from both sides (Devlin et al. 2019)."""

    needs = frozenset({Ability.BIDIRECTIONAL})
    implementation = "lmscale.objective.masked:MASKED"
    free = frozenset({"chunk_tokens"})
    figures = ("loss", "accuracy")
    held_out = ("accuracy",)

    name: Literal["masked"]
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are chosen, to be predicted; special ones never are."""
    replace: float = Field(default=0.1, ge=0, le=1)
    """Share of the chosen ones that become a random id."""
    keep: float = Field(default=0.1, ge=0, le=1)
    """Share of them that stay as they are; the others become the mask."""
    unit: Literal["tokens", "words", "spans"] = "tokens"
    """What is chosen: single tokens, whole words, or spans of some tokens, whose lengths and common
    fate are SpanBERT's (Joshi et al. 2020).
    """
    chunk_tokens: PositiveInt = 2048
    """Targets whose logits exist at once."""

    def find_problems(self) -> Iterator[str]:
        if self.replace + self.keep > 1:
            yield (
                f"replace = {self.replace:g} and keep = {self.keep:g} are shares of the chosen "
                "tokens: together they must be at most 1"
            )

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("mask",)

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=sequence_length, overlap=0)


OBJECTIVES = Kinds(
    ObjectiveConfig,
    key="name",
    group="lmscale.objectives",
    own={
        "causal": CausalConfig,
        "fill_middle": FillMiddleConfig,
        "masked": MaskedConfig,
        "prefix": PrefixConfig,
    },
)
