"""Reading a checkpoint back: into an engine of any stage and world size, or tensor by tensor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lmscale.checkpoint.differences import check_same_tensors
from lmscale.checkpoint.find import Undone, nothing_undone
from lmscale.checkpoint.find_weights import find_weights
from lmscale.checkpoint.fragments import (
    Fragment,
    check_optimizer,
    held_fragments,
    owned_fragments,
    parameter_shapes,
    refresh_parameters,
    replicated_tensors,
    weights_fingerprint,
    write_loss_scale,
    write_optimizer,
)
from lmscale.checkpoint.layout import plan_reads, tensor_name
from lmscale.checkpoint.manifest import (
    BUFFER,
    FACTOR,
    FROZEN,
    MASTER,
    FileEntry,
    Manifest,
    Untrained,
)
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.write_file import DTYPE_NAMES
from lmscale.config.training import AVERAGE, Weights
from lmscale.engine.engine import Engine
from lmscale.engine.schedule_free import Z, average_point
from lmscale.errors import CheckpointError, ClusterError, TransientError
from lmscale.ranks.collectives import failing_together, sum_float64
from lmscale.ranks.limbs import digest_to_limbs, limbs_to_digest
from lmscale.ranks.ranks import Ranks

logger = logging.getLogger(__name__)
PIECE_ELEMENTS = 2**24  # read at once
EXCHANGE_BYTES = 2**26  # between ranks at once; a multiple of 4
_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class FragmentReader:
    """Reads any run of elements of any parameter; opens each file that it needs once."""

    def __init__(self, place: Place, manifest: Manifest, stack: ExitStack) -> None:
        self._place = place
        self._step = manifest.step
        self._pieces = plan_reads(manifest.files)
        self._entries = {entry.name: entry for entry in manifest.files}
        self._stack = stack
        self._open: dict[str, Any] = {}

    def read_into(self, target: Tensor, parameter: str, kind: str, offset: int) -> None:
        """Fill ``target`` (1-D), in its dtype, with elements of a parameter from ``offset`` on."""
        end = offset + target.numel()
        filled = 0
        for start, count, file_name in self._pieces.get(parameter, ()):
            low, high = max(start, offset), min(start + count, end)
            if low >= high:
                continue
            stored = self._piece(file_name, tensor_name(parameter, kind, start), count)
            for first in range(low, high, PIECE_ELEMENTS):
                last = min(first + PIECE_ELEMENTS, high)
                target[first - offset : last - offset].copy_(stored[first - start : last - start])
            filled += high - low
        if filled != target.numel():
            raise CheckpointError(
                f"{self._place.name_of(self._step)}: {parameter} has only {filled} of the elements "
                f"{offset} to {end}."
            )

    def _piece(self, file_name: str, tensor: str, count: int) -> Any:
        """A tensor of a file; that its hash is right says nothing about what is in it."""
        try:
            stored = self._file(file_name).get_slice(tensor)
            shape = stored.get_shape()
        except SafetensorError as error:
            shape = str(error)
        if shape != [count]:
            raise CheckpointError(
                f"{self._place.name_of(self._step)}/{file_name}: {tensor} should have {count} "
                f"elements, as the manifest says; found: {shape}."
            )
        return stored

    def _file(self, name: str) -> Any:
        """Raises ``CheckpointError`` only where there is none: then an older one is tried."""
        if name not in self._open:
            entry: FileEntry = self._entries[name]
            where = f"{self._place.name_of(self._step)}/{name}"
            try:
                path = self._stack.enter_context(self._place.opened(self._step, entry))
                with open(path, "rb"):  # safetensors 0.8 calls a file that cannot be opened missing
                    handle = safe_open(str(path), framework="pt", device="cpu")
                self._open[name] = self._stack.enter_context(handle)  # pyright: ignore
            except FileNotFoundError as error:  # such as on another node's own disk
                raise CheckpointError(f"{where} is not to be found here.") from error
            except PermissionError as error:  # it may be whole, so no older one is taken
                raise ClusterError(
                    f"{where} cannot be read: {error}. See that this user may read it on every "
                    "node."
                ) from error
            except OSError as error:
                raise TransientError(f"{where} cannot be read: {error}.") from error
        return self._open[name]


def load_checkpoint(place: Place, manifest: Manifest, engine: Engine) -> None:
    """Put a verified checkpoint into the engine, whatever stage and world size wrote it.

    All ranks call this together, with a new engine or one that has trained: what it had accumulated
    is dropped. Each rank reads only the elements that it holds; of what all of them hold, a share,
    and gets the rest from the others. An average of the weights that the checkpoint lacks begins
    with the weights. Raises ``CheckpointError`` when the checkpoint is of another
    model or optimizer, or when the weights are not those that were saved.
    """
    where = place.name_of(manifest.step)
    check_optimizer(engine, manifest.optimizer, where)  # whose factors are replicated, too
    check_same_model(
        where, manifest, parameter_shapes(engine), replicated=replicated_tensors(engine)
    )
    engine.release_weights()
    shared: list[tuple[Tensor, int, int]] = []
    with failing_together(), ExitStack() as stack, torch.no_grad():
        reader = FragmentReader(place, manifest, stack)
        for fragment in held_fragments(engine):
            part = fragment
            if fragment.is_shared:
                start, end = fragment.share_of(engine.mesh.replicas)
                part = fragment.narrow(start, end)
                shared += [(view, start, end) for view in fragment.tensors.values()]
            _check_kinds(where, manifest, part, engine.kept_elements.keys())
            for kind, view in part.tensors.items():
                stored = MASTER if kind == AVERAGE and not manifest.has_average else kind
                reader.read_into(view, part.parameter, stored, part.offset)
    if AVERAGE in engine.kept_elements and not manifest.has_average:
        logger.info("%s holds no average of the weights: it begins with them", where)
    complete_from_ranks(shared)
    write_optimizer(engine, manifest.optimizer)
    write_loss_scale(engine, manifest.loss_scale)
    engine.discard_gradient()
    refresh_parameters(engine)
    own = weights_fingerprint(owned_fragments(engine))
    check_weights(where, manifest, limbs_to_digest(sum_float64(digest_to_limbs(own))))


def check_weights(where: str, manifest: Manifest, weights: int) -> None:
    """Raise ``CheckpointError`` when the masters' fingerprint is not that of the saved ones."""
    loaded_hash = f"{weights:016x}"
    if manifest.weights and loaded_hash != manifest.weights:
        raise CheckpointError(
            f"{where}: the weights that were loaded have the hash {loaded_hash}, but those that "
            f"were saved had {manifest.weights}, although every file is as it was written: the "
            "memory of a node that saved or loaded them is faulty, or this is a bug in lmscale. "
            "Go back to an earlier checkpoint."
        )


@torch.no_grad()
def complete_from_ranks(parts: Iterable[tuple[Tensor, int, int]]) -> None:
    """Fill in, from the ranks that have them, the elements of 1-D views outside of [start, end).

    All ranks call this together, with shares that make up the whole. The bits arrive unchanged:
    they are summed as whole numbers with zeros.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    for view, start, end in parts:
        size = view.element_size()
        content = view.view(torch.uint8)
        content[: start * size].zero_()
        content[end * size :].zero_()
        for piece in content.split(EXCHANGE_BYTES):
            words = torch.zeros(-(-len(piece) // 4), dtype=torch.int32, device=device)
            summed = words.view(torch.uint8)[: len(piece)]
            summed.copy_(piece)
            dist.all_reduce(words)
            piece.copy_(summed)


def check_same_model(
    where: str,
    manifest: Manifest,
    shapes: Mapping[str, Sequence[int]],
    *,
    replicated: Mapping[str, Untrained],
) -> None:
    """Raise ``CheckpointError`` naming the tensors by which two models differ.

    ``shapes`` are those of trained parameters, ``replicated`` the frozen ones and the buffers.
    """
    check_same_tensors(
        _describe(manifest.parameters, manifest.replicated),
        _describe(shapes, replicated),
        it="the checkpoint",
        where=where,
        advice="Give this run a folder of its own (run.folder), or restore the model section of "
        "its YAML.",
    )


def _describe(
    shapes: Mapping[str, Sequence[int]], replicated: Mapping[str, Untrained]
) -> dict[str, str]:
    # Not the dtypes of what is replicated: they follow the precision, which may change.
    described = {name: f"{tuple(shape)}" for name, shape in shapes.items()}
    return described | {
        name: f"a {'frozen parameter' if row.kind == FROZEN else row.kind} {tuple(row.shape)}"
        for name, row in replicated.items()
    }


def _check_kinds(
    where: str, manifest: Manifest, part: Fragment, kept_kinds: Collection[str]
) -> None:
    row = manifest.replicated.get(part.parameter)
    stored = manifest.states[part.parameter] if row is None else (row.kind,)
    missing = [kind for kind in part.tensors if kind not in (*stored, AVERAGE)]
    if missing:
        advice = "Restore the section engine.optimizer of its YAML."
        if any(kind in kept_kinds for kind in missing):
            advice = "Give this run, which keeps it, a folder of its own (run.folder)."
        raise CheckpointError(
            f"{where} has no {' and '.join(missing)} of {part.parameter}, only "
            f"{' and '.join(stored)}. {advice}"
        )


@contextmanager
def open_weights(
    place: Place, manifest: Manifest, weights: Weights = "trained"
) -> Iterator[Callable[[str], Tensor]]:
    """A function from a parameter's or buffer's name to the whole tensor, on the CPU.

    Trained parameters in fp32, as they were trained or their average; frozen ones and buffers in
    the dtype they were saved in. The files must have been verified.
    """
    with ExitStack() as stack:
        reader = FragmentReader(place, manifest, stack)

        def read(name: str) -> Tensor:
            row = manifest.replicated.get(name)
            if row is not None:
                return read_kind(name, row.kind, row.shape, _DTYPES[row.dtype])
            averaging = manifest.optimizer.averaging
            is_kept = weights == AVERAGE and averaging is None
            weight = read_kind(name, AVERAGE if is_kept else MASTER, manifest.parameters[name])
            if weights == AVERAGE and averaging is not None:
                weight = average_point(weight, read_kind(name, Z, weight.shape), averaging.beta)
            return weight

        def read_kind(
            name: str, kind: str, shape: Sequence[int], dtype: torch.dtype = torch.float32
        ) -> Tensor:
            flat = torch.empty(prod(shape), dtype=dtype)
            reader.read_into(flat, name, kind, 0)
            return flat.view(tuple(shape))

        yield read


def load_weights(
    place: Place,
    step: int | None = None,
    *,
    origin: str | None = None,
    undone: Undone = nothing_undone,
    identity: Mapping[str, Any] | None = None,
    weights: Weights = "trained",
) -> dict[str, Tensor]:
    """All of a model's weights as ``open_weights`` gives them: parameters, then buffers.

    ``step`` None takes the newest checkpoint that verifies and is finite. Needs neither ranks nor
    DeepSpeed's engine. Raises ``CheckpointError`` when there is none, its files are damaged, or it
    is not of ``identity``.
    """
    manifest = find_weights(
        place, step, ranks=Ranks(), origin=origin, undone=undone, identity=identity
    )
    return read_weights(place, manifest, weights)


def read_weights(
    place: Place, manifest: Manifest, weights: Weights = "trained"
) -> dict[str, Tensor]:
    """All the weights of a checkpoint that ``find_weights`` gave: parameters, then buffers."""
    kinds = {n: row.kind for n, row in manifest.replicated.items() if row.kind != FACTOR}
    others = sorted(kinds, key=lambda name: kinds[name] == BUFFER)
    with open_weights(place, manifest, weights) as read:
        return {name: read(name) for name in (*manifest.parameters, *others)}
