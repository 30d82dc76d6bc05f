"""Whether the folder of an export is the run's model, as transformers loads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lmscale.checkpoint.differences import MAX_NAMED
from lmscale.config.model import ModelConfig
from lmscale.errors import DataError
from lmscale.evaluation.found import FoundRun
from lmscale.evaluation.run import DTYPES
from lmscale.exchange.exported import Check, ExportRequest
from lmscale.exchange.parity import (
    AUTO_CLASSES,
    Parity,
    ask_theirs,
    compare,
    largest_difference,
    our_outputs,
)
from lmscale.exchange.plan_export import (
    ExportPlan,
    Read,
    fill_as_stored,
    fill_own,
    open_export,
    render_tensors,
)
from lmscale.exchange.samples import Samples
from lmscale.exchange.their_library import import_transformers, quiet
from lmscale.exchange.write_tensors import Stored
from lmscale.files.memory import available_bytes
from lmscale.model.family import Model, build_model_on

# One model in fp32 at a time, a tenth more for what a forward pass takes, and some samples' logits.
MEMORY_SHARE, MEMORY_BYTES = 1.1, 2 * 10**9
Files = Mapping[str, tuple[Stored, ...]]


def verify_export(
    request: ExportRequest,
    found: FoundRun,
    plan: ExportPlan,
    work: Path,
    files: Files,
    samples: Samples,
    barred: Sequence[int],
) -> Check:
    """Load what was written into ``work``. Raises ``DataError`` with what is not the run's.

    ``barred``: ids that nothing written may have.
    """
    num_tensors = sum(map(len, files.values()))
    why_not = find_why_not(request, plan)
    if not why_not:
        parity, rounding = _compare_logits(request, found, plan, work, samples, barred)
        return Check(tensors=num_tensors, parity=parity, rounding=rounding)
    check_shapes(work, plan, files)
    with request.bar("comparing", plan_bytes(files) / 1e6, "MB") as advance:
        with open_export(found, plan) as read:
            for value in _compare_tensors(work, plan, read, files, request):
                advance(value.numel() * value.element_size() / 1e6)
    return Check(tensors=num_tensors, why_not=why_not)


def find_why_not(request: ExportRequest, plan: ExportPlan) -> str:
    """Why no model is to run what was written; empty: one is."""
    if request.verify == "tensors":
        return "only tensors were asked for (--verify tensors)"
    return _find_want_of_memory(plan) if request.verify is None else ""


def _find_want_of_memory(plan: ExportPlan) -> str:
    """Why logits cannot be compared here; empty: they can."""
    parameters = sum(prod(rule.shape) for rule in plan.rules)
    needed, free = MEMORY_SHARE * 4 * parameters + MEMORY_BYTES, available_bytes()
    if free is None or free >= needed:
        return ""
    return (
        f"that takes some {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB were free "
        "(--verify logits tries it all the same)"
    )


def plan_bytes(files: Files) -> int:
    return sum(tensor.bytes for tensors in files.values() for tensor in tensors)


def _compare_logits(
    request: ExportRequest,
    found: FoundRun,
    plan: ExportPlan,
    work: Path,
    samples: Samples,
    barred: Sequence[int],
) -> tuple[Parity, float | None]:
    answers = ask_theirs(
        work,
        samples,
        family=plan.section.family,
        head=plan.head,
        class_name=plan.class_name,
        writes=plan.writes,
    )
    dtype = DTYPES[request.dtype]
    if dtype == torch.float32:
        own = _build(plan.own_section, plan)
        fill_own(own, found, plan)
        return compare(own, samples, answers, head=plan.head, barred=barred), None
    stored = _build(plan.section, plan)
    with open_export(found, plan) as read:
        fill_as_stored(stored, plan, read, dtype)
    parity = compare(stored, samples, answers, head=plan.head, barred=barred)
    del stored
    own = _build(plan.own_section, plan)
    fill_own(own, found, plan)
    with torch.no_grad():
        exact = [our_outputs(own, each, plan.head) for each in samples.questions()]
    return parity, largest_difference(exact, answers.outputs)


def _build(section: ModelConfig, plan: ExportPlan) -> Model:
    cpu = torch.device("cpu")
    return build_model_on(section, plan.sizes, device=cpu, dtype=torch.float32).eval()


def check_shapes(work: Path, plan: ExportPlan, files: Files) -> None:
    """Raise ``DataError`` where transformers' class, which takes no memory here, is another than
    planned, or has other tensors than the files.
    """
    transformers = import_transformers()
    auto = getattr(transformers, AUTO_CLASSES[plan.section.family, plan.head])
    with quiet(transformers), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(work, local_files_only=True)
        theirs = auto.from_config(config)
        theirs.tie_weights()
    stored = {each.name: each.shape for tensors in files.values() for each in tensors}
    whole = {name: tuple(each.shape) for name, each in theirs.state_dict().items()}
    needed = {name for name, _ in theirs.named_parameters()}
    kind = type(theirs).__name__
    problems = [f"not {plan.class_name} is what it loads"] * (kind != plan.class_name)
    problems += [f"it has no {name}" for name in stored if name not in whole]
    problems += [f"it wants {name}" for name in needed if name not in stored]
    problems += [
        f"its {name} is {list(whole[name])}, and {list(shape)} was written"
        for name, shape in stored.items()
        if whole.get(name, shape) != shape
    ]
    if problems:
        raise DataError([f"transformers' {kind}: {each}." for each in problems[:MAX_NAMED]])


def _compare_tensors(
    work: Path, plan: ExportPlan, read: Read, files: Files, request: ExportRequest
) -> Iterator[Tensor]:
    """Each tensor that lies in the files as in the checkpoint, one at a time."""
    places = {each.name: name for name, tensors in files.items() for each in tensors}
    with ExitStack() as stack:
        handles: dict[str, Any] = {
            name: stack.enter_context(safe_open(str(work / name), framework="pt"))  # pyright: ignore
            for name in files
        }
        for name, value in render_tensors(plan, read, DTYPES[request.dtype]):
            found: Tensor = handles[places[name]].get_tensor(name)
            if found.dtype != value.dtype or not torch.equal(found, value):
                raise DataError(f"{places[name]}: {name} is not what the checkpoint has.")
            yield value
