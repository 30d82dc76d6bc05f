"""The hash of tensors' bits: it may be added up over any cutting, and misses no change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.ranks.fingerprint import _CHUNK, add_fingerprints, fingerprint

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
EXPECTED = 7989472257331236324
LENGTHS = (1, 7, _CHUNK - 1, _CHUNK, _CHUNK + 1, 5 * _CHUNK + 321)


def draw(dtype: torch.dtype, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(length, generator=generator, dtype=torch.float64).to(dtype)
    words = torch.randint(-(2**62), 2**62, (length,), generator=generator)
    return words > 0 if dtype == torch.bool else words.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", LENGTHS)
@settings(max_examples=5, deadline=None)
@given(st.data())
def test_the_sum_over_any_cutting_is_that_of_the_whole(dtype, length, data):
    whole = draw(dtype, length)
    cuts = data.draw(st.lists(st.integers(0, length), max_size=6))
    edges = [0, *sorted(cuts), length]
    pieces = [
        fingerprint(whole[start:end], name="w", offset=start)
        for start, end in zip(edges, edges[1:], strict=False)
    ]
    assert add_fingerprints(pieces) == fingerprint(whole, name="w")


@given(
    st.integers(0, 3 * _CHUNK - 1),
    st.integers(0, 31),
    st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.int64]),
)
@settings(max_examples=60, deadline=None)
def test_one_flipped_bit_anywhere_changes_it(place, bit, dtype):
    tensor = draw(dtype, 3 * _CHUNK)
    before = fingerprint(tensor, name="w")
    size = tensor.element_size()
    bytes_of_it = tensor.view(torch.uint8)
    bytes_of_it[place * size + bit // 8 % size] ^= 1 << (bit % 8)
    assert fingerprint(tensor, name="w") != before


@pytest.mark.parametrize("byte", range(8))
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
def test_every_bit_of_eight_byte_elements_counts(dtype, byte):
    for bit in range(8):
        tensor = draw(dtype, 9)
        before = fingerprint(tensor, name="w")
        tensor.view(torch.uint8)[8 * 4 + byte] ^= 1 << bit
        assert fingerprint(tensor, name="w") != before


@given(st.integers(0, 2 * _CHUNK - 1), st.integers(0, 2 * _CHUNK - 1))
@settings(max_examples=60, deadline=None)
def test_two_values_that_changed_places_change_it(one, other):
    tensor = draw(torch.float32, 2 * _CHUNK)
    before = fingerprint(tensor, name="w")
    swapped = tensor.clone()
    swapped[one], swapped[other] = tensor[other], tensor[one]
    same = bool(torch.equal(swapped, tensor))
    assert (fingerprint(swapped, name="w") == before) == same


def test_the_name_the_place_and_the_number_of_zeros_count():
    zeros = torch.zeros(10)
    found = {
        fingerprint(zeros, name="w"),
        fingerprint(zeros, name="v"),
        fingerprint(zeros[1:], name="w"),
        fingerprint(zeros[1:], name="w", offset=1),
        fingerprint(-zeros, name="w"),
        fingerprint(zeros[:0], name="w"),
    }
    assert len(found) == 6
    assert fingerprint(zeros[:0], name="w") == 0


def test_it_goes_by_the_elements_not_by_how_they_lie_in_memory():
    square = draw(torch.float32, 400 * 300).view(400, 300)
    assert fingerprint(square.t(), name="w") == fingerprint(square.t().contiguous(), name="w")
    assert fingerprint(square, name="w") == fingerprint(square.reshape(-1), name="w")
    assert fingerprint(square.t(), name="w") != fingerprint(square, name="w")


def test_it_never_changes_between_versions():
    # Checkpoints carry it: a change of this number needs a new version of the manifest.
    assert fingerprint(torch.arange(100_000), name="blocks.0.weight", offset=3) == EXPECTED


def test_it_fits_63_bits_and_sums_stay_there():
    values = [fingerprint(draw(torch.float32, 1000, seed), name=f"p{seed}") for seed in range(50)]
    assert all(0 <= value < 2**63 for value in values)
    assert 0 <= add_fingerprints(values) < 2**63
    assert len(set(values)) == 50
