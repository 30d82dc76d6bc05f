"""The sections of the objectives that hide tokens, which encoders learn by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, PositiveInt

from lmscale.config.data import StreamConfig, WindowShape
from lmscale.config.kinds import Ability
from lmscale.config.model import ModelConfig
from lmscale.config.objective_base import ObjectiveConfig


class MaskedConfig(ObjectiveConfig):
    """Masked language modelling: predict hidden tokens from both sides (Devlin et al. 2019)."""

    needs = frozenset({Ability.BIDIRECTIONAL})
    implementation = "lmscale.objective.masked:MASKED"
    free = frozenset({"chunk_tokens"})
    mixes_as = "masked"
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
    fate are SpanBERT's (Joshi et al. 2020), which counts them in words.
    """
    shuffle: float = Field(default=0.0, ge=0, lt=1)
    """Share of the groups of three tokens, of those without a chosen or special one, that are
    shuffled, to be put in order: StructBERT's word objective (Wang et al. 2019), 0.05 there. At the
    default rate these are 6 of 10 groups.
    """
    chunk_tokens: PositiveInt = 2048
    """Targets whose logits exist at once."""

    def find_problems(self) -> Iterator[str]:
        if self.replace + self.keep > 1:
            yield (
                f"replace = {self.replace:g} and keep = {self.keep:g} are shares of the chosen "
                "tokens: together they must be at most 1"
            )

    def find_model_problems(self, model: ModelConfig) -> Iterator[str]:
        if getattr(model, "pooler", False):
            yield (
                f"objective.name = {self.name!r} says nothing of a whole text and would never "
                "train the pooler: leave model.pooler out"
            )
        if getattr(model, "token_classes", 0):
            yield f"objective.name = {self.name!r} trains no token_classes: leave them out of model"

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("mask",)

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=sequence_length, overlap=0)


class MaskedPartsConfig(MaskedConfig):
    """The keys of those that also tell what two parts of a text are to each other, by the state of
    its first token: [CLS] one part [SEP] other part [SEP].
    """

    implementation = "lmscale.objective.masked_parts:MASKED_PARTS"
    mixes_as = ""

    @property
    def classes(self) -> int:
        """What they may be to each other."""
        return 2

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("mask", "cls", "sep")

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=max(1, sequence_length - 3), overlap=0)  # room for the three ids

    def find_model_problems(self, model: ModelConfig) -> Iterator[str]:
        if getattr(model, "token_classes", 0):
            yield f"objective.name = {self.name!r} trains no token_classes: leave them out of model"
        if getattr(model, "token_types", 0) < 2:
            yield f"objective.name = {self.name!r} needs two kinds of tokens: model.token_types: 2"
        if getattr(model, "text_classes", 0) != self.classes:
            yield (
                f"objective.name = {self.name!r} tells {self.classes} kinds of pairs apart: "
                f"model.text_classes: {self.classes}"
            )

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        if stream.mask_documents:
            yield (
                f"objective.name = {self.name!r} compares the two parts of a window, which have to "
                "see each other: set stream.mask_documents to false"
            )
        if stream.sequence_length < 8:
            yield f"stream.sequence_length = {stream.sequence_length} holds no two parts: give 8"


class MaskedOrderConfig(MaskedPartsConfig):
    """Masked language modelling, and whether the two parts of a window stand in their order, as
    ALBERT is trained (Lan et al. 2020).
    """

    figures = ("loss", "accuracy", "order_loss", "order_accuracy")
    more_terms = ("order",)
    held_out = ("accuracy", "order_loss", "order_accuracy")

    name: Literal["masked_order"]  # type: ignore[assignment]


class MaskedNextConfig(MaskedPartsConfig):
    """Masked language modelling, and whether the second part follows the first one or is another
    window's, as BERT is trained (Devlin et al. 2019): of half of the windows it is.
    """

    figures = ("loss", "accuracy", "next_loss", "next_accuracy")
    more_terms = ("next",)
    held_out = ("accuracy", "next_loss", "next_accuracy")
    reads_partners = True

    name: Literal["masked_next"]  # type: ignore[assignment]
    previous: bool = False
    """Whether the other part may also be what came before, as StructBERT is trained (Wang et al.
    2019): a third each follows, comes before, and is another window's.
    """

    @property
    def classes(self) -> int:
        return 3 if self.previous else 2
