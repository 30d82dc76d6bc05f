import torch

from lmscale.ranks.seeding import derive_seed, seed_step


def test_a_seed_is_the_same_on_every_run_and_platform():
    assert derive_seed("weights", 1, "blocks.0") == derive_seed("weights", 1, "blocks.0")
    assert derive_seed(1) == 4969683784270905964  # recorded


def test_parts_are_told_apart():
    parts = [("a", "b"), ("ab",), (1,), ("1",), (1, 2), (12,), ()]
    assert len({derive_seed(*some) for some in parts}) == len(parts)


def test_a_seed_has_63_bits():
    seeds = [derive_seed(n) for n in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds).bit_length() == 63


def test_a_step_of_a_rank_draws_the_same_whatever_came_before():
    seed_step(1, 7, 0)
    first = torch.rand(3)
    torch.rand(100)
    seed_step(1, 7, 0)
    assert torch.equal(torch.rand(3), first)
    seed_step(1, 7, 1)
    assert not torch.equal(torch.rand(3), first)
