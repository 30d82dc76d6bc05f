"""The same family's model: the mean of a document's embeddings so far, and one matrix."""

import torch
from torch import nn

from lmscale.model.family import Account, Family, Flops, Head, Model
from lmscale.model.initialize import Embedding, Linear


class Sums(Model):
    def __init__(self, settings, sizes):
        super().__init__(settings, sizes)
        self.embedding = Embedding(sizes.vocab_size, settings.width, std=0.1)
        self.mix = Linear(settings.width, settings.width, bias=True, std=0.1)
        self.head = Head(nn.Parameter(torch.empty(sizes.vocab_size, settings.width)), std=0.1)

    def lay_out(self, begins_BT, *, mask_documents, lengths_B=None):
        """Mean of the positions that each one sees, f32 [B, T, T]."""
        documents_BT = begins_BT.cumsum(1) if mask_documents else torch.zeros_like(begins_BT)
        sees_BTT = (documents_BT[:, :, None] == documents_BT[:, None, :]).tril().float()
        return sees_BTT / sees_BTT.sum(2, keepdim=True)

    def forward(self, ids_BT, layout):
        x_BTD = self.embedding(ids_BT)
        return x_BTD + torch.tanh(self.mix(layout.to(x_BTD.dtype) @ x_BTD))


def account(settings, sizes):
    table, mix = sizes.vocab_size * settings.width, (settings.width + 1) * settings.width
    parameters = {"embedding": table, "mix": mix, "head": table}
    flops = 6.0 * (table + mix)
    return Account(parameters=parameters, flops=Flops(dense=flops, causal=flops))


SUMS = Family(build=Sums, account=account)
