"""One rank's file of a checkpoint, streamed: hashed, inspected and written from the same memory."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmscale.checkpoint.layout import tensor_name
from lmscale.checkpoint.manifest import MASTER, FileEntry
from lmscale.checkpoint.places.place import Place
from lmscale.errors import TransientError
from lmscale.files import fault_points, tensor_header
from lmscale.files.atomic import may_pass
from lmscale.files.remote import Result, call_patiently, growing_delays
from lmscale.ranks.fingerprint import add_fingerprints, fingerprint

logger = logging.getLogger(__name__)

PIECE_BYTES = 1 << 24
_LOOK_ELEMENTS = 1 << 20  # inspected at once: what a core's cache holds
NUM_MARKS = 16  # how often a file's writing shows progress, whatever its size

DTYPE_NAMES: Mapping[torch.dtype, str] = {  # those of safetensors 0.8
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}


class GivenUpError(Exception):
    """The process ends, or another rank's save has failed: nobody waits for this one any more."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One tensor of a file, 1-D and contiguous."""

    parameter: str
    kind: str
    offset: int
    tensor: Tensor

    @property
    def bytes(self) -> int:
        return self.tensor.numel() * self.tensor.element_size()


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was seen of a file's values while they were in memory."""

    is_finite: bool  # every floating number
    weights: int  # the masters' fingerprint


def arrange(parts: Iterable[Part]) -> list[Part]:
    """In the order of the file: the widest elements first, so that each tensor lies aligned."""
    return sorted(parts, key=lambda part: -part.tensor.element_size())


def render_header(parts: Sequence[Part]) -> bytes:
    """What the safetensors file of the parts begins with."""
    return tensor_header.render_header(
        tensor_header.Entry(
            name=tensor_name(part.parameter, part.kind, part.offset),
            dtype=DTYPE_NAMES[part.tensor.dtype],
            shape=[part.tensor.numel()],
            bytes=part.bytes,
        )
        for part in parts
    )


def cut_pieces(parts: Iterable[Part]) -> Iterator[memoryview]:
    """The tensors' bytes one after the other, as host memory of at most ``PIECE_BYTES``."""
    for part in parts:
        for chunk in part.tensor.view(torch.uint8).split(PIECE_BYTES):
            yield chunk.cpu().numpy().data


def inspect(parts: Iterable[Part]) -> Findings:
    """Whether all values are finite, and the weights' fingerprint, in bounded memory."""
    is_finite = True
    masters: list[int] = []
    for part in parts:
        for number, chunk in enumerate(part.tensor.split(_LOOK_ELEMENTS)):
            is_finite = is_finite and _is_finite(chunk)
            if part.kind == MASTER:
                offset = part.offset + number * _LOOK_ELEMENTS
                masters.append(fingerprint(chunk, name=part.parameter, offset=offset))
    return Findings(is_finite=is_finite, weights=add_fingerprints(masters))


def _is_finite(chunk: Tensor) -> bool:
    if not (chunk.is_floating_point() or chunk.is_complex()) or chunk.numel() == 0:
        return True
    if chunk.is_complex():
        chunk = torch.view_as_real(chunk)
    if chunk.element_size() == 1:  # torch 2.13 knows no order of 8-bit floats
        chunk = chunk.float()
    # A NaN comes out as both. Ten times as fast as to ask each element.
    least, most = torch.aminmax(chunk)
    return bool(torch.isfinite(least) & torch.isfinite(most))


def write_file(
    place: Place,
    step: int,
    name: str,
    parts: Sequence[Part],
    *,
    retries: int,
    moved: Callable[[int], None] = lambda mark: None,
    given_up: threading.Event | None = None,
) -> FileEntry:
    """Write the arranged ``parts`` as a safetensors file; it is durable when this returns.

    What may pass by itself is tried ``retries`` more times, the whole file again. ``moved`` hears
    how many sixteenths are written. Raises the place's ``OSError``, or ``TransientError``, and
    ``GivenUpError`` soon after that event.
    """
    given_up = given_up or threading.Event()
    header = render_header(parts)
    total = len(header) + sum(part.bytes for part in parts)
    digest = hashlib.sha256()

    def pieces() -> Iterator[memoryview]:
        written = 0
        for piece in (memoryview(header), *cut_pieces(parts)):
            if given_up.is_set():
                raise GivenUpError
            digest.update(piece)
            yield piece
            written += len(piece)
            moved(NUM_MARKS * written // total)

    def attempt() -> None:
        nonlocal digest
        digest = hashlib.sha256()
        fault_points.hit("save.write", step=step)
        place.write_file(step, name, pieces())

    try_again(attempt, what=f"writing {name}", retries=retries, given_up=given_up)
    # Each run of elements once, although several kinds are stored of it.
    runs = {(part.parameter, part.offset): part.tensor.numel() for part in parts}
    fragments = tuple((parameter, offset, count) for (parameter, offset), count in runs.items())
    return FileEntry(name=name, bytes=total, sha256=digest.hexdigest(), fragments=fragments)


def try_again(
    action: Callable[[], Result], *, what: str, retries: int, given_up: threading.Event
) -> Result:
    """What ``action`` returns; it is called ``retries`` more times while what it raises may pass.

    Not ``remote.with_retries``: here a refusal keeps its errno, and the wait can be cut short.
    """

    def wait(error: Exception, seconds: float) -> None:
        logger.warning("%s failed (%s); once more in %.1f s", what, error, seconds)
        if given_up.wait(seconds):
            raise GivenUpError from error

    return call_patiently(
        action,
        growing_delays(retries),
        may_pass=lambda error: (
            isinstance(error, TransientError) or (isinstance(error, OSError) and may_pass(error))
        ),
        wait=wait,
    )
