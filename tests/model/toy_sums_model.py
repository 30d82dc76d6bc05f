# Shape letters: B batch, T time, D model width, V vocabulary.
"""A family of another package: its model, with torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toy_sums import SumsConfig

from lmscale.config.model import Sizes
from lmscale.model.family import Account, Family, Flops, Head, Model
from lmscale.model.initialize import Embedding, Linear

STD = 0.1


class Sums(Model):
    def __init__(self, settings: SumsConfig, sizes: Sizes) -> None:
        super().__init__(settings, sizes)
        self.embedding = Embedding(sizes.vocab_size, settings.width, std=STD)
        self.mix = Linear(settings.width, settings.width, bias=True, std=STD)
        self.head = Head(nn.Parameter(torch.empty(sizes.vocab_size, settings.width)), std=STD)

    def lay_out(
        self, begins_BT: Tensor, *, mask_documents: bool, lengths_B: Tensor | None = None
    ) -> Tensor:
        """Mean of the positions that each one sees, f32 [B, T, T]."""
        documents_BT = begins_BT.cumsum(1) if mask_documents else torch.zeros_like(begins_BT)
        sees_BTT = (documents_BT[:, :, None] == documents_BT[:, None, :]).tril().float()
        return sees_BTT / sees_BTT.sum(2, keepdim=True)

    def forward(self, ids_BT: Tensor, layout: Tensor) -> Tensor:
        x_BTD = self.embedding(ids_BT)
        return x_BTD + torch.tanh(self.mix(layout.to(x_BTD.dtype) @ x_BTD))


def account(settings: SumsConfig, sizes: Sizes) -> Account:
    width, table = settings.width, sizes.vocab_size * settings.width
    mix = width * width + width
    flops = 6.0 * (table + mix)
    return Account(
        parameters={"embedding": table, "mix": mix, "head": table},
        flops=Flops(dense=flops, causal=flops),
    )


SUMS = Family(build=Sums, account=account)
