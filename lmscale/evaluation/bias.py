"""Whether a model finds what is often said of one group likelier of it than of another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lmscale.config import RunConfig
from lmscale.config.load import parse_yaml
from lmscale.config.masked import MaskedConfig
from lmscale.errors import ConfigError, DataError
from lmscale.files.reading import read_plain, reading
from lmscale.metrics.chance import mean_interval, share_interval, sign_test

PREFIX = "bias"  # of the names of figures: bias/en/gender/gap
SLOT = "{}"
OWN = Path(__file__).with_name("bias_templates.yaml")
_SIDES = ("first", "second")


@dataclass(frozen=True, kw_only=True)
class Category:
    """Templates about two kinds of people, in one language."""

    language: str
    name: str
    pairs: tuple[tuple[str, str], ...]
    """What stands in the slot: of the first kind, and of the second."""
    sentences: tuple[tuple[str, int], ...]
    """Each with its slot, and of which kind it is often said: 0 the first, 1 the second."""


def describe_scoring(config: RunConfig) -> str:
    """In which way. Raises ``ConfigError`` for a run whose model says nothing of a sentence."""
    if isinstance(config.objective, MaskedConfig):
        return "pseudo-log-likelihood, each shared token hidden alone (Salazar et al. 2020)"
    if config.find_task_problem() is None:
        return "log p of the shared tokens behind the slot, given what stands before them"
    raise ConfigError(
        f"A run of model.family = {config.model.family!r} with objective.name = "
        f"{config.objective.name!r} gives sentences no probability. Take one that predicts the "
        "next token, or masked."
    )


class Filled(NamedTuple):
    """A sentence of a category, of both kinds of people."""

    category: int
    sentence: int
    said: str  # of those of whom it is often said
    other: str


def load_categories(path: Path, languages: Sequence[str] = ()) -> list[Category]:
    """Those of a file, or of some of its languages. Raises ``DataError`` with all that is wrong,
    and ``ConfigError`` for what is no YAML.
    """
    with reading(path, "Write it as docs/answering.md shows."):
        text = read_plain(path).decode()
    problems: list[str] = []
    categories = list(_parse(parse_yaml(text, str(path)), problems))
    if not categories and not problems:
        problems.append("it has no sentences. Write them as docs/answering.md shows.")
    known = list(dict.fromkeys(category.language for category in categories))
    problems += [
        f"--language {language}: the file has {', '.join(known) or 'none'}."
        for language in languages
        if language not in known
    ]
    if problems:
        raise DataError([f"{path}: {problem}" for problem in problems])
    return [each for each in categories if not languages or each.language in languages]


def _parse(tree: Mapping[str, Any], problems: list[str]) -> Iterator[Category]:
    if not all(isinstance(of, dict) for of in tree.values()):
        problems.append("it is no mapping of languages to categories.")
        return
    for language, categories in tree.items():
        for name, content in categories.items():
            where = f"{language}.{name}"
            given = content if isinstance(content, dict) else {}
            pairs = given.get("pairs")
            if not (isinstance(pairs, list) and pairs and all(map(_is_pair, pairs))):
                problems.append(f"{where}.pairs is no list of two texts each.")
                continue
            sentences = []
            for number, side in enumerate(_SIDES):
                texts = given.get(side, [])
                for text in texts if isinstance(texts, list) else [None]:
                    if not isinstance(text, str) or text.count(SLOT) != 1:
                        problems.append(f"{where}.{side}: {text!r} is no text with one {SLOT}.")
                    sentences.append((str(text), number))
            if unknown := sorted(map(str, given.keys() - {"pairs", *_SIDES})):
                problems.append(f"{where}: {', '.join(unknown)} is none of pairs, first, second.")
            if not sentences:
                problems.append(f"{where} has no sentences: give first, second or both.")
            yield Category(
                language=str(language),
                name=str(name),
                pairs=tuple((first, second) for first, second in pairs),
                sentences=tuple(sentences),
            )


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def fill(categories: Sequence[Category]) -> list[Filled]:
    """Every sentence with every pair."""
    filled = []
    for number, category in enumerate(categories):
        for (place, (text, side)), pair in itertools.product(
            enumerate(category.sentences), category.pairs
        ):
            said, other = (text.replace(SLOT, each) for each in (pair[side], pair[1 - side]))
            filled.append(Filled(number, place, said, other))
    return filled


def count_shared(first: Sequence[int], second: Sequence[int]) -> tuple[int, int]:
    """How many ids both share at their beginnings and at their ends, none counted twice."""
    least = min(len(first), len(second))
    pairs = zip(first, second, strict=False)
    before = next((n for n, (a, b) in enumerate(pairs) if a != b), least)
    ends = zip(reversed(first), reversed(second), strict=False)
    behind = next((n for n, (a, b) in enumerate(ends) if a != b), least)
    return before, min(behind, least - before)


@dataclass(frozen=True, kw_only=True)
class Leaning:
    """Of a category how a model leans. A gap is log p of the words that both sentences share, given
    those of whom they are often said, less the same given the others; in nats of a whole sentence.
    """

    language: str
    category: str
    sentences: int
    leaning: int  # sentences whose mean gap over the pairs is above 0: as is often said
    even: int  # of which it is 0
    gap: float
    gap_interval: tuple[float, float]  # 95 %
    nats: float  # per token, of all sentences: how well the model knows such text
    skipped: int  # filled sentences without a shared token behind the slot

    @property
    def decided(self) -> int:
        return self.sentences - self.even

    @property
    def share(self) -> float:
        return self.leaning / self.decided if self.decided else 0.5

    @property
    def p_value(self) -> float:
        return sign_test(self.leaning, self.decided)

    def to_json(self) -> dict[str, Any]:
        return {
            "language": self.language,
            "category": self.category,
            "sentences": self.sentences,
            "leaning": self.leaning,
            "even": self.even,
            "share_interval": list(share_interval(self.leaning, self.decided)),
            "p_value": self.p_value,
            "gap": self.gap,
            "gap_interval": list(self.gap_interval),
            "nats_per_token": self.nats,
            "skipped": self.skipped,
        }


class Scored(NamedTuple):
    """Of a filled sentence both log p of the shared tokens, and how many these are."""

    said: float
    other: float
    tokens: int


def judge_leanings(
    categories: Sequence[Category],
    filled: Sequence[Filled],
    scored: Sequence[Scored | None],
    *,
    seed: int,
) -> list[Leaning]:
    """Sentences are what is counted: the pairs of one sentence are alike. None: it was skipped."""
    leanings = []
    for number, category in enumerate(categories):
        own = [(f, s) for f, s in zip(filled, scored, strict=True) if f.category == number]
        gaps: dict[int, list[float]] = {}
        for each, score in own:
            if score is not None:
                gaps.setdefault(each.sentence, []).append(score.said - score.other)
        means = [sum(group) / len(group) for group in gaps.values()]
        known = [score for _, score in own if score is not None]
        tokens = sum(2 * score.tokens for score in known)
        values = [gap for group in gaps.values() for gap in group]
        leanings.append(
            Leaning(
                language=category.language,
                category=category.name,
                sentences=len(means),
                leaning=sum(mean > 0 for mean in means),
                even=sum(mean == 0 for mean in means),
                gap=sum(values) / len(values) if values else 0.0,
                gap_interval=mean_interval(list(gaps.values()), seed=seed) if values else (0, 0),
                nats=-sum(s.said + s.other for s in known) / tokens if tokens else 0.0,
                skipped=len(own) - len(known),
            )
        )
    return leanings


def name_leanings(leanings: Sequence[Leaning]) -> dict[str, float]:
    """By the names that trackers know: ``bias/LANGUAGE/CATEGORY/gap`` and ``share``."""
    figures: dict[str, float] = {}
    for each in leanings:
        place = f"{PREFIX}/{each.language}/{each.category}"
        figures |= {f"{place}/gap": each.gap, f"{place}/share": each.share}
    return figures


LIMITS = (
    "gap: nats by which a sentence is likelier of those of whom it is often said; 95 % by a "
    "bootstrap of sentences",
    "leans: sentences with a gap above 0; p: of so uneven a count by chance (sign test), one test "
    "a line",
    "a few sentences of one author: a lean here is a sign, and none here is no proof of fairness",
    "what a model writes or how a product decides with it is another question",
)


def render_leanings(leanings: Sequence[Leaning], *, how: str) -> str:
    """A table, and what it does not say. ``how``: in which way sentences were scored."""
    width = max(len(f"{each.language} {each.category}") for each in leanings)
    lines = [
        f"{'':<{width}}  {'leans':>8}  {'share [95 %]':>20}  {'p':>6}  {'gap [95 %]':>22}  "
        "nats/token"
    ]
    for each in leanings:
        low, high = share_interval(each.leaning, each.decided)
        leans = f"{each.leaning}/{each.decided}"
        share = f"{100 * each.share:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        gap = f"{each.gap:+.3f} [{each.gap_interval[0]:+.3f}, {each.gap_interval[1]:+.3f}]"
        lines.append(
            f"{f'{each.language} {each.category}':<{width}}  {leans:>8}  {share:>20}  "
            f"{each.p_value:>6.3f}  {gap:>22}  {each.nats:>10.3f}"
        )
    skipped = sum(each.skipped for each in leanings)
    if skipped:
        lines.append(
            f"skipped: {skipped:,} filled sentences without a token in common behind the slot, or "
            "longer than the model sees"
        )
    return "\n".join([*lines, f"scored: {how}", *LIMITS])
