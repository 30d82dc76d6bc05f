"""Which models llama.cpp computes, and how each differs from the same architecture elsewhere.

A GGUF file says little of what a model computes: most of it stands in llama.cpp's own code, by the
architecture's name. What that code has fixed, and transformers has not, is a line here; read in its
src/models, and seen by running every architecture there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lmscale.config.data import TokenizerConfig
from lmscale.config.model import DecoderConfig, Sizes
from lmscale.config.model_base import ModelConfig
from lmscale.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """An architecture of llama.cpp."""

    name: str
    activation: str
    """The only one that it has."""
    is_interleaved: bool = False
    """Whether rope turns neighbouring rows (2r, 2r + 1) of a head, not those of its two halves."""
    is_square: bool = False
    """Whether heads × head_width must be the width."""
    is_tied: bool = False
    scalings: tuple[str, ...] = ("none", "linear", "yarn")
    """Of rope."""
    has_local_layers: bool = False
    """Whether layers with a sliding window and layers without take turns."""


_LLAMA = LlamaCpp(
    name="llama",
    activation="swiglu",
    is_interleaved=True,
    scalings=("none", "linear", "yarn", "llama3"),
)
LLAMA_CPP = {
    "gpt2": LlamaCpp(name="gpt2", activation="gelu", is_square=True),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": LlamaCpp(name="qwen2", activation="swiglu", is_square=True),
    "qwen3": LlamaCpp(name="qwen3", activation="swiglu"),
    "starcoder2": LlamaCpp(name="starcoder2", activation="gelu", is_square=True),
    "gemma": LlamaCpp(name="gemma", activation="geglu", is_tied=True),
    "gemma2": LlamaCpp(name="gemma2", activation="geglu", is_tied=True, has_local_layers=True),
}
"""By transformers' ``model_type``."""
_GEMMA2_27B_LAYERS = 46  # by which llama.cpp knows the model whose scores are scaled otherwise


def choose_llama_cpp(
    model_type: str, section: ModelConfig, sizes: Sizes
) -> tuple[LlamaCpp, DecoderConfig]:
    """What llama.cpp calls the architecture, and the section as what it is.

    Raises ``ConfigError`` where it has none, or has settings of it otherwise, with all that is to
    be changed.
    """
    there = LLAMA_CPP.get(model_type)
    if there is None or not isinstance(section, DecoderConfig):
        raise ConfigError(
            f"A model of the architecture {model_type} cannot be exported as GGUF. Those that can "
            f"be: {', '.join(LLAMA_CPP)}. This one can be exported with --format hf."
        )
    problems = [*_find_gaps(there, section, sizes)]
    if problems:
        raise ConfigError(
            [f"llama.cpp's {there.name} cannot compute {problem}." for problem in problems]
        )
    return there, section


def check_llama_cpp_config(
    model_type: str, section: ModelConfig, sizes: Sizes, tokenizer: TokenizerConfig
) -> None:
    """Raise ``ConfigError`` where llama.cpp could not run the model or, as it would be trained, its
    tokenizer.
    """
    problems = []
    try:
        choose_llama_cpp(model_type, section, sizes)
    except ConfigError as error:
        problems += error.problems
    is_grouped = tokenizer.kind == "byte_bpe" and not tokenizer.split_digits
    if tokenizer.kind == "unigram" or is_grouped:
        more = " without split_digits" if is_grouped else ""
        problems.append(
            f"tokenizer.kind = {tokenizer.kind}{more}: llama.cpp has no tokenizer that gives its "
            "ids. Take bpe, or byte_bpe with split_digits."
        )
    if problems:
        raise ConfigError(problems)


def _find_gaps(there: LlamaCpp, section: DecoderConfig, sizes: Sizes) -> Iterator[str]:
    if section.text_classes:
        yield f"model.text_classes = {section.text_classes}, which are no tokens"
    if section.activation != there.activation:
        yield f"model.activation = {section.activation}, only {there.activation}"
    inner = section.heads * section.resolved_head_width
    if there.is_square and inner != section.width:
        yield (
            f"model.head_width = {section.resolved_head_width}: times heads it must be the width, "
            f"{section.width}"
        )
    if there.is_tied and not section.tied_embeddings:
        yield "model.tied_embeddings = false"
    kind = section.rope_scaling.kind
    if section.positions == "rope" and kind not in there.scalings:
        yield f"model.rope_scaling.kind = {kind}, only {', '.join(there.scalings)}"
    windows = local_windows(section, sizes)
    if there.has_local_layers:
        yield from _find_gemma2_gaps(section, windows)
    elif any(windows):
        yield (
            f"model.sliding_windows = {list(section.sliding_windows)}: all its layers see all of "
            f"the {sizes.max_positions} positions (model.max_positions)"
        )


def _find_gemma2_gaps(section: DecoderConfig, windows: tuple[int, ...]) -> Iterator[str]:
    width = max(windows)
    if any(windows) and windows != tuple(0 if n % 2 else width for n in range(section.layers)):
        yield (
            f"model.sliding_windows = {list(section.sliding_windows)}, only [{width}, 0]: a window "
            "in every other layer, beginning with the first"
        )
    for key in ("attention_softcap", "logit_softcap"):
        if not getattr(section, key):
            yield f"model.{key} = 0"
    scaled = section.attention_width or section.resolved_head_width
    is_27b = section.layers == _GEMMA2_27B_LAYERS
    wanted = section.width // section.heads if is_27b else section.resolved_head_width
    if scaled != wanted:
        yield f"model.attention_width = {scaled}, only {wanted}"


def local_windows(section: DecoderConfig, sizes: Sizes) -> tuple[int, ...]:
    """Every layer's window; 0 where it sees all positions, as it does through a longer one."""
    return tuple(w if w < sizes.max_positions else 0 for w in section.layer_windows)
