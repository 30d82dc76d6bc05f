"""The configured model with its first weights: random ones, or those of another run's checkpoint.

Both are asked for once, where a run begins. A run that goes on from a checkpoint of its own reads
its weights there, and its manifests say where the first ones came from (runs/origins.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmscale.checkpoint.differences import MAX_NAMED, check_same_tensors
from lmscale.checkpoint.load import check_weights, open_weights
from lmscale.config import BatchPlan, RunConfig
from lmscale.config.lora import LoraConfig
from lmscale.config.training import AVERAGE, Weights
from lmscale.engine.build import build_engine, gathered, parameter_context
from lmscale.engine.engine import Engine, whole_shape
from lmscale.errors import ConfigError
from lmscale.model.attention import allow_compiles
from lmscale.model.family import Model, build_model
from lmscale.model.initialize import (
    Declared,
    declared_parameters,
    initial_value,
    persistent_buffers,
)
from lmscale.model.lora import fixed_parameters, is_adapter, is_same_adapter, merging
from lmscale.model.recompute import set_memory_budget
from lmscale.objective.objective import build_scoring
from lmscale.ranks.collectives import failing_together
from lmscale.ranks.fingerprint import add_fingerprints, fingerprint
from lmscale.ranks.mesh import Mesh
from lmscale.ranks.ranks import Ranks
from lmscale.runs.origins import Origin
from lmscale.runs.taken_over import learns_the_same
from lmscale.train.source import Source, find_source, load_with_optimizer
from lmscale.watch import heartbeat

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The values that a model's parameters begin with."""

    value: Callable[[str, Sequence[int], Declared], Tensor]
    """The whole parameter of a name, fp32, on the CPU: drawn or read now, one at a time."""
    buffer: Callable[[str], Tensor] | None = None  # of the origin, on the CPU, in its own dtype
    origin: Origin | None = None  # what the checkpoints remember; None: they are random
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)  # of all that it has
    named: str = ""  # the setting that names the origin, with its value
    kind: Weights = "trained"  # of the origin
    has_same_task: bool = True  # whether layers that tell classes apart are of use

    @property
    def described(self) -> str:
        """Which ones of the checkpoint they are."""
        return "the average of its weights" if self.kind == AVERAGE else "its trained weights"

    @property
    def checkpoint(self) -> str:
        """The origin's name."""
        return self.origin.checkpoint if self.origin else "none"


@contextmanager
def open_initial_weights(
    config: RunConfig, ranks: Ranks, *, tokenizer_fingerprint: str
) -> Iterator[InitialWeights]:
    """What ``run.init_from`` names, or random values. All ranks together.

    Raises ``ConfigError`` or ``CheckpointError`` on all ranks when there is none that can be used.
    """
    if not config.run.init_from:
        yield draw_weights(config.run.seed)
        return
    named = f"run.init_from = {config.run.init_from}"
    source = find_source(named, config.initial, ranks, tokenizer_fingerprint=tokenizer_fingerprint)
    learned = source.manifest.identity.get("objective")
    with open_weights_of(source, lora=config.model.lora) as opened:
        weights = replace(opened, has_same_task=learns_the_same(config.objective, learned))
        logger.info("the first weights are those of %s", weights.checkpoint)
        yield weights


@contextmanager
def open_weights_of(
    source: Source, *, takes_average: bool = False, lora: LoraConfig | None = None
) -> Iterator[InitialWeights]:
    """Those of another run's checkpoint. All ranks together, which verify at the end what they have
    read of it; but of ``takes_average``, the average of the weights where it holds one, the
    manifest has no hash. Its adapters come as they are, but are merged into its matrices where
    those of ``lora`` are others.
    """
    place, manifest, origin = source.place, source.manifest, source.origin
    fingerprints: list[int] = []  # of the masters that this rank has read
    unread = set(manifest.parameters)
    kept: Weights = AVERAGE if takes_average and manifest.has_average else "trained"
    with open_weights(place, manifest, kept) as read:

        def read_checked(name: str) -> Tensor:
            tensor = read(name)
            unread.discard(name)
            if name in manifest.parameters and kept == "trained":
                fingerprints.append(fingerprint(tensor, name=name))
            return tensor

        shapes, read_weight = manifest.weight_shapes, read_checked
        own = source.lora
        if lora is not None and own.rank and not is_same_adapter(own, lora):
            logger.info("%s: its adapters are merged into its matrices", origin.checkpoint)
            read_weight = merging(read_checked, shapes.keys(), own)
            shapes = {name: shape for name, shape in shapes.items() if not is_adapter(name)}
        yield InitialWeights(
            value=lambda name, shape, declared: read_weight(name).float(),
            buffer=read,
            origin=origin,
            shapes=shapes,
            named=source.named,
            kind=kept,
        )
        with failing_together():
            for name in sorted(unread) if fingerprints else ():  # of layers that begin anew here
                fingerprints.append(fingerprint(read(name), name=name))
    with failing_together():  # the files may not be to this rank what they are to who verified them
        if fingerprints:
            check_weights(origin.checkpoint, manifest, add_fingerprints(fingerprints))


def draw_weights(seed: int) -> InitialWeights:
    """Random values, a function of the seed and each parameter's name."""
    return InitialWeights(value=partial(initial_value, seed=seed))


def build_run_engine(
    config: RunConfig,
    plan: BatchPlan,
    mesh: Mesh,
    device: torch.device,
    *,
    fill: bool,
    initial: InitialWeights | None = None,
) -> Engine:
    """The configured model with its objective under DeepSpeed.

    ``fill`` gives it its first weights: ``initial``, by default random ones. Without, its memory is
    as it was, for a checkpoint.
    """
    with parameter_context(config.engine, plan, device):
        model = build_model(config.model, config.sizes)
    if fill:
        # At ZeRO 3 rank 0's values are dealt out; elsewhere every rank draws, or reads, the same.
        has_values = config.engine.zero_stage != 3 or dist.get_rank() == 0
        seed = config.run.seed
        fill_weights(model, initial or draw_weights(seed), has_values=has_values, seed=seed)
    freeze_parameters(model, config.train.freeze)
    if config.engine.compile:
        allow_compiles()
        set_memory_budget(config.engine.activation_memory_budget)
        for block in model.blocks_to_compile():
            block.compile()
    declared = declared_parameters(model)
    scoring = build_scoring(model, config)
    return build_engine(scoring, declared, config.engine, plan=plan, mesh=mesh, device=device)


def begin_engine(
    build: Callable[..., Engine], config: RunConfig, ranks: Ranks, *, tokenizer_fingerprint: str
) -> tuple[Engine, Origin | None]:
    """The engine of a run that begins, by ``build``, which is ``build_run_engine`` of it; and what
    it has begun with. All ranks together.
    """
    if not config.run.init_optimizer:
        with open_initial_weights(
            config, ranks, tokenizer_fingerprint=tokenizer_fingerprint
        ) as initial:
            return build(fill=True, initial=initial), initial.origin
    source = find_source(
        f"run.init_from = {config.run.init_from}",
        config.initial,
        ranks,
        tokenizer_fingerprint=tokenizer_fingerprint,
    )
    engine = build(fill=False)
    load_with_optimizer(source, engine)
    logger.info(
        "the first weights and states of the optimizer are those of %s", source.origin.checkpoint
    )
    return engine, replace(source.origin, optimizer=True)


@torch.no_grad()
def fill_weights(
    model: nn.Module, initial: InitialWeights, *, has_values: bool = True, seed: int = 0
) -> None:
    """Give every parameter of a bare model its first value, one after the other, and every
    persistent buffer that of the origin.

    ``has_values`` False only takes part in the gathering, where another rank's values are dealt
    out, or in the waiting for that rank. Layers that ``begins_anew`` names are drawn where those of
    the origin are of another shape, or tell the classes of another task apart. Raises
    ``CheckpointError`` with everything else by which the values are of another model.
    """
    parameters = dict(model.named_parameters())
    buffers = dict(persistent_buffers(model))
    shapes = {name: whole_shape(parameter) for name, parameter in parameters.items()}
    shapes |= {name: tuple(buffer.shape) for name, buffer in buffers.items()}
    anew: set[str] = set()
    if initial.origin is not None:
        anew = _find_anew(model, initial, shapes)
        check_same_tensors(
            {k: f"{list(shape)}" for k, shape in initial.shapes.items() if k not in anew},
            {k: f"{list(shape)}" for k, shape in shapes.items() if k not in anew},
            it="it",
            where=f"{initial.named}: {initial.checkpoint}",
            advice=_advise(initial, shapes),
        )
    declared, drawn = declared_parameters(model), draw_weights(seed)
    # A rank that cannot read a file may not leave the others waiting in the gathering.
    reading = nullcontext if initial.origin is None else failing_together
    for name, parameter in parameters.items():
        value: Tensor | None = None
        with reading():
            if has_values:
                source = drawn if name in anew else initial
                value = source.value(name, shapes[name], declared[name])
        with gathered(parameter):
            if value is not None:
                parameter.copy_(value)
        heartbeat.tick()
    if initial.buffer is not None and buffers:  # every rank has all of them, at every stage
        with failing_together():
            for name in buffers.keys() - anew:
                buffers[name].copy_(initial.buffer(name))


def _advise(initial: InitialWeights, ours: Mapping[str, Sequence[int]]) -> str:
    """What to do about another model; of an import with another number of rows, what made them."""
    rows, own = (shapes.get("embedding.weight", [0])[0] for shapes in (initial.shapes, ours))
    imported = initial.origin and initial.origin.imported
    if imported and rows != own:
        return (
            f"The import of {imported.folder} has {rows:,} rows: set model.vocab_size: {rows}, or "
            f"import it once more with --vocab-size {own}, which makes new ones."
        )
    return "Take over the model section of that run's config.yaml."


def _find_anew(
    model: nn.Module, initial: InitialWeights, ours: Mapping[str, Sequence[int]]
) -> set[str]:
    """Parameters of layers that a model may begin anew, where those of the origin are of another
    shape or not there, in either of the two, or of another task; but a pooler is of any.
    """
    if not isinstance(model, Model):
        return set()
    theirs = initial.shapes
    names = [name for name in {**theirs, **ours} if model.begins_anew(name)]
    anew = {name for name in names if [*theirs.get(name, ())] != [*ours.get(name, ())]}
    if not initial.has_same_task:
        anew |= {name for name in names if not name.startswith("pooler.")}
    if here := sorted(anew & ours.keys()):
        logger.info("these begin with random values: %s", ", ".join(here))
    adapters = {name for name in ours if is_adapter(name) and name not in theirs}
    if adapters:
        logger.info("the adapters begin anew: they change nothing before the first step")
    return anew | adapters


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let parameters whose names match a pattern (``blocks.0.*``) stay as they begin, and of a
    model with adapters all but those and layers that begin anew.

    Raises ``ConfigError`` with every problem.
    """
    parameters = dict(model.named_parameters())
    begins_anew = model.begins_anew if isinstance(model, Model) else lambda _: False
    frozen = fixed_parameters(parameters, begins_anew)
    problems = []
    for pattern in patterns:
        matching = [name for name in parameters if fnmatchcase(name, pattern)]
        frozen.update(matching)
        if not matching:
            names = ", ".join([*parameters][:MAX_NAMED])
            problems.append(
                f"train.freeze: no parameter's name matches {pattern!r}. The first ones are: "
                f"{names}."
            )
    if frozen == parameters.keys():
        problems.append("train.freeze matches every parameter, so nothing would be trained.")
    if problems:
        raise ConfigError(problems)
    for name in frozen:
        parameters[name].requires_grad_(False)
