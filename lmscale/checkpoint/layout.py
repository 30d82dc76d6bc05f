"""The layout on disk: fragments of flattened tensors, and the manifest that makes them count.

::

    checkpoints/step-000001000/
        rank-00000.safetensors    1-D tensors named "<parameter>:<kind>:<offset>"
        rank-00001.safetensors    (under Slurm rank-00001.4711.0.safetensors: job and restart)
        manifest.json             written last; a folder without it is not a checkpoint

``kind`` is ``master`` (the fp32 weight) or one of the optimizer's states, fp32 too; or, in its own
dtype, ``frozen`` (a parameter that is not trained) or ``buffer``. ``offset`` counts elements of the
flattened parameter. Which rank wrote what is of no meaning to a reader.

docs/formats.md has the manifest's JSON, where a file's fragments are three lists of numbers: as
rows with names they took the interpreter eight times as long to read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmscale.checkpoint.manifest import FileEntry, Manifest
from lmscale.files.run_files import step_name
from lmscale.ranks.attempt import LOCAL

MANIFEST = "manifest.json"
LOCAL_TIER = "local"  # what ``written_by`` calls the nodes' own disks


def step_folder(root: Path, step: int) -> Path:
    return root / step_name(step)


def fragment_file(rank: int, attempt: str) -> str:
    """Another name in every attempt of a Slurm job: two live copies of it write no file in common.

    Readers take the names from the manifest.
    """
    return f"rank-{rank:05d}{'' if attempt == LOCAL else f'.{attempt}'}.safetensors"


def tensor_name(parameter: str, kind: str, offset: int) -> str:
    return f"{parameter}:{kind}:{offset}"


def plan_reads(files: Sequence[FileEntry]) -> Mapping[str, tuple[tuple[int, int, str], ...]]:
    """For each parameter, where its pieces are: (offset, elements, file), sorted by offset."""
    pieces: dict[str, list[tuple[int, int, str]]] = {}
    for entry in files:
        for parameter, offset, count in entry.fragments:
            pieces.setdefault(parameter, []).append((offset, count, entry.name))
    return {parameter: tuple(sorted(spans)) for parameter, spans in pieces.items()}


def find_gaps(manifest: Manifest) -> list[str]:
    """Parameters whose pieces do not cover them exactly once."""
    problems = []
    reads = plan_reads(manifest.files)
    replicated = {name: row.shape for name, row in manifest.replicated.items()}
    for name, shape in (manifest.parameters | replicated).items():
        numel = math.prod(shape)
        end = 0
        for offset, count, _ in reads.get(name, ()):
            if offset != end:
                break
            end = offset + count
        else:
            if end == numel:
                continue
        problems.append(f"{name}: elements around {end} of {numel} are missing or doubled")
    return problems
