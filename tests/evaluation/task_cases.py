"""A corpus in two languages whose documents are nearly all held out, and tasks made of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from pydoc_data.topics import topics

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus
from lmscale.evaluation.local_tasks import MadeTask, make_tasks

CLAUSES = (
    *("天地玄黄", "宇宙洪荒", "日月盈昃", "辰宿列张", "寒来暑往", "秋收冬藏", "闰余成岁"),
    *("律吕调阳", "云腾致雨", "露结为霜", "金生丽水", "玉出昆冈", "剑号巨阙", "珠称夜光"),
)


def build_held_out(root: Path) -> Path:
    """A source of English and Chinese documents, as ``corpus build`` leaves it."""
    draw = random.Random(0)
    texts = [text[:1500] for text in list(topics.values())[:16]]
    for _ in range(6):
        sentences = ("，".join(draw.choices(CLAUSES, k=4)) + "。" for _ in range(14))
        texts.append("".join(sentences))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (root / "raw.jsonl").write_text(lines, encoding="utf-8")
    config = {"sources": {"both": {"inputs": [str(root / "raw.jsonl")]}}, "heldout_fraction": 0.99}
    corpus = CorpusConfig.model_validate({"folder": str(root / "corpus"), **config})
    build_corpus(corpus, processes=1)
    return root / "corpus/both"


def build_suite(root: Path, *, rows: int = 8) -> list[MadeTask]:
    """Tasks of it, in ``root/tasks``."""
    return make_tasks([build_held_out(root)], root / "tasks", rows=rows)
