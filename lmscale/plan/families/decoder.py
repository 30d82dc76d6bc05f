"""The decoder: ``lmscale/model/decoder.py`` for the planner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from lmscale.config.model import DecoderConfig, EncoderConfig, Sizes
from lmscale.config.model_base import FLEX_MIN_HEAD_WIDTH, GATED
from lmscale.plan.attend import Backend, Visible, attend
from lmscale.plan.families.family import Batch, PlannedFamily
from lmscale.plan.operators import (
    add,
    dropout,
    feed_forward,
    linear,
    lookup,
    norm,
    plan_rotation,
    pointwise,
    rotate,
    scale,
)
from lmscale.plan.parameters import (
    ParameterShape,
    embedding_shape,
    feed_forward_shapes,
    linear_shapes,
    norm_shapes,
)
from lmscale.plan.tape import Array, Tape, reshape, without_gradient


def list_parameters(config: DecoderConfig, sizes: Sizes) -> Iterator[ParameterShape]:
    width = config.width
    yield embedding_shape("embedding", sizes.vocab_size, width)
    if config.positions == "learned":
        yield embedding_shape("position_embedding", sizes.max_positions, width)
    for number in range(config.layers):
        yield from _block_parameters(config, f"blocks.{number}")
    yield from norm_shapes("norm", width, config.norm, bias=config.bias)
    if config.text_classes:
        yield from linear_shapes("classifier", width, config.text_classes)
    if not config.tied_embeddings:
        yield ParameterShape("head.weight", (sizes.vocab_size, width), "head")


def _block_parameters(config: DecoderConfig, block: str) -> Iterator[ParameterShape]:
    width, ratio = config.width, 1 / config.width_ratio
    keys = config.resolved_kv_heads * config.resolved_head_width
    queries = config.heads * config.resolved_head_width
    norms = {"bias": config.bias, "kind": config.norm}
    yield from norm_shapes(f"{block}.attention_norm", width, **norms)
    qkv_bias = config.bias or config.qkv_bias
    parts = (queries, keys, keys)
    yield from linear_shapes(f"{block}.attention.qkv", width, parts, bias=qkv_bias, lr_ratio=ratio)
    out = f"{block}.attention.out"
    yield from linear_shapes(out, queries, width, bias=config.bias, lr_ratio=ratio)
    if config.qk_norm:
        for which in ("query_norm", "key_norm"):
            name = f"{block}.attention.{which}"
            yield from norm_shapes(name, config.resolved_head_width, "rmsnorm")
    yield from norm_shapes(f"{block}.feed_forward_norm", width, **norms)
    yield from feed_forward_shapes(
        f"{block}.feed_forward",
        width,
        config.resolved_ffn_width,
        is_gated=config.activation in GATED,
        bias=config.bias,
        lr_ratio=ratio,
    )
    if config.output_norms:
        yield from norm_shapes(f"{block}.attention_output_norm", width, **norms)
        yield from norm_shapes(f"{block}.feed_forward_output_norm", width, **norms)


def write(tape: Tape, config: DecoderConfig, sizes: Sizes, batch: Batch) -> Array:
    """The forward pass in training."""
    ids = tape.new((batch.windows, batch.length), itemsize=8)
    x = lookup(tape, "embedding", ids, config.width, rows=sizes.vocab_size)
    if config.scaled_embeddings:
        x = scale(tape, "embedding", x)
    rotation = None
    if config.positions == "learned":
        places = tape.new(ids.shape, itemsize=8)
        vectors = lookup(tape, "position_embedding", places, config.width, rows=sizes.max_positions)
        x = add(tape, "embedding", x, vectors)
    else:
        rotation = plan_rotation(tape, ids, config.resolved_head_width)
    x = dropout(tape, "embedding", x, config.dropout)
    seen = {window: _see(tape, config, batch, window) for window in {*config.layer_windows}}
    if config.segments > 1:
        x = _write_segments(tape, config, x, rotation, seen)
    else:
        for number, window in enumerate(config.layer_windows):
            x = _write_numbered(tape, config, number, x, rotation, seen[window])
    return norm(tape, "norm", x, config.norm, bias=config.bias)


def _write_segments(
    tape: Tape,
    config: DecoderConfig,
    x: Array,
    rotation: Array | None,
    seen: Mapping[int, Visible],
) -> Array:
    """``Decoder._run_segments``: one segment after another, each block with what it remembers."""
    batch, length, width = x.shape
    cut = -(-length // config.segments)
    lengths = [cut] * (length // cut) + [length % cut] * bool(length % cut)
    memories: list[Array | None] = [None] * config.layers
    parts = tape.split("segments", x, [(batch, each, width) for each in lengths])
    outputs = []
    for part in parts:
        for number, window in enumerate(config.layer_windows):
            memory, mask = memories[number], seen[window].mask
            remembered = 0 if memory is None else memory.shape[1]
            most = remembered + part.shape[1]
            own = [without_gradient(each) for each in (memory, part) if each is not None]
            kept = pointwise(tape, f"blocks.{number}.memory", own, (batch, most, width))
            memories[number] = reshape(
                kept, batch, min(most, window - 1) if window else most, width
            )
            assert mask is not None  # rows that are cut have dense masks
            visible = replace(
                seen[window], mask=reshape(mask, batch, 1, part.shape[1], most), pairs=float(most)
            )
            part = _write_numbered(tape, config, number, part, rotation, visible, memory)
        outputs.append(part)
    return pointwise(tape, "segments.cat", outputs, x.shape)


def _write_numbered(
    tape: Tape,
    config: DecoderConfig,
    number: int,
    x: Array,
    rotation: Array | None,
    seen: Visible,
    memory: Array | None = None,
) -> Array:
    """A block, which is computed again in the backward pass where the settings say so."""
    every = config.activation_checkpoint_every
    with tape.recomputing(number, every, x, rotation, seen.mask, memory):
        return _write_block(tape, config, f"blocks.{number}", x, rotation, seen, memory)


def _write_block(
    tape: Tape,
    config: DecoderConfig,
    name: str,
    x: Array,
    rotation: Array | None,
    seen: Visible,
    memory: Array | None,
) -> Array:
    """``memory``: inputs of the tokens before, which the new ones look at."""
    remembered, looked_at = 0, x
    if memory is not None:
        remembered = memory.shape[1]
        shape = (x.shape[0], remembered + x.shape[1], x.shape[2])
        looked_at = pointwise(tape, f"{name}.remember", [memory, x], shape)
    normed = norm(tape, f"{name}.attention_norm", looked_at, config.norm, bias=config.bias)
    attended = write_attention(
        tape, config, f"{name}.attention", normed, rotation, seen, remembered
    )
    if config.output_norms:
        attended = norm(
            tape, f"{name}.attention_output_norm", attended, config.norm, bias=config.bias
        )
    x = add(tape, f"{name}.attention", x, dropout(tape, name, attended, config.dropout))
    normed = norm(tape, f"{name}.feed_forward_norm", x, config.norm, bias=config.bias)
    fed = feed_forward(
        tape,
        f"{name}.feed_forward",
        normed,
        inner=config.resolved_ffn_width,
        gate=GATED.get(config.activation),
        function=config.activation,
        bias=config.bias,
    )
    if config.output_norms:
        fed = norm(tape, f"{name}.feed_forward_output_norm", fed, config.norm, bias=config.bias)
    return add(tape, f"{name}.feed_forward", x, dropout(tape, name, fed, config.dropout))


def write_attention(
    tape: Tape,
    config: DecoderConfig | EncoderConfig,
    name: str,
    x: Array,
    rotation: Array | None,
    seen: Visible,
    remembered: int = 0,
) -> Array:
    """The first ``remembered`` tokens do not look."""
    heads, kv_heads = config.heads, config.resolved_kv_heads
    width = config.resolved_head_width
    parts = (heads * width, kv_heads * width, kv_heads * width)
    both = linear(tape, f"{name}.qkv", x, parts, bias=config.bias or config.qkv_bias)
    batch, length, _ = x.shape
    shapes = [(batch, length, count, width) for count in (heads, kv_heads, kv_heads)]
    q, k, v = tape.split(f"{name}.qkv", both, shapes)
    if config.qk_norm:
        q = norm(tape, f"{name}.query_norm", q, "rmsnorm")
        k = norm(tape, f"{name}.key_norm", k, "rmsnorm")
    if rotation is not None:
        q = rotate(tape, f"{name}.rotate_queries", q, rotation)
        k = rotate(tape, f"{name}.rotate_keys", k, rotation)
    length -= remembered
    q = reshape(q, batch, length, heads, width)
    if config.attention_scale is not None:
        q = scale(tape, f"{name}.queries", q)
    y = attend(tape, name, q, k, v, seen, softcap=config.attention_softcap)
    y = reshape(y, batch, length, heads * width)
    return linear(tape, f"{name}.out", y, config.width, bias=config.bias)


def _see(tape: Tape, config: DecoderConfig, batch: Batch, window: int) -> Visible:
    """What ``Decoder.lay_out`` chooses."""
    length = batch.length
    keys = min(window or length, length)
    pairs = keys - keys**2 / (2 * length)  # a window's first tokens see less
    backend = _backend(config, batch, on_gpu=tape.on_gpu, dropped=config.dropout)
    mask = None
    if backend == "dense":
        rows = batch.windows
        mask = tape.new((rows, 1, length, length), itemsize=1)
    return Visible(backend=backend, pairs=pairs, mask=mask)


def _backend(config: DecoderConfig, batch: Batch, *, on_gpu: bool, dropped: float) -> Backend:
    """As ``attention_backend`` in lmscale/model/layout.py."""
    if batch.shows_prefixes:
        return "dense"
    is_cut, is_capped = config.segments > 1, config.attention_softcap > 0
    if not (batch.masks_documents or any(config.layer_windows) or is_capped or is_cut):
        return "causal"
    can_flex = on_gpu and dropped == 0 and config.resolved_head_width >= FLEX_MIN_HEAD_WIDTH
    return "flex" if can_flex and config.attention != "sdpa" and not is_cut else "dense"


def begins_anew(name: str) -> bool:
    return name.startswith("classifier.")


def write_head(tape: Tape, config: DecoderConfig, hidden: Array) -> Array:
    return scale(tape, "head", hidden) if config.width_ratio != 1 else hidden


DECODER = PlannedFamily(
    list_parameters=list_parameters,
    begins_anew=begins_anew,
    write=write,
    write_head=write_head,
)
