"""An objective of another package: the half with torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from toy_halves import IGNORED

from lmscale.model.family import Model
from lmscale.model.layout import mark_starts
from lmscale.objective.scores import LossSum, Scores


class HalvesScoring(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor, starts: Tensor) -> Scores:
        rows, width = ids.shape
        begins = mark_starts(starts, batch=rows, length=width)
        layout = self.model.lay_out(begins, mask_documents=True)
        logits = self.model.head(self.model(ids.long(), layout)).flatten(0, 1).float()
        wanted = labels.long().flatten()
        nll = cross_entropy(logits, wanted, reduction="sum", ignore_index=IGNORED)
        hits, count = (logits.argmax(-1) == wanted).sum(), (wanted != IGNORED).sum()
        return Scores(
            loss=LossSum(nll, count),
            figures={
                "loss": LossSum(nll.detach(), count),
                "accuracy": LossSum(hits.float(), count),
            },
        )
