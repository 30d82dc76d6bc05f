"""Small models for the tests of this folder."""

from __future__ import annotations

import pytest
import torch

from lmscale.config.model import ModelConfig
from lmscale.model import Decoder, build_model, init_weights


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_model():
    """Build a small initialised model in eval mode; keyword arguments are ModelConfig's."""

    def make(
        *, vocab_size: int = 61, max_positions: int = 32, dtype=torch.float32, **switches
    ) -> Decoder:
        config = ModelConfig(**{"layers": 2, "width": 32, "heads": 4, "init_std": 0.3} | switches)
        model = build_model(config, vocab_size=vocab_size, max_positions=max_positions)
        init_weights(model, seed=1)
        return model.to(dtype).eval()

    return make
