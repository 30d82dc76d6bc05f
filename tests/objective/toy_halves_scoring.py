"""The same objective's half with torch."""

from torch import nn
from torch.nn.functional import cross_entropy

from lmscale.model.layout import mark_starts
from lmscale.objective.scores import LossSum, Scores


class HalvesScoring(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, starts, targets):
        ids, wanted = tokens.long(), tokens.long().flatten()[targets.long()]
        begins = mark_starts(starts, batch=len(ids), length=ids.shape[1])
        hidden = self.model(ids, self.model.lay_out(begins, mask_documents=True)).flatten(0, 1)
        logits = self.model.head(hidden[targets.long() - 1]).float()  # by the token before
        nll = cross_entropy(logits, wanted, reduction="sum")
        hits, count = (logits.argmax(-1) == wanted).sum().float(), starts.new_tensor(len(wanted))
        figures = {"loss": LossSum(nll.detach(), count), "accuracy": LossSum(hits, count)}
        return Scores(loss=LossSum(nll, count), figures=figures)
