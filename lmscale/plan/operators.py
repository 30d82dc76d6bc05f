"""The operators that models are made of, as a ``Tape`` has them.

What each one keeps for its backward pass is torch's (derivatives.yaml of torch 2.13, and its
composite operators), on the CPU and on CUDA.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmscale.plan.tape import FLOAT, Array, Kind, Record, Tape, reshape


def linear(
    tape: Tape, name: str, x: Array, outputs: int | tuple[int, ...], *, bias: bool = False
) -> Array:
    """x Wᵀ (+ b) of the module ``name``, with its adapters, if it has any. Several outputs are one
    product.
    """
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    is_trained = tape.is_trained(f"{name}.weight")
    y = product(tape, name, x, sum(parts), is_trained=is_trained, bias=bias)
    if name not in tape.adapters:
        return y
    rank, dropped = tape.adapters[name]
    taken = dropout(tape, name, x, dropped)
    low = product(tape, f"{name}.lora_a", taken, rank * len(parts))
    shape = (*low.shape[:-1], rank)
    lows = tape.split(f"{name}.lora", low, [shape] * len(parts))
    pairs = zip(lows, parts, strict=True)
    changes = [product(tape, f"{name}.lora_b_{n}", *pair) for n, pair in enumerate(pairs)]
    if len(changes) > 1:
        changes = [pointwise(tape, f"{name}.lora.cat", changes, y.shape)]
    change = pointwise(tape, f"{name}.lora.scale", changes, y.shape)
    return add(tape, f"{name}.lora", y, change)


def product(
    tape: Tape, name: str, x: Array, outputs: int, *, is_trained: bool = True, bias: bool = False
) -> Array:
    """x Wᵀ: x is kept where W is trained."""
    rows, inputs = x.rows, x.shape[-1]
    flops = 2.0 * rows * outputs * inputs
    output = tape.new((*x.shape[:-1], outputs), needs_gradient=x.needs_gradient or is_trained)
    weight_bytes = (inputs * outputs + bias * outputs) * tape.itemsize
    tape.add(
        Record(
            name=name,
            kind="product",
            inputs=(x,),
            outputs=(output,),
            saved=(x.memory,) if is_trained else (),
            flops=flops,
            backward_flops=flops * (x.needs_gradient + is_trained),
            product=(rows, outputs, inputs),
            weight_bytes=weight_bytes,
            trained_bytes=weight_bytes * is_trained,
            backward_launches=x.needs_gradient + is_trained * (1 + bias),
        )
    )
    return output


def pointwise(
    tape: Tape,
    name: str,
    inputs: Sequence[Array],
    shape: Sequence[int],
    *,
    kind: Kind = "pointwise",
    itemsize: int = 0,
    saved: Sequence[Array] = (),
    saves_output: bool = False,
    kept_bytes: int = 0,
    scratch_bytes: int = 0,
    weight_bytes: int = 0,
    is_trained: bool = False,
    passes_gradient: bool = False,
    launches: int = 1,
    backward_launches: int = 1,
) -> Array:
    """An operator that is bound by memory. ``saved``: inputs that are kept; ``kept_bytes``: memory
    of its own that is, such as a mask; ``is_trained``: it has a weight, which is.
    """
    needs = is_trained or any(array.needs_gradient for array in inputs)
    output = tape.new(shape, itemsize=itemsize, needs_gradient=needs)
    kept = [array.memory for array in saved] + [output.memory] * saves_output
    if kept_bytes and needs:
        kept.append(tape.reserve(kept_bytes))
    tape.add(
        Record(
            name=name,
            kind=kind,
            inputs=tuple(inputs),
            outputs=(output,),
            saved=tuple(kept) if needs else (),
            flops=float(output.elements),
            backward_flops=float(output.elements * needs),
            weight_bytes=weight_bytes,
            trained_bytes=weight_bytes * is_trained,
            extra_bytes=kept_bytes,
            backward_extra_bytes=kept_bytes,
            scratch_bytes=scratch_bytes,
            backward_scratch_bytes=scratch_bytes,
            passes_gradient=passes_gradient,
            launches=launches,
            backward_launches=backward_launches * needs,
        )
    )
    return output


def lookup(tape: Tape, name: str, ids: Array, width: int, *, rows: int) -> Array:
    """Vectors of a table [rows, width] by int64 ids, which are kept."""
    is_trained = tape.is_trained(f"{name}.weight")
    return pointwise(
        *(tape, name, [ids], (*ids.shape, width)),
        kind="lookup",
        saved=[ids],
        weight_bytes=rows * width * tape.itemsize,
        is_trained=is_trained,
        backward_launches=2,
    )


def add(tape: Tape, name: str, a: Array, b: Array) -> Array:
    """Both take the sum's gradient as it is."""
    return pointwise(
        tape, f"{name}.add", [a, b], a.shape, passes_gradient=True, backward_launches=0
    )


def multiply(tape: Tape, name: str, a: Array, b: Array) -> Array:
    """Both are kept."""
    return pointwise(tape, f"{name}.multiply", [a, b], a.shape, saved=[a, b], backward_launches=2)


def scale(tape: Tape, name: str, x: Array) -> Array:
    """x times a number."""
    return pointwise(tape, f"{name}.scale", [x], x.shape)


def dropout(tape: Tape, name: str, x: Array, share: float) -> Array:
    """A mask is kept: of bools on CUDA, of x's dtype on the CPU."""
    if share == 0:
        return x
    mask = x.elements * (1 if tape.on_gpu else x.itemsize)
    launches = 1 if tape.on_gpu else 3
    return pointwise(tape, f"{name}.dropout", [x], x.shape, kept_bytes=mask, launches=launches)


def norm(tape: Tape, name: str, x: Array, kind: str, *, bias: bool = False) -> Array:
    """``kind``: rmsnorm or layernorm, of the module ``name``."""
    return rms_norm(tape, name, x) if kind == "rmsnorm" else layer_norm(tape, name, x, bias=bias)


def rms_norm(tape: Tape, name: str, x: Array) -> Array:
    """CUDA has one kernel, which keeps x and a number a row. The CPU's is composed of others, which
    keep x in fp32, and for a trained weight the normed x.
    """
    is_trained, is_float = tape.is_trained(f"{name}.weight"), x.itemsize == FLOAT
    keeps_x = tape.on_gpu or (is_float and x.needs_gradient)
    copied = is_trained + (not is_float and x.needs_gradient)
    copies = 0 if tape.on_gpu else x.elements * FLOAT * copied
    return pointwise(
        *(tape, name, [x], x.shape),
        saved=[x] if keeps_x else [],
        kept_bytes=copies + x.rows * FLOAT,
        scratch_bytes=0 if tape.on_gpu else x.elements * FLOAT,
        weight_bytes=x.shape[-1] * tape.itemsize,
        is_trained=is_trained,
        launches=1 if tape.on_gpu else 6,
        backward_launches=2 if tape.on_gpu else 10,
    )


def layer_norm(tape: Tape, name: str, x: Array, *, bias: bool) -> Array:
    """x, and a mean and a deviation of each row are kept."""
    statistics = FLOAT if tape.on_gpu else x.itemsize
    return pointwise(
        *(tape, name, [x], x.shape),
        saved=[x],
        kept_bytes=2 * x.rows * statistics,
        weight_bytes=(1 + bias) * x.shape[-1] * tape.itemsize,
        is_trained=tape.is_trained(f"{name}.weight"),
        backward_launches=2,
    )


SAVES_OUTPUT = frozenset({"relu", "sigmoid", "tanh"})


def activate(tape: Tape, name: str, x: Array, function: str) -> Array:
    """Of relu, sigmoid and tanh what they give is kept, of the others what they take."""
    if function in SAVES_OUTPUT:
        return pointwise(tape, name, [x], x.shape, saves_output=True)
    return pointwise(tape, name, [x], x.shape, saved=[x])


def plan_rotation(tape: Tape, ids: Array, head_width: int) -> Array:
    """Cosines and sines of all positions, fp32."""
    shape = (2, *ids.shape, 1, head_width // 2)
    return pointwise(tape, "rotation", [ids], shape, itemsize=FLOAT, launches=5)


def rotate(tape: Tape, name: str, x: Array, rotation: Array) -> Array:
    """Rotary embedding, in fp32: nothing is kept but the angles, which all blocks share."""
    return pointwise(
        *(tape, name, [x, rotation], x.shape),
        saved=[rotation],
        scratch_bytes=3 * x.elements * FLOAT,
        launches=9,
        backward_launches=9,
    )


def feed_forward(
    tape: Tape,
    name: str,
    x: Array,
    *,
    inner: int,
    gate: str | None,
    function: str,
    bias: bool,
    dropped: float = 0.0,
) -> Array:
    """``model/feed_forward.py``: ``gate`` is the function of a gated activation, or None."""
    if gate is None:
        up = linear(tape, f"{name}.up", x, inner, bias=bias)
        hidden = activate(tape, f"{name}.{function}", up, function)
    else:
        both = linear(tape, f"{name}.gate_up", x, (inner, inner), bias=bias)
        half = (*both.shape[:-1], inner)
        gated, up = tape.split(f"{name}.gate_up", both, [half, half])
        hidden = multiply(tape, name, activate(tape, f"{name}.{gate}", gated, gate), up)
    hidden = dropout(tape, f"{name}.inner", hidden, dropped)
    return linear(tape, f"{name}.down", hidden, x.shape[-1], bias=bias)


def flatten(array: Array, width: int) -> Array:
    """[…, width] as [N, width]."""
    return reshape(array, array.elements // width, width)
