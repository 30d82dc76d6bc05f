"""What a run's model is asked with a text, as its objective has taught it to be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lmscale.config import RunConfig
from lmscale.config.kinds import Ability
from lmscale.config.objective import FillMiddleConfig, InfillConfig, SpanConfig
from lmscale.config.objective_base import ObjectiveConfig
from lmscale.config.supervised import CompletionConfig, PairsConfig
from lmscale.errors import ConfigError
from lmscale.tokenizer.base import Tokenizer

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
    is_answered: bool = False
    """What comes is the whole of the answer, no continuation of the text."""


def build_prompt(
    config: RunConfig,
    tokenizer: Tokenizer,
    text: str,
    suffix: str | None = None,
    *,
    bos_id: int | None = None,
) -> Prompt:
    """Ask for what follows ``text``, or stands between it and ``suffix``; of a run of pairs for
    what belongs to ``text``. ``bos_id`` is put before it, as before the documents of the training.

    Raises ``ConfigError`` for a suffix where the objective teaches nothing of the kind.
    """
    objective, added = config.objective, config.objective_ids
    bos = () if bos_id is None else (bos_id,)
    ids = tokenizer.encode(text).tolist()
    if (spans := _find(objective, SpanConfig)) is not None:
        return _ask_for_span(spans, added, (*bos, *ids), tokenizer.encode(suffix or "").tolist())
    if _find(objective, InfillConfig) is not None:
        after = tokenizer.encode(suffix or "").tolist()
        return _ask_pair((*bos, *ids, added["mask"], *after, added["end"]), added)
    if suffix is not None:
        return Prompt(ids=tuple(_encode_middle(objective, tokenizer, added, text, suffix, bos_id)))
    if isinstance(objective, PairsConfig):
        return _ask_pair((*ids, added["end"]), added)
    return Prompt(
        ids=(*bos, *ids),
        sees_whole=Ability.PREFIX in objective.needs,
        is_answered=isinstance(objective, CompletionConfig),
    )


def _encode_middle(
    objective: ObjectiveConfig,
    tokenizer: Tokenizer,
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
    texts = (tokenizer.encode(text).tolist() for text in (before, after))
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
