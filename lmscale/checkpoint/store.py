"""Checkpoints on disk: written by all ranks, committed last, verified before use, kept by rule."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lmscale.checkpoint.fragments import Fragment, owned_fragments, parameter_shapes
from lmscale.checkpoint.layout import (
    MANIFEST,
    MASTER,
    FileEntry,
    Manifest,
    find_gaps,
    fragment_file,
    list_steps,
    parse_manifest,
    plan_retention,
    step_folder,
    tensor_name,
)
from lmscale.checkpoint.optimizer_state import read_loss_scale, read_optimizer
from lmscale.engine.engine import Engine
from lmscale.engine.optimizer import ELEMENT_STATES
from lmscale.errors import CheckpointError, TransientError
from lmscale.runtime import heartbeat
from lmscale.runtime.atomic import (
    fsync_file,
    fsync_folder,
    may_pass,
    sha256_file,
    write_json,
    write_json_once,
    writing,
)
from lmscale.runtime.collectives import (
    barrier,
    broadcast_object,
    failing_together,
    gather_json,
    sum_float64,
)
from lmscale.runtime.lease import NO_LEASE, Lease
from lmscale.runtime.ranks import Ranks

logger = logging.getLogger(__name__)
_DISCARDED = ".discarded-"


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What one save cost."""

    folder: Path
    seconds: float
    bytes: int  # of all ranks
    is_finite: bool


def save_checkpoint(
    root: Path,
    engine: Engine,
    *,
    step: int,
    state: Mapping[str, Any],
    identity: Mapping[str, Any],
    ranks: Ranks,
    lease: Lease = NO_LEASE,
) -> Saved:
    """Write a checkpoint of ``step`` and commit it. All ranks call this together.

    Every rank writes and fsyncs its own file; then rank 0, which has heard of every file's size
    and hash, writes the manifest. A kill at any moment leaves the earlier checkpoints as they
    were. Raises ``CheckpointError`` on all ranks when any of them runs out of space, and
    ``LeaseLostError`` when a newer copy of the run is there: then nothing is committed.
    """
    started = time.monotonic()
    folder = step_folder(root, step)
    with _writing_while_held(root, lease):
        if ranks.rank == 0:
            # What an interrupted save of the same step left; other ranks may have been more in
            # number.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        heartbeat.tick()
    entry: FileEntry | None = None
    is_finite = True
    with _writing_while_held(root, lease):
        path = folder / fragment_file(ranks.rank, lease.attempt.name)
        entry, is_finite = _write_fragments(path, engine)
    entries = gather_json(None if entry is None else vars(entry))
    nonfinite_ranks = sum_float64([float(not is_finite)])[0]
    manifest = Manifest(
        step=step,
        parameters=parameter_shapes(engine),
        kinds=(MASTER, *ELEMENT_STATES),
        optimizer=read_optimizer(engine),
        loss_scale=read_loss_scale(engine),
        state=dict(state),
        identity=dict(identity),
        written_by=_describe_writer(engine),
        is_finite=nonfinite_ranks == 0,
        files=tuple(FileEntry(**row) for row in entries),
    )
    with _writing_while_held(root, lease):
        if ranks.rank == 0:
            gaps = find_gaps(manifest)
            if gaps:
                raise AssertionError(f"the ranks' fragments do not cover the model: {gaps[:3]}")
            _commit(folder / MANIFEST, manifest.to_json(), lease)
            fsync_folder(root)
        heartbeat.tick()
    total = sum(row["bytes"] for row in entries)
    return Saved(
        folder=folder,
        seconds=time.monotonic() - started,
        bytes=total,
        is_finite=manifest.is_finite,
    )


@contextmanager
def _writing_while_held(root: Path, lease: Lease) -> Iterator[None]:
    """A part of a save, on all ranks; that the run is another copy's is told before anything else.

    Such as that files have vanished, which the other copy has cleared away.
    """
    with failing_together(), writing("a checkpoint", root, CheckpointError):
        lease.check()
        try:
            yield
        finally:
            lease.check()


def _commit(path: Path, manifest: dict[str, Any], lease: Lease) -> None:
    """Write the manifest, unless the run is another copy's at the last moment.

    And after it: a write that a broken network holds up for minutes finds either that the folder is
    gone (``discard_uncommitted``), or the other copy's manifest, which it does not replace.
    """
    lease.check()
    if write_json_once(path, manifest) != manifest:
        lease.check()
        write_json(path, manifest)


def _write_fragments(path: Path, engine: Engine) -> tuple[FileEntry, bool]:
    fragments: list[tuple[str, int, int]] = []
    tensors: dict[str, torch.Tensor] = {}
    is_finite = True
    for fragment in owned_fragments(engine):
        fragments.append((fragment.parameter, fragment.offset, fragment.elements))
        is_finite = is_finite and all(torch.isfinite(v).all() for v in fragment.tensors.values())
        tensors.update(_host_copies(fragment))
    heartbeat.tick()  # as often on every rank, or who is behind would be misread
    _save_safetensors(tensors, path)
    heartbeat.tick()
    fsync_file(path)
    heartbeat.tick()
    entry = FileEntry(
        name=path.name,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        fragments=tuple(fragments),
    )
    heartbeat.tick()
    return entry, is_finite


def _save_safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors import SafetensorError

    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        # safetensors 0.8 wraps the system's error into its own text: "I/O error: ... (os error
        # 28)".
        # ENOSPC, EFBIG, EDQUOT, EACCES, EROFS, ENOENT, EIO, ESTALE
        for number in (28, 27, 122, 13, 30, 2, 5, 116):
            if f"(os error {number})" in str(error):
                raise OSError(number, str(error)) from error
        raise


def _host_copies(fragment: Fragment) -> dict[str, torch.Tensor]:
    return {
        # clone: the views share one flat buffer, which safetensors refuses to write twice
        tensor_name(fragment.parameter, kind, fragment.offset): view.detach().cpu().clone()
        for kind, view in fragment.tensors.items()
    }


def _describe_writer(engine: Engine) -> dict[str, Any]:
    return {
        "world_size": engine.plan.world_size,
        "zero_stage": engine.config.zero_stage,
        "precision": engine.config.precision,
        "torch": torch.__version__,
        "time": time.time(),
    }


def load_manifest(root: Path, step: int) -> Manifest:
    """The manifest of one step. Raises ``CheckpointError`` when it is not there or not readable."""
    path = step_folder(root, step) / MANIFEST
    try:
        return parse_manifest(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        known = ", ".join(map(str, list_steps(root))) or "none"
        raise CheckpointError(
            f"{root} has no checkpoint of step {step}. There are: {known}."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        # Not passed over for an older one: this one may be whole.
        kind = TransientError if may_pass(error) else CheckpointError
        raise kind(f"{path} cannot be read: {error}.") from None


def find_damage(folder: Path, files: tuple[FileEntry, ...]) -> list[str]:
    """What is wrong with these files: missing, of another size, of another hash."""
    problems = []
    for entry in files:
        path = folder / entry.name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif path.stat().st_size != entry.bytes:
            problems.append(f"{path} has {path.stat().st_size} bytes instead of {entry.bytes}")
        elif sha256_file(path) != entry.sha256:
            problems.append(f"{path} does not have the hash that its manifest gives")
    return problems


def find_resumable(root: Path, ranks: Ranks) -> Manifest | None:
    """The newest checkpoint that verifies and is finite, or None where none was ever committed.

    All ranks call this together, share the hashing, and get the same one: rank 0 says which there
    are, and one whose manifest a rank reads differently (a stale directory cache) is not taken.
    Those passed over are named in the log; when none is left this raises ``CheckpointError``
    rather than start from scratch.
    """
    barrier()  # nobody looks while somebody still writes
    steps: list[int] = broadcast_object(list_steps(root) if ranks.is_first else None)
    rejected: list[str] = []
    for step in steps:
        manifest, problems = _inspect(root, step, ranks)
        heartbeat.tick()
        views = gather_json([None if manifest is None else manifest.hash, problems])
        found = sorted({problem for _, rows in views for problem in rows})
        if len({seen for seen, _ in views}) > 1 and not found:
            found.append(f"{step_folder(root, step)} does not look the same to all ranks")
        if manifest is not None and not found:
            return manifest
        for problem in found:
            logger.warning("checkpoint of step %d passed over: %s", step, problem)
        rejected += found
    if rejected:
        raise CheckpointError([*rejected, _none_left(root, len(steps))])
    return None


def find_sound(root: Path) -> Manifest | None:
    """The same for one process alone, such as an evaluation; it hashes everything itself."""
    rejected: list[str] = []
    steps = list_steps(root)
    for step in steps:
        manifest, problems = _inspect(root, step, Ranks())
        if manifest is not None and not problems:
            for problem in rejected:
                logger.warning("passed over: %s", problem)
            return manifest
        rejected += problems
    if rejected:
        raise CheckpointError([*rejected, _none_left(root, len(steps))])
    return None


def _inspect(root: Path, step: int, ranks: Ranks) -> tuple[Manifest | None, list[str]]:
    """A checkpoint's manifest, and what is wrong with it or with this rank's part of the files."""
    try:
        manifest = load_manifest(root, step)
    except CheckpointError as error:
        return None, list(error.problems)
    folder = step_folder(root, step)
    problems = find_damage(folder, manifest.files[ranks.rank :: ranks.world_size])
    if not manifest.is_finite:
        problems.append(f"{folder} holds weights that are not finite")
    return manifest, problems


def _none_left(root: Path, count: int) -> str:
    return (
        f"None of the {count} checkpoints in {root} can be used. Restore one, or move the folder "
        "away to start the run from the beginning."
    )


def discard_uncommitted(root: Path) -> None:
    """Clear away the saves that nobody has committed, so that nobody can any more.

    Rank 0 calls this at a start, alone, before it looks for a checkpoint. A save may still be under
    way there: an older copy of the run may have read that the lease was its own, just before it was
    not. It cannot write its manifest into a folder that has gone; and what it has committed before,
    this start will find.
    """
    with writing("checkpoints", root, CheckpointError):
        for aside in root.glob(f"{_DISCARDED}*"):  # of a start that was killed in here
            shutil.rmtree(aside, ignore_errors=True)
        for step in list_steps(root, committed=False):
            folder = step_folder(root, step)
            aside = folder.with_name(f"{_DISCARDED}{folder.name}")
            os.replace(folder, aside)
            if (aside / MANIFEST).exists():
                os.replace(aside, folder)
            shutil.rmtree(aside, ignore_errors=True)


def delete_old_checkpoints(
    root: Path, *, newest: int, keep_last: int, keep_every_steps: int
) -> None:
    """Apply the retention rule, and clear away what interrupted saves and deletions left.

    Rank 0 calls this alone, after it committed a good checkpoint of step ``newest``.
    """
    committed = list_steps(root)
    doomed = plan_retention(
        committed, newest=newest, keep_last=keep_last, keep_every_steps=keep_every_steps
    )
    for step in doomed:
        (step_folder(root, step) / MANIFEST).unlink(missing_ok=True)  # half a checkpoint is none
    for step in list_steps(root, committed=False):
        if step in doomed or step < newest:  # a later one may be a save under way
            shutil.rmtree(step_folder(root, step), ignore_errors=True)
            heartbeat.tick()
