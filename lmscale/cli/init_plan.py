"""What ``lmscale init`` chooses for a text and a machine: arithmetic, each rule with its source.

Brown et al. 2020 is GPT-3 (table 2.1: shapes, batches, learning rates); Hoffmann et al. 2022 is
Chinchilla (20 tokens a parameter); Muennighoff et al. 2023 is the repetition of scarce text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lmscale.config.data import MIN_VOCABULARY
from lmscale.config.model_base import plan_ffn_width
from lmscale.config.run import VOCAB_MULTIPLE

TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022
MAX_EPOCHS = 4  # as good as fresh text so far (Muennighoff et al. 2023)
MIN_STEPS = 500  # the batch is chosen so that there are about so many, where the text allows
# Bytes a parameter of mixed-precision Adam: weights and gradients here, three fp32 states that ZeRO
# deals to the ranks (Rajbhandari et al. 2020).
STATE_BYTES, SHARDED_BYTES = 4, 12
EMBEDDING_SHARE = 0.5  # of the parameters, at most
STATES_SHARE = 0.6  # of what may be used; the rest is for activations
MEMORY_SHARE = 0.8  # of a device; the rest is the allocator's, the libraries' and for peaks
# Bytes a token, layer and unit of width that the backward pass needs (Korthikanti et al. 2022, 34
# with attention that keeps no scores).
ACTIVATION_BYTES = 34
# FLOP/s that training reaches: part of a GPU's peak; of a CPU's core what `make demo` does.
GPU_SHARE, UNKNOWN_GPU_FLOPS, CORE_FLOPS = 0.4, 5e13, 2e10
HELDOUT_DOCUMENTS = 5  # if a tenth or less of the documents are so many
FRACTIONS = (0.001, 0.01, 0.02, 0.05, 0.1)  # of the documents


class Shape(NamedTuple):
    layers: int
    width: int
    heads: int
    lr: float
    batch_tokens: int  # the most that a step takes


# From 12 layers on table 2.1 of Brown et al. 2020, with heads of 64 or 128; the smaller ones alike,
# with the learning rate of nanoGPT's small models.
SHAPES = (
    Shape(2, 128, 2, 1e-3, 16_384),
    Shape(4, 192, 3, 1e-3, 32_768),
    Shape(4, 256, 4, 1e-3, 32_768),
    Shape(6, 384, 6, 1e-3, 65_536),
    Shape(8, 512, 8, 8e-4, 131_072),
    Shape(12, 768, 12, 6e-4, 524_288),
    Shape(24, 1024, 16, 3e-4, 524_288),
    Shape(24, 1536, 16, 2.5e-4, 524_288),
    Shape(24, 2048, 16, 2e-4, 1_048_576),
    Shape(32, 2560, 20, 1.6e-4, 1_048_576),
    Shape(32, 4096, 32, 1.2e-4, 2_097_152),
    Shape(40, 5120, 40, 1e-4, 2_097_152),
    Shape(80, 8192, 64, 1e-4, 4_194_304),
)


@dataclass(frozen=True, kw_only=True)
class Device:
    """What trains: so many GPUs, or a CPU."""

    ranks: int
    memory_bytes: int  # of each rank
    flops: float  # a second, of all together, as training reaches it
    precision: str
    described: str
    is_gpu: bool


@dataclass(frozen=True, kw_only=True)
class Text:
    """What there is to train on."""

    text_bytes: int
    heldout: Mapping[float, int]  # fraction → documents that would be held out
    east_asian: float  # part of its characters
    needed_chars: int  # different ones that get pieces of their own


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What goes into the configuration."""

    vocab_size: int
    tokens: int  # of the text, about
    bytes_per_token: float
    shape: Shape
    parameters: int
    bound_by: str
    sequence_length: int
    global_windows: int
    micro_windows: int
    recompute: bool
    zero_stage: int
    steps: int
    heldout_fraction: float
    has_heldout: bool
    hours: float
    is_cut: bool
    """Whether more steps would be right, and take longer than was allowed."""

    @property
    def trained_tokens(self) -> int:
        return self.steps * self.global_windows * self.sequence_length

    @property
    def epochs(self) -> float:
        return self.trained_tokens / max(1.0, self.tokens * (1 - self.heldout_fraction))

    @property
    def warmup_steps(self) -> int:
        return max(1, min(2000, self.steps // 50))

    @property
    def every_steps(self) -> int:
        """Of saves and evaluations: ten of each."""
        return max(1, self.steps // 10)


def plan_vocabulary(text: Text, *, most: int = 64_000) -> tuple[int, float]:
    """Pieces of the tokenizer, and bytes of text that one will stand for, about.

    More text fills more pieces; the characters that need one each come on top of the 256 bytes.
    """
    sizes = ((10**6, 1024), (10**7, 4096), (10**8, 8192), (10**9, 16_384))
    size = next((size for limit, size in sizes if text.text_bytes < limit), 32_000)
    if text.east_asian > 0.3:
        size *= 2  # thousands of characters before the first word
    size = min(size, max(most, 1024))
    needed = text.needed_chars + 256 + size // 4
    size = max(size, -(-needed // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
    if text.text_bytes < 50_000:  # there are hardly so many pieces to learn
        size = max(MIN_VOCABULARY + text.needed_chars, min(size, 512))
    # 2.6 bytes at 1,024 pieces of English, 4.3 at 32,000: about one third of a byte a doubling.
    return size, 2.6 + 0.34 * max(0.0, math.log2(size / 1024))


def count_parameters(layers: int, width: int, vocab_size: int) -> int:
    """Of a Llama with tied embeddings: four matrices of attention, three gated ones, the norms."""
    rows = -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    block = 4 * width * width + 3 * width * plan_ffn_width(width, "swiglu") + 2 * width
    return layers * block + rows * width + width


def plan_run(
    text: Text, device: Device, *, max_hours: float, parameters: int | None = None
) -> Choice:
    """The largest shape that the text, the time and the memory allow, or that of ``parameters``."""
    vocab_size, bytes_per_token = plan_vocabulary(text)
    fraction, has_heldout = _plan_heldout(text)
    while True:
        tokens = max(1, round(text.text_bytes / bytes_per_token))
        trained = MAX_EPOCHS * tokens * (1 - fraction)
        count, shape, bound_by = _choose_shape(device, trained, vocab_size, max_hours, parameters)
        # A small model of much text: else it would be an embedding and little else.
        smaller = plan_vocabulary(text, most=vocab_size // 2)
        if vocab_size * shape.width <= EMBEDDING_SHARE * count or smaller[0] >= vocab_size:
            break
        vocab_size, bytes_per_token = smaller
    trained = min(trained, TOKENS_PER_PARAMETER * count)
    in_time = device.flops * 3600 * max_hours / (6 * count)
    is_cut = in_time < 0.99 * trained  # of the shapes that are chosen by it none is
    trained = min(trained, in_time)
    length = 256 if count < 10e6 else 512 if count < 50e6 else 1024 if count < 1e9 else 2048
    unit = math.lcm(8, device.ranks)  # so that 1, 2, 4 and 8 ranks share a step as well
    wanted = min(shape.batch_tokens, trained / MIN_STEPS) / length
    windows = unit * 2 ** max(0, round(math.log2(max(1.0, wanted / unit))))
    steps = max(1, round(trained / (windows * length)))
    stage, micro, recompute = _plan_memory(shape, count, length, windows, device)
    return Choice(
        vocab_size=vocab_size,
        tokens=tokens,
        bytes_per_token=bytes_per_token,
        shape=shape,
        parameters=count,
        bound_by=bound_by,
        sequence_length=length,
        global_windows=windows,
        micro_windows=micro,
        recompute=recompute,
        zero_stage=stage,
        steps=steps,
        heldout_fraction=fraction,
        has_heldout=has_heldout,
        hours=6 * count * steps * windows * length / device.flops / 3600,
        is_cut=is_cut,
    )


def describe_doubts(choice: Choice) -> Iterator[str]:
    """What will be and can hardly be wanted."""
    share = choice.trained_tokens / choice.parameters
    if choice.is_cut:
        yield (
            f"the steps are cut to the hours: {share:.2g} tokens a parameter, where "
            f"{TOKENS_PER_PARAMETER} are the rule. More hours, or fewer parameters, make it better."
        )
    elif share < 1:
        yield (
            f"{share:.2g} tokens a parameter, where {TOKENS_PER_PARAMETER} are the rule: the model "
            "will know the text by heart. More text is what helps most."
        )


def _choose_shape(
    device: Device, trained: float, vocab_size: int, max_hours: float, parameters: int | None
) -> tuple[int, Shape, str]:
    """Parameters, shape, and why no larger one."""
    counted = [(count_parameters(shape.layers, shape.width, vocab_size), shape) for shape in SHAPES]
    if parameters is not None:
        count, shape = min(counted, key=lambda each: abs(math.log(each[0] / parameters)))
        return count, shape, "the shape nearest to what was asked for"
    by_time = math.sqrt(device.flops * 3600 * max_hours / (6 * TOKENS_PER_PARAMETER))
    states = STATE_BYTES + SHARDED_BYTES
    by_memory = device.memory_bytes * MEMORY_SHARE * STATES_SHARE * device.ranks / states
    bounds = {
        "text": trained / TOKENS_PER_PARAMETER,
        f"more would take longer than {max_hours:g} hours": by_time,
        "more would not fit into the memory": by_memory,
    }
    bound_by, most = min(bounds.items(), key=lambda each: each[1])
    fitting = [each for each in counted if each[0] <= most]
    count, shape = fitting[-1] if fitting else counted[0]
    if bound_by == "text":
        each = min(float(TOKENS_PER_PARAMETER), trained / count)
        bound_by = f"{MAX_EPOCHS} epochs of the text hold {each:.2g} tokens for each of them"
    return count, shape, bound_by if fitting else f"the smallest shape; {bound_by}"


def _plan_memory(
    shape: Shape, count: int, length: int, windows: int, device: Device
) -> tuple[int, int, bool]:
    """ZeRO's stage, windows of a pass, and whether blocks are computed again."""
    usable = device.memory_bytes * MEMORY_SHARE
    states = {
        1: count * (STATE_BYTES + SHARDED_BYTES / device.ranks),
        3: count * (STATE_BYTES + SHARDED_BYTES) / device.ranks,
    }
    stage = 1 if states[1] < STATES_SHARE * usable or device.ranks == 1 else 3
    wide = 1 if device.precision != "fp32" else 2
    window = ACTIVATION_BYTES * wide * length * shape.width * shape.layers
    left = max(0.0, usable - states[stage])
    recompute = left < window
    if recompute:  # what one block needs, and what each was given
        window = window / shape.layers + 2 * wide * length * shape.width * shape.layers
    share = windows // device.ranks
    fitting = max(1, min(64 if device.is_gpu else 8, share, int(left // window)))
    micro = max(n for n in range(1, fitting + 1) if share % n == 0)
    return stage, micro, recompute


def _plan_heldout(text: Text) -> tuple[float, bool]:
    """Part of the documents that is held out, and whether some are then: a hash decides."""
    base = 0.05 if text.text_bytes < 10**7 else 0.01 if text.text_bytes < 10**9 else 0.001
    fractions = [fraction for fraction in FRACTIONS if fraction >= base]
    enough = [each for each in fractions if text.heldout.get(each, 0) >= HELDOUT_DOCUMENTS]
    some = [each for each in fractions if text.heldout.get(each, 0)]
    return (enough or some or [0.0])[0], bool(enough or some)
