"""A tiny model of every family beside what counting alone reaches, on the demo's corpus.

    OMP_NUM_THREADS=1 python benchmarks/baselines.py [--only recurrent] [--folder FOLDER]

Each model is trained for some minutes of one core and scored on the held-out part; its yardstick is
counted on the very tokens that it has read, and asked for the same targets (docs/decisions/0028).
A folder that is given keeps the data and the runs, and a run that is finished is only scored again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.yaml"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run that differs from the demo's by some sections."""

    baseline: str
    settings: Mapping[str, object]


SHORTER = {"train.steps": 400, "engine.schedule.decay_steps": 200}
CASES = {
    "decoder": Case(baseline="ngram", settings={}),
    "recurrent": Case(
        baseline="ngram",
        settings={
            "model": {
                "family": "recurrent", "layers": 1, "width": 320, "tied_embeddings": True,
                "init_std": 0.1,
            },
            "engine.precision": "fp32",
            "engine.optimizer.lr": 0.02,  # at the demo's 3.0e-3 it learns slowly
        },
    ),
    "encoder": Case(
        baseline="unigram",
        settings={
            **SHORTER,
            "objective": {"name": "masked"},
            "model": {
                "family": "encoder", "layers": 4, "width": 192, "heads": 3, "positions": "rope",
                "norm_first": True, "activation": "geglu", "bias": False,
            },
        },
    ),
    "encoder_decoder": Case(
        baseline="ngram",
        settings={
            **SHORTER,
            "objective": {"name": "spans"},
            "stream.mask_documents": False,
            "stream.packing": "concat",
            "model": {
                "family": "encoder_decoder", "layers": 3, "width": 192, "heads": 3,
                "activation": "geglu",
            },
        },
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=list(CASES), action="append", help="default: all")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmscale-baselines-") as temporary:
        folder = (given.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        build_data(folder)
        rows = [compare(folder, name) for name in given.only or CASES]
    print(render(rows))


def build_data(folder: Path) -> None:
    pydocs = [sys.executable, ROOT / "examples" / "pydocs.py", "--out", "data/demo/raw"]
    subprocess.run(pydocs, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for group, verb in (("corpus", "build"), ("tokenizer", "train"), ("shards", "build")):
        lmscale(folder, group, verb, DEMO)


def plan_settings(name: str) -> list[str]:
    """``--set`` of a case; the run is named after it."""
    settings = {"run.name": name, "run.folder": f"runs/{name}", **CASES[name].settings}
    return [
        word for key, value in settings.items() for word in ("--set", f"{key}={json.dumps(value)}")
    ]


def compare(folder: Path, name: str) -> list[str]:
    """A row of the table; trains the model where it is not trained yet."""
    settings, run = plan_settings(name), f"runs/{name}"
    shown = ask(folder, "config", "show", DEMO, "--nproc", 1, *settings)
    lmscale(folder, "train", DEMO, *settings)
    baseline = CASES[name].baseline
    score = ask(folder, "evaluate", run, "--baseline", baseline)["heldout"]
    last = json.loads((folder / run / "ledger.jsonl").read_text().splitlines()[-1])
    config = shown["config"]
    return [
        f"`{name}`, {config['model']['layers']} × {config['model']['width']}",
        f"`{config['objective']['name']}`",
        f"{shown['derived']['parameters'] / 1e6:.1f} M",
        f"{last['step'] + 1:,} × {last['samples']}",
        f"{score['targets']:,}",
        f"{score['loss']:.3f}",
        f"{baseline}, of {score[f'{baseline}_tokens']:,}",
        f"{score[baseline]:.3f}",
    ]


def render(rows: list[list[str]]) -> str:
    """A table in Markdown."""
    heads = ["model", "objective", "parameters", "steps × windows"]
    heads += ["held-out targets", "its loss", "counts", "their loss"]
    ruler = ["---"] * 2 + ["---:"] * 4 + ["---", "---:"]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ruler, *rows))


def ask(folder: Path, *words: object) -> Any:
    said = lmscale(folder, *words, "--json")
    return json.loads(said[said.index("{") :])


def lmscale(folder: Path, *words: object) -> str:
    """What a command of lmscale prints, in this folder; it ends the script where that fails."""
    command = [sys.executable, "-m", "lmscale", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    main()
