"""The first steps of configs/demo.yaml on a text that ships with the repository: its LICENSE.

    python tests/train/demo_loss.py

records them anew in recorded_demo_loss*.json, in fp32 and in bf16. Do so when the model, the
objective, the order of the samples or the optimizer were changed on purpose, and say so in the
commit. In fp32 a step is half of the demo's. In bf16 they are two small steps: a processor without
units for bf16 takes a second for a hundred tokens. The demo's own text is the documentation of the
Python that runs it, which differs between versions; here a token is a byte, so no tokenizer has a
say either. Everything else is the demo's.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lmscale.config import RunConfig

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECORDS = {
    "fp32": HERE / "recorded_demo_loss_fp32.json",
    "bf16": HERE / "recorded_demo_loss.json",
}
STEPS = {"fp32": 8, "bf16": 2}
SMALL = {  # of the settings that differ from the demo's
    "fp32": ["batch.global_windows=4"],
    "bf16": ["batch.global_windows=2", "stream.sequence_length=64"],
}
BOS, EOS, PAD, FIRST_BYTE = 1, 2, 3, 4


def measure(folder: Path, precision: str) -> dict[str, Any]:
    """Train the first steps in a process of its own; ``folder`` takes the shards and the result."""
    from forked_ranks import run_starts

    folder.mkdir(parents=True)
    (folder / "precision").write_text(precision)
    run_starts(Path(__file__), folder, (1,))
    return json.loads((folder / "curve.json").read_text())


def start(folder: Path, number: int) -> None:
    """What the rank does."""
    import torch
    from forked_ranks import one_group

    from lmscale.config import plan_batches
    from lmscale.objective.objective import build_preparation
    from lmscale.ranks.mesh import Mesh
    from lmscale.stream.loader import open_loader
    from lmscale.stream.stream import open_stream
    from lmscale.stream.worker import LoaderJob
    from lmscale.train.initial import build_run_engine
    from lmscale.train.loop import train_steps

    precision = (folder / "precision").read_text()
    steps = STEPS[precision]
    config = _demo_config(_write_shards(folder / "shards"), folder, precision)
    plan = plan_batches(
        global_windows=config.batch.global_windows,
        micro_windows=config.batch.micro_windows,
        data_ranks=1,
    )
    seed = config.run.seed
    with one_group(), open_stream(config.stream, seed=seed) as stream:
        engine = build_run_engine(config, plan, Mesh(), torch.device("cpu"), fill=True)
        job = LoaderJob(
            stream=stream,
            preparation=build_preparation(config),
            plan=plan,
            data_rank=0,
            first_n=0,
            num_steps=steps,
        )
        with open_loader(job, workers=0) as loader:
            reports = train_steps(engine, loader, config)
            curve = [next(reports) for _ in range(steps)]
    result = {
        "loss": [report.loss for report in curve],
        "gradient_norm": [report.gradient_norm for report in curve],
        "digest": [f"{report.digest:016x}" for report in curve],
        "targets": [report.targets for report in curve],
    }
    (folder / "curve.json").write_text(json.dumps(result))


def _demo_config(shards: Path, folder: Path, precision: str) -> RunConfig:
    from lmscale.config import load_config

    return load_config(
        ROOT / "configs" / "demo.yaml",
        [
            f"stream.sources={{license: {{shards: {shards}, weight: 1}}}}",
            f"stream.cache.folder={folder / 'cache'}",
            f"engine.precision={precision}",
            *SMALL[precision],
        ],
    )


def _write_shards(folder: Path) -> Path:
    """A dataset of one document per paragraph, one token per byte."""
    from lmscale.shards.manifest import Manifest, save_manifest
    from lmscale.shards.writer import Documents, TokenizedDocument, write_shard

    folder.mkdir(parents=True)
    paragraphs = (ROOT / "LICENSE").read_bytes().split(b"\n\n")
    dataset = Manifest(
        source="license",
        split="train",
        tokenizer_fingerprint="0" * 64,
        vocab_size=FIRST_BYTE + 256,
        dtype="uint16",
        bos_id=BOS,
        eos_id=EOS,
        pad_id=PAD,
        block_tokens=1024,
        inputs="",
        shards=(),
    )
    documents = (
        TokenizedDocument(
            ids=np.array([BOS, *(FIRST_BYTE + b for b in text), EOS], dtype=np.uint16),
            text_bytes=len(text),
            offset=0,
        )
        for text in paragraphs
    )
    shard = write_shard(
        folder / "license-000000.tar",
        name="license-000000.tar",
        key="license-000000",
        documents=Documents(documents),
        dataset=dataset,
        max_bytes=2**20,
    )
    save_manifest(replace(dataset, shards=(shard,)), folder)
    return folder


def record() -> None:
    import torch

    for precision, path in RECORDS.items():
        with tempfile.TemporaryDirectory() as folder:
            curve = measure(Path(folder) / precision, precision)
        made_with = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
        text = {"command": "python tests/train/demo_loss.py", "made_with": made_with, **curve}
        path.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(HERE.parent)]
    record()
