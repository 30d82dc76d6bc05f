"""A hash of tensors' bits that can be added up over fragments, ranks and chunks.

An element counts as ``(its bits + a constant) × an odd weight`` modulo 2^63, and the weight hangs
on the parameter's name and on the element's place in the whole parameter. So the sum over any
disjoint fragments is that of the whole, whatever stage and world size cut them; one changed bit
always changes it (an odd weight times a power of two below 2^63 is not 0); and two values that
changed places change it with all but certainty. It finds accidents. It is no seal against somebody
who wants to deceive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

BITS = 63
_MASK = 2**BITS - 1
_CHUNK = 2**16  # elements that share one key; all weights of a chunk are 0.5 MB, and stay in cache
_CONSTANT = 0x1E3779B97F4A7C15  # so that a zero that is missing is missed
# How many elements are widened to int64 at once: on a CPU what its cache holds, on a GPU what is
# worth a kernel's launch.
_BLOCK = {"cpu": 2**16, "cuda": 2**24}


@torch.no_grad()
def fingerprint(tensor: Tensor, *, name: str, offset: int = 0) -> int:
    """The hash, below 2^63, of elements [offset, offset + numel) of the flattened ``name``.

    Any dtype, any device, temporaries of a bounded size. Values are compared by their bits: 0.0
    and -0.0 differ, and so do equal numbers of two dtypes.
    """
    words = _words(tensor)
    start = offset * (words.numel() // max(1, tensor.numel()))
    weights, sums = _weights(str(tensor.device))
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    num_added = 0
    while num_added < words.numel():
        first = (start + num_added) % _CHUNK
        whole = 0 if first else (words.numel() - num_added) // _CHUNK
        if whole:  # as many whole chunks as fit, in one go
            rows = min(whole, max(1, _BLOCK.get(tensor.device.type, _CHUNK) // _CHUNK))
            block = words[num_added : num_added + rows * _CHUNK].view(rows, _CHUNK)
            part = (block.to(torch.int64) * weights).sum(dim=1) + sums[_CHUNK]
            count = rows * _CHUNK
        else:
            count = min(words.numel() - num_added, _CHUNK - first)
            block = words[num_added : num_added + count].to(torch.int64)
            part = (block * weights[first : first + count]).sum(dim=0, keepdim=True)
            part += sums[first + count] - sums[first]
        total += (part * _keys(seed, (start + num_added) // _CHUNK, len(part), tensor.device)).sum()
        num_added += count
    return int(total) & _MASK


def add_fingerprints(values: Iterable[int]) -> int:
    """The fingerprint of disjoint fragments, or of several parameters, together."""
    return sum(values) & _MASK


def _words(tensor: Tensor) -> Tensor:
    """The elements' bits as whole numbers, 1-D; an element of 8 bytes is two."""
    flat = tensor.detach().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    if flat.dtype == torch.bool:
        return flat.view(torch.uint8)
    of_size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int32}
    return flat.view(of_size[flat.element_size()])


@lru_cache
def _weights(device: str) -> tuple[Tensor, Tensor]:
    """An odd number for each place in a chunk, and ``_CONSTANT`` × the sum of all before it.

    The low 17 bits of the weights are all different. So in one chunk the difference of two weights
    has at most 16 factors of two, and that of two words at most 31: a swap always shows.
    """
    place = torch.arange(_CHUNK, dtype=torch.int64)
    weights = (_mixed(place) << 17) | (2 * place + 1)
    sums = torch.cat([torch.zeros(1, dtype=torch.int64), weights.cumsum(0)]) * _CONSTANT
    return weights.to(device), sums.to(device)


def _keys(seed: int, first: int, count: int, device: torch.device) -> Tensor:
    """An odd number for each of ``count`` chunks of the parameter that ``seed`` stands for."""
    signed = seed if seed < 2**63 else seed - 2**64
    chunks = torch.arange(first, first + count, dtype=torch.int64, device=device)
    return _mixed(_mixed(chunks) ^ signed) | 1


def _mixed(words: Tensor) -> Tensor:
    """splitmix64's mixing of 64-bit words (Steele, Lea and Flood 2014); int64 wraps around."""
    words = words + (0x9E3779B97F4A7C15 - 2**64)
    words = (words ^ _shifted(words, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    words = (words ^ _shifted(words, 27)) * (0x94D049BB133111EB - 2**64)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's keeps the sign."""
    return (words >> bits) & (2 ** (64 - bits) - 1)
