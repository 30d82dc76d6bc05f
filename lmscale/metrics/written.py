"""How near texts that a model has written come to those that were wanted."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lmscale.errors import ConfigError
from lmscale.files.extras import install_extra

Tokenization = Literal["13a", "zh", "char"]
_CHINESE_SHARE = 0.3  # of the letters, from which on a text counts as of such a script
# Scripts without spaces between words: a character stands for a word. Han apart from the others,
# as sacrebleu's zh cuts it alone.
_HAN = ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x31F0, 0x31FF),
    (0xFF66, 0xFF9F),  # kana of half width
)


@dataclass(frozen=True, kw_only=True)
class WrittenScore:
    """Of a set of texts, each with the one that was wanted. All but the counts are from 0 to 100.

    ``bleu`` and ``chrf`` are of the whole set, by sums of its counts; ``rouge_l`` is the mean of
    the texts' own.
    """

    texts: int
    bleu: float
    chrf: float
    rouge_l: float
    exact: int  # texts that are the wanted one, but for white space at both ends
    bleu_signature: str
    chrf_signature: str
    rouge_l_signature: str

    @property
    def exact_match(self) -> float:
        return 100 * self.exact / self.texts

    @property
    def figures(self) -> dict[str, float]:
        return {
            "bleu": self.bleu,
            "chrf": self.chrf,
            "rouge_l": self.rouge_l,
            "exact_match": self.exact_match,
        }

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"exact_match": self.exact_match}


def check_sacrebleu() -> None:
    """Raise ``ConfigError`` where sacrebleu is not installed."""
    try:
        import sacrebleu  # noqa: F401
    except ImportError:
        raise ConfigError(
            "BLEU and chrF are computed by sacrebleu, which is not installed. Install it: "
            f"{install_extra('written')}"
        ) from None


def score_written(
    written: Sequence[str], wanted: Sequence[str], tokenization: Tokenization | None = None
) -> WrittenScore:
    """The score of at least one text. ``tokenization``: of BLEU's words; None: by the wanted texts'
    script.

    BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's, with its defaults, of which
    the signatures tell (Post 2018). ROUGE-L: see ``rouge_l``.
    """
    check_sacrebleu()
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    tokenization = tokenization or choose_tokenization(wanted)
    bleu = BLEU(tokenize=tokenization, force=True)  # force: no warning of texts cut into words
    chrf = CHRF()
    figures = [metric.corpus_score(written, [wanted]).score for metric in (bleu, chrf)]
    pairs = list(zip(written, wanted, strict=True))
    return WrittenScore(
        texts=len(pairs),
        bleu=figures[0],
        chrf=figures[1],
        rouge_l=100 * sum(rouge_l(*pair) for pair in pairs) / len(pairs),
        exact=sum(ours.strip() == theirs.strip() for ours, theirs in pairs),
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        rouge_l_signature="nrefs:1|case:lc|stem:no|tok:words, characters of unspaced scripts|mean",
    )


def choose_tokenization(texts: Sequence[str]) -> Tokenization:
    """Of sacrebleu's, by the letters of the texts: ``zh`` for Chinese, ``char`` for other scripts
    that have no spaces (Japanese, Thai), ``13a``, which is that of mteval, for all others.
    """
    letters = han = unspaced = 0
    for text in texts:
        for character in text:
            if unicodedata.category(character)[0] == "L":
                letters += 1
                han += _is_in(character, _HAN)
                unspaced += _is_in(character, _UNSPACED)
    if han + unspaced < _CHINESE_SHARE * letters or not letters:
        return "13a"
    return "char" if unspaced > 0.1 * (han + unspaced) else "zh"


def rouge_l(written: str, wanted: str) -> float:
    """ROUGE-L (Lin 2004): the F1, from 0 to 1, of the longest common subsequence of words.

    Words are those of ``split_words``. rouge_score gives the same for text of ASCII alone, without
    its stemmer; it drops all other letters, and so gives 0 for Chinese.
    """
    ours, theirs = split_words(written), split_words(wanted)
    if not ours or not theirs:
        return 0.0
    common = count_common(ours, theirs)
    precision, recall = common / len(ours), common / len(theirs)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def split_words(text: str) -> list[str]:
    """Runs of letters, marks and digits in lower case; of a script without spaces each character.
    Whatever else stands between them is dropped.
    """
    words: list[str] = []
    before = ""  # what the last character was: of a word, a word by itself, or neither
    for character in text.lower():
        category = unicodedata.category(character)[0]
        if category not in "LNM":
            before = ""
        elif category == "M" and before:
            words[-1] += character
        elif is_unspaced(character):
            words.append(character)
            before = "alone"
        elif before == "word":
            words[-1] += character
        else:
            words.append(character)
            before = "word"
    return words


def count_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence: bit by bit in one whole number, of which a step
    handles a word of ``second`` against all of ``first`` (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    row = full
    for word in second:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & full
    return len(first) - row.bit_count()


def is_unspaced(character: str) -> bool:
    """Whether it is of a script that puts no spaces between words."""
    return _is_in(character, _HAN) or _is_in(character, _UNSPACED)


def _is_in(character: str, ranges: Sequence[tuple[int, int]]) -> bool:
    code = ord(character)
    return any(first <= code <= last for first, last in ranges)
