"""Make one dataset's folder of its slices' shards: number them, list them, name the folder.

May be killed at any point, and may be done over by another process: the same comes of it.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

from lmscale.files.atomic import fsync_folder, have_sizes, replace_folder, write_json, writing
from lmscale.shards.datasets import DatasetPlan
from lmscale.shards.manifest import MANIFEST_NAME, Manifest, load_manifest, save_manifest
from lmscale.shards.tasks import finished_shards
from lmscale.tasks.array_tasks import UnitsMissing
from lmscale.tasks.takeover import Turn, fresh_names
from lmscale.tokenizer import Tokenizer

NAMES = "names.json"


def is_assembled(plan: DatasetPlan) -> bool:
    """Whether a finisher has begun to move the shards out of the slices' folder."""
    return (plan.build.work / MANIFEST_NAME).exists() or (plan.build.work / NAMES).exists()


def finish_dataset(plan: DatasetPlan, tokenizer: Tokenizer, turn: Turn) -> None:
    """Turn the work folder into the dataset's."""
    work, final = plan.build.work, plan.dataset.final
    with writing("shards", final):
        if not (work / MANIFEST_NAME).exists():
            save_manifest(_number(plan, tokenizer, turn), work)
        shutil.rmtree(plan.parts, ignore_errors=True)
        for path in work.iterdir():
            if path.name != MANIFEST_NAME and path.suffix != ".tar":
                path.unlink(missing_ok=True)  # also what a kill has left half-written
        if final.exists():
            load_manifest(final)  # only what lmscale wrote is replaced
        turn.check()
        replace_folder(work, final)


def _number(plan: DatasetPlan, tokenizer: Tokenizer, turn: Turn) -> Manifest:
    """Give every shard its final name; a rename that was done before is passed over."""
    work, rules = plan.build.work, plan.dataset.rules
    fresh_names(plan.parts)  # what other nodes finished a moment ago
    parts, missing = finished_shards(plan.parts, plan.slices, check_sizes=not is_assembled(plan))
    if missing:
        raise UnitsMissing(missing)
    entries = [
        replace(part, name=f"{rules.source}-{number:06d}.tar") for number, part in enumerate(parts)
    ]
    turn.check()
    write_json(work / NAMES, [entry.name for entry in entries])  # only renames are left
    for part, entry in zip(parts, entries, strict=True):
        if (plan.parts / part.name).exists():
            os.replace(plan.parts / part.name, work / entry.name)
    fsync_folder(work)
    if not have_sizes((work / entry.name, entry.bytes) for entry in entries):
        (work / NAMES).unlink(missing_ok=True)
        _, missing = finished_shards(plan.parts, plan.slices, check_sizes=True)
        raise UnitsMissing(missing or range(len(plan.slices)))
    return Manifest(
        source=rules.source,
        split=rules.split,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        dtype=rules.dtype,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        block_tokens=rules.block_tokens,
        inputs=plan.dataset.key,
        shards=tuple(entries),
    )
