"""Seeds as pure functions of what they are for, so that no random state has to be saved."""

from __future__ import annotations

import hashlib
import json


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) from the parts: the same on every platform, run and Python version.

    Different parts give unrelated seeds, and ``("a", "b")`` is not ``("ab",)``, nor 1 ``"1"``.
    """
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_step(seed: int, step: int, data_rank: int) -> None:
    """Seed torch on the CPU and the GPUs for what is random within one step: dropout."""
    import torch

    torch.manual_seed(derive_seed("step", seed, step, data_rank))
