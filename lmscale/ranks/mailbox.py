"""Small messages between rank 0 and the others, beside the training group's collectives.

The threads that write checkpoints talk while the main threads train. Collectives would have to
keep one order with the step's on every rank, so the threads leave notes in the key-value store at
which the ranks have met. docs/decisions/0019-asynchronous-saves.md.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lmscale.errors import TransientError
from lmscale.ranks.collectives import broadcast_object, failing_together
from lmscale.ranks.ranks import MEETING_TIMEOUT, Ranks

_PREFIX = "lmscale/saves"
_FIRST_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.002, 0.25
_CALL_TIMEOUT = timedelta(seconds=60)  # of the store's own answer
# torch 2.13's TCPStore closes the connection, for good, over a value of more than 8 MiB.
PIECE_BYTES = 1 << 20


class Mailbox:
    """Notes under names, each written once. Made by ``open_mailbox``; for one thread at a time.

    In the store a note is "<number of pieces more>:<first piece>", the others are beside it.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def post(self, name: str, value: Any) -> None:
        """Leave a note: a JSON value of any size."""
        text = json.dumps(value)  # in ASCII: a character is a byte
        first, *others = (text[at : at + PIECE_BYTES] for at in range(0, len(text), PIECE_BYTES))
        with _telling_what_broke():
            for piece, key in zip(others, _keys(name, len(others)), strict=True):
                self._store.set(key, piece)
            self._store.set(name, f"{len(others)}:{first}")  # last: a note that is there is whole

    def read(self, name: str, *, given_up: threading.Event) -> Any:
        """The note, as soon as it is posted; None once ``given_up`` is set.

        Looks again and again: torch 2.13 writes two lines to stderr for every ``wait`` of a store
        that runs into its time limit.
        """
        pause = _FIRST_LOOK_SECONDS
        with _telling_what_broke():
            while not self._store.check([name]):
                if given_up.wait(pause):
                    return None
                pause = min(_LONGEST_LOOK_SECONDS, 1.5 * pause)
            more, _, first = self._store.get(name).partition(b":")
            pieces = [first, *map(self._store.get, _keys(name, int(more)))]
        return json.loads(b"".join(pieces))

    def remove(self, name: str) -> None:
        """Remove a note after every reader has read it; only its poster or a reader may do so."""
        with _telling_what_broke():
            more, _, _ = self._store.get(name).partition(b":")
            for key in (name, *_keys(name, int(more))):
                self._store.delete_key(key)


def _keys(name: str, more: int) -> list[str]:
    """The keys of a note's pieces after the first."""
    return [f"{name}/piece {number}" for number in range(1, more + 1)]


def open_mailbox(ranks: Ranks) -> Mailbox:
    """Open this rank's mailbox, over a connection of its own. All ranks together, in their group.

    The connection ends with the last reference to the mailbox. Rank 0 may host the store, so rank 0
    closes its group last.
    """
    import torch.distributed as dist

    # Another word every time: the store may be that of torchrun's agent, which outlives the ranks,
    # and a process may open several mailboxes.
    word = broadcast_object(secrets.token_hex(4) if ranks.is_first else None)
    if ranks.world_size == 1:
        return Mailbox(dist.HashStore())  # pyright: ignore - not in __all__
    with failing_together(), _telling_what_broke():
        # As a client, on rank 0 as well. It makes no difference whether the server is rank 0's,
        # from torch's rendezvous, or the agent's (TORCHELASTIC_USE_AGENT_STORE): both listen here.
        store = dist.TCPStore(  # pyright: ignore - not in __all__
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=min(MEETING_TIMEOUT, _CALL_TIMEOUT),
            wait_for_workers=False,
        )
        return Mailbox(dist.PrefixStore(f"{_PREFIX}/{word}", store))  # pyright: ignore
    raise AssertionError("failing_together raises what was raised in it")


@contextmanager
def _telling_what_broke() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # DistNetworkError, DistStoreError and others are all of it
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise TransientError(
            f"The ranks' key-value store at {where} does not answer: {str(error).splitlines()[0]} "
            "Rank 0, or torchrun's agent, which hosts it, may be gone: see its log."
        ) from error
