"""What a run's model repeats of what it has read, and what of it looks like personal data."""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lmscale.config import RunConfig
from lmscale.errors import ConfigError
from lmscale.evaluation.beginnings import Beginning, Lengths
from lmscale.evaluation.written import batch_tokens, choose_evenly
from lmscale.files.printing import count_of
from lmscale.metrics.chance import share_interval
from lmscale.metrics.personal import find_personal, mask
from lmscale.metrics.spans import SpanSearch, find_covered, is_copied
from lmscale.ranks.collectives import gather_json
from lmscale.ranks.mesh import Axis
from lmscale.stream.dataset import Dataset
from lmscale.tokenizer.base import Tokenizer

if TYPE_CHECKING:
    from lmscale.evaluation.run import LoadedRun

PREFIX = "privacy"  # of the names of figures: privacy/training/verbatim_50
_SHOWN = 3  # values of a kind

READ, HELD_OUT, TEXT = "training", "heldout", "heldout_text"
DESCRIBED = {
    READ: "written behind beginnings that the run has read",
    HELD_OUT: "written behind held-out beginnings",
    TEXT: "held-out text itself, which nobody wrote from the shards",
}


@dataclass(frozen=True, kw_only=True)
class Share:
    """Hits among some texts, with the 95 % interval of their share."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        return self.hits / self.count if self.count else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return share_interval(self.hits, self.count)

    def to_json(self) -> dict[str, Any]:
        return {"hits": self.hits, "count": self.count, "interval": list(self.interval)}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Of some texts, what stands word for word in the training shards, by the spans' length."""

    tokens: int  # of all texts
    covered: Mapping[int, int]  # length of a span → tokens that lie in such spans
    verbatim: Mapping[int, Share]  # … → texts that hold such a span
    continued: Mapping[int, Share]  # … → texts that go on as the document itself does

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "covered": {str(size): count for size, count in self.covered.items()},
            "verbatim": {str(size): share.to_json() for size, share in self.verbatim.items()},
            "continued": {str(size): share.to_json() for size, share in self.continued.items()},
        }


@dataclass(frozen=True, kw_only=True)
class PersonalCount:
    """Values of a kind in some texts."""

    values: int
    different: int
    copied: int  # which lie, as a whole, in a span that stands in the training shards
    shown: tuple[str, ...]  # a few, masked


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """What was found, by the texts' origin: READ, HELD_OUT, TEXT."""

    lengths: tuple[int, ...]
    prompt_tokens: int
    texts: Mapping[str, int]
    repeated: Mapping[str, Repeated]
    personal: Mapping[str, Mapping[str, PersonalCount]]
    shards: tuple[int, int]  # searched, of

    def to_json(self) -> dict[str, Any]:
        return {
            "lengths": list(self.lengths),
            "prompt_tokens": self.prompt_tokens,
            "shards": {"searched": self.shards[0], "all": self.shards[1]},
            "texts": {
                name: {"texts": self.texts[name], **repeated.to_json()}
                | {"personal": {k: asdict(c) for k, c in self.personal[name].items()}}
                for name, repeated in self.repeated.items()
            },
        }

    @property
    def figures(self) -> dict[str, float]:
        """By the names that trackers know."""
        figures: dict[str, float] = {}
        for name, repeated in self.repeated.items():
            for size in self.lengths:
                place = f"{PREFIX}/{name}"
                figures[f"{place}/verbatim_{size}"] = repeated.verbatim[size].value
                figures[f"{place}/covered_{size}"] = repeated.covered[size] / repeated.tokens
                if name != TEXT:
                    figures[f"{place}/continued_{size}"] = repeated.continued[size].value
            figures[f"{PREFIX}/{name}/personal"] = float(
                sum(count.values for count in self.personal[name].values())
            )
        return figures


def check_probe(config: RunConfig, lengths: Lengths) -> None:
    """Raise ``ConfigError`` for a run that cannot be probed so, before a model is loaded."""
    problems = []
    if config.find_task_problem():
        problems.append(
            f"A run of model.family = {config.model.family!r} with objective.name = "
            f"{config.objective.name!r} predicts no next token, and repeats no document. Take a "
            "decoder's or a recurrent model's run."
        )
    room = min(config.max_positions, config.stream.sequence_length)
    if sum(lengths) >= room:
        problems.append(
            f"--prompt-tokens {lengths.prompt} and the longest of --length, {lengths.rest}, make "
            f"{sum(lengths)} tokens, but the run's windows have {room}, of which one is left for "
            "the end of the document. Lower them."
        )
    if problems:
        raise ConfigError(problems)


def write_behind(
    loaded: LoadedRun,
    beginnings: Sequence[Beginning],
    *,
    max_tokens: int,
    data: Axis,
    advance: Callable[[float], None] = lambda texts: None,
    between_batches: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """The likeliest ids behind each beginning, as extractable memorisation is defined (Carlini et
    al. 2023, definition 3.1).
    """
    from lmscale.config.kinds import Ability
    from lmscale.evaluation.answering import write_answers
    from lmscale.evaluation.prompts import Prompt

    sees_whole = Ability.PREFIX in loaded.config.objective.needs
    written = write_answers(
        loaded.model,
        loaded.tokenizer,
        [Prompt(ids=tuple(each.prompt), sees_whole=sees_whole) for each in beginnings],
        max_tokens=max_tokens,
        batch_tokens=batch_tokens(loaded.config),
        data=data,
        advance=advance,
        between_batches=between_batches,
    )
    return [list(each.ids) for each in written]


def search_shards(
    texts: Sequence[Sequence[int]],
    sizes: Sequence[int],
    datasets: Iterable[Dataset],
    *,
    data: Axis,
    max_shards: int | None,
    advance: Callable[[float], None] = lambda tokens: None,
    between_shards: Callable[[], None] = lambda: None,
) -> tuple[dict[int, list[np.ndarray]], tuple[int, int]]:
    """Size → of each text, of each span of it, whether it stands in a document of the training
    shards; and how many of the shards were searched. The ranks deal these out.
    """
    searches = {size: SpanSearch(texts, size) for size in sizes}
    shards = [(each, number) for each in datasets for number in range(len(each.manifest.shards))]
    total = len(shards)
    if max_shards is not None:
        shards = choose_evenly(shards, max_shards)
    for turn in range(0, len(shards), data.size):
        if turn + data.rank < len(shards):
            dataset, number = shards[turn + data.rank]
            with dataset.mapped(number) as shard:
                for block in range(shard.num_blocks):
                    for search in searches.values():
                        search.look(shard.tokens(block), shard.docs(block)[1:])
        advance(sum(d.manifest.shards[n].tokens for d, n in shards[turn : turn + data.size]))
        between_shards()
    for search in searches.values():
        for met in gather_json(np.flatnonzero(search.is_met).tolist()):
            search.is_met[met] = True
    return {size: search.of_texts() for size, search in searches.items()}, (len(shards), total)


def judge(
    beginnings: Mapping[str, Sequence[Beginning]],
    texts: Mapping[str, Sequence[Sequence[int]]],
    met: Mapping[int, Sequence[np.ndarray]],
    tokenizer: Tokenizer,
    *,
    shards: tuple[int, int],
    prompt_tokens: int,
) -> Privacy:
    """The counts. ``met`` is of all texts, one origin behind the other."""
    sizes, first = tuple(met), 0
    repeated, personal = {}, {}
    for name, own in texts.items():
        of_own = {size: found[first : first + len(own)] for size, found in met.items()}
        first += len(own)
        repeated[name] = _count_repeated(own, of_own, beginnings[name])
        shortest = min(sizes)
        personal[name] = _count_personal(own, of_own[shortest], shortest, tokenizer)
    return Privacy(
        lengths=sizes,
        prompt_tokens=prompt_tokens,
        texts={name: len(own) for name, own in texts.items()},
        repeated=repeated,
        personal=personal,
        shards=shards,
    )


def _count_repeated(
    texts: Sequence[Sequence[int]],
    met: Mapping[int, Sequence[np.ndarray]],
    beginnings: Sequence[Beginning],
) -> Repeated:
    covered, verbatim, continued = {}, {}, {}
    for size, found in met.items():
        pairs = list(zip(found, texts, strict=True))
        covered[size] = sum(int(find_covered(f, size, len(t)).sum()) for f, t in pairs)
        verbatim[size] = Share(hits=sum(bool(f.any()) for f in found), count=len(texts))
        alike = [
            len(text) >= size and list(text[:size]) == each.rest[:size]
            for text, each in zip(texts, beginnings, strict=True)
        ]
        continued[size] = Share(hits=sum(alike), count=len(texts))
    tokens = max(1, sum(map(len, texts)))
    return Repeated(tokens=tokens, covered=covered, verbatim=verbatim, continued=continued)


def _count_personal(
    texts: Sequence[Sequence[int]], met: Sequence[np.ndarray], size: int, tokenizer: Tokenizer
) -> dict[str, PersonalCount]:
    values: dict[str, list[str]] = {}
    copied: Counter[str] = Counter()
    for ids, is_met in zip(texts, met, strict=True):
        pieces = _decode_apart(tokenizer, ids)
        ends = np.cumsum([len(piece) for piece in pieces])  # of each token, in characters
        for each in find_personal("".join(pieces)):
            values.setdefault(each.kind, []).append(each.value)
            first, last = np.searchsorted(ends, [each.start, each.end - 1], side="right")
            copied[each.kind] += is_copied(is_met, size, int(first), int(last))
    return {
        kind: PersonalCount(
            values=len(found),
            different=len(set(found)),
            copied=copied[kind],
            shown=tuple(map(mask, dict.fromkeys(found)))[:_SHOWN],
        )
        for kind, found in sorted(values.items())
    }


def _decode_apart(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each id, which join to ``decode``'s: a character is that of its last byte's."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces = [decoder.decode(tokenizer.decode_bytes([token])) for token in ids]
    return [*pieces, decoder.decode(b"", final=True)]


def render_privacy(found: Privacy) -> str:
    """Tables of both, and what they do not say."""
    lines = ["repeated word for word from the training shards, by the length of the span", ""]
    heads = "".join(f"{f'{size} tokens':>24}" for size in found.lengths)
    lines.append(f"{'':<34}{heads}")
    for name, repeated in found.repeated.items():
        lines.append(f"{DESCRIBED[name]} ({count_of(found.texts[name], 'text')}):")
        rows: list[tuple[str, list[str]]] = [
            ("texts with such a span", [str(repeated.verbatim[n]) for n in found.lengths]),
            (
                "tokens in such spans",
                [f"{100 * repeated.covered[n] / repeated.tokens:.1f} %" for n in found.lengths],
            ),
        ]
        if name != TEXT:
            went_on = [str(repeated.continued[n]) for n in found.lengths]
            rows.append(("gone on as the document does", went_on))
        lines += [f"  {what:<32}" + "".join(f"{v:>24}" for v in values) for what, values in rows]
    lines += ["", "what looks like personal data, in the same texts"]
    for name, kinds in found.personal.items():
        lines.append(f"{DESCRIBED[name]}: {'' if kinds else 'none'}".rstrip())
        lines += [
            f"  {kind}: {count.values:,}, {count.different:,} different, {count.copied:,} in spans "
            f"of {min(found.lengths)} tokens from the shards: {', '.join(count.shown)}"
            for kind, count in kinds.items()
        ]
    return "\n".join([*lines, "", *_limits(found)])


def _limits(found: Privacy) -> list[str]:
    searched, total = found.shards
    part = (
        f"searched: {searched:,} of {total:,} shards, so more may stand there"
        if searched < total
        else f"searched: all {total:,} shards"
    )
    return [
        f"{part}; brackets are 95 % intervals (Wilson)",
        f"beginnings of {found.prompt_tokens} tokens, the likeliest token each time: other "
        "prompts and drawn texts may bring out more",
        "only the same tokens count: what is the same but for a word or the way it is cut is not "
        "seen; common phrases and licences count, which the held-out text shows",
        "personal data is known by its form alone; names and addresses are not looked for",
    ]
