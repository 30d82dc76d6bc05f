"""The errors a user can meet. Their message says what was found, where, and what to do.

The command line prints such an error without a traceback and exits with its ``exit_code``. Any
other exception is a bug in lmscale: it keeps its traceback and exits with 1. The code is also what
the batch script goes by: it starts a run again after 1, with a brake, and never after 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

EXIT_FINISHED = 0
EXIT_FAILED = 1  # a bug, a hang, or what may pass by itself: worth another start
EXIT_USER = 2  # the user's mistake: config, data, arguments, no room before the first step
# Ended early, and another start goes on from what was committed: on request, or because of what an
# error says (a full disk, a rank that went wrong). The batch script requeues; EX_TEMPFAIL.
EXIT_RESUMABLE = 75
EXIT_GUARD = 76  # stopped by the guard: the loss is not finite or has diverged


class LmscaleError(Exception):
    """One or more problems a person can act on, all reported at once."""

    exit_code = EXIT_USER
    summary = ""
    """In a few words, of a fault that ends a run with ``EXIT_RESUMABLE`` though nobody asked it to:
    the batch script names it, and counts it like a failure.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (
            (problems,) if isinstance(problems, str) else tuple(problems)
        )
        super().__init__("\n".join(self.problems))


class ConfigError(LmscaleError):
    """The YAML, an override, or a combination of settings cannot work."""


class DataError(LmscaleError):
    """A corpus, tokenizer, shard or manifest is missing, damaged, or not the one expected."""


class CheckpointError(LmscaleError):
    """A checkpoint is missing, damaged, or belongs to another model or run."""


class RefusedError(CheckpointError):
    """A checkpoint may not be looked at, which is no reason to take an older one."""


class ClusterError(LmscaleError):
    """A launcher, scheduler or node refused or failed."""


class TransientError(ClusterError):
    """A node, the network or a file system failed, and another start may succeed without a repair.

    So the exit code is 1. A full disk or a missing permission, by contrast, stays until repaired.
    """

    exit_code = EXIT_FAILED


class NoSpaceError(LmscaleError):
    """A run's disk is full, also after its old checkpoints went; what was committed is whole."""

    exit_code = EXIT_RESUMABLE
    summary = "disk full"


class CorruptionError(LmscaleError):
    """A rank's memory or arithmetic went wrong without a sign: its values differ from others'."""

    exit_code = EXIT_RESUMABLE

    def __init__(
        self,
        problems: str | Sequence[str],
        *,
        summary: str = "the ranks differ",
        bad_nodes: Mapping[str, str] | None = None,
    ) -> None:
        """``bad_nodes``: node → reason, of those that are certainly at fault."""
        super().__init__(problems)
        self.summary = summary
        self.bad_nodes = dict(bad_nodes or {})


class GuardError(LmscaleError):
    """Training was stopped because the loss is not finite or has diverged."""

    exit_code = EXIT_GUARD


class LeaseLostError(LmscaleError):
    """A newer start of the run has taken over: this process ends and writes nothing more."""

    exit_code = EXIT_RESUMABLE
