"""Which parameters stay as they begin: patterns for ``train.freeze``, by a model's settings."""

from __future__ import annotations

from collections.abc import Iterator

from lmscale.config.finetune import TrainableConfig
from lmscale.config.model import (
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    RecurrentConfig,
)
from lmscale.config.model_base import ModelConfig
from lmscale.errors import ConfigError


def find_frozen(
    model: ModelConfig, trainable: TrainableConfig, *, has_task_layers: bool
) -> tuple[str, ...]:
    """Patterns of all parameters but those to be trained, each of which matches one at least.

    ``has_task_layers``: the task brings layers of its own, which are always trained; else its own
    layer is the output matrix, where that is no embedding as well. Raises ``ConfigError`` where
    nothing would be left to train, or for a family of an installed package.
    """
    if trainable.kind in ("all", "lora"):  # beside adapters everything is frozen by itself
        return ()
    stacks = _stacks_of(model)
    depth = stacks[-1][1]
    count = trainable.layers if trainable.kind == "top" else 0
    if count >= depth:
        raise ConfigError(
            f"trainable: top: {count}, and the base has {depth} layers: give fewer, or trainable: "
            "all."
        )
    is_tied = bool(getattr(model, "tied_embeddings", False))
    if trainable.kind == "head" and not has_task_layers and is_tied:
        raise ConfigError(
            "trainable: head: the base's output is its embedding (tied_embeddings), and there is "
            "no other layer of the task. Give trainable: {top: 2} or {lora: {rank: 8}}."
        )
    patterns = list(_embeddings_of(model))
    for name, layers in stacks:
        trained = count if (name, layers) == stacks[-1] else 0
        patterns += [name.format(number) for number in range(layers - trained)]
    patterns += _norms_of(model, trains_last=bool(count))
    if has_task_layers:
        patterns += _token_heads_of(model, is_tied=is_tied)
    return tuple(patterns)


def _stacks_of(model: ModelConfig) -> list[tuple[str, int]]:
    """A pattern with the layer's number, and how many there are; the one that ends in the output
    last.
    """
    if isinstance(model, DecoderConfig | EncoderConfig):
        return [("blocks.{}.*", model.layers)]
    if isinstance(model, EncoderDecoderConfig):
        decoder = model.resolved_decoder_layers
        return [("encoder.blocks.{}.*", model.layers), ("decoder.blocks.{}.*", decoder)]
    if isinstance(model, RecurrentConfig):
        return [("cells.*_l{}", model.layers)]
    raise ConfigError(
        f"trainable: the layers of model.family = {model.family!r} are not known here. Give "
        "trainable: all with settings: {train.freeze: [PATTERNS]}."
    )


def _embeddings_of(model: ModelConfig) -> Iterator[str]:
    yield "embedding.*"
    has_positions = getattr(model, "positions", "") == "learned"
    if isinstance(model, EncoderDecoderConfig):
        for stack in ("encoder", "decoder"):
            yield f"{stack}.position_embedding.*" if has_positions else f"{stack}.relative.*"
            if not model.norm_first:
                yield f"{stack}.embedding_norm.*"
        return
    if has_positions:
        yield "position_embedding.*"
    if isinstance(model, EncoderConfig):
        if model.token_types:
            yield "type_embedding.*"
        yield "embedding_norm.*"


def _norms_of(model: ModelConfig, *, trains_last: bool) -> list[str]:
    """Those behind all blocks of a stack."""
    if isinstance(model, EncoderDecoderConfig):
        last = [] if trains_last else ["decoder.norm.*"]
        return ["encoder.norm.*", *last] if model.norm_first else []
    has_norm = isinstance(model, DecoderConfig) or getattr(model, "norm_first", False)
    return ["norm.*"] if has_norm and not trains_last else []


def _token_heads_of(model: ModelConfig, *, is_tied: bool) -> list[str]:
    """The output that predicts tokens, in which a task of labels has no part."""
    return ["head.*"] if isinstance(model, EncoderConfig) or not is_tied else []
