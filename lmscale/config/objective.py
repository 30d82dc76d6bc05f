"""The section ``objective``: what is predicted, and how it is scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, SerializeAsAny

from lmscale.config.base import Place, Section
from lmscale.config.data import StreamConfig, WindowShape
from lmscale.config.denoiser import DenoiserConfig, pair_lengths, plan_raw_tokens
from lmscale.config.kinds import Ability, Kinds
from lmscale.config.masked import MaskedConfig, MaskedNextConfig, MaskedOrderConfig
from lmscale.config.model import DecoderConfig, ModelConfig
from lmscale.config.objective_base import NextTokenConfig, ObjectiveConfig
from lmscale.config.supervised import (
    AnswersConfig,
    ClassesConfig,
    CompletionConfig,
    DialogueConfig,
    NumbersConfig,
    PairsConfig,
    TagsConfig,
)


class CausalConfig(NextTokenConfig):
    """Causal language modelling: predict the next token."""

    implementation = "lmscale.objective.causal:CAUSAL"
    mixes_as = "next tokens"

    name: Literal["causal"] = "causal"


class DistillConfig(NextTokenConfig):
    """Distillation (Hinton et al. 2015): predict the next token as it is, and as another run's
    model does, whose vocabulary is the same. Held-out losses are of the tokens alone.
    """

    implementation = "lmscale.objective.distill:DISTILL"
    free = NextTokenConfig.free | {"teacher", "teacher_share", "temperature"}
    figures = ("loss", "z_loss", "teacher_kl")

    name: Literal["distill"]
    teacher: Place = Field(min_length=1)
    """The other run: its folder, or FOLDER@STEP; without a step its newest sound checkpoint, when
    this run begins. Every rank holds it whole, in the run's precision. It may be moved, but the run
    goes on with no other checkpoint, which the other run therefore keeps.
    """
    teacher_share: float = Field(default=0.5, ge=0, le=1)
    """Weight of temperature² · KL(teacher ‖ student) in the loss; the tokens' own loss has the
    rest.
    """
    temperature: float = Field(default=1.0, ge=0.01, le=1000)
    """Both models' logits are divided by it, before they are compared."""

    @property
    def of_held_out(self) -> CausalConfig:
        return CausalConfig(**{key: getattr(self, key) for key in NextTokenConfig.free})


class PrefixConfig(NextTokenConfig):
    """Prefix language modelling: see a document's beginning as a whole, and predict its rest. Masks
    are of all pairs of tokens, without FlexAttention.
    """

    needs = frozenset({Ability.PREFIX})
    shows_prefixes = True
    implementation = "lmscale.objective.prefix:PREFIX"
    mixes_as = "next tokens"

    name: Literal["prefix"] = "prefix"

    def find_model_problems(self, model: ModelConfig) -> Iterator[str]:
        if isinstance(model, DecoderConfig) and model.segments > 1:
            yield (
                "objective.name = 'prefix' shows a prefix as a whole, but model.segments = "
                f"{model.segments} cuts the window. Set model.segments to 1"
            )


class FillMiddleConfig(NextTokenConfig):
    """Fill-in-the-middle: documents whose middle stands behind what follows it (Bavarian et al.
    2022), among others as they are.
    """

    implementation = "lmscale.objective.fill_middle:FILL_MIDDLE"
    mixes_as = "next tokens"

    name: Literal["fill_middle"] = "fill_middle"
    rate: float = Field(default=0.5, ge=0, le=1)
    """Share of the documents that are rearranged."""
    suffix_first: float = Field(default=0.5, ge=0, le=1)
    """Share of these whose suffix comes before the prefix (SPM), rather than behind it (PSM)."""

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("prefix", "suffix", "middle")


class DenoisedConfig(NextTokenConfig):
    """The keys of the objectives that read a window with something left out, and write it."""

    needs = frozenset({Ability.CROSS})
    figures = ("loss", "z_loss", "accuracy")
    held_out = ("accuracy",)
    mixes_as = "pairs"

    def lengths_of(self, tokens: int) -> tuple[int, int]:
        """The most tokens that are read, and written, of a window of so many."""
        raise NotImplementedError

    def pair_lengths(self, sequence_length: int) -> tuple[int, int]:
        return self.lengths_of(self.window(sequence_length).tokens)

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        if stream.mask_documents:
            yield (
                f"objective.name = {self.name!r} takes a window as one text, whose spans may cross "
                "from one document into the next. Set stream.mask_documents: false"
            )
        longest = max(self.pair_lengths(stream.sequence_length))
        if longest > stream.sequence_length:
            yield (
                f"stream.sequence_length = {stream.sequence_length} is too short for the objective "
                f"{self.name}: give at least {longest}"
            )


class SpanConfig(DenoisedConfig):
    """The keys of the objectives that leave out spans."""

    implementation = "lmscale.objective.spans:SPANS"

    sentinels: PositiveInt = Field(default=100, le=10_000)
    """Ids that stand for spans: no window may have more of them."""

    @property
    def mixture(self) -> tuple[DenoiserConfig, ...]:
        raise NotImplementedError

    @property
    def modes(self) -> tuple[str, ...]:
        """Those of its denoisers."""
        return tuple(sorted({denoiser.mode for denoiser in self.mixture} - {""}))

    @property
    def added_ids(self) -> tuple[str, ...]:
        sentinels = (f"sentinel_{number}" for number in range(self.sentinels))
        return ("start", "end", *(f"mode_{mode}" for mode in self.modes), *sentinels)

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=plan_raw_tokens(self.mixture, sequence_length), overlap=0)

    def lengths_of(self, tokens: int) -> tuple[int, int]:
        return pair_lengths(self.mixture, tokens)

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        yield from super().find_stream_problems(stream)
        tokens = self.window(stream.sequence_length).tokens
        most = max(denoiser.plan(tokens)[1] for denoiser in self.mixture)
        if most > self.sentinels:
            yield (
                f"objective.sentinels = {self.sentinels}, but by rate and mean_span windows of "
                f"{tokens} tokens have up to {most} spans. Raise it, or lower "
                "stream.sequence_length"
            )


class SpansConfig(SpanConfig):
    """Span corruption (Raffel et al. 2020): spans are left out, each for a sentinel, and predicted
    behind it.
    """

    name: Literal["spans"]
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that lie in spans."""
    mean_span: float = Field(default=3.0, ge=1, le=1e9)
    """Mean tokens of a span. One longer than the share of a window makes its end the only span."""

    @property
    def mixture(self) -> tuple[DenoiserConfig, ...]:
        return (DenoiserConfig(rate=self.rate, mean_span=self.mean_span),)


def _ul2_denoisers() -> dict[str, DenoiserConfig]:
    shares = {
        "regular_3": ("R", 0.15, 3), "regular_8": ("R", 0.15, 8),
        "sequential": ("S", 0.25, 1e9),
        "extreme_3": ("X", 0.5, 3), "extreme_8": ("X", 0.5, 8),
        "extreme_64": ("X", 0.15, 64), "extreme_64_half": ("X", 0.5, 64),
    }  # fmt: skip
    return {
        name: DenoiserConfig.model_validate({"mode": mode, "rate": rate, "mean_span": mean})
        for name, (mode, rate, mean) in shares.items()
    }


class DenoisersConfig(SpanConfig):
    """A mixture of denoisers (UL2, Tay et al. 2023): each window is one's, drawn by its weight."""

    figures = ("loss", "z_loss", "accuracy", "loss_R", "loss_S", "loss_X")

    name: Literal["denoisers"]
    denoisers: dict[str, DenoiserConfig] = Field(default_factory=_ul2_denoisers, min_length=1)

    @property
    def mixture(self) -> tuple[DenoiserConfig, ...]:
        return tuple(self.denoisers.values())

    @property
    def held_out(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("accuracy", *(f"loss_{mode}" for mode in self.modes))


class InfillConfig(DenoisedConfig):
    """Text infilling and sentence permutation (BART, Lewis et al. 2020): the text is predicted as
    it was, from one with sentences in another order and spans behind a mask each.
    """

    implementation = "lmscale.objective.infill:INFILL"

    name: Literal["infill"]
    rate: float = Field(default=0.3, gt=0, lt=1)
    """Share of the tokens that lie in spans."""
    mean_span: float = Field(default=3.0, ge=1, le=100)
    """Mean tokens of a span, by a Poisson distribution: some hold nothing."""
    permute_sentences: bool = True

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("start", "end", "mask")

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=max(1, sequence_length - 1), overlap=0)

    def lengths_of(self, tokens: int) -> tuple[int, int]:
        return tokens + 1, tokens + 1  # with the end


SINGLE = Kinds(
    ObjectiveConfig,
    key="name",
    group="lmscale.objectives",
    own={
        "causal": CausalConfig,
        "distill": DistillConfig,
        "fill_middle": FillMiddleConfig,
        "masked": MaskedConfig,
        "masked_order": MaskedOrderConfig,
        "masked_next": MaskedNextConfig,
        "prefix": PrefixConfig,
        "spans": SpansConfig,
        "denoisers": DenoisersConfig,
        "infill": InfillConfig,
        "pairs": PairsConfig,
        "completion": CompletionConfig,
        "dialogue": DialogueConfig,
        "classes": ClassesConfig,
        "numbers": NumbersConfig,
        "tags": TagsConfig,
        "answers": AnswersConfig,
    },
)


class MixturePartConfig(Section):
    """One of the objectives of a mixture."""

    weight: float = Field(default=1.0, gt=0, le=1e9)
    """Share of the windows and of the loss, relative to the other parts."""
    objective: Annotated[SerializeAsAny[ObjectiveConfig], SINGLE] = CausalConfig()


class MixtureConfig(NextTokenConfig):
    """Several objectives that are scored alike: each window is one's, drawn by its weight. The loss
    is the mean of the parts' own means by their weights.
    """

    needs = frozenset()  # of its own; ``each`` has needs
    implementation = "lmscale.objective.mixture:MIXTURE"

    name: Literal["mixture"]  # type: ignore[assignment]
    parts: dict[Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,32}$")], MixturePartConfig] = Field(
        min_length=1, max_length=64
    )

    def each(self) -> Mapping[str, ObjectiveConfig]:
        return {
            f"objective.parts.{name}.objective": part.objective for name, part in self.parts.items()
        }

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the windows and of the loss, in the order of the parts; together 1."""
        total = sum(part.weight for part in self.parts.values())
        return tuple(part.weight / total for part in self.parts.values())

    @property
    def scored_as(self) -> str:
        return next(iter(self.each().values())).mixes_as

    @property
    def figures(self) -> tuple[str, ...]:  # type: ignore[override]
        first = next(iter(self.each().values())).figures
        shared = (name for name in ("loss", "z_loss", "accuracy") if name in first)
        return (*shared, *(f"loss/{name}" for name in self.parts))

    @property
    def shows_prefixes(self) -> bool:  # type: ignore[override]
        return any(getattr(each, "shows_prefixes", False) for each in self.each().values())

    @property
    def more_terms(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.parts)

    @property
    def held_out(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(name for name in self.figures if name not in ("loss", "z_loss"))

    @property
    def added_ids(self) -> tuple[str, ...]:
        """All parts' names; a name that several have is one id. Sentinels are last, in a row."""
        names = dict.fromkeys(name for each in self.each().values() for name in each.added_ids)
        return tuple(sorted(names, key=lambda name: name.startswith("sentinel_")))

    def window(self, sequence_length: int) -> WindowShape:
        """The shortest, of which each part makes no more than the model takes."""
        shapes = [each.window(sequence_length) for each in self.each().values()]
        return min(shapes, key=lambda shape: shape.tokens)

    def pair_lengths(self, sequence_length: int) -> tuple[int, int] | None:
        tokens = self.window(sequence_length).tokens
        pairs = (each for each in self.each().values() if isinstance(each, DenoisedConfig))
        lengths = [each.lengths_of(tokens) for each in pairs]
        return (max(read for read, _ in lengths), max(n for _, n in lengths)) if lengths else None

    def find_problems(self) -> Iterator[str]:
        kinds = {key: each.mixes_as for key, each in self.each().items()}
        for key, each in self.each().items():
            where = key.removeprefix("objective.")
            if not each.mixes_as:
                yield f"{where}.name = {each.name!r} cannot be mixed with others; leave it out"
            for name in sorted(NextTokenConfig.free & type(each).model_fields.keys()):
                if getattr(each, name) != type(each).model_fields[name].default:
                    yield (
                        f"{where}.{name} = {getattr(each, name)}: all parts are scored alike; set "
                        f"objective.{name}"
                    )
        if len({*kinds.values()} - {""}) > 1:
            told = ", ".join(
                f"{each.name} ({each.mixes_as})" for each in self.each().values() if each.mixes_as
            )
            yield f"parts: they are scored in different ways, so they cannot be mixed: {told}"
        if self.scored_as == "masked" and (self.z_loss or self.label_smoothing):
            yield "z_loss and label_smoothing are not of masked tokens: leave them out"

    def find_model_problems(self, model: ModelConfig) -> Iterator[str]:
        for key, each in self.each().items():
            yield from (f"{key}: {problem}" for problem in each.find_model_problems(model))

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        for key, each in self.each().items():
            yield from (f"{key}: {problem}" for problem in each.find_stream_problems(stream))


OBJECTIVES = Kinds(
    ObjectiveConfig,
    key="name",
    group=SINGLE.group,
    own={**SINGLE.own, "mixture": MixtureConfig},
)
