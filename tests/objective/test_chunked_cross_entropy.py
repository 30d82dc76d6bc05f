"""The chunked cross-entropy is the plain one, in less memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmscale.objective.cross_entropy import IGNORED, chunked_cross_entropy


def draw(num_tokens: int = 23, width: int = 16, vocab_size: int = 50, dtype=torch.float32):
    hidden_ND = torch.randn(num_tokens, width).to(dtype).requires_grad_()
    weight_VD = torch.randn(vocab_size, width).to(dtype).requires_grad_()
    labels_N = torch.randint(0, vocab_size, (num_tokens,))
    labels_N[::5] = IGNORED
    return hidden_ND, weight_VD, labels_N


def plain(hidden_ND, weight_VD, labels_N, z_loss=0.0, softcap=0.0, label_smoothing=0.0):
    """The definition, in fp64: (nll, z) summed."""
    logits_NV = hidden_ND.double() @ weight_VD.double().T
    if softcap:
        logits_NV = softcap * (logits_NV / softcap).tanh()
    nll = F.cross_entropy(
        logits_NV,
        labels_N,
        ignore_index=IGNORED,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    log_z_N = logits_NV.logsumexp(-1)
    return nll, z_loss * log_z_N[labels_N != IGNORED].square().sum()


@pytest.mark.parametrize("chunk_tokens", [1, 4, 7, 22, 23, 100])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"z_loss": 0.01},
        {"label_smoothing": 0.1},
        {"z_loss": 0.01, "softcap": 3.0, "label_smoothing": 0.3},
    ],
)
def test_loss_and_gradients_are_those_of_plain_cross_entropy(chunk_tokens, settings):
    hidden_ND, weight_VD, labels_N = draw()
    sums = chunked_cross_entropy(
        hidden_ND, weight_VD, labels_N=labels_N, chunk_tokens=chunk_tokens, **settings
    )
    smoothed, z = plain(hidden_ND, weight_VD, labels_N, **settings)
    expected = torch.autograd.grad((smoothed + z) * 3.5, (hidden_ND, weight_VD))
    actual = torch.autograd.grad(sums.loss * 3.5, (hidden_ND, weight_VD))
    nll, _ = plain(hidden_ND, weight_VD, labels_N, **settings | {"label_smoothing": 0.0})
    torch.testing.assert_close(sums.nll.double(), nll, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.z.double(), z, rtol=1e-6, atol=0)
    torch.testing.assert_close(sums.loss.double(), smoothed + z)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_nll_and_z_sums_carry_no_gradient():
    hidden_ND, weight_VD, labels_N = draw()
    sums = chunked_cross_entropy(
        hidden_ND, weight_VD, labels_N=labels_N, chunk_tokens=4, z_loss=0.1
    )
    assert sums.loss.requires_grad
    assert not sums.nll.requires_grad and not sums.z.requires_grad


@pytest.mark.parametrize("chunk_tokens", [5, 64])
def test_bf16_gradients_are_within_bf16_rounding_of_fp32(chunk_tokens):
    hidden_ND, weight_VD, labels_N = draw(num_tokens=40, dtype=torch.bfloat16)
    loss = chunked_cross_entropy(
        hidden_ND, weight_VD, labels_N=labels_N, chunk_tokens=chunk_tokens
    ).loss
    actual = torch.autograd.grad(loss, (hidden_ND, weight_VD))
    expected = torch.autograd.grad(plain(hidden_ND, weight_VD, labels_N)[0], (hidden_ND, weight_VD))
    assert loss.dtype == torch.float32
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == torch.bfloat16
        # 8 bits of mantissa, once in the logits and once in the product of a few dozen terms.
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


def test_a_large_loss_scale_reaches_the_gradient_before_it_is_rounded_to_fp16():
    hidden_ND = torch.zeros(1, 8, dtype=torch.float16).requires_grad_()
    weight_VD = torch.ones(4096, 8, dtype=torch.float16).requires_grad_()
    hidden_ND.data[0, 0] = 1.0
    weight_VD.data[1:, 0] = -16.0  # every other id has a probability of 4e-8: below fp16's 6e-8
    labels_N = torch.zeros(1, dtype=torch.int64)
    loss = chunked_cross_entropy(hidden_ND, weight_VD, labels_N=labels_N, chunk_tokens=1).loss
    (grad,) = torch.autograd.grad(loss * 2.0**16, weight_VD)
    assert (grad[1:, 0] > 0).all()


def test_without_any_target_the_loss_and_the_gradients_are_zero():
    hidden_ND, weight_VD, labels_N = draw()
    labels_N.fill_(IGNORED)
    sums = chunked_cross_entropy(
        hidden_ND, weight_VD, labels_N=labels_N, chunk_tokens=4, z_loss=0.1
    )
    sums.loss.backward()
    assert sums.loss.item() == 0
    assert not hidden_ND.grad.any() and not weight_VD.grad.any()


def test_a_second_backward_gives_the_same_gradient():
    hidden_ND, weight_VD, labels_N = draw()
    loss = chunked_cross_entropy(hidden_ND, weight_VD, labels_N=labels_N, chunk_tokens=10).loss
    first = torch.autograd.grad(loss, weight_VD, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, weight_VD)[0])


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def test_no_tensor_as_large_as_all_the_logits_ever_exists():
    num_tokens, width, vocab_size, chunk_tokens = 96, 8, 200, 16
    hidden_ND, weight_VD, labels_N = draw(num_tokens, width, vocab_size)
    with LargestTensor() as largest:
        loss = chunked_cross_entropy(
            hidden_ND, weight_VD, labels_N=labels_N, chunk_tokens=chunk_tokens
        ).loss
        loss.backward()
    assert largest.numel == chunk_tokens * vocab_size  # the gradients are smaller: V·D, N·D


def test_the_weight_may_be_away_between_the_passes_as_under_zero_3():
    hidden_ND, weight_VD, labels_N = draw()
    expected = torch.autograd.grad(
        chunked_cross_entropy(hidden_ND, weight_VD, labels_N=labels_N, chunk_tokens=4).loss,
        hidden_ND,
    )[0]
    parameter = torch.nn.Parameter(weight_VD.detach().clone())
    loss = chunked_cross_entropy(hidden_ND, parameter, labels_N=labels_N, chunk_tokens=4).loss
    whole, parameter.data = parameter.data, torch.empty(0)
    parameter.data = whole.clone()  # gathered again, at another address
    whole.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, hidden_ND)[0], expected)
    # a frozen weight asks for no gradient of its own
    parameter.requires_grad_(False)
    chunked_cross_entropy(hidden_ND, parameter, labels_N=labels_N, chunk_tokens=4).loss.backward()
    torch.testing.assert_close(hidden_ND.grad, expected)


@pytest.mark.parametrize("chunk_tokens", [4, 100])
def test_a_bias_is_added_to_the_logits_and_gets_its_gradient(chunk_tokens):
    hidden_ND, weight_VD, labels_N = draw()
    bias_V = torch.randn(50, requires_grad=True)
    score = {"labels_N": labels_N, "chunk_tokens": chunk_tokens}
    sums = chunked_cross_entropy(hidden_ND, weight_VD, bias_V, **score)
    logits_NV = F.linear(hidden_ND, weight_VD, bias_V)
    nll = F.cross_entropy(logits_NV, labels_N, ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(sums.loss, nll)
    inputs = (hidden_ND, weight_VD, bias_V)
    for mine, theirs in zip(
        torch.autograd.grad(sums.loss, inputs), torch.autograd.grad(nll, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("chunk_tokens", [4, 100])
def test_hits_are_the_targets_whose_label_has_the_largest_logit(chunk_tokens):
    hidden_ND, weight_VD, labels_N = draw()
    best_N = (hidden_ND @ weight_VD.T).argmax(-1)
    labels_N[1::3] = best_N[1::3]
    labels_N[::5] = IGNORED
    score = {"labels_N": labels_N, "chunk_tokens": chunk_tokens}
    counted = chunked_cross_entropy(hidden_ND, weight_VD, counts_hits=True, **score)
    assert counted.hits.item() == (labels_N == best_N).sum().item() > 0
    assert chunked_cross_entropy(hidden_ND, weight_VD, **score).hits.item() == 0
