"""Sums, errors and small values that ranks exchange. Every function also works without a group, and
loads no torch then: commands look at runs by the same functions as ranks do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lmscale import errors
from lmscale.errors import CorruptionError, LmscaleError, TransientError
from lmscale.ranks.ranks import name_ranks

if TYPE_CHECKING:
    import torch

_ERROR_CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, LmscaleError)
}

MAX_SUMMARIES = 3  # in one line of the batch script's
MAX_ERRORS = 8  # that differ and are named: each of hundreds of ranks may fail with its own path


def _is_alone() -> bool:
    if "torch.distributed" not in sys.modules:  # nobody here has made a group
        return True
    import torch.distributed as dist

    return not dist.is_initialized() or dist.get_world_size() == 1


def _device() -> torch.device:
    """The device on which the group's collectives take tensors."""
    import torch
    import torch.distributed as dist

    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def sum_float64(vector: Sequence[float]) -> list[float]:
    """Sums of the entries over all ranks, by one all-reduce. Whole numbers are exact below 2^53."""
    if _is_alone():
        return [float(value) for value in vector]
    import torch

    return sum_tensor(torch.tensor(vector, dtype=torch.float64, device=_device())).tolist()


def sum_tensor(summed: torch.Tensor) -> torch.Tensor:
    """The same of a tensor, fp64 [entries] on the device of the ranks, in place and left there."""
    if not _is_alone():
        import torch.distributed as dist

        dist.all_reduce(summed)
    return summed


def barrier() -> None:
    """Return when every rank has called it."""
    sum_float64([0.0])


def gather_json(value: Any) -> list[Any]:
    """Every rank's value, in the order of the ranks, on every rank. For small values."""
    if _is_alone():
        return [value]
    import torch
    import torch.distributed as dist

    content = json.dumps(value).encode()
    longest = torch.tensor(len(content), device=_device())
    dist.all_reduce(longest, op=dist.ReduceOp.MAX)
    own = _to_tensor(content, int(longest))
    pieces = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, own)
    return list(map(_from_tensor, pieces))


def broadcast_object(value: Any = None) -> Any:
    """Rank 0's value, on every rank; small, and JSON."""
    if _is_alone():
        return value
    import torch
    import torch.distributed as dist

    content = json.dumps(value).encode() if dist.get_rank() == 0 else b""
    length = torch.tensor(len(content), device=_device())
    dist.broadcast(length, src=0)
    tensor = _to_tensor(content, int(length))
    dist.broadcast(tensor, src=0)
    return _from_tensor(tensor)


def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Write rank 0's elements into each rank's tensors, which are contiguous and lie where the
    group's collectives take them. Of any dtype: bytes are sent.
    """
    if _is_alone():
        return
    import torch
    import torch.distributed as dist

    for tensor in tensors:
        dist.broadcast(tensor.detach().view(-1).view(torch.uint8), src=0)


def _to_tensor(content: bytes, length: int) -> torch.Tensor:
    """uint8 [length], filled up with spaces, which JSON ignores."""
    import torch

    padded = bytearray(content.ljust(length))
    return torch.frombuffer(padded, dtype=torch.uint8).to(_device())


def _from_tensor(tensor: torch.Tensor) -> Any:
    return json.loads(tensor.cpu().numpy().tobytes())


def gather_errors(error: LmscaleError | None) -> list[LmscaleError | None]:
    """Every rank's error or None, in the order of the ranks, on every rank."""
    return [error_from_json(row) for row in gather_json(error_to_json(error))]


def error_to_json(error: LmscaleError | None) -> dict[str, Any] | None:
    """An error as JSON data, to send it to other ranks."""
    if error is None:
        return None
    # A subclass that only one module knows travels as its nearest known parent.
    name = next(c.__name__ for c in type(error).__mro__ if c.__name__ in _ERROR_CLASSES)
    row = {"class": name, "problems": list(error.problems)}
    if isinstance(error, CorruptionError):
        row |= {"summary": error.summary, "bad_nodes": error.bad_nodes}
    return row


def error_from_json(row: dict[str, Any] | None) -> LmscaleError | None:
    if row is None:
        return None
    more = {key: value for key, value in row.items() if key not in ("class", "problems")}
    return _ERROR_CLASSES[row["class"]](row["problems"], **more)


def fail_together(error: LmscaleError | None) -> None:
    """Raise ``combine_errors``' result on every rank if any rank has an error, else return."""
    if _is_alone() and error is not None:
        raise error
    combined = combine_errors(gather_errors(error))
    if combined is not None:
        raise combined from error


def combine_errors(gathered: Sequence[LmscaleError | None]) -> LmscaleError | None:
    """A single error for the errors of all ranks (list index = rank), or None.

    Equal problems are named once, with the ranks that met them. The class is the first rank's
    error that no other start would mend, if any. Beyond ``MAX_ERRORS`` different errors only the
    ranks are named.
    """
    met = [error for error in gathered if error is not None]
    if not met:
        return None
    # Those that no other start would mend come first; sorting keeps the order of the ranks.
    lasting_first = sorted(met, key=lambda error: isinstance(error, TransientError))
    named_problems = list(dict.fromkeys(error.problems for error in lasting_first))[:MAX_ERRORS]
    ranks_of: dict[str, list[int]] = {}
    unnamed_ranks: list[int] = []
    for rank, error in enumerate(gathered):
        if error is None:
            continue
        if error.problems not in named_problems:
            unnamed_ranks.append(rank)
            continue
        for problem in error.problems:
            ranks_of.setdefault(problem, []).append(rank)
    problems = [
        problem if len(ranks) == len(gathered) else f"{problem} ({name_ranks(ranks)})"
        for problem, ranks in ranks_of.items()
    ]
    if unnamed_ranks:
        problems.append(f"There are other errors on {name_ranks(unnamed_ranks)}.")
    first = lasting_first[0]
    if not isinstance(first, CorruptionError):
        return type(first)(problems)
    corrupt = [error for error in met if isinstance(error, CorruptionError)]
    # Where more than half of the ranks find fault with themselves, it is hardly their nodes.
    named = [error.bad_nodes for error in corrupt if 2 * len(met) <= len(gathered)]
    return CorruptionError(
        problems,
        summary=", ".join(dict.fromkeys(error.summary for error in corrupt[:MAX_SUMMARIES])),
        bad_nodes={node: why for nodes in named for node, why in nodes.items()},
    )


@contextmanager
def failing_together() -> Iterator[None]:
    """A block whose ``LmscaleError`` on any rank is raised on every rank.

    The block must hold no collective: the other ranks would wait in it for the rank that failed.
    """
    error: LmscaleError | None = None
    try:
        yield
    except LmscaleError as caught:
        error = caught
    fail_together(error)
