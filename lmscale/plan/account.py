"""What a model costs, from its settings and sizes alone: parameters, and the M of MFU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lmscale.config.encoder import EncoderConfig
from lmscale.config.model import DecoderConfig, EncoderDecoderConfig, RecurrentConfig, Sizes
from lmscale.config.model_base import GATED, ModelConfig

GATES = {"lstm": 4, "gru": 3, "rnn": 1}  # matrices of a recurrent cell that are stored as one


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs per token of a forward and a backward pass, without recomputation: the M of MFU.

    A multiplication and an addition are two FLOPs; the backward pass costs twice the forward.
    Masked documents shorten attention further; neither convention counts that.
    """

    dense: float
    """6N + what every token spends on looking at the whole window (PaLM, app. B), or at as much of
    it as a layer's sliding window.
    """
    causal: float
    """The same with a look at what a causal mask leaves of it: half of a whole window."""
    products: float = 0.0
    """What of both is of products with parameters. Of those that stay as they are, a third is not
    computed: their own gradient.
    """


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a model costs, computed from its settings and sizes without building it."""

    parameters: Mapping[str, int]
    """Part of the model → its number of parameters; a tied matrix counts once."""
    flops: Flops
    """Of a token in a window of ``Sizes.sequence_length``."""

    @property
    def total(self) -> int:
        return sum(self.parameters.values())


def account_decoder(settings: DecoderConfig, sizes: Sizes) -> Account:
    """N, the parameters that a token is multiplied with, counts all but the position table and,
    when untied, the token embedding. With tied embeddings it is nanoGPT's ``get_num_params()``.
    """
    config, width, inner = settings, settings.width, settings.resolved_ffn_width
    queries = config.heads * config.resolved_head_width
    keys = config.resolved_kv_heads * config.resolved_head_width
    rows = queries + 2 * keys
    first = 2 * inner if config.activation in GATED else inner
    matrices = width * rows + queries * width + width * first + inner * width
    biases = rows + width + first + width if config.bias else rows * config.qkv_bias
    norm = 2 * width if config.norm == "layernorm" and config.bias else width
    norms = 4 if config.output_norms else 2
    qk_norms = 2 * config.resolved_head_width if config.qk_norm else 0
    parameters = {
        "embedding": sizes.vocab_size * width,
        "positions": sizes.max_positions * width if config.positions == "learned" else 0,
        "blocks": config.layers * (matrices + biases + norms * norm + qk_norms),
        "norm": norm,
        "classifier": config.text_classes * width,
        "head": 0 if config.tied_embeddings else sizes.vocab_size * width,
    }
    # Of the head, whoever owns its matrix; classes are told by one token of a document.
    logits = 0 if config.text_classes else sizes.vocab_size * width
    computing = parameters["blocks"] + norm + logits
    length = sizes.sequence_length
    seen = [min(window or length, length) for window in config.layer_windows]
    causal = sum(keys - keys**2 / (2 * length) for keys in seen)  # a window's first tokens see less
    return Account(
        parameters=parameters,
        flops=Flops(
            dense=6 * computing + 12 * queries * sum(seen),
            causal=6 * computing + 12 * queries * causal,
            products=6.0 * computing,
        ),
    )


def account_encoder(settings: EncoderConfig, sizes: Sizes) -> Account:
    """The FLOPs are those of the blocks: embeddings are looked up, and the head's products are of
    the targets alone, a small part of the tokens. Nothing is causal, so both conventions agree.
    """
    config, width, inner = settings, settings.width, settings.resolved_ffn_width
    first = 2 * inner if config.activation in GATED else inner
    norm = 2 * width if config.norm == "layernorm" and config.bias else width
    dense = width * width + (width if config.bias else 0)
    matrices = 4 * width * width + width * first + inner * width
    biases = 4 * width + first + width if config.bias else 0
    num_norms = 2 * config.layers  # of the first block one less, and one more after the last
    blocks = config.layers * (matrices + biases) + num_norms * norm
    parameters = {
        "embedding": sizes.vocab_size * width,
        "positions": sizes.max_positions * width if config.positions == "learned" else 0,
        "types": config.token_types * width,
        "embedding_norm": norm,
        "blocks": blocks,
        "pooler": dense if config.pooler else 0,
        "classifier": (width + 1) * (config.text_classes + config.token_classes),
        "head": dense + norm + sizes.vocab_size * (1 if config.tied_embeddings else 1 + width),
    }
    length = sizes.sequence_length
    seen = sum(min(2 * window - 1, length) if window else length for window in config.layer_windows)
    flops = 6.0 * blocks + 12 * width * seen
    return Account(
        parameters=parameters, flops=Flops(dense=flops, causal=flops, products=6.0 * blocks)
    )


def account_encoder_decoder(settings: EncoderDecoderConfig, sizes: Sizes) -> Account:
    """FLOPs are those of a window's two sequences, divided by the window's tokens."""
    config, width, inner = settings, settings.width, settings.resolved_ffn_width
    queries = config.heads * config.resolved_head_width
    norm = 2 * width if config.norm == "layernorm" and config.bias else width
    read_bias, write_bias = (queries + width, 2 * queries) if config.bias else (0, 0)
    # Of an attention what is applied to its queries' sequence, and to its keys' one.
    for_queries, for_keys = 2 * width * queries + read_bias, 2 * width * queries + write_bias
    first = 2 * inner if config.activation in GATED else inner
    feed_forward = width * first + inner * width + ((first + width) if config.bias else 0)
    encoder = config.layers * (for_queries + for_keys + feed_forward + 2 * norm)
    layers = config.resolved_decoder_layers
    decoder = layers * (2 * for_queries + for_keys + feed_forward + 3 * norm)
    cross_keys = layers * for_keys
    is_relative, logits = config.positions == "relative", sizes.vocab_size * width
    one_table = (
        config.relative_buckets * config.heads if is_relative else sizes.max_positions * width
    )
    parameters = {
        "embedding": logits,
        "positions": 2 * one_table,
        "encoder": encoder,
        "decoder": decoder + cross_keys,
        "norm": 2 * norm,  # at the end of each stack, or behind its embeddings
        "head": 0 if config.tied_embeddings else logits,
    }
    read, written = sizes.pair_lengths or (sizes.sequence_length, sizes.sequence_length)
    computing = read * (encoder + norm + cross_keys) + written * (decoder + norm + logits)
    own = 12 * queries * layers * written * written
    others = 12 * queries * (config.layers * read * read + layers * written * read)
    return Account(
        parameters=parameters,
        flops=Flops(
            dense=(6 * computing + own + others) / sizes.sequence_length,
            causal=(6 * computing + own / 2 + others) / sizes.sequence_length,
            products=6 * computing / sizes.sequence_length,
        ),
    )


def account_recurrent(settings: RecurrentConfig, sizes: Sizes) -> Account:
    """Every parameter but an untied embedding is multiplied with every token."""
    width, table = settings.width, sizes.vocab_size * settings.width
    parameters = {
        "embedding": table,
        "cells": settings.layers * GATES[settings.cell] * 2 * (width * width + width),
        "head": 0 if settings.tied_embeddings else table,
    }
    flops = 6.0 * (parameters["cells"] + table)
    return Account(parameters=parameters, flops=Flops(dense=flops, causal=flops))


_ACCOUNTS: Mapping[type, Callable[[Any, Sizes], Account]] = {
    DecoderConfig: account_decoder,
    EncoderConfig: account_encoder,
    EncoderDecoderConfig: account_encoder_decoder,
    RecurrentConfig: account_recurrent,
}


def account_planned(settings: ModelConfig, sizes: Sizes, *, adapters: int = 0) -> Account | None:
    """The account of a model with so many trained elements of adapters beside its matrices; None of
    a family of an installed package, whose own account loads torch.
    """
    account = _ACCOUNTS.get(type(settings))
    return None if account is None else with_adapters(account(settings, sizes), adapters)


def with_adapters(account: Account, count: int) -> Account:
    """The matrices stay as they are beside adapters, and their own gradients are not computed."""
    if not count:
        return account
    own = account.flops
    change = 6.0 * count - own.products / 3
    flops = replace(own, dense=own.dense + change, causal=own.causal + change)
    return Account(parameters={**account.parameters, "adapters": count}, flops=flops)
