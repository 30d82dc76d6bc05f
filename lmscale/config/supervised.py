"""Sections of the objectives that read more than tokens: pairs, and what is said of documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError, field_validator

from lmscale.config.augment import AugmentConfig
from lmscale.config.data import StreamConfig, WindowShape
from lmscale.config.kinds import Ability
from lmscale.config.labels import LabelSet, find_name_problems, split_tags
from lmscale.config.model_base import ModelConfig
from lmscale.config.objective_base import NextTokenConfig, ObjectiveConfig

Weight = Annotated[float, Field(ge=0, le=1e6)]
_WEIGHTS = TypeAdapter(dict[str, Weight])
BALANCED = "balanced"
MOST_COUNTED = 1000  # classes: of more, a million counts an evaluation would go from rank to rank


def find_whole_problems(name: str, stream: StreamConfig) -> Iterator[str]:
    """Why windows hold no whole documents that are kept apart."""
    if stream.packing != "best_fit":
        yield f"objective.name = {name!r} is of whole documents: set stream.packing: best_fit"
    if not stream.mask_documents:
        yield (
            f"objective.name = {name!r} is of documents that do not see each other: set "
            "stream.mask_documents: true"
        )


class PairsConfig(NextTokenConfig):
    """Pairs, as for translation and summaries: of each document the first text is read, and the
    second one is written. A window holds whole pairs, both texts of each.
    """

    needs = frozenset({Ability.CROSS})
    implementation = "lmscale.objective.whole_pairs:PAIRS"
    figures = ("loss", "z_loss", "accuracy")
    held_out = ("accuracy",)

    name: Literal["pairs"]

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("start", "end")

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=sequence_length, overlap=0, has_pairs=True)

    def pair_lengths(self, sequence_length: int) -> tuple[int, int]:
        return sequence_length, sequence_length

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        yield from find_whole_problems(self.name, stream)


class CompletionConfig(NextTokenConfig):
    """Completion, as for following instructions: of each pair the first text is read without a
    loss, and the second one predicted behind it.
    """

    implementation = "lmscale.objective.completion:COMPLETION"

    name: Literal["completion"]

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=sequence_length, overlap=1, has_pairs=True)

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        yield from find_whole_problems(self.name, stream)


class DialogueConfig(NextTokenConfig):
    """Dialogues, as for instruction data of many turns: what the assistant says is predicted behind
    all that was said before, the token that ends its turn included. A window holds whole dialogues.
    """

    implementation = "lmscale.objective.dialogue:DIALOGUE"

    name: Literal["dialogue"]

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=sequence_length, overlap=1, has_turns=True)

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        yield from find_whole_problems(self.name, stream)


class LabelledConfig(ObjectiveConfig):
    """The keys of the objectives that learn what is said of a document, or of its words."""

    needs = frozenset({Ability.BIDIRECTIONAL})
    implementation = "lmscale.objective.labelled:LABELLED"
    figures = ("loss", "accuracy")
    set_figures = ("loss", "perplexity")  # a label has no bytes
    loss_unit, targets_are = "nats per label", "labels"
    outputs: ClassVar[Literal["text_classes", "token_classes"]] = "text_classes"
    """The key of ``model`` that says how many classes it tells apart."""
    reads_pairs_without_types: ClassVar = False
    """Whether a model without types of tokens (``token_types: 0``) may read two texts."""

    names: tuple[str, ...] = Field(strict=False)
    """The label_names of all datasets, in their order."""

    @property
    def held_out(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("accuracy", *self.counted)

    @property
    def counted(self) -> tuple[str, ...]:
        """Held-out figures that are made of the counts of all classes."""
        if not self.names or len(self.names) > MOST_COUNTED:
            return ()
        has_entities = self.labels.kind == "tags" and split_tags(self.names) is not None
        return ("f1_macro", "f1_micro", "f1_weighted", *(("f1_entities",) if has_entities else ()))

    @property
    def has_pairs(self) -> bool:
        return False

    @property
    def labels(self) -> LabelSet:
        raise NotImplementedError

    @property
    def num_outputs(self) -> int:
        return len(self.names)

    def window(self, sequence_length: int) -> WindowShape:
        pairs, labels = self.has_pairs, self.labels
        return WindowShape(stride=sequence_length, overlap=0, has_pairs=pairs, labels=labels)

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        yield from find_whole_problems(self.name, stream)

    def find_model_problems(self, model: ModelConfig) -> Iterator[str]:
        wanted = {"text_classes": 0, "token_classes": 0, self.outputs: self.num_outputs}
        settings = {f"{key}: {count}" for key, count in wanted.items() if count}
        if any(getattr(model, key, 0) != count for key, count in wanted.items()):
            yield (
                f"objective.name = {self.name!r} has {self.num_outputs} outputs and trains no "
                f"others: give model {', '.join(settings)} alone of text_classes and token_classes"
            )
        types = getattr(model, "token_types", 0)
        if self.has_pairs and types < 2 and not (types == 0 and self.reads_pairs_without_types):
            which = "of_pairs" if self.outputs == "text_classes" else f"name = {self.name!r}"
            yield f"objective.{which} needs a kind of tokens for each text: model.token_types: 2"
        if self.outputs == "token_classes" and getattr(model, "pooler", False):
            yield f"objective.name = {self.name!r} would never train the pooler: leave it out"


class NamedClassesConfig(LabelledConfig):
    """The keys of those that tell classes apart."""

    free = LabelledConfig.free | {"class_weights"}

    class_weights: Literal["balanced"] | dict[str, Weight] = Field(default_factory=dict)
    """How much a target of a class counts in the loss that is trained, such as ``{spam: 3}``;
    others count 1. ``balanced``: n / (C · n_c) for n_c of n targets and C classes, as scikit-learn
    has it, counted in the training shards when the run begins. The sum is divided by the number of
    targets, not by their weights, so that a batch of one class is weighted too. The losses that are
    reported are without weights.
    """

    @field_validator("class_weights", mode="before")
    @classmethod
    def _are_weights(cls, value: Any) -> Any:
        """One problem, in place of one for each that a union could be."""
        try:
            return value if value == BALANCED else _WEIGHTS.validate_python(value, strict=True)
        except ValidationError:
            raise ValueError(
                f"give {BALANCED}, or a number from 0 to a million for some of the classes, such "
                f"as {{spam: 3}}, names that are numbers in quotes; found {value!a:.80}"
            ) from None

    def find_problems(self) -> Iterator[str]:
        yield from (f"names: {why}" for why in find_name_problems(self.labels.kind, self.names))
        if isinstance(self.class_weights, str):
            return
        listed = ", ".join(self.names[:20]) + (", …" if len(self.names) > 20 else "")
        known = set(self.names)
        for name in (name for name in self.class_weights if name not in known):
            yield f"class_weights: {name!a} is none of the classes. There are: {listed}"
        if not any(self.class_weights.get(name, 1.0) for name in self.names):
            yield "class_weights: all of them are 0, so that nothing would be learned"


class TextLabelsConfig(LabelledConfig):
    """The keys of those that label a whole document."""

    needs = frozenset({Ability.CLASSES})

    of_pairs: bool = False
    """Of a document that is a pair, such as two sentences of which one may follow from the other:
    the second text's tokens are of the second type.
    """
    augment: AugmentConfig = AugmentConfig()
    """Words that are left out or swapped in what is trained on."""

    later = frozenset({"augment"})

    @property
    def has_pairs(self) -> bool:
        return self.of_pairs

    @property
    def of_held_out(self) -> TextLabelsConfig:
        return self.model_copy(update={"augment": AugmentConfig()})


class ClassesConfig(TextLabelsConfig, NamedClassesConfig):
    """Labelled documents: which of some classes a document is of, by the state of its first token
    (BERT, Devlin et al. 2019, section 4.1), or of its last one, where a token sees those before it
    (GPT-1, Radford et al. 2018, section 3.2).
    """

    free = NamedClassesConfig.free | {"label_smoothing"}

    name: Literal["classes"]
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of every target that is dealt to all classes alike, as torch's ``cross_entropy`` has
    it, weights included. Of what is trained; the losses that are reported are without it.
    """

    @property
    def labels(self) -> LabelSet:
        return LabelSet(kind="classes", names=self.names)


class NumbersConfig(TextLabelsConfig):
    """Documents with a number each: a regression by its squared error, which is the loss."""

    figures = ("loss", "absolute_error")
    set_figures = ("loss",)  # which is no entropy
    loss_unit = "squared error"

    name: Literal["numbers"]
    names: tuple[str, ...] = Field(default=(), max_length=0, strict=False)
    """Numbers have none."""

    @property
    def held_out(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("absolute_error",)

    @property
    def labels(self) -> LabelSet:
        return LabelSet(kind="numbers")

    @property
    def num_outputs(self) -> int:
        return 1


class TagsConfig(NamedClassesConfig):
    """Tagged words, as for named entities: which tag a word has, by the state of its first token
    (BERT, section 5.3).
    """

    outputs = "token_classes"

    name: Literal["tags"]

    @property
    def labels(self) -> LabelSet:
        return LabelSet(kind="tags", names=self.names)


class AnswersConfig(LabelledConfig):
    """Questions whose answer stands in a context: where it begins and ends there, by the states of
    the context's tokens, or that it has none, by the state of the first token (BERT, sections 4.2
    and 4.3).
    """

    implementation = "lmscale.objective.answers:ANSWERS"
    free = frozenset({"longest_answer"})
    figures = ("loss", "exact_match", "f1")
    set_figures = ("loss",)
    loss_unit, targets_are = "nats per edge of an answer", "answers"
    outputs = "token_classes"
    reads_pairs_without_types = True  # as RoBERTa does; places of the question are never an answer

    name: Literal["answers"]
    names: tuple[str, ...] = Field(default=(), max_length=0, strict=False)
    """Answers have none."""
    longest_answer: PositiveInt = Field(default=30, le=10_000)
    """Tokens of the longest answer that is given; no longer one is sought. Of what is learned it
    changes nothing.
    """

    @property
    def held_out(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("exact_match", "f1")

    @property
    def has_pairs(self) -> bool:
        return True

    @property
    def labels(self) -> LabelSet:
        return LabelSet(kind="spans")

    @property
    def num_outputs(self) -> int:
        return 2
