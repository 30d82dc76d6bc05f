"""The encoder: ``lmscale/model/encoder.py`` for the planner."""

from __future__ import annotations

from collections.abc import Iterator

from lmscale.config.model import EncoderConfig, Sizes
from lmscale.config.model_base import FLEX_MIN_HEAD_WIDTH, GATED
from lmscale.plan.attend import Visible
from lmscale.plan.families.decoder import write_attention
from lmscale.plan.families.family import Batch, PlannedFamily
from lmscale.plan.operators import (
    activate,
    add,
    dropout,
    feed_forward,
    linear,
    lookup,
    norm,
    plan_rotation,
)
from lmscale.plan.parameters import (
    ParameterShape,
    embedding_shape,
    feed_forward_shapes,
    linear_shapes,
    norm_shapes,
)
from lmscale.plan.tape import Array, Tape


def list_parameters(config: EncoderConfig, sizes: Sizes) -> Iterator[ParameterShape]:
    width, bias = config.width, config.bias
    yield embedding_shape("embedding", sizes.vocab_size, width)
    if config.positions == "learned":
        yield embedding_shape("position_embedding", sizes.max_positions, width)
    if config.token_types:
        yield embedding_shape("type_embedding", config.token_types, width)
    yield from norm_shapes("embedding_norm", width, config.norm, bias=bias)
    for number in range(config.layers):
        is_normed = config.norm_first and number == 0
        yield from _block_parameters(config, f"blocks.{number}", is_normed=is_normed)
    if config.norm_first:
        yield from norm_shapes("norm", width, config.norm, bias=bias)
    if config.pooler:
        yield from linear_shapes("pooler", width, width, bias=bias)
    if config.text_classes:
        yield from linear_shapes("classifier", width, config.text_classes, bias=True)
    if config.token_classes:
        yield from linear_shapes("token_classifier", width, config.token_classes, bias=True)
    if not config.tied_embeddings:
        yield ParameterShape("head.weight", (sizes.vocab_size, width), "head")
    yield ParameterShape("head.bias", (sizes.vocab_size,), "bias")
    yield from linear_shapes("head.dense", width, width, bias=bias)
    yield from norm_shapes("head.norm", width, config.norm, bias=bias)


def _block_parameters(
    config: EncoderConfig, block: str, *, is_normed: bool
) -> Iterator[ParameterShape]:
    width, bias = config.width, config.bias
    if not is_normed:
        yield from norm_shapes(f"{block}.attention_norm", width, config.norm, bias=bias)
    yield from linear_shapes(f"{block}.attention.qkv", width, (width,) * 3, bias=bias)
    yield from linear_shapes(f"{block}.attention.out", width, width, bias=bias)
    yield from norm_shapes(f"{block}.feed_forward_norm", width, config.norm, bias=bias)
    yield from feed_forward_shapes(
        f"{block}.feed_forward",
        width,
        config.resolved_ffn_width,
        is_gated=config.activation in GATED,
        bias=bias,
    )


def write(tape: Tape, config: EncoderConfig, sizes: Sizes, batch: Batch) -> Array:
    """The forward pass in training."""
    ids = tape.new((batch.windows, batch.length), itemsize=8)
    x = lookup(tape, "embedding", ids, config.width, rows=sizes.vocab_size)
    if config.positions == "learned":
        places = tape.new(ids.shape, itemsize=8)
        rows = sizes.max_positions
        x = add(
            *(tape, "positions", x),
            lookup(tape, "position_embedding", places, config.width, rows=rows),
        )
    if config.token_types:
        types = tape.new(ids.shape, itemsize=8)
        rows = config.token_types
        x = add(tape, "types", x, lookup(tape, "type_embedding", types, config.width, rows=rows))
    x = norm(tape, "embedding_norm", x, config.norm, bias=config.bias)
    x = dropout(tape, "embedding", x, config.dropout)
    # One of angles for the layers without, and one for those with a sliding window.
    rotations: dict[bool, Array | None] = {False: None, True: None}
    if config.positions == "rope":
        width = config.resolved_head_width
        rotations = {is_local: plan_rotation(tape, ids, width) for is_local in (False, True)}
    seen = {window: _see(tape, config, batch, window) for window in {*config.layer_windows}}
    for number, window in enumerate(config.layer_windows):
        rotation, mask = rotations[window > 0], seen[window].mask
        with tape.recomputing(number, config.activation_checkpoint_every, x, rotation, mask):
            x = _write_block(tape, config, number, x, rotation, seen[window])
    return norm(tape, "norm", x, config.norm, bias=config.bias) if config.norm_first else x


def _write_block(
    tape: Tape,
    config: EncoderConfig,
    number: int,
    x: Array,
    rotation: Array | None,
    seen: Visible,
) -> Array:
    block, first = f"blocks.{number}", config.norm_first
    how = {"kind": config.norm, "bias": config.bias}
    taken = norm(tape, f"{block}.attention_norm", x, **how) if first and number > 0 else x
    attended = write_attention(tape, config, f"{block}.attention", taken, rotation, seen)
    attended = dropout(tape, f"{block}.attention.out", attended, config.dropout)
    x = add(tape, f"{block}.attention", x, attended)
    if not first:
        x = norm(tape, f"{block}.attention_norm", x, **how)
    taken = norm(tape, f"{block}.feed_forward_norm", x, **how) if first else x
    fed = feed_forward(
        tape,
        f"{block}.feed_forward",
        taken,
        inner=config.resolved_ffn_width,
        gate=GATED.get(config.activation),
        function=config.activation,
        bias=config.bias,
    )
    fed = dropout(tape, f"{block}.feed_forward.down", fed, config.dropout)
    x = add(tape, f"{block}.feed_forward", x, fed)
    return x if first else norm(tape, f"{block}.feed_forward_norm", x, **how)


def _see(tape: Tape, config: EncoderConfig, batch: Batch, window: int) -> Visible:
    """What ``Encoder.lay_out`` chooses: never causal, as padding may be hidden."""
    length = batch.length
    pairs = float(min(2 * window - 1, length) if window else length)
    can_flex = tape.on_gpu and config.dropout == 0 and config.attention != "sdpa"
    if can_flex and config.resolved_head_width >= FLEX_MIN_HEAD_WIDTH:
        return Visible(backend="flex", pairs=pairs)
    mask = tape.new((batch.windows, 1, length, length), itemsize=1)
    return Visible(backend="dense", pairs=pairs, mask=mask)


def begins_anew(name: str) -> bool:
    return name.partition(".")[0] in ("pooler", "classifier", "token_classifier")


def write_head(tape: Tape, config: EncoderConfig, hidden: Array) -> Array:
    hidden = linear(tape, "head.dense", hidden, config.width, bias=config.bias)
    function = GATED.get(config.activation, config.activation)
    hidden = activate(tape, "head.activation", hidden, function)
    return norm(tape, "head.norm", hidden, config.norm, bias=config.bias)


ENCODER = PlannedFamily(
    list_parameters=list_parameters,
    begins_anew=begins_anew,
    write=write,
    write_head=write_head,
)
