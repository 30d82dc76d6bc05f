"""Tensors → safetensors files of a bounded size, streamed one tensor at a time and read back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.write_file import DTYPE_NAMES, PIECE_BYTES
from lmscale.errors import DataError
from lmscale.files.atomic import sha256_of, write_json
from lmscale.files.tensor_header import Entry, render_header

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor as it will lie in a file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file as its writer saw it."""

    name: str
    bytes: int
    sha256: str


def plan_files(tensors: Sequence[Stored], *, max_bytes: int) -> dict[str, tuple[Stored, ...]]:
    """File name → its tensors, in their order: as many in a file as stay below ``max_bytes``, and
    one at least.
    """
    files: list[list[Stored]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.bytes
    if len(files) == 1:
        return {"model.safetensors": tuple(files[0])}
    return {
        f"model-{number:05d}-of-{len(files):05d}.safetensors": tuple(file)
        for number, file in enumerate(files, start=1)
    }


def write_files(
    folder: Path,
    files: Mapping[str, tuple[Stored, ...]],
    values: Iterator[tuple[str, Tensor]],
    *,
    advance: Callable[[float], None] = lambda num_bytes: None,
) -> list[Written]:
    """Write planned files, and their index where there are several.

    ``values`` gives all tensors by name in the order of the files, contiguous, in the planned shape
    and dtype; one at a time is in memory. Every file is read back from the disk and compared with
    what was meant. Raises ``DataError`` where it differs, and the folder's ``OSError``.
    """
    written = []
    for name, tensors in files.items():
        path = folder / name
        written.append(_write_file(path, tensors, values, advance))
        if _read_back(path) != written[-1].sha256:
            raise DataError(
                f"{path}: what was read back is not what was written. The disk or the memory of "
                "this machine is faulty; nothing is kept."
            )
    if len(files) > 1:
        write_json(folder / INDEX, render_index(files))
    return written


def render_index(files: Mapping[str, tuple[Stored, ...]]) -> dict[str, Any]:
    """Which file each tensor is in, as transformers reads it."""
    total = sum(tensor.bytes for tensors in files.values() for tensor in tensors)
    places = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _write_file(
    path: Path,
    tensors: Sequence[Stored],
    values: Iterator[tuple[str, Tensor]],
    advance: Callable[[float], None],
) -> Written:
    digest, size = hashlib.sha256(), 0
    with open(path, "wb", buffering=0) as file:

        def put(piece: bytes | memoryview) -> None:
            nonlocal size
            digest.update(piece)
            while len(piece):  # an unbuffered file may take a part
                taken = file.write(piece)
                size += taken
                piece = piece[taken:]

        put(
            render_header(
                Entry(each.name, DTYPE_NAMES[each.dtype], each.shape, each.bytes)
                for each in tensors
            )
        )
        for stored in tensors:
            name, value = next(values)
            found = (name, tuple(value.shape), value.dtype)
            assert found == (stored.name, stored.shape, stored.dtype), f"{found} is not {stored}"
            for piece in value.view(-1).view(torch.uint8).split(PIECE_BYTES):
                put(piece.numpy().data)
                advance(len(piece))
        os.fsync(file.fileno())
    return Written(name=path.name, bytes=size, sha256=digest.hexdigest())


def _read_back(path: Path) -> str:
    with open(path, "rb") as file:
        # What the kernel still has of it would say nothing of the disk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return sha256_of(file)
