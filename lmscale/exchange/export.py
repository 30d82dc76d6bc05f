"""A run's checkpoint → a folder that transformers loads, verified, or nothing.

::

    fragments ──read──→ one parameter ──Rule.to_theirs──→ safetensors files, streamed
    config    ──────→ config.json, generation_config.json
    tokenizer ──────→ tokenizer.json and its settings
    all of it loaded by transformers: the same logits, the same continuation ──→ card, rename
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from lmscale.checkpoint.differences import MAX_NAMED
from lmscale.config.kinds import Ability
from lmscale.errors import DataError
from lmscale.evaluation.found import FoundRun
from lmscale.evaluation.run import DTYPES
from lmscale.exchange.chat import load_run_template, verify_template
from lmscale.exchange.early import check_export
from lmscale.exchange.exported import MARK, Dtype, Exported, ExportRequest, describe
from lmscale.exchange.framing import find_beginning, keep_pair, plan_framing
from lmscale.exchange.model_card import CARD, render_card
from lmscale.exchange.plan_export import (
    ExportPlan,
    check_found,
    open_export,
    plan_export,
    plan_stored,
    render_tensors,
)
from lmscale.exchange.render_config import barred_ids, end_ids, render_config, render_generation
from lmscale.exchange.samples import Samples, draw_samples
from lmscale.exchange.their_library import import_transformers
from lmscale.exchange.tokenizer_check import TokenizerCheck, verify_tokenizer
from lmscale.exchange.tokenizer_files import write_tokenizer
from lmscale.exchange.verify import Files, plan_bytes, verify_export
from lmscale.exchange.write_tensors import Written, plan_files, write_files
from lmscale.files.atomic import write_bytes, write_json, writing
from lmscale.files.output_folder import output_folder
from lmscale.files.printing import render_bytes
from lmscale.runs.given_weights import read_import
from lmscale.tokenizer.kept_template import load_kept_template

ROOM_BYTES = 2**26  # for all but the weights


def export_run(request: ExportRequest) -> Exported:
    """Write a run's checkpoint as a folder of Hugging Face's format.

    Peak memory is bounded by the largest parameter, until the verification, which holds the whole
    model in fp32, theirs and ours one after the other. The folder appears when all is verified.
    Raises ``ConfigError``, ``CheckpointError`` and ``DataError`` for what a user can mend.
    """
    check_export("hf", request)
    import_transformers()  # not only when all is written
    found = request.found
    plan = plan_export(found.config)
    check_found(found)
    stored = plan_stored(plan, DTYPES[request.dtype])
    check_room(request.out, sum(tensor.bytes for tensor in stored), dtype=request.dtype)
    files = plan_files(stored, max_bytes=request.max_shard_bytes)
    with writing("an export", request.out.parent), output_folder(request.out) as work:
        written = _write_weights(request, found, plan, files, work)
        samples = draw_samples(found.config, found.tokenizer.fingerprint)
        tokenizer_check, barred = _write_settings(request, found, plan, work, samples)
        with request.bar("verifying", None, ""):
            check = verify_export(request, found, plan, work, files, samples, barred)
        exported = Exported(
            request=request,
            found=found,
            plan=plan,
            files=tuple(written),
            check=check,
            tokenizer=tokenizer_check,
            notes=tuple(find_notes(plan, found)),
        )
        write_bytes(work / CARD, render_card(exported).encode())
        write_json(work / MARK, describe(exported))
    return exported


def check_room(out: Path, num_bytes: int, *, dtype: Dtype | None = None) -> None:
    """Raise ``DataError`` where a disk has no room for so many bytes. ``dtype``: of the weights,
    where the user may choose another.
    """
    place = next(path for path in out.absolute().parents if path.exists())
    free = shutil.disk_usage(place).free
    smaller = " Or export less: --dtype bf16" if dtype == "fp32" else ""
    if free < num_bytes + ROOM_BYTES:
        raise DataError(
            f"{place} has {render_bytes(free)} left, and the export takes "
            f"{render_bytes(num_bytes)}. "
            f"Free some space, or name a place on another disk: --out, for a URL --work.{smaller}"
        )


def _write_weights(
    request: ExportRequest,
    found: FoundRun,
    plan: ExportPlan,
    files: Files,
    work: Path,
) -> list[Written]:
    with (
        open_export(found, plan) as read,
        request.bar("exporting", plan_bytes(files) / 1e6, "MB") as advance,
    ):
        tensors = render_tensors(plan, read, DTYPES[request.dtype])
        return write_files(work, files, tensors, advance=lambda count: advance(count / 1e6))


def _write_settings(
    request: ExportRequest, found: FoundRun, plan: ExportPlan, work: Path, samples: Samples
) -> tuple[TokenizerCheck, list[int]]:
    """All but weights and card. Returns whether what transformers makes of the tokenizer is the
    run's, and the ids that nothing written may have.
    """
    config, tokenizer = found.config, found.tokenizer
    beginning = find_beginning(found.folder, tokenizer)
    framing = plan_framing(config, tokenizer, begins_with_bos=beginning)
    if not config.window.has_pairs:  # those it has trained on
        framing = keep_pair(framing, tokenizer)
    barred = barred_ids(tokenizer, framing, config.objective_ids, plan.sizes.vocab_size)
    settings = render_config(plan, framing, config.objective_ids, request.dtype)
    write_json(work / "config.json", settings)
    template = load_run_template(found)
    if plan.writes:
        ends = end_ids(tokenizer, framing)
        ends += [template.end_id] if template and template.end_id not in ends else []
        generation = render_generation(framing, config.objective_ids, ends=ends, barred=barred)
        write_json(work / "generation_config.json", generation)
    write_tokenizer(
        tokenizer,
        work,
        framing=framing,
        added_ids=config.added_ids,
        objective_ids=config.objective_ids,
        max_length=config.max_positions,
        chat_template=load_kept_template(found.folder),
    )
    texts = map(tokenizer.decode, samples.of_pieces(tokenizer.vocab_size))
    check = verify_tokenizer(tokenizer, work, texts, framing=framing)
    if check.problem:
        raise DataError(check.problem)
    if template is not None and config.window.has_turns:
        verify_template(template, work)
    return check, barred


def find_notes(plan: ExportPlan, found: FoundRun) -> Iterator[str]:
    """What differs from the run in the hands of somebody who does not know it."""
    if plan.left_out:
        yield (
            f"`{plan.class_name}` has no place for {len(plan.left_out)} parameters, which are not "
            f"here: {', '.join(plan.left_out[:MAX_NAMED])}."
        )
    imported = read_import(found.folder)
    if imported and imported.drawn:
        yield (
            "What it came from did not have all of its parameters; random values are: "
            f"{', '.join(imported.drawn[:MAX_NAMED])}."
        )
    if found.bos_id is None and imported is None and plan.section.family == "decoder":
        yield (
            "No document that it was trained on begins with bos, so there is no bos token: one in "
            "front of a text would be a vector that nothing has trained."
        )
    if Ability.PREFIX in found.config.objective.needs:
        yield (
            "It was trained to see a prompt as a whole; transformers shows it each token with "
            "those before it alone, and so do the figures of the verification."
        )
