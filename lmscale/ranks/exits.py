"""How a process ends: at once, with its exit code left for the batch script, or after a peer."""

from __future__ import annotations

import os
from typing import NoReturn

from lmscale.ranks.exit_file import record_exit, say_now

# What gloo and NCCL say of a peer that has ended; gloo raises a bare RuntimeError.
_PEER_GONE = (
    *("Connection closed by peer", "Connection reset by peer", "Connection refused"),
    *("Broken pipe", "Socket closed", "Socket Timeout", "Timed out waiting", "recvValue failed"),
    *("DistNetworkError", "DistBackendError"),
)


def says_peer_gone(text: str) -> bool:
    """Whether an error, or a rank's last words, say that another rank went first."""
    return any(words in text for words in _PEER_GONE)


def leave(code: int, words: str) -> NoReturn:
    """End this process now, from any thread, even if other threads hang."""
    say_now(words)
    record_exit(code)
    os._exit(code)
