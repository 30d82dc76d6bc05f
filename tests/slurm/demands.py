"""What a machine may lack: a test is skipped with the reason, or fails where it may not lack."""

from __future__ import annotations

import os

import pytest

REQUIRED = "LMSCALE_REQUIRE_SLURM"
"""Set where the tests must run: continuous integration may not skip them in silence."""


def demand(reason: str | None) -> None:
    """Skip the test that asks, or fail it where ``REQUIRED`` is set, if there is a reason."""
    if reason is None:
        return
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but {reason}", pytrace=False)
    pytest.skip(reason)
