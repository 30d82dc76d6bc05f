"""What a tiny model repeats of text that it has read many times: the table of docs/answering.md.

    OMP_NUM_THREADS=1 python benchmarks/repeated.py [--steps 700] [--folder FOLDER]

It reads the first 4,000 characters of Python's help topics; what the longer ones go on with is the
held-out set. A folder that is given keeps the data and the run, and a run that is finished is only
probed again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from baselines import ROOT, lmscale

from lmscale.config import RunConfig
from lmscale.corpus.build import build_corpus
from lmscale.shards.build import build_shards

sys.path.append(str(ROOT / "tests"))
from tiny_run import MAX_TEXT, build_tiny_data, tiny_tree, write_tiny_config  # noqa: E402

SETTINGS = {
    "stream.sequence_length": 128,
    "batch.global_windows": 16,
    "batch.micro_windows": 16,
    "model": {"layers": 3, "width": 160, "heads": 4, "kv_heads": 4, "ffn_width": 448},
    "engine.optimizer.lr": 2.0e-3,
    "engine.schedule.warmup_steps": 20,
    "train.log_every_steps": 50,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmscale-repeated-") as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        if not (folder / "c.yaml").exists():
            build(folder, given.steps)
        lmscale(folder, "launch", "local", "c.yaml", "--nproc", 1)
        print(lmscale(folder, "probe", "privacy", "run"))


def build(folder: Path, steps: int) -> None:
    """The data, and ``c.yaml`` of the run."""
    build_tiny_data(folder / "data")
    rest = [
        topics[name][MAX_TEXT : MAX_TEXT + 6000]
        for name in sorted(topics)
        if len(topics[name]) > MAX_TEXT + 1000
    ]
    later = build_later(folder, rest)
    more = {"train.steps": steps, "checkpoint.every_steps": steps, "evaluation.sets.later": later}
    write_tiny_config(folder / "c.yaml", folder / "data", folder / "run", SETTINGS | more)


def build_later(folder: Path, texts: list[str]) -> str:
    """Shards of text that the run does not read, cut by its tokenizer."""
    file, data = folder / "later.jsonl", folder / "later"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    settings = {
        "corpus.sources": {"later": {"inputs": [str(file)]}},
        "corpus.heldout_fraction": 0.0,
        "tokenizer.folder": str(folder / "data" / "tokenizer"),
        "stream.sources": {"later": {"shards": str(data / "shards/later/train")}},
    }
    config = RunConfig.model_validate(tiny_tree(data, folder / "run", settings))
    build_corpus(config.corpus, processes=1)
    build_shards(config)
    return f"{data}/shards/later/train"


if __name__ == "__main__":
    main()
