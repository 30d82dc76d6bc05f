"""Is a folder of transformers' the model that a run adapts? By its settings and its tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from lmscale.checkpoint.load import open_weights
from lmscale.config import RunConfig
from lmscale.config.hf.architecture import canonical
from lmscale.config.hf.folding import Folding
from lmscale.config.model import ModelConfig
from lmscale.errors import ConfigError, DataError, LmscaleError
from lmscale.evaluation.found import FoundRun, find_run
from lmscale.exchange.folding import Read, fold, unfold
from lmscale.exchange.import_config import SourceConfig
from lmscale.exchange.import_files import SourceWeights
from lmscale.exchange.plan_export import ExportPlan, plan_export
from lmscale.exchange.rules import Rule
from lmscale.model.lora import is_same_adapter
from lmscale.runs.run_folder import load_run_config

MAX_NAMED = 3  # of what two models differ by


def plan_as_base(found: FoundRun, source: SourceConfig, base: SourceWeights) -> ExportPlan:
    """What a run is as the base's architecture. With as many rows of the vocabulary as the base
    has, where both only round it up otherwise: a run that adapts another one has to give the
    other's ``model.vocab_size``. Raises ``DataError`` where the base computes something else.
    """
    config, kind = found.config, source.architecture.model_type
    own = config.model.without_adapters
    if own.family != source.section.family:
        told = f"it is of the family {source.section.family}, and the run's is {own.family}"
        raise _describe_another(found, base, [told])
    try:
        plan = plan_export(config, model_type=kind)
    except ConfigError:
        if problems := [*_differing_settings(own, source.section)]:
            raise _describe_another(found, base, problems) from None
        raise
    if problems := [*_differing_settings(plan.section, source.section)]:
        raise _describe_another(found, base, problems)
    rows = _find_rows(config, plan, base)
    if rows is None:
        return plan
    model = config.model.model_copy(update={"vocab_size": rows})
    return plan_export(config.model_copy(update={"model": model}), model_type=kind)


def _find_rows(config: RunConfig, plan: ExportPlan, base: SourceWeights) -> int | None:
    rule = next(rule for rule in plan.rules if rule.name == "embedding.weight")
    stored = base.tensors.get(rule.theirs[0])
    if stored is None or not config.num_ids <= stored.shape[0] <= config.vocab_size:
        return None
    return stored.shape[0]


def _differing_settings(own: ModelConfig, theirs: ModelConfig) -> Iterator[str]:
    wanted, given = canonical(own), canonical(theirs)
    for key, value in wanted.items():
        if value != given[key]:
            yield f"its config.json says {key} = {given[key]}, and the run {value}"


def check_base(found: FoundRun, plan: ExportPlan, base: SourceWeights) -> None:
    """Raise ``DataError`` where the base holds other weights than those that the run kept as they
    were. What the run trained whole the base need not have.
    """
    folding, problems = plan.target.folding, []
    with _open_kept(found, plan) as read, base.opened() as read_base:
        for rule in plan.rules:
            if rule.name not in found.manifest.parameters:
                problems += _differences(rule, read(rule.name), base, read_base, folding)
    if problems:
        raise _describe_another(found, base, problems)


@contextmanager
def _open_kept(found: FoundRun, plan: ExportPlan) -> Iterator[Read]:
    """A checkpoint's weights beside its adapters in their own dtype, nothing folded; zeros of what
    is only there.
    """
    held, shapes = found.manifest.weight_shapes, {rule.name: rule.shape for rule in plan.rules}
    with open_weights(found.place, found.manifest, found.weights) as read:

        def read_kept(name: str) -> Tensor:
            shape = shapes[name]
            return read(name)[: shape[0]] if name in held else torch.zeros(shape)

        yield read_kept


def _differences(
    rule: Rule, kept: Tensor, base: SourceWeights, read_base: Read, folding: Folding
) -> Iterator[str]:
    problems = []
    for name, shape in rule.their_shapes.items():
        if name not in base.tensors:
            problems.append(f"it has no {name}")
        elif (found := base.tensors[name].shape) != shape:
            problems.append(f"its {name} is {list(found)}, not {list(shape)}")
    if problems:
        yield from problems
        return
    ours = unfold(rule.name, rule.to_ours(read_base), folding)
    folded = dict(rule.to_theirs(fold(rule.name, kept.float(), folding)))
    is_computed = rule.form == "less_one" or any(
        fnmatchcase(rule.name, scale.pattern) for scale in folding.scales
    )
    for name, own, part in zip(
        rule.theirs, ours.split(rule.rows), kept.split(rule.rows), strict=True
    ):
        theirs = read_base(name)
        if torch.equal(theirs, folded[name].to(theirs.dtype)) or torch.equal(
            own.to(part.dtype), part
        ):
            continue  # one of the two is the other one, rounded
        is_rounded_twice = torch.float32 not in (theirs.dtype, part.dtype)
        can_be_near = is_computed or (is_rounded_twice and theirs.dtype != part.dtype)
        if not (can_be_near and _is_near(own, part.float(), rule, theirs.dtype, part.dtype)):
            yield f"its {name} has other values"


def _is_near(own: Tensor, kept: Tensor, rule: Rule, *dtypes: torch.dtype) -> bool:
    """Whether two may be roundings of one value, as a dtype each, between which was arithmetic."""
    bits = [torch.finfo(dtype) for dtype in dtypes if dtype.is_floating_point]
    step = max(each.eps for each in bits)
    size = own.abs() + kept.abs()
    if rule.form == "less_one":  # this is what was rounded
        size = size + (own - 1).abs()
    least = max(each.smallest_normal * each.eps for each in bits)
    return bool(((own - kept).abs() <= step * size + least).all())


def _describe_another(found: FoundRun, base: SourceWeights, problems: list[str]) -> DataError:
    more = f"; and {len(problems) - MAX_NAMED:,} more" if len(problems) > MAX_NAMED else ""
    return DataError(
        f"{base.folder} is not the model that {found.folder} adapts: "
        f"{'; '.join(problems[:MAX_NAMED])}{more}. Give --base an export of that one: "
        f"lmscale export {_name_source(found)} --out DIR"
    )


def _name_source(found: FoundRun) -> str:
    """The arguments by which that is exported of which a run has its frozen weights: where it went
    on with another one's adapters, what that one began with.
    """
    config, manifest = found.config, found.manifest
    folder, step = Path("RUN"), None
    try:
        while config.run.init_from:
            folder, step, _ = config.initial
            origin = manifest.state.get("initial")
            step = origin["step"] if isinstance(origin, dict) else step
            lora = load_run_config(folder).model.lora
            if not lora.rank or not is_same_adapter(lora, config.model.lora):
                break
            before = find_run(folder, step=step)
            config, manifest = before.config, before.manifest
    except LmscaleError:
        pass  # it is not here any more: what is known of it is its name
    return str(folder) if step is None else f"{folder} --step {step}"
