"""The tokenizer that a run begins or goes on with, and whether its ids are those that it needs."""

from __future__ import annotations

from collections.abc import Iterator

from lmscale.config import RunConfig
from lmscale.config.objective_base import describe_ids
from lmscale.errors import DataError
from lmscale.runs.own_ids import find_forgotten_ids, find_idle_rows, find_other_tokenizer
from lmscale.stream.stream import Stream
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.codec import load_configured
from lmscale.tokenizer.kept_template import choose_run_template

_MARK_TEXTS = ("start", "end", "cls", "sep")  # so they may be what marks a document, too


def load_run_tokenizer(config: RunConfig) -> Tokenizer:
    """That of ``tokenizer.folder``. Raises ``DataError`` with all that does not fit the run."""
    tokenizer = load_configured(config.tokenizer)
    sizes = [*_find_size_problems(config, tokenizer)]
    if sizes and (others := find_other_tokenizer(config, tokenizer.fingerprint)):
        raise DataError(others)  # what follows from it is no advice
    if problems := [*sizes, *_find_problems(config, tokenizer)]:
        raise DataError(problems)
    return tokenizer


def choose_template(config: RunConfig, stream: Stream) -> str:
    """The chat template that the run keeps; "": none. Raises ``DataError`` where its sources were
    not all written by the same.
    """
    datasets = stream.datasets.items()
    return choose_run_template(
        config, {name: dataset.manifest.chat_template for name, dataset in datasets}
    )


def _find_size_problems(config: RunConfig, tokenizer: Tokenizer) -> Iterator[str]:
    if config.added_ids and tokenizer.vocab_size > config.tokenizer.vocab_size:
        yield (
            f"{config.tokenizer.folder} holds a tokenizer of {tokenizer.vocab_size} pieces, and "
            f"from {config.tokenizer.vocab_size} on the objective numbers its own "
            f"{describe_ids(config.added_ids)}. Set tokenizer.vocab_size to {tokenizer.vocab_size}."
        )
    elif tokenizer.vocab_size > config.vocab_size:
        yield (
            f"{config.tokenizer.folder} holds a tokenizer of {tokenizer.vocab_size} pieces, but "
            f"the model has only {config.vocab_size} embeddings. Set tokenizer.vocab_size to "
            f"{tokenizer.vocab_size}, or model.vocab_size to as many or more."
        )


def _find_problems(config: RunConfig, tokenizer: Tokenizer) -> Iterator[str]:
    """Of ``tokenizer.ids``."""
    folder = config.tokenizer.folder
    roles = {number: role for role, number in tokenizer.special_ids.items() if role != "pad"}
    for name, number in config.objective_ids.items():
        if name in config.added_ids:
            continue
        if number >= tokenizer.vocab_size:
            yield (
                f"tokenizer.ids: {name} = {number}, but {folder} holds a tokenizer of "
                f"{tokenizer.vocab_size} pieces. `lmscale tokenizer show {folder}` describes it."
            )
        elif number in roles and name not in _MARK_TEXTS:
            yield (
                f"tokenizer.ids: {name} = {number} is the {roles[number]} of {folder}, which every "
                "document may hold. Give the id of a piece that no text holds, or leave it out: "
                "one is added above the tokenizer's."
            )
    yield from find_forgotten_ids(config)
    yield from find_idle_rows(config)
