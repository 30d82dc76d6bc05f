# Shape letters: N words, C tags, E types of entities.
"""Named entities that tags spell, and how many of them were found.

An entity is found where its first word, its last word and its type are all right: the measure of
the CoNLL-2003 shared task (Tjong Kim Sang and De Meulder 2003). Its borders are those of
``conlleval`` and of seqeval's default mode, also where the tags contradict each other: I-PER that
follows no PER begins an entity. E- and S- end one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmscale.config.labels import split_tags
from lmscale.metrics.classification import Tally


@dataclass(frozen=True, kw_only=True, eq=False)
class EntityTags:
    """What the tags of a set say of entities."""

    types: tuple[str, ...]
    """PER, LOC, …, in the order of their first tags."""
    begins: np.ndarray
    """bool [C]: B- and S-, which always begin an entity."""
    ends: np.ndarray
    """bool [C]: E- and S-, which always end one."""
    type_of: np.ndarray
    """int64 [C]: the number of the tag's type; -1 of O."""


def plan_entities(names: Sequence[str]) -> EntityTags | None:
    """The tags of these names; None where they are no prefixes and types (``split_tags``)."""
    tags = split_tags(names)
    if tags is None:
        return None
    types = tuple(dict.fromkeys(kind for prefix, kind in tags if prefix != "O"))
    return EntityTags(
        types=types,
        begins=np.array([prefix in "BS" for prefix, _ in tags]),
        ends=np.array([prefix in "ES" for prefix, _ in tags]),
        type_of=np.array([-1 if prefix == "O" else types.index(kind) for prefix, kind in tags]),
    )


def count_entities(
    true_N: np.ndarray, predicted_N: np.ndarray, documents_N: np.ndarray, tags: EntityTags
) -> np.ndarray:
    """Of every type the entities that were found, predicted, and are there: int64 [E, 3].

    The tags of all words, as numbers, in their order; ``documents_N``: which document a word is of,
    as no entity reaches over the border between two.
    """
    true_ends_N, predicted_ends_N = (
        _find_ends(tags_N, documents_N, tags) for tags_N in (true_N, predicted_N)
    )
    is_hit_N = (true_ends_N >= 0) & (true_ends_N == predicted_ends_N)
    is_hit_N &= tags.type_of[true_N] == tags.type_of[predicted_N]

    def count(is_first_N: np.ndarray, tags_N: np.ndarray) -> np.ndarray:
        return np.bincount(tags.type_of[tags_N[is_first_N]], minlength=len(tags.types))

    counts = (
        count(is_hit_N, true_N),
        count(predicted_ends_N >= 0, predicted_N),
        count(true_ends_N >= 0, true_N),
    )
    return np.stack(counts, axis=1)


def tally_entities(counts_E3: np.ndarray) -> Tally:
    """What ``count_entities`` has counted, or a sum of such counts."""
    hits, predicted, true = counts_E3.T
    return Tally(hits=hits, predicted=predicted, true=true)


def _find_ends(tags_N: np.ndarray, documents_N: np.ndarray, tags: EntityTags) -> np.ndarray:
    """int64 [N]: of each word that begins an entity the number of its last word; of others -1.

    Every word but O's is of one entity, so that one ends where the next word is of none, or begins
    one.
    """
    types_N = tags.type_of[tags_N]
    is_inside_N = types_N >= 0
    is_alone_N = np.ones(len(tags_N), dtype=bool)  # nothing before it can be of its entity
    if len(tags_N) > 1:
        is_other = (types_N[1:] != types_N[:-1]) | (documents_N[1:] != documents_N[:-1])
        is_alone_N[1:] = is_other | tags.begins[tags_N[1:]] | tags.ends[tags_N[:-1]]
    is_first_N = is_inside_N & is_alone_N
    is_last_N = is_inside_N & np.append(is_alone_N[1:], True)[: len(tags_N)]
    ends_N = np.full(len(tags_N), -1)
    ends_N[is_first_N] = np.flatnonzero(is_last_N)
    return ends_N
