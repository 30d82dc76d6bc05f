"""Small models for the tests of this folder."""

from __future__ import annotations

import pytest
import torch

from lmscale.config.model import DecoderConfig, Sizes
from lmscale.model.decoder import Decoder
from lmscale.train.initial import draw_weights, fill_weights


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def make_model():
    """Build a small initialised model in eval mode; keyword arguments are DecoderConfig's."""

    def make(
        *, vocab_size: int = 61, max_positions: int = 32, dtype=torch.float32, **switches
    ) -> Decoder:
        config = DecoderConfig(**{"layers": 2, "width": 32, "heads": 4, "init_std": 0.3} | switches)
        length = max_positions
        sizes = Sizes(vocab_size=vocab_size, max_positions=length, sequence_length=length)
        model = Decoder(config, sizes)
        fill_weights(model, draw_weights(1))
        return model.to(dtype).eval()

    return make
