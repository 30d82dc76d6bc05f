"""The recurrent models: ``lmscale/model/recurrent.py`` for the planner."""

from __future__ import annotations

from collections.abc import Iterator

from lmscale.config.model import RecurrentConfig, Sizes
from lmscale.plan.account import GATES
from lmscale.plan.families.family import Batch, PlannedFamily
from lmscale.plan.operators import dropout, lookup, pointwise
from lmscale.plan.parameters import ParameterShape, embedding_shape
from lmscale.plan.tape import FLOAT, Array, Record, Tape, reshape

# What is kept of a token and layer, in widths, besides its input: of the CPU's cells the gates, a
# state or two and what they give, at each step; of oneDNN's, which take an LSTM's pieces where all
# are of one length, a workspace (measured, torch 2.13: fp32, 16 bit); of cuDNN's about as much as
# of the CPU's.
KEPT = {"lstm": 7.0, "gru": 7.0, "rnn": 1.0}
ONEDNN_LSTM = (17.75, 26.25)


def list_parameters(config: RecurrentConfig, sizes: Sizes) -> Iterator[ParameterShape]:
    width, parts = config.width, (config.width,) * GATES[config.cell]
    yield embedding_shape("embedding", sizes.vocab_size, width)
    for layer in range(config.layers):
        for source in ("ih", "hh"):
            name = f"cells.weight_{source}_l{layer}"
            yield ParameterShape(name, (sum(parts), width), "linear", parts)
        for source in ("ih", "hh"):
            yield ParameterShape(f"cells.bias_{source}_l{layer}", (sum(parts),), "bias", parts)
    if not config.tied_embeddings:
        yield ParameterShape("head.weight", (sizes.vocab_size, width), "head")


def write(tape: Tape, config: RecurrentConfig, sizes: Sizes, batch: Batch) -> Array:
    """The forward pass in training."""
    width, tokens = config.width, batch.windows * batch.length
    ids = tape.new((tokens,), itemsize=8)
    x = lookup(tape, "embedding", ids, width, rows=sizes.vocab_size)
    x = dropout(tape, "embedding", x, config.dropout)
    for layer in range(config.layers):
        if layer:
            x = dropout(tape, f"cells.{layer}", x, config.dropout)
        even = not batch.masks_documents
        x = _write_layer(tape, config, layer, x, steps=batch.length, is_even=even)
    x = dropout(tape, "cells.output", x, config.dropout)
    x = pointwise(tape, "cells.order", [x], x.shape)  # from the pieces' order to the rows'
    return reshape(x, batch.windows, batch.length, width)


def _write_layer(
    tape: Tape, config: RecurrentConfig, layer: int, x: Array, *, steps: int, is_even: bool
) -> Array:
    """The product of all inputs at once, then one of the state for each step. ``is_even``: all
    pieces are of one length.
    """
    tokens, width = x.shape
    rows = width * GATES[config.cell]
    output = tape.new(x.shape, needs_gradient=True)
    is_trained = tape.is_trained(f"cells.weight_ih_l{layer}")
    weight_bytes = 2 * rows * (width + 1) * tape.itemsize
    flops = 2.0 * tokens * rows * width * 2
    widths = KEPT[config.cell]
    if config.cell == "lstm" and is_even and not tape.on_gpu:
        widths = ONEDNN_LSTM[tape.itemsize < FLOAT]
    kept = int(tokens * width * widths * tape.itemsize)
    tape.add(
        Record(
            name=f"cells.{layer}.",
            kind="scan",
            inputs=(x,),
            outputs=(output,),
            saved=(x.memory, tape.reserve(kept)),
            flops=flops,
            backward_flops=2 * flops,
            product=(tokens // steps, rows, width),
            weight_bytes=weight_bytes,
            trained_bytes=weight_bytes * is_trained,
            # The state's matrix is read at every step, unless a cache holds it.
            extra_bytes=kept + steps * rows * width * tape.itemsize,
            backward_extra_bytes=kept + 2 * steps * rows * width * tape.itemsize,
            backward_scratch_bytes=tokens * rows * tape.itemsize,
            launches=1 + 2 * steps,
            backward_launches=2 + 3 * steps,
        )
    )
    return output


RECURRENT = PlannedFamily(
    list_parameters=list_parameters,
    write=write,
)
