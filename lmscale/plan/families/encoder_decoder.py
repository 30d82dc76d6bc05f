"""The encoder-decoder: ``lmscale/model/encoder_decoder.py`` for the planner."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lmscale.config.model import EncoderDecoderConfig, Sizes
from lmscale.config.model_base import GATED
from lmscale.plan.attend import Visible, attend
from lmscale.plan.families.family import Batch, PlannedFamily
from lmscale.plan.operators import (
    add,
    dropout,
    feed_forward,
    linear,
    lookup,
    norm,
    pointwise,
    scale,
)
from lmscale.plan.parameters import (
    ParameterShape,
    embedding_shape,
    feed_forward_shapes,
    linear_shapes,
    norm_shapes,
)
from lmscale.plan.tape import Array, Tape, reshape


def list_parameters(config: EncoderDecoderConfig, sizes: Sizes) -> Iterator[ParameterShape]:
    yield embedding_shape("embedding", sizes.vocab_size, config.width)
    yield from _stack_parameters(config, sizes, "encoder", config.layers)
    yield from _stack_parameters(config, sizes, "decoder", config.resolved_decoder_layers)
    if not config.tied_embeddings:
        yield ParameterShape("head.weight", (sizes.vocab_size, config.width), "head")


def _stack_parameters(
    config: EncoderDecoderConfig, sizes: Sizes, stack: str, layers: int
) -> Iterator[ParameterShape]:
    width, norms = config.width, {"kind": config.norm, "bias": config.bias}
    if config.positions == "relative":
        yield embedding_shape(f"{stack}.relative.table", config.relative_buckets, config.heads)
    else:
        yield embedding_shape(f"{stack}.position_embedding", sizes.max_positions, width)
    if not config.norm_first:
        yield from norm_shapes(f"{stack}.embedding_norm", width, **norms)
    for number in range(layers):
        block = f"{stack}.blocks.{number}"
        for part in ("attention", "cross") if stack == "decoder" else ("attention",):
            yield from norm_shapes(f"{block}.{part}_norm", width, **norms)
            yield from _attention_parameters(config, f"{block}.{part}")
        yield from norm_shapes(f"{block}.feed_forward_norm", width, **norms)
        yield from feed_forward_shapes(
            f"{block}.feed_forward",
            width,
            config.resolved_ffn_width,
            is_gated=config.activation in GATED,
            bias=config.bias,
        )
    if config.norm_first:
        yield from norm_shapes(f"{stack}.norm", width, **norms)


def _attention_parameters(config: EncoderDecoderConfig, name: str) -> Iterator[ParameterShape]:
    width, inner, bias = config.width, config.heads * config.resolved_head_width, config.bias
    yield from linear_shapes(f"{name}.query", width, inner, bias=bias)
    yield from linear_shapes(f"{name}.key_value", width, (inner, inner), bias=bias)
    yield from linear_shapes(f"{name}.out", inner, width, bias=bias)


def write(tape: Tape, config: EncoderDecoderConfig, sizes: Sizes, batch: Batch) -> Array:
    """The forward pass in training: what is read, then what is written."""
    read = _write_stack(tape, config, sizes, batch, "encoder", batch.read_length, None)
    x = _write_stack(tape, config, sizes, batch, "decoder", batch.length, read)
    return scale(tape, "decoder", x)  # by 1 where nothing is scaled: the product runs all the same


def _write_stack(
    tape: Tape,
    config: EncoderDecoderConfig,
    sizes: Sizes,
    batch: Batch,
    stack: str,
    length: int,
    read: Array | None,
) -> Array:
    ids = tape.new((batch.windows, length), itemsize=8)
    x = lookup(tape, "embedding", ids, config.width, rows=sizes.vocab_size)
    if config.positions == "learned":
        name = f"{stack}.position_embedding"
        places = tape.new(ids.shape, itemsize=8)
        vectors = lookup(tape, name, places, config.width, rows=sizes.max_positions)
        x = add(tape, stack, x, vectors)
    if not config.norm_first:
        x = norm(tape, f"{stack}.embedding_norm", x, config.norm, bias=config.bias)
    x = dropout(tape, stack, x, config.dropout)
    own = _bias(tape, config, batch, stack, length)
    across = None
    if read is not None:
        shape = (batch.windows, 1, length, read.shape[1])
        across = pointwise(tape, f"{stack}.across", [], shape, launches=2)
    layers = config.layers if read is None else config.resolved_decoder_layers
    for number in range(layers):
        every, name = config.activation_checkpoint_every, f"{stack}.blocks.{number}"
        with tape.recomputing(number, every, x, own, read, across):
            x = _write_block(tape, config, name, x, own, read, across)
    if config.norm_first:
        x = norm(tape, f"{stack}.norm", x, config.norm, bias=config.bias)
    return dropout(tape, f"{stack}.output", x, config.dropout)


def _bias(tape: Tape, config: EncoderDecoderConfig, batch: Batch, stack: str, length: int) -> Array:
    """What is added to the scores: [B, H, T, T] with relative positions, whose table learns."""
    if config.positions != "relative":
        shape = (batch.windows, 1, length, length)
        return pointwise(tape, f"{stack}.bias", [], shape, launches=2)
    buckets = tape.new((length, length), itemsize=8)
    name, rows = f"{stack}.relative.table", config.relative_buckets
    table = lookup(tape, name, buckets, config.heads, rows=rows)
    shape = (batch.windows, config.heads, length, length)
    hidden = batch.windows * length * length  # bool
    return pointwise(tape, f"{stack}.bias", [table], shape, kept_bytes=hidden, launches=2)


def _write_block(
    tape: Tape,
    config: EncoderDecoderConfig,
    block: str,
    x: Array,
    own: Array,
    read: Array | None,
    across: Array | None,
) -> Array:
    def attention(name: str, keys: Array | None, bias: Array) -> Callable[[Array], Array]:
        return lambda taken: _attention(
            tape, config, name, taken, taken if keys is None else keys, bias
        )

    x = _add(tape, config, f"{block}.attention", x, attention(f"{block}.attention", None, own))
    if read is not None and across is not None:
        x = _add(tape, config, f"{block}.cross", x, attention(f"{block}.cross", read, across))

    def feed(taken: Array) -> Array:
        return feed_forward(
            tape,
            f"{block}.feed_forward",
            taken,
            inner=config.resolved_ffn_width,
            gate=GATED.get(config.activation),
            function=config.activation,
            bias=config.bias,
            dropped=config.dropout if config.norm_first else 0.0,
        )

    return _add(tape, config, f"{block}.feed_forward", x, feed)


def _add(
    tape: Tape,
    config: EncoderDecoderConfig,
    name: str,
    x: Array,
    part: Callable[[Array], Array],
) -> Array:
    how = {"kind": config.norm, "bias": config.bias}
    if config.norm_first:
        given = part(norm(tape, f"{name}_norm", x, **how))
        return add(tape, name, x, dropout(tape, name, given, config.dropout))
    x = add(tape, name, x, dropout(tape, name, part(x), config.dropout))
    return norm(tape, f"{name}_norm", x, **how)


def _attention(
    tape: Tape, config: EncoderDecoderConfig, name: str, x: Array, read: Array, bias: Array
) -> Array:
    heads, width = config.heads, config.resolved_head_width
    inner = heads * width
    both = linear(tape, f"{name}.key_value", read, (inner, inner), bias=config.bias)
    shape = (read.shape[0], read.shape[1], heads, width)
    k, v = tape.split(f"{name}.key_value", both, [shape, shape])
    q = linear(tape, f"{name}.query", x, inner, bias=config.bias)
    q = reshape(q, x.shape[0], x.shape[1], heads, width)
    seen = Visible(backend="dense", pairs=float(read.shape[1]), mask=bias, is_bias=True)
    y = attend(tape, name, q, k, v, seen)
    return linear(
        tape, f"{name}.out", reshape(y, *x.shape[:2], inner), x.shape[2], bias=config.bias
    )


ENCODER_DECODER = PlannedFamily(
    list_parameters=list_parameters,
    write=write,
)
