"""A checkpoint of weights alone, of step 0, written without an engine, in bounded memory.

Of a folder in which no run has trained: an import, or what was made of another run's weights. Runs
begin with it (``run.init_from``), and whatever takes a run takes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.commit_log import describe_commit
from lmscale.checkpoint.manifest import ASKED, MASTER, FileEntry, Manifest, OptimizerKind
from lmscale.checkpoint.places.place import LocalPlace, Place
from lmscale.checkpoint.write_file import Part, inspect, write_file
from lmscale.ranks.fingerprint import add_fingerprints
from lmscale.runs.commits import append_commit

FILE_BYTES = 2**29  # of fp32 weights that are in memory at once, or one larger tensor
Advance = Callable[[float], None]  # hears of bytes that are done


@dataclass(frozen=True, kw_only=True)
class WrittenWeights:
    """The files of a checkpoint that is not committed yet."""

    shapes: Mapping[str, Sequence[int]]
    files: tuple[FileEntry, ...]
    fingerprint: int  # of all weights
    infinite: tuple[str, ...]  # parameters with values that are not finite


def write_weights(
    place: Place,
    shapes: Mapping[str, Sequence[int]],
    value: Callable[[str], Tensor],
    advance: Advance,
) -> WrittenWeights:
    """Write the parameters of ``shapes``; ``value`` gives each of them once, fp32, on the CPU."""
    entries, fingers, infinite = [], [], []
    with torch.no_grad():
        for number, names in enumerate(_plan_files(shapes)):
            parts = []
            for name in names:
                flat = value(name).contiguous().view(-1)
                parts.append(Part(parameter=name, kind=MASTER, offset=0, tensor=flat))
            findings = inspect(parts)
            if not findings.is_finite:
                infinite += [part.parameter for part in parts if not inspect([part]).is_finite]
            fingers.append(findings.weights)
            file = f"weights-{number:05d}.safetensors"
            entries.append(write_file(place, 0, file, parts, retries=0))
            advance(entries[-1].bytes)
    return WrittenWeights(
        shapes=shapes,
        files=tuple(entries),
        fingerprint=add_fingerprints(fingers),
        infinite=tuple(infinite),
    )


def _plan_files(shapes: Mapping[str, Sequence[int]]) -> Iterator[list[str]]:
    """The parameters of one file after the other."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        bytes_ = 4 * torch.Size(shape).numel()
        if names and size + bytes_ > FILE_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += bytes_
    yield names


def commit_weights(
    folder: Path,
    place: LocalPlace,
    written: WrittenWeights,
    *,
    identity: Mapping[str, Any],
    state: Mapping[str, Any],
) -> Manifest:
    """Make the files a checkpoint of the run in ``folder``, whose log gets its row.

    ``identity``: as of ``identity_of``. ``state``: where the weights are from.
    """
    manifest = Manifest(
        step=0,
        parameters={name: tuple(shape) for name, shape in written.shapes.items()},
        states={name: (MASTER,) for name in written.shapes},
        optimizer=OptimizerKind(kind="none"),
        loss_scale=None,
        state={"progress": {"step": 0, "n": 0, "tokens": 0, "skipped_steps": 0}, **state},
        identity={**identity},
        written_by={
            "world_size": 1,
            "zero_stage": 0,
            "precision": "fp32",
            "torch": torch.__version__,
            "time": time.time(),
        },
        is_finite=True,
        reason=ASKED,
        weights=f"{written.fingerprint:016x}",
        files=written.files,
    )
    place.commit(0, manifest.to_bytes())
    append_commit(folder, describe_commit(folder, place, manifest, at=time.time()))
    return manifest
