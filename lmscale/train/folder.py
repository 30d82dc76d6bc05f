"""The run folder is claimed before anything is written to it, and keeps what ran."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig, dump_config, load_config
from lmscale.config.run import with_absolute_places
from lmscale.engine.schedule import rate_at
from lmscale.errors import ConfigError, LeaseLostError, LmscaleError
from lmscale.files.atomic import write_bytes, writing
from lmscale.files.locks import locked_file
from lmscale.files.run_files import CONFIG_FILE
from lmscale.ranks.attempt import Attempt, attempt_from_environment, node_name
from lmscale.ranks.collectives import failing_together, gather_json
from lmscale.ranks.ranks import Ranks
from lmscale.runs.beginnings import check_start
from lmscale.runs.continuation import describe_changes
from lmscale.runs.environment import (
    collect_code,
    find_changes,
    find_other_code,
    save_provenance,
)
from lmscale.runs.lease import Claim, Lease, is_beating, judge_claim, read_lease
from lmscale.runs.leftovers import LOCK_FILE
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.codec import KEPT_FOLDER, save_tokenizer
from lmscale.tokenizer.kept_template import save_template

logger = logging.getLogger(__name__)

LOCK_SECONDS = 10.0  # a rank that was just killed may take a moment to be gone
# An NFS server keeps the lock of a node that died until that node's own lease with it runs out.
DEAD_NODE_SECONDS = 100.0
# For an older copy of this run, which polls the lease, to end its step and let go.
TAKE_OVER_SECONDS = 30.0


@contextmanager
def claim_folder(config: RunConfig, ranks: Ranks) -> Iterator[Lease]:
    """Hold the run's folder for the time of the block. All ranks together; yields the rank's lease.

    Raises on all ranks, before anything of the run is written: ``ConfigError`` when the folder is
    another run's or another process trains in it, ``LeaseLostError`` when a newer start of the same
    submission holds it. An older start is made to let go.
    """
    with failing_together():
        lease = Lease(attempt_from_environment())
    hosts = sorted(set(gather_json(node_name())))
    with ExitStack() as stack:
        with failing_together():
            if ranks.is_first:
                check_start(config)
                with writing("the run folder", config.folder):
                    lease = _claim(config.folder, lease.attempt, hosts, stack)
        yield lease


def _claim(folder: Path, attempt: Attempt, hosts: Sequence[str], stack: ExitStack) -> Lease:
    folder.mkdir(parents=True, exist_ok=True)
    record = read_lease(folder)
    is_locked = False
    if judge_claim(record, attempt) in (Claim.ASK, Claim.FREE):
        seconds = LOCK_SECONDS if attempt.job is None else DEAD_NODE_SECONDS
        is_locked = _lock(folder, stack, seconds)
        record = read_lease(folder)  # who has come meanwhile
    claim = judge_claim(record, attempt)
    if claim is Claim.REFUSE and record is not None:
        raise LeaseLostError(
            f"{folder} is held by attempt {record.attempt} (rank 0: {record.rank0}) of the same "
            f"submission, which is newer than this one, {attempt.name}: this one ends."
        )
    lease = Lease(attempt, folder)
    if claim is Claim.TAKE_OVER:
        lease.take(hosts)  # before the lock: it is what makes the older one let go
        if not is_locked and not _lock(folder, stack, TAKE_OVER_SECONDS):
            logger.warning(
                "%s: the older copy of this run has not let go for %.0f s. Going on: it can commit "
                "nothing any more.",
                folder,
                TAKE_OVER_SECONDS,
            )
    else:
        # Locks of another machine are not seen on every file system, and an NFS server may keep
        # that of a dead one for ever; whether a lease moves is seen everywhere.
        is_elsewhere = record is not None and record.rank0.rpartition(":")[0] != node_name()
        is_asked = claim is Claim.ASK and is_elsewhere
        if is_beating(folder) if is_asked else not is_locked:
            who = f" (attempt {record.attempt}, rank 0: {record.rank0})" if record else ""
            raise ConfigError(
                f"{folder}: another `lmscale train` is running in this folder{who}. Wait until it "
                "ends, stop it (touch the file `stop` in the folder), or set run.folder to another "
                "place."
            )
        if not is_locked and record is not None:
            logger.warning(
                "%s: the lock of attempt %s (rank 0: %s) is still there, and that attempt gives no "
                "sign of life. Going on: it can commit nothing any more.",
                folder,
                record.attempt,
                record.rank0,
            )
        lease.take(hosts)
    stack.enter_context(lease.watched())
    lease.check()
    return lease


def _lock(folder: Path, stack: ExitStack, seconds: float) -> bool:
    """Two trainings in one folder would undo each other's checkpoints. A kill frees the lock.

    Where the file system has no locks, the lease has to do.
    """
    try:
        if not stack.enter_context(locked_file(folder / LOCK_FILE, seconds)):
            logger.warning("%s: the file system has no locks", folder)
    except BlockingIOError:
        return False
    return True


def log_changes(config: RunConfig, first_step: int) -> None:
    """Tell what the run did with other settings up to here, if that changes the training."""
    try:
        before = load_config(config.folder / CONFIG_FILE)
    except LmscaleError as error:
        logger.warning("what has changed since the last start is not known: %s", error)
        return
    changes = describe_changes(before, config)
    for change in changes:
        logger.warning("from step %d on, changed: %s", first_step + 1, change)
    now, then = (f"{rate_at(first_step + 1, each):.4g}" for each in (config, before))
    if changes and now != then:
        logger.warning(
            "the learning rate of step %d is %s; with what was set before, it would be %s",
            *(first_step + 1, now, then),
        )


def log_other_environment(folder: Path, code: Mapping[str, Any]) -> None:
    """Tell what is installed now that was not at the run's last start, or in another version, and
    whether lmscale's own code is another one than ``code``.
    """
    if other := find_other_code(folder, code):
        logger.warning("the code is not that of the last start: %s", other)
    changes = find_changes(folder)
    if changes.deciding:
        logger.warning(
            "installed otherwise than at the last start, which may change figures: %s",
            ", ".join(changes.deciding),
        )
    if changes.others:
        logger.info("installed otherwise as well: %s", ", ".join(changes.others))


def freeze_run(config: RunConfig, tokenizer: Tokenizer, chat_template: str = "") -> None:
    """Write what runs: config.yaml, code.json, environment.json, tokenizer/.

    Rank 0 only, and only once nothing can refuse to start any more: until then the folder tells of
    the attempt before.
    """
    folder = config.folder
    with writing("the run folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
        code = collect_code()  # it asks git, which takes long on a slow file system
        log_other_environment(folder, code)
        write_bytes(folder / CONFIG_FILE, dump_config(with_absolute_places(config)).encode())
        save_provenance(folder, config, code)
        save_tokenizer(tokenizer, folder / KEPT_FOLDER)
        save_template(chat_template, folder / KEPT_FOLDER)
