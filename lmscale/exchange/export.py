"""A run's checkpoint → a folder that transformers loads, verified, or nothing.

::

    fragments ──read──→ one parameter ──Rule.to_theirs──→ safetensors files, streamed
    config    ──────→ config.json, generation_config.json
    tokenizer ──────→ tokenizer.json and its settings
    all of it loaded by transformers: the same logits, the same continuation ──→ card, rename
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from lmscale.errors import CheckpointError, DataError
from lmscale.evaluation.run import FoundRun, find_run
from lmscale.exchange.exported import DTYPES, MARK, Exported, ExportRequest, describe
from lmscale.exchange.model_card import CARD, render_card
from lmscale.exchange.parity import Parity, ask_theirs, compare
from lmscale.exchange.plan_export import (
    ExportPlan,
    check_found,
    fill_as_stored,
    open_export,
    plan_export,
    plan_stored,
    render_tensors,
)
from lmscale.exchange.render_config import barred_ids, render_config, render_generation
from lmscale.exchange.samples import draw_samples
from lmscale.exchange.their_library import import_transformers
from lmscale.exchange.write_tensors import Written, plan_files, write_files
from lmscale.files.atomic import to_json_bytes, write_json, writing
from lmscale.files.output_folder import check_output, output_folder
from lmscale.model.family import build_model_on

ROOM_BYTES = 2**26  # for all but the weights


def export_run(request: ExportRequest) -> Exported:
    """Write a run's checkpoint as a folder of Hugging Face's format.

    Peak memory is bounded by the largest parameter, until the verification, which holds the whole
    model in fp32, theirs and ours one after the other. The folder appears when all is verified.
    Raises ``ConfigError``, ``CheckpointError`` and ``DataError`` for what a user can mend.
    """
    check_output(request.out, mark=MARK, force=request.force)
    import_transformers()  # not only when all is written
    with request.bar("looking at the checkpoint", None, ""):
        found = find_run(request.folder, step=request.step, weights=request.weights)
        plan = plan_export(found.config)
        check_found(found)
    if not found.manifest.is_finite:
        raise CheckpointError(f"{found.name} holds weights that are not finite.")
    stored = plan_stored(plan, DTYPES[request.dtype])
    check_room(request.out, sum(tensor.bytes for tensor in stored))
    files = plan_files(stored, max_bytes=request.max_shard_bytes)
    with writing("an export", request.out.parent), output_folder(request.out) as work:
        written = _write_weights(request, found, plan, files, work)
        write_json(work / "config.json", render_config(plan, found, request.dtype))
        write_json(work / "generation_config.json", render_generation(plan, found))
        with request.bar("verifying", None, ""):
            parity = _verify(request, found, plan, work)
        exported = Exported(
            request=request,
            found=found,
            plan=plan,
            files=tuple(written),
            tensors=len(stored),
            parity=parity,
        )
        (work / CARD).write_text(render_card(exported), encoding="utf-8")
        (work / MARK).write_bytes(to_json_bytes(describe(exported)))
    return exported


def check_room(out: Path, num_bytes: int) -> None:
    """Raise ``DataError`` where a disk has no room for so many bytes."""
    place = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    if free < num_bytes + ROOM_BYTES:
        raise DataError(
            f"{place} has {free / 1e9:.2f} GB left, and the export takes {num_bytes / 1e9:.2f} GB. "
            "Free some space, name another --out, or export less: --dtype bf16"
        )


def _write_weights(
    request: ExportRequest,
    found: FoundRun,
    plan: ExportPlan,
    files: dict[str, Any],
    work: Path,
) -> list[Written]:
    total = sum(tensor.bytes for tensors in files.values() for tensor in tensors)
    with (
        open_export(found, plan) as read,
        request.bar("exporting", total / 1e6, "MB") as advance,
    ):
        tensors = render_tensors(plan, read, DTYPES[request.dtype])
        return write_files(work, files, tensors, advance=lambda count: advance(count / 1e6))


def _verify(request: ExportRequest, found: FoundRun, plan: ExportPlan, work: Path) -> Parity:
    samples = draw_samples(found.config, found.tokenizer.fingerprint)
    answers = ask_theirs(
        work,
        samples,
        family=plan.section.family,
        head=plan.head,
        class_name=plan.class_name,
        writes=plan.section.family == "decoder",
    )
    cpu = torch.device("cpu")
    model = build_model_on(plan.section, plan.sizes, device=cpu, dtype=torch.float32).eval()
    with open_export(found, plan) as read:
        fill_as_stored(model, plan, read, DTYPES[request.dtype])
    barred = barred_ids(found.tokenizer, plan.sizes.vocab_size)
    return compare(model, samples, answers, head=plan.head, barred=barred)
