"""What the sections of all objectives share."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

from pydantic import Field, PositiveInt

from lmscale.config.data import StreamConfig, WindowShape
from lmscale.config.kinds import Ability, KindSection
from lmscale.config.model_base import ModelConfig
from lmscale.config.training import FIGURES
from lmscale.files.printing import count_of


class ObjectiveConfig(KindSection):
    """The keys of every objective; each objective's section adds its own."""

    needs: ClassVar[frozenset[Ability]] = frozenset()
    """What the model's family must offer."""
    figures: ClassVar[tuple[str, ...]] = ("loss",)
    """What a step reports, as ``train/<name>``, in the order in which the ranks add the sums. The
    first is ``loss``, in nats per target: what the log shows and the guard judges.
    """
    more_terms: ClassVar[tuple[str, ...]] = ()
    """The loss's terms beside the first, in the order of ``Prepared.more_targets``: each is a mean
    over its own targets, and they are added.
    """
    set_figures: ClassVar[tuple[str, ...]] = FIGURES
    """Those of all objectives' held-out figures that say something of this one."""
    loss_unit: ClassVar[str] = "nats per token"
    """Of what it reports as its loss."""
    targets_are: ClassVar[str] = "tokens"
    """What the loss is a mean of, as a plural."""
    held_out: ClassVar[tuple[str, ...]] = ()
    """Those that an evaluation reports beside ``set_figures``."""
    reads_partners: ClassVar[bool] = False
    """Whether a sample is prepared with another one, n with n ^ 1: a step holds both."""

    mixes_as: ClassVar[str] = ""
    """How it is scored: a run may mix objectives of which this is the same. Empty: it is alone."""

    name: str
    """Which objective; its other keys stand beside it."""

    def each(self) -> Mapping[str, ObjectiveConfig]:
        """By their keys in the YAML, the objectives that windows are prepared for."""
        return {"objective": self}

    @property
    def of_held_out(self) -> ObjectiveConfig:
        """What prepares held-out windows: without what only training does to a text."""
        return self

    @property
    def added_ids(self) -> tuple[str, ...]:
        """Names of the ids that it needs beside the tokenizer's, such as a mask's. They are
        numbered from ``tokenizer.vocab_size`` on, so that the same shards serve every objective,
        but for those that ``tokenizer.ids`` names. ``RunConfig.objective_ids`` has the numbers.
        """
        return ()

    def find_model_problems(self, model: ModelConfig) -> Iterator[str]:
        """Why it cannot train the model of a run, though that offers what is needed."""
        return iter(())

    def window(self, sequence_length: int) -> WindowShape:
        """Which tokens of a shard become a sample, for a model of so many positions."""
        return WindowShape(stride=sequence_length, overlap=1)

    def pair_lengths(self, sequence_length: int) -> tuple[int, int] | None:
        """The most tokens that a model reads, and writes, of a window; None: it is not in two."""
        return None

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        """Why it cannot be made of such windows."""
        yield from ()


def describe_ids(names: Collection[str]) -> str:
    """``102 ids (start, end, sentinel_0 … sentinel_99)``."""
    listed = list(names)
    if len(listed) > 8:
        first = next((place for place, name in enumerate(listed) if name.endswith("_0")), 0)
        listed = [*listed[:first], f"{listed[first]} … {listed[-1]}"]
    return f"{count_of(len(names), 'id')} ({', '.join(listed)})"


class NextTokenConfig(ObjectiveConfig):
    """The keys of objectives that predict the next token."""

    needs = frozenset({Ability.CAUSAL})
    free = frozenset({"z_loss", "label_smoothing", "chunk_tokens"})
    figures = ("loss", "z_loss")
    shows_prefixes: ClassVar[bool] = False
    """Whether a document's first part, of which nothing is predicted, is seen as a whole."""

    z_loss: float = Field(default=0.0, ge=0, le=1000)
    """Weight of log(Z)², which keeps the logits' scale in check (PaLM, section 5)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of every target that is dealt to all ids alike (Szegedy et al. 2016). Of what is
    trained; the losses that are reported are those of the targets themselves.
    """
    chunk_tokens: PositiveInt = 2048
    """Tokens whose logits exist at once."""
