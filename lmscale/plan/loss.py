"""The chunked cross-entropy for the planner: ``lmscale/objective/cross_entropy.py``."""

from __future__ import annotations

from dataclasses import dataclass

from lmscale.plan.tape import FLOAT, Array, Record, Tape

LOSS_LAUNCHES, LOSS_BACKWARD_LAUNCHES = 14, 12  # of a chunk, beside the products


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How hidden states are scored against tokens."""

    vocab_size: int
    chunk_tokens: int
    is_trained: bool = True  # the head's matrix
    is_capped: bool = False
    counts_hits: bool = False
    teacher_width: int = 0
    """Of a teacher whose logits are compared; 0: none."""


def write_loss(tape: Tape, hidden: Array, scoring: Scoring) -> None:
    """Score hidden states [N, D]: a product and some reductions for each chunk, the logits of all
    but the last of which are computed again in the backward pass.
    """
    targets, width = hidden.shape
    chunk = min(scoring.chunk_tokens, targets)
    sizes = [chunk] * (targets // chunk) + [targets % chunk] * bool(targets % chunk)
    last = sizes[-1] * scoring.vocab_size * tape.itemsize
    for number, rows in enumerate(sizes):
        is_last = number == len(sizes) - 1
        _write_product(tape, scoring, rows, width, is_kept=is_last)
        if scoring.teacher_width:
            _write_product(tape, scoring, rows, scoring.teacher_width, is_kept=False, learns=False)
        _write_reductions(tape, scoring, rows)
    loss = tape.new((), itemsize=FLOAT, needs_gradient=hidden.needs_gradient or scoring.is_trained)
    matrix = width * scoring.vocab_size * scoring.is_trained
    forward, backward = _scratch(tape, scoring, chunk, last=last, matrix=matrix)
    tape.add(
        Record(
            name="loss",
            kind="view",
            inputs=(hidden,),
            outputs=(loss,),
            saved=(
                hidden.memory,
                tape.reserve(targets * (8 + 2 * FLOAT)),  # labels, log Z, and each one's loss
                tape.reserve(last),
            ),
            weight_bytes=matrix * tape.itemsize,
            trained_bytes=matrix * tape.itemsize,
            scratch_bytes=forward,
            backward_scratch_bytes=backward,
            launches=0,
            backward_launches=0,
        )
    )


def _scratch(
    tape: Tape, scoring: Scoring, chunk: int, *, last: int, matrix: int
) -> tuple[int, int]:
    """Bytes besides the last chunk's logits, ``last``, and in the backward pass besides the
    matrix's gradient in its own dtype: forward, backward.
    """
    logits = chunk * scoring.vocab_size
    wide, own = logits * FLOAT, logits * tape.itemsize
    # The CPU's softmax copies what it takes to fp32 first, CUDA's does not.
    copies = 1 + (tape.itemsize < FLOAT and not tape.on_gpu)
    softmax = copies * wide
    if scoring.is_capped:  # a division, tanh and the factor; backward the slope in fp32
        forward, backward = (
            max(own - last + 2 * own, own - last + softmax),
            max(softmax, wide + 2 * own),
        )
    else:
        forward, backward = own - last + softmax, softmax
    if scoring.teacher_width:  # its logits, and both models' in fp32
        forward, backward = forward + own + 2 * wide, backward + own + 2 * wide
    narrow = own if tape.itemsize < FLOAT else 0  # the logits' gradient in their dtype
    sums = matrix * FLOAT
    while_softmax = own - last + max(backward, wide + narrow) + sums
    while_product = own - last - own + max(narrow, own) + sums + matrix * tape.itemsize
    return forward, max(while_softmax, while_product) - matrix * tape.itemsize


def _write_product(
    tape: Tape, scoring: Scoring, rows: int, width: int, *, is_kept: bool, learns: bool = True
) -> None:
    flops = 2.0 * rows * width * scoring.vocab_size
    moved = (rows * (width + scoring.vocab_size) + width * scoring.vocab_size) * tape.itemsize
    times = (1 + scoring.is_trained) * learns + (not is_kept)  # in the backward pass
    tape.add(
        Record(
            name="head" if learns else "teacher.head",
            kind="product",
            inputs=(),
            outputs=(),
            flops=flops,
            backward_flops=flops * times,
            product=(rows, scoring.vocab_size, width),
            extra_bytes=moved,
            backward_extra_bytes=moved * times,
            backward_launches=times,
        )
    )


def _write_reductions(tape: Tape, scoring: Scoring, rows: int) -> None:
    """The softmax in fp32, which reads the logits and is read again for the sums; backward its
    gradient, in fp32 and then in the logits' dtype.
    """
    logits = rows * scoring.vocab_size
    passes = 1 + scoring.counts_hits + 2 * bool(scoring.teacher_width)
    moved = logits * (tape.itemsize + FLOAT) + logits * FLOAT * (passes - 1)
    tape.add(
        Record(
            name="loss",
            kind="loss",
            inputs=(),
            outputs=(),
            flops=5.0 * logits * passes,
            backward_flops=5.0 * logits * passes,
            extra_bytes=moved,
            backward_extra_bytes=moved + logits * (3 * FLOAT + tape.itemsize),
            launches=LOSS_LAUNCHES * passes,
            backward_launches=LOSS_BACKWARD_LAUNCHES * passes,
        )
    )
