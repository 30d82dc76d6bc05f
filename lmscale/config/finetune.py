"""The short YAML of ``lmscale finetune``: a base, a task, its data; what it leaves out is planned.

It is no second configuration of a run: ``lmscale/finetune/plan.py`` makes the whole one of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from lmscale.config.base import Place, Section
from lmscale.config.corpus import CorpusSourceConfig, InputConfig
from lmscale.config.load import apply_override, find_lines, parse_yaml, read_text, validate_tree
from lmscale.config.lora import LoraConfig
from lmscale.config.origin import Given, Origin
from lmscale.config.run import RunConfig
from lmscale.errors import ConfigError
from lmscale.files.locations import RUNS

TaskName = Literal[
    "classes", "numbers", "tags", "pairs", "completion", "answers", "dialogue"
]  # each is the objective of its name
FILES_OF = ("train", "heldout", "test")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | Mapping) else value


Inputs = Annotated[tuple[InputConfig, ...], BeforeValidator(_as_list), Field(strict=False)]


class FinetuneDataConfig(CorpusSourceConfig):
    """The labelled files. Every other key of a source of ``corpus.sources`` may stand here, too."""

    inputs: tuple[InputConfig, ...] = Field(default=(), max_length=0, strict=False)
    """Leave it out: the files are named by ``train``, ``heldout`` and ``test``."""
    train: Inputs
    """A file or a pattern, or a list of them."""
    heldout: Inputs = ()
    """What decides when to stop, and which checkpoint is best. Default: ``heldout_fraction`` of
    the training files' documents, drawn by their texts.
    """
    test: Inputs = ()
    """Scored at the end, by the checkpoint that was chosen; nothing is decided by it."""
    heldout_fraction: float | None = Field(default=0.1, ge=0, lt=1)
    folder: Place = ""
    """Of the corpus and the shards that are built. Default: data/NAME."""

    def find_problems(self) -> Iterator[str]:
        # Names that are left out are found in the files.
        named = self if self.label_names else self.model_copy(update={"label_names": ("any",)})
        is_named = bool(self.label_field or self.tags_field)
        yield from CorpusSourceConfig.find_problems(named if is_named else self)
        if not self.heldout and not self.heldout_fraction:
            yield "heldout: name files, or give a heldout_fraction, such as 0.1"

    def sources(self, names: Sequence[str]) -> dict[str, CorpusSourceConfig]:
        """The sources of the corpus by their names, which are those of ``FILES_OF`` that are given.
        ``names``: the ``label_names``.
        """
        own = {*CorpusSourceConfig.model_fields} - {"inputs", "heldout_fraction", "label_names"}
        shared = {**self.model_dump(mode="json", include=own), "label_names": names}
        drawn = 0.0 if self.heldout else self.heldout_fraction
        fractions = {"train": drawn, "heldout": 0.0, "test": 0.0}
        return {
            part: CorpusSourceConfig.model_validate(
                {**shared, "inputs": files, "heldout_fraction": fractions[part]}
            )
            for part in FILES_OF
            if (files := [each.model_dump(mode="json") for each in getattr(self, part)])
        }


class TrainableConfig(Section):
    """Which part is trained. In the YAML a word stands for a kind without settings."""

    kind: Literal["all", "head", "top", "lora"] = "all"
    """``head``: the task's own layers; ``top``: with them the last ``layers`` blocks and the norm
    behind them; ``lora``: adapters, and the task's own layers.
    """
    layers: PositiveInt = Field(default=2, le=10_000)
    """Of ``top``."""
    lora: LoraConfig = LoraConfig(rank=8, alpha=16)

    @model_validator(mode="before")
    @classmethod
    def _of_word(cls, value: Any) -> Any:
        """``head``, ``{top: 2}`` and ``{lora: {rank: 8}}`` are the ways that a person writes it."""
        if isinstance(value, str):
            return {"kind": value}
        if not isinstance(value, Mapping) or "kind" in value or len(value) != 1:
            return value
        ((kind, settings),) = value.items()
        if kind == "top":
            return {"kind": "top", "layers": settings}
        return {"kind": "lora", "lora": settings} if kind == "lora" else value

    def find_problems(self) -> Iterator[str]:
        if self.kind == "lora" and self.lora.rank == 0:
            yield "lora: rank = 0 has no adapters; give 8, say"


class StoppingConfig(Section):
    """When the training ends before its last epoch."""

    metric: str = ""
    """A held-out figure, such as accuracy; default: what the task is judged by. Of it the best
    checkpoint is kept, too.
    """
    patience: PositiveInt | None = None
    """Evaluations in a row, of which there are two an epoch, that may be no better than the best
    one; default: a quarter of all, at least 4.
    """
    min_delta: float = Field(default=0.0, ge=0)
    is_on: bool = True
    """``early_stopping: false`` is the short way to say that it is not: all epochs are trained."""

    @model_validator(mode="before")
    @classmethod
    def _of_switch(cls, value: Any) -> Any:
        return {"is_on": value} if isinstance(value, bool) else value


class FinetuneConfig(Section):
    """One short YAML: what is to be learned, of what, and by which model."""

    name: str
    """The run's name."""
    base: Place = Field(min_length=1)
    """A run by folder or name, RUN@STEP, the folder of a checkpoint, or a folder of Hugging Face's,
    which is imported once.
    """
    task: TaskName
    data: FinetuneDataConfig
    trainable: TrainableConfig = TrainableConfig()
    """``all``, ``head``, ``{top: 2}`` or ``{lora: {rank: 8}}``."""
    epochs: float | None = Field(default=None, gt=0, le=100_000)
    """Times that every document is seen; default: 3, and of small data more, up to 20."""
    learning_rate: float | None = Field(default=None, gt=0, le=1000)
    """Peak; default: by the task, the trainable part and the model's width."""
    documents_per_step: PositiveInt = 32
    """About so many: a step takes whole windows, in which several documents lie."""
    early_stopping: StoppingConfig = StoppingConfig()
    seed: int = Field(default=1, ge=0, lt=2**31)
    folder: Place = ""
    """The run's; default: runs/NAME."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Any key of a whole configuration, in sections or as ``engine.zero_stage: 2``: it goes before
    what is planned.
    """

    def find_problems(self) -> Iterator[str]:
        if odd := [key for key in self.settings if key.split(".")[0] not in RunConfig.model_fields]:
            known = ", ".join(RunConfig.model_fields)
            yield f"settings: {', '.join(odd)}: no section of a run's configuration; it has {known}"

    @property
    def run_folder(self) -> Path:
        return Path(self.folder or RUNS / self.name)

    @property
    def data_folder(self) -> str:
        return self.data.folder or f"data/{self.name}"


def load_finetune(path: Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read a short YAML with its overrides, which are keys of it or of a whole configuration.

    Raises ``ConfigError`` with every problem.
    """
    text = read_text(path)
    tree = parse_yaml(text, str(path))
    if isinstance(tree, Mapping) and len(tree.keys() & RunConfig.model_fields.keys()) > 1:
        if not tree.keys() & {"base", "task", "data"}:
            raise ConfigError(
                f"{path} is the whole configuration of a run: train it with `lmscale launch local "
                f"{path}`. `lmscale finetune` takes a short one: base, task and data "
                "(docs/fine-tuning.md)."
            )
    given: dict[tuple[str, ...], Given] = {}
    problems = []
    for override in overrides:
        section = override.partition("=")[0].split(".")[0].strip()
        is_own = section in FinetuneConfig.model_fields or section not in RunConfig.model_fields
        settings = Given("--set", override if is_own else f"settings.{override}")
        if problem := apply_override(tree, settings, given):
            problems.append(problem)
    origin = Origin(str(path), given=given, lines=cache(lambda: find_lines(text)))
    try:
        config = validate_tree(FinetuneConfig, tree, name=str(path), origin=origin)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from None
    if problems:
        raise ConfigError(problems)
    return config
