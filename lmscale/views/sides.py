"""A text as a run's model reads it: ids, how each is shown, and where words begin. Loads no torch.

The ids are those of training: bos before the text where the run has learned one, eos behind it
where the model sees both sides, and the objective's own ids around a pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.kinds import Ability
from lmscale.errors import ConfigError
from lmscale.evaluation.prompts import Prompt, build_prompt, find_tokenless
from lmscale.files.printing import count_of
from lmscale.objective.token_kinds import begins_word
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.showing import spell, spell_bytes

MASK = "[MASK]"  # how a person writes it, whatever the tokenizer calls it


@dataclass(frozen=True, kw_only=True)
class Side:
    """One sequence that a model reads or writes; all tuples have a value for each token."""

    ids: tuple[int, ...]
    shown: tuple[str, ...]
    contents: tuple[bytes, ...]
    """The bytes of text that each stands for, or of no text what is shown."""
    begins_word: tuple[bool, ...]

    def group(self, *, by_pieces: bool) -> tuple[tuple[int, ...], ...]:
        """The places of each word's tokens, or with ``by_pieces`` of each token."""
        groups: list[tuple[int, ...]] = []
        for place, begins in enumerate(self.begins_word):
            if groups and not (begins or by_pieces):
                groups[-1] = (*groups[-1], place)
            else:
                groups.append((place,))
        return tuple(groups)

    def names(self, groups: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """How each group of tokens is written, without the white space around it."""
        return tuple(self.spell(places).strip() or "␣" for places in groups)

    def spell(self, places: Iterable[int]) -> str:
        """How tokens are written together: those of parts of a character as that character."""
        return spell_bytes(b"".join(self.contents[place] for place in places))


@dataclass(frozen=True, kw_only=True)
class Sides:
    """What a model is asked, in one sequence or two."""

    own: Side
    """What it goes on from, or of an encoder all of the text."""
    read: Side | None = None
    """Of a model that reads one sequence and writes another: what it reads."""
    sees_whole: bool = False
    ends: frozenset[int] = frozenset()
    """Ids that end what is written."""


class Speller:
    """How a run's ids are shown and where words begin: the tokenizer's, and the objective's own."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._own = {number: f"[{name}]" for name, number in config.objective_ids.items()}

    def spell(self, number: int) -> str:
        """``" the"``, ``"\\n"`` as it stands; ``[mask]``, ``</s>`` for what is no text."""
        if number in self._own:
            return self._own[number]
        if number >= self._tokenizer.vocab_size:
            return f"[{number}]"  # a row of padding of the embedding
        return spell(self._tokenizer, number)

    def lay(self, ids: Sequence[int]) -> Side:
        shown = tuple(map(self.spell, ids))
        begins = [self._begins_word(number) for number in ids]
        after = [not begins or self._is_alone(number) for number in ids]
        return Side(
            ids=tuple(ids),
            shown=shown,
            contents=tuple(map(self._content_of, ids, shown)),
            begins_word=tuple(
                own or place == 0 or after[place - 1] for place, own in enumerate(begins)
            ),
        )

    def _content_of(self, number: int, shown: str) -> bytes:
        return shown.encode() if self._is_alone(number) else self._tokenizer.decode_bytes([number])

    def _begins_word(self, number: int) -> bool:
        return self._is_alone(number) or begins_word(self._tokenizer.decode_bytes([number]))

    def _is_alone(self, number: int) -> bool:
        """No letter goes on with it: it is no text."""
        if number in self._own or number >= self._tokenizer.vocab_size:
            return True
        return not self._tokenizer.decode_bytes([number])


def plan_sides(
    config: RunConfig,
    tokenizer: Tokenizer,
    text: str,
    *,
    bos_id: int | None,
    answer: str = "",
) -> Sides:
    """What the run's model reads of ``text``; ``answer`` follows it, or is what is written.

    Raises ``ConfigError`` where there is no text, or more than the model sees.
    """
    speller = Speller(config, tokenizer)
    if Ability.BIDIRECTIONAL in config.model.offers:
        ids = _with_masks(config, tokenizer, text)
        bos = () if bos_id is None else (bos_id,)
        sides = Sides(own=speller.lay((*bos, *ids, tokenizer.eos_id)))
        if answer:
            raise ConfigError(
                f"--answer: the run's model is of the family {config.model.family}, which reads "
                "one text and writes none. Leave it out."
            )
    else:
        prompt = build_prompt(config, tokenizer, text, bos_id=bos_id)
        sides = _sides_of(prompt, speller, tokenizer.encode(answer).tolist())
    if problems := list(_find_problems(sides, config)):
        raise ConfigError(problems)
    return sides


def find_places(config: RunConfig, sides: Sides) -> list[int]:
    """Which tokens' states are asked what is likely: the last one's, or those of the masks.

    Raises ``ConfigError`` where the model predicts no token.
    """
    if problem := find_tokenless(config):
        raise ConfigError(problem)
    if Ability.BIDIRECTIONAL not in config.model.offers:
        return [len(sides.own.ids) - 1]
    mask = config.objective_ids["mask"]
    places = [place for place, number in enumerate(sides.own.ids) if number == mask]
    if not places:
        raise ConfigError(
            "The run's model fills masks: write one or more into --text, such as "
            f"--text 'a {MASK} of water'."
        )
    return places


def _sides_of(prompt: Prompt, speller: Speller, answer: Sequence[int]) -> Sides:
    read = None if prompt.source is None else speller.lay(prompt.source)
    own = speller.lay((*prompt.ids, *answer))
    return Sides(own=own, read=read, sees_whole=prompt.sees_whole, ends=prompt.ends)


def add_written(sides: Sides, speller: Speller, ids: Sequence[int]) -> Sides:
    """The sides with ids behind those that are written so far."""
    return replace(sides, own=speller.lay((*sides.own.ids, *ids)))


def _with_masks(config: RunConfig, tokenizer: Tokenizer, text: str) -> list[int]:
    mask = config.objective_ids.get("mask")
    ids: list[int] = []
    for place, part in enumerate(text.split(MASK) if mask is not None else [text]):
        ids += [mask] * (place > 0) if mask is not None else []
        ids += tokenizer.encode(part).tolist() if part else []
    return ids


def _find_problems(sides: Sides, config: RunConfig) -> Iterator[str]:
    if not sides.own.ids:
        yield "--text is empty, and the model has learned no beginning of a text: give a character."
    for side in (sides.own, sides.read):
        if side is not None and len(side.ids) > config.max_positions:
            yield (
                f"The text has {count_of(len(side.ids), 'token')}, but the model sees at most "
                f"{config.max_positions:,}. Shorten it."
            )


def merge_words(
    shares: np.ndarray, queries: Sequence[Sequence[int]], keys: Sequence[Sequence[int]]
) -> np.ndarray:
    """Attention of words, [..., queries, keys], by that of tokens, [..., T, S]: to a word the sum
    over its tokens, from a word their mean, so that rows still sum to 1 (Clark et al. 2019, arXiv
    1906.04341, section 4.1).
    """
    to_words = np.stack([shares[..., list(places)].sum(-1) for places in keys], axis=-1)
    rows = [to_words[..., list(places), :].mean(-2) for places in queries]
    return np.stack(rows, axis=-2)
