"""A 63-bit digest as 16-bit limbs, which a float64 all-reduce adds exactly."""

from __future__ import annotations

from collections.abc import Sequence

DIGEST_BITS = 63
LIMB_BITS = 16
NUM_LIMBS = 4


def digest_to_limbs(digest: int) -> list[float]:
    """Four 16-bit limbs, lowest first: their float64 sums are exact over 2^37 ranks."""
    mask = 2**LIMB_BITS - 1
    return [float(digest >> (LIMB_BITS * limb) & mask) for limb in range(NUM_LIMBS)]


def limbs_to_digest(limbs: Sequence[float]) -> int:
    """The digest of limbs that were summed over ranks."""
    total = sum(int(value) << (LIMB_BITS * limb) for limb, value in enumerate(limbs))
    return total % 2**DIGEST_BITS
