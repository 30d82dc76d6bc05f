# Shape letters: R rows (samples), W raw tokens of a row, N elements of a ragged array.
"""Objectives mixed by weight, the half without torch: each sample is prepared by one of them, and
the rows of a micro-batch lie together in arrays that all of them have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.kinds import import_implementation
from lmscale.config.objective import MixtureConfig
from lmscale.objective.draws import draw_words
from lmscale.objective.objective import Objective
from lmscale.objective.pairs import pair_ids
from lmscale.objective.spans import choose_by_weight
from lmscale.stream.batches import TOKENS, Field, Preparation, Prepared, Rows, take_rows
from lmscale.stream.order import philox_key

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model

PLACES = {"starts": "prefixes", "positions": "labels"}
"""Ragged arrays of flat places in R × W, and those with an element for each of these places."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MixturePreparation:
    """Prepares each sample by one of ``parts``, which the sample's number draws by their shares.

    A sample's arrays are those that its part makes of it anywhere else.
    """

    parts: tuple[Preparation, ...]
    shares: tuple[float, ...]
    seed: int
    mask_documents: bool
    own_ids: tuple[int, ...]
    """The objectives', which stand for no text."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """All that any part has, of the wider type, and ``parts``: which one each row is of."""
        fields: dict[str, Field] = {}
        for field in (field for part in self.parts for field in part.fields):
            known = fields.setdefault(field.name, field)
            if known.dtype != field.dtype:  # the shards' own and uint32
                fields[field.name] = field._replace(dtype="uint32")
        fields.pop("modes", None)  # of denoisers, whose losses are not told apart here
        return (*fields.values(), Field("parts", "uint8", ("B",)))

    def prepare(self, rows: Rows) -> Prepared:
        words_R1 = draw_words(philox_key(self.seed, "objectives"), rows.numbers, 1)
        chosen_R = choose_by_weight(list(self.shares), words_R1[:, 0])
        made: list[tuple[np.ndarray, Mapping[str, np.ndarray]]] = []
        targets = [0] * len(self.parts)
        for number in np.unique(chosen_R).tolist():
            places = np.flatnonzero(chosen_R == number)
            prepared = self.parts[number].prepare(take_rows(rows, places))
            made.append((places, prepared.arrays))
            targets[number] = prepared.targets
        arrays = self._lay_together(made, rows) | {"parts": chosen_R.astype(np.uint8)}
        return Prepared(arrays, targets=sum(targets), more_targets=tuple(targets))

    def _lay_together(
        self, made: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]], rows: Rows
    ) -> dict[str, np.ndarray]:
        """The arrays of some rows each, ``made`` with the rows' places, as those of all rows."""
        fields = {field.name: field for field in self.fields if field.name != "parts"}
        arrays: dict[str, np.ndarray] = {}
        for field in (field for field in fields.values() if field.shape[0] == "B"):
            like = made[0][1][field.name]
            dtype = like.dtype if field.dtype == TOKENS else field.dtype
            together = np.empty((len(rows.tokens), *like.shape[1:]), dtype=dtype)
            for places, of_part in made:
                together[places] = of_part[field.name]
            arrays[field.name] = together
        for name, follower in PLACES.items():
            if name in fields:
                arrays |= self._join(made, rows.tokens.shape[1], name, follower, fields.keys())
        return arrays

    def _join(
        self,
        made: Sequence[tuple[np.ndarray, Mapping[str, np.ndarray]]],
        width: int,
        name: str,
        follower: str,
        wanted: Collection[str],
    ) -> dict[str, np.ndarray]:
        """The flat places ``name`` among all rows, in their order, and what follows them if it is
        wanted: where a part has no prefixes, each is the first token alone.
        """
        flats, values = [], []
        for places, of_part in made:
            flat_N = of_part[name].astype(np.int64)
            value_N = of_part.get(follower, np.ones(len(flat_N), dtype=np.int32))
            if follower in wanted and follower not in of_part and not self.mask_documents:
                is_row_N = flat_N % width == 0  # a row is one text, to prefixes
                flat_N, value_N = flat_N[is_row_N], value_N[is_row_N]
            flats.append(places[flat_N // width] * width + flat_N % width)
            values.append(value_N)
        flat_N = np.concatenate(flats)
        order_N = np.argsort(flat_N)  # no two are equal
        joined = {name: flat_N[order_N].astype(np.int32)}
        if follower in wanted:
            joined[follower] = np.concatenate(values)[order_N]
        return joined

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Those that stand for text."""
        knows_most = max(self.parts, key=lambda part: len(part.fields))
        ids = knows_most.target_ids(arrays)
        return ids[~np.isin(ids, self.own_ids)]


class _PartOfRun(RunConfig):
    """A run's configuration as a part of its mixture is to see it: with its own objective, and the
    ids and lengths of all parts.
    """

    mixture: MixtureConfig

    @property
    def objective_ids(self) -> dict[str, int]:
        return self.tokenizer.number_ids(self.mixture.added_ids)

    @property
    def pair_lengths(self) -> tuple[int, int] | None:
        return self.mixture.pair_lengths(self.stream.sequence_length)


def _prepare(config: RunConfig) -> MixturePreparation:
    mixture = config.objective
    assert isinstance(mixture, MixtureConfig)
    parts = []
    for part in mixture.parts.values():
        own = dict(config) | {"objective": part.objective, "mixture": mixture}
        objective = import_implementation(part.objective, Objective)
        parts.append(objective.prepare(_PartOfRun.model_construct(**own)))
    return MixturePreparation(
        parts=tuple(parts),
        shares=mixture.shares,
        seed=config.run.seed,
        mask_documents=config.stream.mask_documents,
        own_ids=tuple(config.objective_ids.values()),
    )


def _build(model: Model, config: RunConfig) -> nn.Module:
    settings = config.objective
    assert isinstance(settings, MixtureConfig)
    if settings.scored_as == "masked":
        from lmscale.objective.masked_scoring import build_masked_scoring

        return build_masked_scoring(model, settings, mask_documents=config.stream.mask_documents)
    if settings.scored_as == "pairs":
        from lmscale.objective.pair_scoring import build_pair_scoring

        return build_pair_scoring(model, settings, start=pair_ids(config).start)
    from lmscale.objective.causal_scoring import build_causal_scoring

    return build_causal_scoring(model, settings, mask_documents=config.stream.mask_documents)


MIXTURE = Objective(prepare=_prepare, build=_build)
