"""How fast one core makes every objective's arrays of raw rows: the half that loader workers do.

    python benchmarks/preparations.py [--rounds 5] [--rows 64] [--length 1024]

The objectives take turns, round after round, over the same random documents; the table holds
medians, in raw tokens per second of CPU time. ``causal`` hands the rows over as they are.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import yaml
from synthetic import MEAN_DOCUMENT_TOKENS

from lmscale.config import RunConfig
from lmscale.config.kinds import Ability
from lmscale.config.load import parse_config
from lmscale.config.model import FAMILIES
from lmscale.config.objective import OBJECTIVES
from lmscale.corpus.build import build_corpus
from lmscale.objective.objective import build_preparation
from lmscale.stream.batches import Preparation, Rows, take_rows
from lmscale.tokenizer.train import train_tokenizer

VOCABULARY = 2048
PARTS = {
    "stream": {"mask_documents": False},
    "model": {"pooler": True, "token_types": 2, "text_classes": 2},
}
MIXED = {"objective": {"parts": {n: {"objective": {"name": n}} for n in ("causal", "fill_middle")}}}
DISTILLED = {"objective": {"teacher": "another run"}}
WHOLE = {"packing": "best_fit", "mask_documents": True}
NAMES = {"names": ["a", "b"]}
# Beside a family that offers what the objective needs.
NEEDED: dict[str, dict[str, dict]] = {
    "masked_order": PARTS,
    "masked_next": PARTS,
    "distill": DISTILLED,
    "mixture": MIXED,
    "pairs": {"stream": WHOLE},
    "completion": {"stream": WHOLE},
    "classes": {"stream": WHOLE, "model": {"text_classes": 2}, "objective": NAMES},
    "numbers": {"stream": WHOLE, "model": {"text_classes": 1}},
    "tags": {"stream": WHOLE, "model": {"token_classes": 2}, "objective": NAMES},
    "answers": {"stream": WHOLE, "model": {"token_classes": 2}},
    "dialogue": {"stream": WHOLE},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("rounds", 5), ("rows", 64), ("length", 1024)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        configs = plan_configs(Path(folder), given.length)
        work = {
            name: (build_preparation(config), draw_rows(given.rows, config.window.tokens))
            for name, config in configs.items()
        }
    rates: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(given.rounds):
        for name, (preparation, rows) in work.items():
            rates[name].append(measure(preparation, rows))
    print(f"{'objective':16} M tokens/s")
    for name, of_name in rates.items():
        print(f"{name:16} {statistics.median(of_name) / 1e6:10.1f}")


def plan_configs(folder: Path, length: int) -> dict[str, RunConfig]:
    """A run of every objective, on the first family that offers what it needs; one tokenizer."""
    (folder / "a.txt").write_text("\n\n".join(topics.values()), encoding="utf-8")
    configs = {}
    for name in OBJECTIVES.names():
        section = OBJECTIVES.section(name)
        needs, is_pair = section.needs, Ability.CROSS in section.needs
        has_sentinels = "sentinels" in section.model_fields
        more = NEEDED.get(name, {})
        family = next(f for f in FAMILIES.names() if needs <= FAMILIES.section(f).offers)
        tree = {
            "run": {"name": "preparations", "folder": str(folder / "run")},
            "corpus": {
                "folder": str(folder / "corpus"),
                "sources": {"a": {"inputs": [str(folder / "a.txt")], "separator": "blank_lines"}},
            },
            "tokenizer": {"folder": str(folder / "tokenizer"), "vocab_size": VOCABULARY},
            "stream": {"sequence_length": length, "mask_documents": not is_pair}
            | more.get("stream", {}),
            "model": {"family": family} | more.get("model", {}),
            # Of a longer text than UL2's there are more spans.
            "objective": {"name": name}
            | ({"sentinels": length} if has_sentinels else {})
            | more.get("objective", {}),
        }
        configs[name] = parse_config(yaml.safe_dump(tree))
    first = next(iter(configs.values()))
    build_corpus(first.corpus, processes=1)
    train_tokenizer(first.tokenizer, first.corpus.folder, ["a"])
    return configs


def draw_rows(num_rows: int, width: int) -> Rows:
    """Full rows of random ids, in documents of exponential length: pairs, with labels and tags."""
    generator = np.random.default_rng(0)
    begins = generator.random((num_rows, width)) < 1 / MEAN_DOCUMENT_TOKENS
    begins[:, 0] = True
    starts = np.flatnonzero(begins).astype(np.int32)
    lengths = np.diff(starts, append=num_rows * width)
    tags = np.where(generator.random(begins.shape) < 0.5, generator.integers(0, 2), -1)
    rows = Rows(
        numbers=np.arange(num_rows),
        tokens=generator.integers(4, VOCABULARY, (num_rows, width)).astype(np.uint16),
        lengths=np.full(num_rows, width, dtype=np.int32),
        starts=starts,
        digests=np.zeros(num_rows, dtype=np.uint64),
        members={
            "parts": (lengths // 2).astype(np.int32),
            "labels": np.zeros(len(starts), dtype=np.int32),
            "tags": tags.astype(np.int16),
            "span_first": (lengths // 2).astype(np.int32),
            "span_last": (lengths - 1).astype(np.int32),
            "replies": (tags >= 0).astype(np.uint8),
        },
    )
    return replace(rows, partners=take_rows(rows, rows.numbers ^ 1))


def measure(preparation: Preparation, rows: Rows, *, seconds: float = 0.2) -> float:
    """Raw tokens per second of CPU time, over about so many of them."""
    repeats, began = 0, time.process_time()
    while (passed := time.process_time() - began) < seconds:
        preparation.prepare(rows)
        repeats += 1
    return repeats * rows.tokens.size / passed


if __name__ == "__main__":
    main()
