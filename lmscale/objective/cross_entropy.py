# Shape letters: N tokens of a micro-batch, C of one chunk, D model width, V vocabulary, P parts.
"""Cross-entropy whose logits exist for one chunk of tokens at a time, never as [N, V]."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmscale.model.attention import cap_softly
from lmscale.objective.objective import IGNORED


class CrossEntropySums(NamedTuple):
    """Sums over the targets, f32 [], and their terms. Only ``loss`` carries a gradient."""

    loss: Tensor  # what to backpropagate: nll, smoothed, + z; f32 [P] where there are parts
    nll: Tensor  # -log p(label), in nats
    z: Tensor  # z_loss · log²Z, where Z is the softmax's normaliser
    hits: Tensor  # targets whose label has the largest logit; 0 unless they are counted
    nlls: Tensor  # f32 [N]: the nll of each position; 0 where it is no target
    divergence: Tensor  # KL(teacher ‖ student) at the temperature, in nats; 0 without a teacher


class Teacher(NamedTuple):
    """What another model, which learns nothing, has seen at the same positions."""

    hidden: Tensor  # [N, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    softcap: float = 0.0

    def logits(self, chunk: slice) -> Tensor:
        logits_CV = F.linear(self.hidden[chunk], self.weight, self.bias)
        return cap_softly(logits_CV, self.softcap)


class CrossEntropySettings(NamedTuple):
    """How hidden states are scored."""

    chunk_tokens: int  # tokens whose logits exist at once
    z_loss: float = 0.0  # weight of log²Z
    label_smoothing: float = 0.0  # share of a target that is dealt to all ids alike
    softcap: float = 0.0  # of the logits: ``cap_softly``
    counts_hits: bool = False
    teacher: Teacher | None = None
    teacher_share: float = 0.0  # of the loss; the nll has the rest
    temperature: float = 1.0  # by which both models' logits are divided, before they are compared
    num_parts: int = 0  # whose losses are summed apart


def chunked_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None = None,
    *,
    labels_N: Tensor,
    parts_N: Tensor | None = None,
    **settings: Any,
) -> CrossEntropySums:
    """Score hidden states against int64 labels; positions labelled ``IGNORED`` count nothing.

    ``bias_V``: added to the logits, for a head that has one. ``parts_N``: int64, which of
    ``num_parts`` a position is of. ``settings``: those of ``CrossEntropySettings``. The products
    run in the inputs' dtype, the softmax and all sums in fp32. With a teacher the loss is share ·
    temperature² · divergence + (1 - share) · nll + z (Hinton et al. 2015, arXiv 1503.02531).
    """
    how = CrossEntropySettings(**settings)
    return CrossEntropySums(
        *_ChunkedCrossEntropy.apply(hidden_ND, weight_VD, bias_V, labels_N, parts_N, how)
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The backward pass computes each chunk's logits again.

    Taking the gradients in the forward pass would save that product (2·D·V FLOPs a token), but they
    would be rounded before the loss scale is known, and in fp16 a probability of 1e-6 times 1 is
    lost where times 65536 it is not; and the fp32 [V, D] gradient would exist in every forward
    pass. Instead the last chunk's logits, which the backward pass needs first, are kept: at N ≤
    chunk_tokens nothing is computed twice and the peak is no higher.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        parts_N: Tensor | None,
        how: CrossEntropySettings,
    ) -> tuple[Tensor, ...]:
        nll = hidden_ND.new_zeros((), dtype=torch.float32)
        z, hits, spread, divergence = (torch.zeros_like(nll) for _ in range(4))
        log_z_N = hidden_ND.new_empty(len(labels_N), dtype=torch.float32)
        nll_N = torch.empty_like(log_z_N)
        losses_P = hidden_ND.new_zeros(how.num_parts, dtype=torch.float32)
        logits_CV = None
        for first in range(0, len(labels_N), how.chunk_tokens):
            chunk = slice(first, first + how.chunk_tokens)
            logits_CV = None  # freed before the next chunk's are made
            logits_CV = cap_softly(F.linear(hidden_ND[chunk], weight_VD, bias_V), how.softcap)
            log_p_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
            log_z_C = log_z_N[chunk] = logits_CV[:, 0].float() - log_p_CV[:, 0]
            is_target_C = labels_N[chunk] != IGNORED
            safe_C1 = labels_N[chunk].clamp(min=0)[:, None]
            log_p_C = torch.where(is_target_C, log_p_CV.gather(1, safe_C1)[:, 0], 0.0)
            nll -= log_p_C.sum()
            loss_C = nll_N[chunk] = -log_p_C
            if how.label_smoothing:
                spread_C = torch.where(is_target_C, -log_p_CV.mean(-1), 0.0)
                spread += spread_C.sum()
                loss_C = torch.lerp(loss_C, spread_C, how.label_smoothing)
            if how.counts_hits:
                hits += (log_p_CV.argmax(-1) == labels_N[chunk]).sum()
            del log_p_CV
            if how.teacher is not None:
                apart_C = _diverge(how.teacher.logits(chunk), logits_CV, how.temperature)
                divergence += torch.where(is_target_C, apart_C, 0.0).sum()
            if how.z_loss:
                square_C = torch.where(is_target_C, log_z_C.square(), 0.0)
                z += how.z_loss * square_C.sum()
                loss_C = loss_C + how.z_loss * square_C
            if parts_N is not None:
                for part in range(how.num_parts):
                    losses_P[part] += (loss_C * (parts_N[chunk] == part)).sum()
        # The parameter itself is saved, not a view: ZeRO-3 swaps its data between the two passes.
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, log_z_N, parts_N)
        ctx.last_logits_CV = logits_CV if any(ctx.needs_input_grad[:3]) else None
        ctx.how = how
        ctx.mark_non_differentiable(nll, z, hits, nll_N, divergence)
        ctx.set_materialize_grads(False)
        is_smoothed = how.label_smoothing > 0
        loss = torch.lerp(nll, spread, how.label_smoothing) if is_smoothed else nll
        if how.teacher is not None:
            loss = torch.lerp(loss, how.temperature**2 * divergence, how.teacher_share)
        return losses_P if how.num_parts else loss + z, nll, z, hits, nll_N, divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_loss = grads[0]
        if grad_loss is None:
            return (None,) * len(ctx.needs_input_grad)
        hidden_ND, weight_VD, bias_V, labels_N, log_z_N, parts_N = ctx.saved_tensors
        how: CrossEntropySettings = ctx.how
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        grad_bias_V = torch.zeros_like(bias_V, dtype=torch.float32) if wants_bias else None
        logits_CV, ctx.last_logits_CV = ctx.last_logits_CV, None
        for first in reversed(range(0, len(labels_N), how.chunk_tokens)):
            chunk = slice(first, first + how.chunk_tokens)
            if logits_CV is None:
                logits_CV = cap_softly(F.linear(hidden_ND[chunk], weight_VD, bias_V), how.softcap)
            # Of each position that of its part's loss.
            grad_C = grad_loss if parts_N is None else grad_loss[parts_N[chunk]]
            delta_CV = _grad_logits(
                logits_CV, log_z_N[chunk], labels_N[chunk], how, grad_C, chunk=chunk
            )
            logits_CV = None
            if grad_hidden_ND is not None:
                torch.mm(delta_CV, weight_VD, out=grad_hidden_ND[chunk])
            if grad_weight_VD is not None:
                grad_weight_VD += delta_CV.T @ hidden_ND[chunk]
            if grad_bias_V is not None:
                grad_bias_V += delta_CV.sum(0, dtype=torch.float32)
            del delta_CV  # before the next chunk's logits are made
        grad_weight = None if grad_weight_VD is None else grad_weight_VD.to(weight_VD.dtype)
        grad_bias = None if grad_bias_V is None else grad_bias_V.to(bias_V.dtype)
        return grad_hidden_ND, grad_weight, grad_bias, None, None, None


def _grad_logits(
    logits_CV: Tensor,
    log_z_C: Tensor,
    labels_C: Tensor,
    how: CrossEntropySettings,
    grad_C: Tensor,
    *,
    chunk: slice,
) -> Tensor:
    """d loss / d logits before their cap: p · (1 + 2 · z_loss · log Z) - target, 0 where ignored,
    times the cap's slope. The target is the label's onehot, smoothed. With a teacher (1 - share) of
    p - target, and share · temperature · (p - the teacher's p), both at the temperature.

    In the logits' dtype. Computed in fp32 and scaled by ``grad_C``, [C] or [], which carries the
    loss scale, before it is rounded.
    """
    scale_C = torch.where(labels_C != IGNORED, grad_C, 0.0)
    delta_CV = torch.softmax(logits_CV, dim=-1, dtype=torch.float32)
    hard = 1 - how.teacher_share
    delta_CV *= (scale_C * (hard + 2 * how.z_loss * log_z_C))[:, None]
    share = how.label_smoothing
    delta_CV.scatter_add_(1, labels_C.clamp(min=0)[:, None], hard * (share - 1) * scale_C[:, None])
    if share:
        delta_CV -= hard * share / logits_CV.shape[1] * scale_C[:, None]
    if how.teacher is not None:
        soft_C1 = (how.teacher_share * how.temperature * scale_C)[:, None]
        for sign, of_model_CV in ((1, logits_CV), (-1, how.teacher.logits(chunk))):
            p_CV = torch.softmax(of_model_CV / how.temperature, dim=-1, dtype=torch.float32)
            delta_CV += p_CV.mul_(sign * soft_C1)
    if how.softcap:  # d cap_softly(x) / dx, by its value
        delta_CV *= 1 - (logits_CV / how.softcap).square()
    return delta_CV.to(logits_CV.dtype)


def _diverge(teacher_CV: Tensor, student_CV: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) of each position, f32 [C]."""
    log_q_CV, log_p_CV = (
        torch.log_softmax(logits_CV.float() / temperature, dim=-1)
        for logits_CV in (teacher_CV, student_CV)
    )
    return (log_q_CV.exp() * (log_q_CV - log_p_CV)).sum(-1)
