"""The whole configuration of a run: one frozen value, fields in the order of the data's flow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, SerializeAsAny, field_validator

from lmscale.config.base import Place, Section
from lmscale.config.corpus import CorpusConfig
from lmscale.config.data import (
    BatchConfig,
    ShardsConfig,
    StreamConfig,
    TokenizerConfig,
    WindowShape,
)
from lmscale.config.deepspeed_config import find_override_problems
from lmscale.config.export import ExportConfig
from lmscale.config.kinds import Ability
from lmscale.config.model import FAMILIES, DecoderConfig, ModelConfig, Sizes
from lmscale.config.model_base import find_recompute_problems
from lmscale.config.objective import OBJECTIVES, SINGLE, CausalConfig, DistillConfig
from lmscale.config.objective_base import NextTokenConfig, ObjectiveConfig, describe_ids
from lmscale.config.safety import CheckpointConfig, GuardConfig
from lmscale.config.token_ids import find_id_problems
from lmscale.config.training import (
    AVERAGE,
    EarlyStopConfig,
    EngineConfig,
    EvaluationConfig,
    TrainConfig,
    WatchConfig,
    is_task_place,
)
from lmscale.files.locations import (
    RUNS,
    CheckpointPlace,
    absolute_checkpoint,
    absolute_location,
    find_checkpoint,
)

VOCAB_MULTIPLE = 128  # rows of the embedding: tensor cores and vocabulary splits want whole tiles


class RunSection(Section):
    """What names a run and where it lives."""

    name: str = Field(min_length=1, max_length=100)
    folder: Place = ""
    """Default: runs/NAME."""
    seed: int = Field(default=1, ge=0, lt=2**31)
    """Seeds the order of the samples, the initial weights and dropout."""
    init_from: Place = ""
    """Another run whose weights this one begins with: its folder, or its name where it is beside
    this run's folder, as RUN or RUN@STEP; without a step its newest sound checkpoint. Or the folder
    of a checkpoint, ``RUN/checkpoints/step-000000500`` or a copy of it. Read when the run begins,
    never when it goes on. Empty: random weights. docs/beginnings.md says what may differ.
    """
    init_optimizer: bool = False
    """Whether the optimizer's states come with the weights of ``run.init_from``: moments, the count
    of updates, an average of the weights and fp16's loss scale. Step, schedule and data begin anew.
    """
    allow_faults: bool = False
    """Whether LMSCALE_FAULTS may break this run on purpose, and whether adapters may begin beside
    random weights (model.lora), which only tests want.
    """

    def find_problems(self) -> Iterator[str]:
        if self.init_optimizer and not self.init_from:
            yield "init_optimizer = true needs init_from, the run whose optimizer states they are"

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not all(c.isalnum() or c in "-_." for c in name) or name.startswith((".", "-")):
            raise ValueError(
                f"{name!r} becomes a folder and a job name: use letters, digits, '-', '_' and "
                "'.', and begin with a letter or digit"
            )
        return name


class RunConfig(Section):
    """One YAML file, validated. What is logged and frozen into the run folder is this value."""

    run: RunSection
    corpus: CorpusConfig = CorpusConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    shards: ShardsConfig = ShardsConfig()
    stream: StreamConfig = StreamConfig()
    batch: BatchConfig = BatchConfig()
    model: Annotated[SerializeAsAny[ModelConfig], FAMILIES] = DecoderConfig()
    objective: Annotated[SerializeAsAny[ObjectiveConfig], OBJECTIVES] = CausalConfig()
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    train: TrainConfig = TrainConfig()
    watch: WatchConfig = WatchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()

    def _find_id_problems(self) -> Iterator[str]:
        names, pieces = self.objective.added_ids, self.tokenizer.vocab_size
        yield from find_id_problems(self.tokenizer.ids, names, num_pieces=pieces)
        if self.vocab_size < self.num_ids:
            ids = describe_ids(self.added_ids)
            plus = f" and the {ids} that the objective adds" if self.added_ids else ""
            named = ", ".join(f"{name}: ID" for name in list(self.added_ids)[:3])
            own = f", or name those that the tokenizer has: tokenizer.ids: {{{named}}}"
            own = own if plus else ""
            yield (
                f"model.vocab_size = {self.vocab_size} is smaller than tokenizer.vocab_size = "
                f"{pieces}{plus}; leave it out to get the next multiple of {VOCAB_MULTIPLE}{own}"
            )

    def _find_length_problems(self) -> Iterator[str]:
        length = self.stream.sequence_length
        longest = min(length, max(self.pair_lengths or (length,)))
        if self.max_positions < longest:
            made_of = "" if self.pair_lengths is None else f", of which {longest} tokens are made"
            yield (
                f"model.max_positions = {self.max_positions} is shorter than "
                f"stream.sequence_length = {length}{made_of}"
            )

    def _find_stream_problems(self) -> Iterator[str]:
        yield from self.objective.find_stream_problems(self.stream)

    def _find_partner_problems(self) -> Iterator[str]:
        odd = [windows for windows in self.batch.step_sizes if windows % 2]
        if self.objective.reads_partners and odd:
            yield (
                f"batch.warmup and batch.global_windows: a step takes {odd[0]} windows, but "
                f"objective.name = {self.objective.name!r} takes them two by two; give even numbers"
            )

    def _find_training_problems(self) -> Iterator[str]:
        yield from self.model.find_training_problems(self.stream, self.engine.optimizer)

    def _find_weight_problems(self) -> Iterator[str]:
        if self.stream.sources and not any(s.weight > 0 for s in self.stream.sources.values()):
            yield "stream.sources: every weight is 0; give at least one source a share"

    def _find_warmup_problems(self) -> Iterator[str]:
        if self.batch.warmup and self.batch.warmup[-1][0] >= self.train.steps:
            yield (
                f"batch.warmup goes on until step {self.batch.warmup[-1][0]}, but train.steps = "
                f"{self.train.steps}, so no step would take batch.global_windows = "
                f"{self.batch.global_windows}"
            )

    def _find_schedule_problems(self) -> Iterator[str]:
        if problem := self.engine.schedule.find_problem(total_steps=self.train.steps):
            yield problem

    def _find_task_problems(self) -> Iterator[str]:
        if self.evaluation.tasks and (problem := self.find_task_problem()):
            yield f"evaluation.tasks: {problem}"

    def _find_model_problems(self) -> Iterator[str]:
        yield from self.objective.find_model_problems(self.model)

    def _find_zero_problems(self) -> Iterator[str]:
        if self.engine.keep_zeros and self.model.lora.rank:
            yield (
                f"engine.keep_zeros with model.lora.rank = {self.model.lora.rank}: merged with a "
                "matrix, its adapters would fill its zeros. Leave one of them out"
            )

    def _find_average_problems(self) -> Iterator[str]:
        if self.evaluation.weights == AVERAGE and not self.engine.has_average:
            yield (
                "evaluation.weights = 'average', but the run keeps no average of its weights; give "
                "engine.ema_decay, such as 0.999, or leave evaluation.weights out"
            )

    def _find_export_problems(self) -> Iterator[str]:
        """Why an export beside the training could not be, or has no place."""
        if self.export.format == "peft" and not self.model.lora.rank:
            yield "export.format = 'peft', but the model has no adapters: give model.lora.rank"
        place = self.export.folder and Path(absolute_location(self.export.folder))
        if place and self.folder.absolute() in (place, *place.parents):
            exports = self.folder.absolute() / "exports"
            if exports not in (place, *place.parents):
                yield (
                    f"export.folder = {self.export.folder!r} is in the run's folder: leave it out "
                    f"for {exports}, or name a place elsewhere"
                )
        if self.export.every_steps % self.checkpoint.every_steps:
            yield (
                f"export.every_steps = {self.export.every_steps}, where no checkpoint is: give a "
                f"multiple of checkpoint.every_steps = {self.checkpoint.every_steps}"
            )

    def _find_ability_problems(self) -> Iterator[str]:
        """Why the family can have nothing to do with the objective."""
        offers = self.model.offers
        for key, objective in self.objective.each().items():
            needs = objective.needs
            if needs <= offers:
                continue
            families = [name for name, family in FAMILIES.own.items() if needs <= family.offers]
            objectives = [name for name, kind in SINGLE.own.items() if kind.needs <= offers]
            yield (
                f"{key}.name = {objective.name!r} needs model.family: "
                f"{' or '.join(families) or ' and '.join(sorted(needs))}; here it is "
                f"{self.model.family}, which has "
                f"{', '.join(objectives) or 'no objective of lmscale'}"
            )

    def _find_figure_problems(self) -> Iterator[str]:
        """Why ``checkpoint.keep_best`` or ``evaluation.stop`` could never do anything."""
        best, every_steps = self.checkpoint.keep_best.metric, self.evaluation.every_steps
        figures = (*self.objective.set_figures, *self.objective.held_out)
        measured = [f"evaluation/{name}/{f}" for name in self.evaluation.of_loop for f in figures]
        wanted = {"checkpoint.keep_best": best, "evaluation.stop": self.evaluation.stop.metric}
        for section, metric in wanted.items():
            if metric and metric not in measured:
                names = ", ".join(measured) or "none, as it scores no set"
                yield (
                    f"{section}.metric = {metric!r} is never measured by an evaluation, whose "
                    f"figures alone can be used. There are: {names}"
                )
        if best in measured and (not every_steps or self.checkpoint.every_steps % every_steps):
            yield (
                f"checkpoint.keep_best needs a score at every save: set evaluation.every_steps "
                f"(now {every_steps}) to {self.checkpoint.every_steps} as checkpoint.every_steps "
                "is, or to a divisor of it"
            )
        if self.evaluation.stop.metric in measured and not every_steps:
            yield "evaluation.stop needs scores while the run trains: set evaluation.every_steps"

    rules = (
        _find_id_problems,
        _find_length_problems,
        _find_stream_problems,
        _find_partner_problems,
        _find_training_problems,
        _find_weight_problems,
        _find_warmup_problems,
        _find_schedule_problems,
        find_recompute_problems,
        find_override_problems,
        _find_ability_problems,
        _find_task_problems,
        _find_model_problems,
        _find_figure_problems,
        _find_export_problems,
        _find_zero_problems,
        _find_average_problems,
    )

    def find_task_problem(self) -> str | None:
        """Why the run's model cannot be asked tasks: they ask how likely a text is behind another,
        or for a text.
        """
        is_next = all(isinstance(each, NextTokenConfig) for each in self.objective.each().values())
        if is_next and Ability.CAUSAL in self.model.offers:
            return None
        return (
            "tasks ask how likely a text is behind another, and a run of model.family = "
            f"{self.model.family!r} with objective.name = {self.objective.name!r} learns to "
            "predict no next token. Leave them out, or take a decoder's or a recurrent model's run"
        )

    def describe_doubts(self) -> Iterator[str]:
        """What a run may have and was hardly meant; told at its start."""
        stop = self.evaluation.stop
        if not stop.metric and stop != EarlyStopConfig():
            yield (
                "evaluation.stop has no metric, so no step is left out: set it, such as to "
                "evaluation/heldout/loss, or leave the section out"
            )
        yield from self.model.describe_doubts()

    def find_beginning_problems(self) -> Iterator[str]:
        """Why no run may begin so, though one that has begun may go on."""
        if self.model.lora.rank and not (self.run.init_from or self.run.allow_faults):
            yield (
                f"model.lora.rank = {self.model.lora.rank} without run.init_from: the adapters "
                "would be trained beside random weights, which stay as they are. Name the run to "
                "adapt: run.init_from (a test may set run.allow_faults)"
            )
        if self.engine.keep_zeros and not self.run.init_from:
            yield (
                "engine.keep_zeros without run.init_from: random weights have no zeros to keep. "
                "Name the run to begin with, such as one that `lmscale prune` has made"
            )

    @property
    def folder(self) -> Path:
        return Path(self.run.folder or RUNS / self.run.name)

    @property
    def initial(self) -> CheckpointPlace:
        """The checkpoint that ``run.init_from`` names."""
        return find_checkpoint(self.run.init_from, beside=self.folder.parent)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        if self.model.vocab_size is not None:
            return self.model.vocab_size
        return -(-self.num_ids // VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    @property
    def objective_ids(self) -> dict[str, int]:
        """The objective's ids by name: those of ``tokenizer.ids``, the others above it."""
        return self.tokenizer.number_ids(self.objective.added_ids)

    @property
    def added_ids(self) -> dict[str, int]:
        """Those of them that are no pieces of the tokenizer."""
        first = self.tokenizer.vocab_size
        return {name: number for name, number in self.objective_ids.items() if number >= first}

    @property
    def num_ids(self) -> int:
        """Ids in use: the tokenizer's and those that the objective adds."""
        return self.tokenizer.vocab_size + len(self.added_ids)

    @property
    def window(self) -> WindowShape:
        """Of the stream and of the held-out sets."""
        return self.objective.window(self.stream.sequence_length)

    @property
    def scores_average(self) -> bool:
        """Whether held-out figures are of the average of the weights."""
        return self.engine.has_average and self.evaluation.weights in (None, AVERAGE)

    @property
    def pair_lengths(self) -> tuple[int, int] | None:
        """The most tokens that an encoder-decoder reads, and writes, of a window."""
        return self.objective.pair_lengths(self.stream.sequence_length)

    @property
    def max_positions(self) -> int:
        return self.model.max_positions or self.stream.sequence_length

    @property
    def sizes(self) -> Sizes:
        return Sizes(
            vocab_size=self.vocab_size,
            max_positions=self.max_positions,
            sequence_length=self.stream.sequence_length,
            pair_lengths=self.pair_lengths,
        )

    @property
    def tokens_per_step(self) -> int:
        """Of the data, after a warm-up of the batch. Where a window's tokens are corrupted first,
        other than a model's positions, of which there are ``stream.sequence_length`` a window.
        """
        return self.batch.global_windows * self.window.stride

    def samples_after(self, steps: int) -> int:
        """Windows that the first ``steps`` steps of a run take together."""
        return self.batch.plan(1).samples_before(steps)

    @property
    def trained_tokens(self) -> int:
        """Of the data, in all steps of a run."""
        return self.samples_after(self.train.steps) * self.window.stride


def with_absolute_places(config: RunConfig) -> RunConfig:
    """The same configuration for a process that starts elsewhere.

    ``corpus.sources`` keep their inputs as they stand: a built corpus is known by them, and would
    count as built from other files.
    """
    tree = config.model_dump(mode="json")
    saves = tree["checkpoint"]
    tree["run"]["folder"] = str(config.folder)
    if config.run.init_from:
        tree["run"]["init_from"] = config.initial.absolute
    if isinstance(config.objective, DistillConfig):
        tree["objective"]["teacher"] = absolute_checkpoint(config.objective.teacher)
    if config.export.base:
        tree["export"]["base"] = absolute_location(config.export.base)
    optional = [saves, tree["stream"]["cache"], tree["export"]]
    if not saves["local"]["folder"].startswith("$"):  # every node's own, at run time
        optional.append(saves["local"])
    places = [tree[name] for name in ("run", "corpus", "tokenizer", "shards")]
    for section in (*places, *(section for section in optional if section["folder"])):
        section["folder"] = absolute_location(section["folder"])
    for source in tree["stream"]["sources"].values():
        source["shards"] = absolute_location(source["shards"])
    scoring = tree["evaluation"]
    scoring["sets"] = {name: absolute_location(place) for name, place in scoring["sets"].items()}
    if scoring["tasks_include_path"]:
        scoring["tasks_include_path"] = absolute_location(scoring["tasks_include_path"])
    scoring["tasks"] = [absolute_location(w) if is_task_place(w) else w for w in scoring["tasks"]]
    return RunConfig.model_validate(tree)
