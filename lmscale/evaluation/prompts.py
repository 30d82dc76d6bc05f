"""What a run's model is asked with a text, as its objective has taught it to be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.kinds import Ability
from lmscale.config.objective import FillMiddleConfig, InfillConfig, SpanConfig
from lmscale.config.objective_base import ObjectiveConfig
from lmscale.config.supervised import (
    CompletionConfig,
    DialogueConfig,
    LabelledConfig,
    PairsConfig,
)
from lmscale.errors import ConfigError
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.chat_template import ChatTemplate, Messages
from lmscale.tokenizer.kept_template import load_kept_template

Encode = Callable[[str], np.ndarray]
Kind = TypeVar("Kind", bound=ObjectiveConfig)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Ids to go on from."""

    ids: tuple[int, ...]
    source: tuple[int, ...] | None = None
    """Of a model that reads one sequence and writes another: what it reads."""
    ends: frozenset[int] = frozenset()
    """Ids that end the text, beside eos."""
    sees_whole: bool = False
    """Every id of the prompt sees all of it."""
    stops: tuple[str, ...] = ()
    """Texts that end the text, which holds none of them."""
    writes: frozenset[int] = frozenset()
    """Special tokens that may come, and are shown."""
    is_answered: bool = False
    """What comes is the whole of the answer, no continuation of the text."""


def build_prompt(
    config: RunConfig,
    tokenizer: Tokenizer,
    text: str,
    suffix: str | None = None,
    *,
    bos_id: int | None = None,
    special: bool = False,
    stops: Sequence[str] = (),
) -> Prompt:
    """Ask for what follows ``text``, or stands between it and ``suffix``; of a run of pairs for
    what belongs to ``text``. ``bos_id`` is put before it, as before the documents of the training.

    ``special``: names of special tokens in both are those tokens, and may be written. ``stops``
    end what is written: texts, or names of special tokens. Raises ``ConfigError`` for a suffix
    where the objective teaches nothing of the kind, and for a stop without text.
    """
    encode = partial(tokenizer.encode, special=special)
    prompt = _ask(config, tokenizer, encode, text, suffix, bos_id)
    return let_end(prompt, config, tokenizer, special=special, stops=stops)


def let_end(
    prompt: Prompt,
    config: RunConfig,
    tokenizer: Tokenizer,
    *,
    special: bool = False,
    stops: Sequence[str] = (),
) -> Prompt:
    """The prompt with what ``build_prompt`` says of ``special`` and ``stops``, whose answer it
    concerns. Raises ``ConfigError`` for a stop without text.
    """
    if "" in stops:
        raise ConfigError("--stop: the text is empty. Give one, or leave it out.")
    ends = {tokenizer.special_pieces[stop] for stop in stops if stop in tokenizer.special_pieces}
    may_come = {*tokenizer.special_tokens.values()} - {*config.objective_ids.values()}
    return replace(
        prompt,
        ends=prompt.ends | ends,
        stops=tuple(stop for stop in stops if stop not in tokenizer.special_pieces),
        writes=frozenset(may_come if special else ()),
    )


def ask_turn(template: ChatTemplate, messages: Messages) -> Prompt:
    """Ask for the assistant's answer to the last of the messages."""
    return ask_behind(template, template.encode_prompt(messages).tolist())


def ask_behind(template: ChatTemplate, ids: Sequence[int]) -> Prompt:
    """``ask_turn`` of a dialogue's ids, up to where the answer begins."""
    return Prompt(ids=tuple(ids), ends=frozenset({template.end_id}), is_answered=True)


def load_run_template(config: RunConfig, tokenizer: Tokenizer) -> ChatTemplate:
    """That of a run of ``dialogue``. Raises ``ConfigError`` where it keeps none any more."""
    text = load_kept_template(config.folder)
    if not text:
        raise ConfigError(
            f"{config.folder} was trained on dialogues and keeps no chat template, which lay in "
            "its folder tokenizer. Restore chat_template.jinja there."
        )
    return ChatTemplate(text, tokenizer)


def _ask(
    config: RunConfig,
    tokenizer: Tokenizer,
    encode: Encode,
    text: str,
    suffix: str | None,
    bos_id: int | None,
) -> Prompt:
    objective, added = config.objective, config.objective_ids
    bos = () if bos_id is None else (bos_id,)
    ids = encode(text).tolist()
    if (spans := _find(objective, SpanConfig)) is not None:
        return _ask_for_span(spans, added, (*bos, *ids), encode(suffix or "").tolist())
    if _find(objective, InfillConfig) is not None:
        after = encode(suffix or "").tolist()
        return _ask_pair((*bos, *ids, added["mask"], *after, added["end"]), added)
    if isinstance(objective, DialogueConfig) and suffix is None:
        return ask_turn(load_run_template(config, tokenizer), [{"role": "user", "content": text}])
    if suffix is not None:
        return Prompt(ids=tuple(_encode_middle(objective, encode, added, text, suffix, bos_id)))
    return ask_ids(config, ids, bos_id=bos_id)


def ask_ids(config: RunConfig, ids: Sequence[int], *, bos_id: int | None) -> Prompt:
    """``build_prompt`` of a text's ids: ask for what follows it, or belongs to it."""
    if isinstance(config.objective, PairsConfig):
        added = config.objective_ids
        return _ask_pair((*ids, added["end"]), added)
    return Prompt(
        ids=(*(() if bos_id is None else (bos_id,)), *ids),
        sees_whole=Ability.PREFIX in config.objective.needs,
        is_answered=isinstance(config.objective, CompletionConfig),
    )


def check_prompt(config: RunConfig, prompt: Prompt, max_tokens: int) -> None:
    """Raise ``ConfigError`` for what a run's model cannot be asked, before it is loaded."""
    problems = [*find_misfits(prompt, max_tokens, max_positions=config.max_positions)]
    if config.model.offers.isdisjoint((Ability.CAUSAL, Ability.CROSS)):
        problems.insert(0, describe_mute(config.model.family))
    elif problem := find_tokenless(config):
        problems.insert(0, problem)
    if problems:
        raise ConfigError(problems)


def check_chat(config: RunConfig, template: ChatTemplate, messages: Messages) -> None:
    """Raise ``ConfigError`` for a run that cannot answer in a dialogue, before it is loaded."""
    if Ability.CROSS in config.model.offers:
        raise ConfigError(
            f"The run's model is of the family {config.model.family}, which reads one text and "
            "writes another, and has no turns. Ask it with lmscale generate --prompt TEXT."
        )
    check_prompt(config, ask_turn(template, messages), 1)


def find_tokenless(config: RunConfig) -> str | None:
    """Why a run's model says of no token how likely it is: it has learned labels, or an encoder
    something else than what is hidden.
    """
    writes = not config.model.offers.isdisjoint((Ability.CAUSAL, Ability.CROSS))
    is_labelled = isinstance(config.objective, LabelledConfig)
    if not is_labelled and (writes or "mask" in config.objective_ids):
        return None
    return (
        f"The run learned objective.name = {config.objective.name!r}, and its model predicts no "
        "token. Take a run that does, such as one of causal or masked."
    )


def describe_mute(family: str) -> str:
    return (
        f"The run's model is of the family {family}, which writes no text; generate needs one that "
        "does (decoder, encoder_decoder, recurrent)."
    )


def find_misfits(prompt: Prompt, max_tokens: int, *, max_positions: int) -> Iterator[str]:
    """What is wrong with a prompt, or the length of its answer, for a model that sees so much."""
    if not prompt.ids:
        yield (
            "The prompt is empty, and the model has learned no beginning of a text (bos: none in "
            "its shards); give at least one character to go on from."
        )
    if len(prompt.ids) >= max_positions:
        yield (
            f"The prompt has {len(prompt.ids)} tokens, but the model sees at most {max_positions} "
            f"and needs one for its answer. Shorten it to {max_positions - 1} tokens."
        )
    if prompt.source is not None and len(prompt.source) > max_positions:
        yield (
            f"The prompt has {len(prompt.source)} tokens with the objective's own, but the model "
            f"reads at most {max_positions}. Shorten it."
        )
    if max_tokens < 1:
        yield f"max_tokens = {max_tokens}: it must be at least 1."


def _encode_middle(
    objective: ObjectiveConfig,
    encode: Encode,
    added: Mapping[str, int],
    before: str,
    after: str,
    bos_id: int | None,
) -> list[int]:
    """The prompt whose continuation is the text between two others."""
    settings = _find(objective, FillMiddleConfig)
    if settings is None:
        raise ConfigError(
            f"--suffix: the run learned objective.name = {objective.name!r}, and only a run of "
            "fill_middle, or one that leaves out spans, writes what stands between two texts. "
            "Leave --suffix out."
        )
    prefix, suffix, middle = (added[name] for name in settings.added_ids)
    bos = [] if bos_id is None else [bos_id]
    texts = (encode(text).tolist() for text in (before, after))
    return [*bos, prefix, *next(texts), suffix, *next(texts), middle]


def _ask_pair(source: Sequence[int], added: Mapping[str, int]) -> Prompt:
    return Prompt(
        ids=(added["start"],),
        source=tuple(source),
        ends=frozenset({added["end"]}),
        is_answered=True,
    )


def _ask_for_span(
    settings: SpanConfig, added: Mapping[str, int], before: Sequence[int], after: Sequence[int]
) -> Prompt:
    """The first span left out; of UL2's modes that of such gaps."""
    wanted = "R" if after else "S"
    mode = wanted if wanted in settings.modes else next(iter(settings.modes), None)
    head = () if mode is None else (added[f"mode_{mode}"],)
    gap, end = added["sentinel_0"], added["end"]
    ends = {end, added.get("sentinel_1", end)}
    source = (*head, *before, gap, *after, end)
    return Prompt(ids=(added["start"], gap), source=source, ends=frozenset(ends))


def _find(objective: ObjectiveConfig, kind: type[Kind]) -> Kind | None:
    """The objective, or the first part of a mixture, that is of a kind."""
    return next((each for each in objective.each().values() if isinstance(each, kind)), None)
