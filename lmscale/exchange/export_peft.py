"""A run's adapters → a folder that PEFT loads beside the model that they adapt, or nothing.

::

    base folder ── compared with ── the frozen weights of the checkpoint
    adapters    ── TheirAdapter ──→ adapter_model.safetensors, adapter_config.json
    both loaded by PEFT: the same logits, the same continuation ──→ card, rename
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.load import open_weights
from lmscale.errors import ConfigError, DataError
from lmscale.exchange.early import check_export
from lmscale.exchange.export import check_room
from lmscale.exchange.exported import MARK, Check, ExportRequest
from lmscale.exchange.folding import Read, unfold
from lmscale.exchange.model_card import CARD
from lmscale.exchange.parity import ask_theirs, compare, read_barred
from lmscale.exchange.peft_adapter import PREFIX, render_adapter, render_adapter_config
from lmscale.exchange.peft_card import PeftExported, describe_peft, render_peft_card
from lmscale.exchange.peft_plan import Adaptation, plan_adaptation
from lmscale.exchange.plan_export import open_export
from lmscale.exchange.samples import draw_samples
from lmscale.exchange.their_library import import_transformers
from lmscale.exchange.verify import find_why_not
from lmscale.exchange.write_tensors import Stored, write_files
from lmscale.files.atomic import write_bytes, write_json, writing
from lmscale.files.extras import install_extra
from lmscale.files.output_folder import output_folder
from lmscale.model.family import Model, build_model_on

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_ADVICE = (
    "The base has the settings and the weights that the run adapts, so that peft and transformers "
    f"may be of other versions than lmscale knows: {install_extra('peft')}. Where they are not, "
    "export the merged model in place of the adapters: leave out --format peft."
)


def export_peft(request: ExportRequest) -> PeftExported:
    """Write the adapters of a run's checkpoint as a folder of PEFT's.

    The folder appears when all is verified, which takes the memory of the base in fp32, where there
    is that much. Raises ``ConfigError``, ``CheckpointError`` and ``DataError`` for what a user can
    mend, such as a base that is not what the run adapts.
    """
    check_export("peft", request)
    base = request.base
    assert base is not None  # else it was refused
    import_transformers()  # not only when all is written
    import_peft()
    found = request.found
    with request.bar("looking at the base", None, ""):
        adaptation = plan_adaptation(found, base)
    with (
        open_weights(found.place, found.manifest, found.weights) as read,
        writing("an export", request.out.parent),
        output_folder(request.out) as work,
    ):
        tensors = dict(_render_tensors(adaptation, read))
        stored = [Stored(name=n, shape=tuple(t.shape), dtype=t.dtype) for n, t in tensors.items()]
        check_room(request.out, sum(tensor.bytes for tensor in stored))
        (file,) = write_files(work, {FILE: tuple(stored)}, iter(tensors.items()))
        write_json(work / CONFIG, _render_config(adaptation, base))
        with request.bar("verifying", None, ""):
            check = _verify(request, adaptation, read, work, num_tensors=len(stored))
        exported = PeftExported(request=request, adaptation=adaptation, file=file, check=check)
        write_bytes(work / CARD, render_peft_card(exported).encode())
        write_json(work / MARK, describe_peft(exported))
    return exported


def import_peft() -> ModuleType:
    """The library. Raises ``ConfigError`` where it is not installed."""
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ConfigError(
            f"Adapters are verified by the package peft, which cannot be loaded ({error}). "
            f"Install it: {install_extra('peft')}"
        ) from None


def _render_tensors(adaptation: Adaptation, read: Read) -> Iterator[tuple[str, Tensor]]:
    for adapter in adaptation.adapters:
        ours = adaptation.read_adapter(read, adapter.matrix)
        yield from render_adapter(adapter, *ours).items()
    with open_export(adaptation.found, adaptation.plan, merges=False) as read_beside:
        for rule in adaptation.whole:
            for name, value in rule.to_theirs(read_beside(rule.name)):
                yield f"{PREFIX}{name}", value


def _render_config(adaptation: Adaptation, base: Path) -> dict[str, Any]:
    """``base`` as the user names it: the place of another machine would say nothing there."""
    matrices = [rule for rule in adaptation.plan.rules if len(rule.shape) == 2]
    # PEFT's model of a task that tells tokens asks of its base that it writes texts.
    is_masked = (adaptation.plan.section.family, adaptation.plan.head) == ("encoder", "tokens")
    return render_adapter_config(
        adaptation.found.config.model.lora,
        adaptation.adapters,
        base=str(base),
        head=None if is_masked else adaptation.plan.head,
        matrices=[name.removesuffix(".weight") for rule in matrices for name in rule.theirs],
        is_transposed=any(rule.form == "transposed" for rule in matrices),
        saved_modules=adaptation.saved_modules,
    )


def _verify(
    request: ExportRequest, adaptation: Adaptation, read: Read, work: Path, *, num_tensors: int
) -> Check:
    """PEFT's model on the base's own weights against ours with the same ones."""
    found, plan, base = adaptation.found, adaptation.plan, adaptation.base
    if why_not := find_why_not(request, plan):
        return Check(tensors=num_tensors, why_not=why_not)
    samples = draw_samples(found.config, found.tokenizer.fingerprint)
    samples = samples.without(plan.target.settings.get("pad_token_id"))
    answers = ask_theirs(
        base.folder,
        samples,
        family=plan.section.family,
        head=plan.head,
        class_name=plan.class_name,
        writes=plan.writes,
        wrap=lambda theirs: _load_adapter(theirs, work),
        beside=adaptation.beside,
        settings=adaptation.settings,
    )
    cpu = torch.device("cpu")
    model = build_model_on(found.config.model, plan.sizes, device=cpu, dtype=torch.float32).eval()
    with base.opened() as read_base:
        _fill(model, adaptation, read, read_base)
    barred = read_barred(base.folder)
    who = f"PEFT, beside {base.folder},"
    try:
        parity = compare(model, samples, answers, head=plan.head, barred=barred, who=who)
    except DataError as error:
        raise DataError([*error.problems, _ADVICE]) from None
    return Check(tensors=num_tensors, parity=parity)


def _load_adapter(theirs: Any, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks by a name of before
        return import_peft().PeftModel.from_pretrained(theirs, folder)


@torch.no_grad()
def _fill(model: Model, adaptation: Adaptation, read: Read, read_base: Read) -> None:
    """``model`` is the run's. What the base holds has what was folded into it taken back."""
    plan = adaptation.plan
    of_base = {rule.name: rule for rule in plan.rules if rule not in adaptation.whole}
    for name, parameter in model.named_parameters():
        if name in of_base:
            theirs = of_base[name].to_ours(read_base)
            parameter.copy_(unfold(name, theirs, plan.target.folding))
        else:
            parameter.copy_(read(name)[: len(parameter)])
