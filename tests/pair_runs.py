"""Runs that have learned of labelled_data.py: to translate, to find answers, to converse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from handmade_runs import make_run
from labelled_data import ENCODERS

from lmscale.config import RunConfig
from lmscale.files.tokenizer_files import KEPT_FOLDER
from lmscale.model.family import build_model
from lmscale.objective.objective import build_preparation, build_scoring
from lmscale.objective.scores import to_device
from lmscale.stream.stream import open_stream
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.kept_template import choose_run_template, save_template
from lmscale.train.initial import draw_weights, fill_weights

_WIDTHS = {"layers": 1, "width": 48, "heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "pairs": _WIDTHS | {"family": "encoder_decoder"},
    "completion": _WIDTHS,
    "dialogue": _WIDTHS,
    "answers": ENCODERS["answers"]["model"],
}


def pair_config(labelled: RunConfig, name: str, folder: Path) -> RunConfig:
    source = {"answers": "answers", "dialogue": "dialogues"}.get(name, "pairs")
    shards = f"{labelled.shards.folder}/{source}"
    return RunConfig.model_validate(
        {
            "run": {"name": name, "seed": 3, "folder": str(folder)},
            "tokenizer": labelled.tokenizer.model_dump(),
            "stream": {
                "sources": {source: {"shards": f"{shards}/train"}},
                "sequence_length": 224 if name == "dialogue" else 48,
                "packing": "best_fit",
                "mixture_block": 64,
                "workers": 0,
                "cache": {"folder": f"{labelled.shards.folder}/cache"},
            },
            "model": MODELS[name],
            "objective": {"name": name},
            "engine": {"precision": "fp32"},
            "evaluation": {"sets": {source: f"{shards}/heldout"}},
        }
    )


def train_pair_run(config: RunConfig, *, steps: int) -> None:
    """Write the folder of a run that plain Adam has trained for some steps."""
    model = build_model(config.model, config.sizes)
    fill_weights(model, draw_weights(1))
    scoring, preparation = build_scoring(model, config), build_preparation(config)
    optimizer = torch.optim.Adam(scoring.parameters(), lr=1e-2)
    with open_stream(config.stream, seed=config.run.seed, shape=config.window) as stream:
        for step in range(steps):
            arrays = preparation.prepare(stream.read_rows(4 * step, 4)).arrays
            loss = scoring(**to_device(arrays, torch.device("cpu"))).loss
            optimizer.zero_grad()
            (loss.total / loss.targets).backward()
            optimizer.step()
        templates = {n: each.manifest.chat_template for n, each in stream.datasets.items()}
    make_run(config, load_tokenizer(config.tokenizer.folder), begins=model.state_dict())
    save_template(choose_run_template(config, templates), config.folder / KEPT_FOLDER)
