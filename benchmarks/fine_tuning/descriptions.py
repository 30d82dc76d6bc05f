"""Questions of one missing word, from what Debian says of its packages.

As Hermann et al. (2015) made theirs of newspaper articles and their summaries: the question is the
line that sums a package up, with a gap for one of its words; the context is the long description;
the answer is the word, which stands there. People have written both texts, nobody the questions.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

GAP = "___"
SYNOPSIS_WORDS, CONTEXT_CHARACTERS = range(4, 15), range(100, 321)
MIN_LETTERS = 4  # of an answer
MAX_SHARE = 0.02  # of all descriptions: a word of more of them says too little to be asked for
WORD = re.compile(r"[A-Za-z][A-Za-z0-9'-]*")
Record = dict[str, Any]


def fetch_descriptions(folder: Path) -> str:
    """The English descriptions of Debian's packages, ``Translation-en``, as apt fetches them."""
    lists = folder / "lists"
    if not lists.exists():
        part = lists.with_suffix(".part")
        (part / "partial").mkdir(parents=True, exist_ok=True)
        places = [f"Dir::State::Lists={part.resolve()}", "Dir::Cache::pkgcache="]
        places += ["Dir::Cache::srcpkgcache=", "Acquire::Languages=en"]
        options = [word for place in places for word in ("-o", place)]
        subprocess.run(["apt-get", "update", *options], check=True)
        part.rename(lists)
    (file, *_) = sorted(
        lists.glob("*[a-z]_main_i18n_Translation-en*"), key=lambda f: -f.stat().st_size
    )
    cat = ["/usr/lib/apt/apt-helper", "cat-file", str(file)]
    return subprocess.run(cat, stdout=subprocess.PIPE, check=True).stdout.decode()


def read_descriptions(text: str) -> Iterator[tuple[str, str]]:
    """Synopses and the first paragraphs of long descriptions, each beginning of one once."""
    seen = set()
    for record in text.split("\n\n"):
        _, _, said = record.partition("Description-en: ")
        synopsis, _, rest = said.partition("\n")
        paragraph = " ".join(rest.partition("\n .\n")[0].split())
        if paragraph[:60] not in seen:
            seen.add(paragraph[:60])
            yield synopsis.strip(), paragraph


def ask_for_words(descriptions: Iterable[tuple[str, str]]) -> list[Record]:
    """Records with question, context, answer, answer_start (characters of the context)."""
    pairs = [pair for pair in descriptions if len(pair[1]) in CONTEXT_CHARACTERS]
    counts = Counter(word for _, text in pairs for word in {w.lower() for w in WORD.findall(text)})
    records = []
    for synopsis, context in pairs:
        if len(synopsis.split()) not in SYNOPSIS_WORDS:
            continue
        asked = list(find_words(synopsis, context, counts, limit=MAX_SHARE * len(pairs)))
        if asked:
            in_synopsis, in_context = min(asked, key=lambda found: draw(synopsis, found[0]))
            gap = synopsis[: in_synopsis.start()] + GAP + synopsis[in_synopsis.end() :]
            answer = {"answer": in_context.group(), "answer_start": in_context.start()}
            records.append({"question": gap, "context": context, **answer})
    return records


def find_words(
    synopsis: str, context: str, counts: Counter[str], limit: float
) -> Iterator[tuple[re.Match[str], re.Match[str]]]:
    """What may be asked for: its place in the synopsis, and its first one in the context."""
    words = [match.group().lower() for match in WORD.finditer(synopsis)]
    first: dict[str, re.Match[str]] = {}
    for match in WORD.finditer(context):
        first.setdefault(match.group().lower(), match)
    for match in WORD.finditer(synopsis):
        word = match.group().lower()
        is_asked = word in first and words.count(word) == 1 and len(word) >= MIN_LETTERS
        if is_asked and counts[word] <= limit:
            yield match, first[word]


def draw(synopsis: str, match: re.Match[str]) -> bytes:
    """The same word of a synopsis each time."""
    key = f"{match.group()} of {synopsis}"
    return hashlib.blake2b(key.encode(), digest_size=8).digest()
