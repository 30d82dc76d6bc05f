"""How words are spoken: spelling and phonemes of the lexicons that gruut ships for its languages.

Both are written with spaces between letters and between phonemes, so that BLEU counts phonemes.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

PACKAGES = (
    *("gruut-lang-de==2.0.1", "gruut-lang-es==2.0.1", "gruut-lang-fr==2.0.2"),
    *("gruut-lang-it==2.0.1", "gruut-lang-nl==2.0.2"),
)
LETTERS = range(3, 15)  # of a word
MAX_WORDS = 60_000  # of a language


def read_lexicon(fetched: Path, language: str) -> list[dict[str, str]]:
    """Each word of letters alone once, with the first of its pronunciations."""
    (file,) = fetched.glob(f"gruut_lang_{language}-*/gruut_lang_{language}/lexicon.db")
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as lexicon:
        asked = "SELECT word, phonemes FROM word_phonemes ORDER BY word, pron_order"
        rows = list(lexicon.execute(asked))
    lexicon.close()
    return list(spell(rows))


def spell(rows: list[tuple[str, str]]) -> Iterator[dict[str, str]]:
    seen = set()
    for word, phonemes in rows:
        if word.isalpha() and word.islower() and len(word) in LETTERS and word not in seen:
            seen.add(word)
            yield {"spelling": " ".join(word), "phonemes": " ".join(phonemes.split())}


def draw_words(fetched: Path, language: str) -> list[dict[str, str]]:
    words = read_lexicon(fetched, language)
    drawn = random.Random(f"{language}/words")
    return drawn.sample(words, min(MAX_WORDS, len(words)))
