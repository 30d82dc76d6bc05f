"""A tiny dataset of real text and the configuration of a tiny run on it, for tests and scripts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from forked_processes import ROOT, Process, start_process

from lmscale.config import RunConfig, dump_config
from lmscale.runs.commits import Commit, append_commit, read_commits

MAX_TEXT = 4000  # characters of a document: several fit in a shard, some are cut by windows


def build_tiny_data(folder: Path) -> None:
    """Two sources of Python's own documentation as corpus, tokenizer and shards below ``folder``.

    A second or two of work; ``tiny_tree(folder, …)`` is the configuration that reads it.
    """
    from lmscale.corpus.build import build_corpus
    from lmscale.shards.build import build_shards
    from lmscale.tokenizer.train import train_tokenizer

    texts = [topics[name][:MAX_TEXT] for name in sorted(topics)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("a", texts[::2]), ("b", texts[1::2])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    config = RunConfig.model_validate(tiny_tree(folder, folder / "unused"))
    build_corpus(config.corpus, processes=1)
    train_tokenizer(config.tokenizer, config.corpus.folder, ["a", "b"])
    build_shards(config)


def tiny_tree(data: Path, run_folder: Path, overrides: Mapping[str, Any] | None = None) -> dict:
    """The configuration of a run on ``build_tiny_data``'s ``data``, as a tree.

    ``overrides`` maps dotted keys to values. A step takes 12 windows, which 1, 2, 3 and 4 ranks
    share evenly.
    """
    tree: dict[str, Any] = {
        "run": {"name": "tiny", "folder": str(run_folder), "seed": 1},
        "corpus": {
            "folder": str(data / "corpus"),
            "sources": {name: {"inputs": [str(data / f"{name}.jsonl")]} for name in "ab"},
            "heldout_fraction": 0.05,
        },
        "tokenizer": {"folder": str(data / "tokenizer"), "vocab_size": 512},
        "shards": {
            "folder": str(data / "shards"),
            "max_bytes": 2**16,
            "block_tokens": 4096,
            "processes": 1,
        },
        "stream": {
            "sources": {
                "a": {"shards": str(data / "shards/a/train"), "weight": 3},
                "b": {"shards": str(data / "shards/b/train"), "weight": 1},
            },
            "sequence_length": 32,
            "window_shards": 2,
            "mixture_block": 64,
            "workers": 0,
            "cache": {"folder": str(data / "cache")},
        },
        "batch": {"global_windows": 12, "micro_windows": 3},
        "model": {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "ffn_width": 64},
        "engine": {
            "precision": "fp32",
            "optimizer": {"lr": 3.0e-3},
            "schedule": {"kind": "constant", "warmup_steps": 3},
        },
        "train": {"steps": 10, "log_every_steps": 1},
        "checkpoint": {"every_steps": 2, "keep_last": 2},
    }
    for path, value in (overrides or {}).items():
        *sections, key = path.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return tree


def tiny_config(
    data: Path, run_folder: Path, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    return RunConfig.model_validate(tiny_tree(data, run_folder, overrides))


def write_tiny_config(
    path: Path, data: Path, run_folder: Path, overrides: Mapping[str, Any] | None = None
) -> Path:
    path.write_text(dump_config(tiny_config(data, run_folder, overrides)), encoding="utf-8")
    return path


def settings(overrides: Mapping[str, Any]) -> list[str]:
    """``--set`` arguments."""
    return [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    output: str  # stdout and stderr as they came


def start_lmscale(
    *arguments: str | Path,
    output: Path | None = None,
    environment: Mapping[str, str] | None = None,
    max_file_bytes: int | None = None,
) -> Process:
    """A real ``lmscale`` process, in a session of its own: a fork (forked_processes.py)."""
    return start_process(
        "command",
        arguments,
        output=output,
        folder=ROOT,
        environment=environment,
        max_file_bytes=max_file_bytes,
    )


def run_lmscale(*arguments: str | Path, timeout: float = 120, **options: Any) -> Ended:
    """The same to its end; ``options`` are those of ``start_lmscale``."""
    process = start_lmscale(*arguments, **options)
    try:
        output, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()  # the kernel ends its ranks with it
    return Ended(code=process.wait(), output=output)


def launch(
    config: Path, num_ranks: int, overrides: Mapping[str, Any] | None = None, **options: Any
) -> Ended:
    words = ("launch", "local", config, "--nproc", str(num_ranks))
    return run_lmscale(*words, *settings(overrides or {}), **options)


def ledger_of(run_folder: Path) -> list[str]:
    """The lines of a run's ledger: step, samples, tokens and digest of every step."""
    return (run_folder / "ledger.jsonl").read_text().splitlines()


def losses_of(run_folder: Path) -> dict[int, float]:
    """Step → loss, of a run that logs every step."""
    rows = map(json.loads, (run_folder / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}


def committed_steps(run_folder: Path) -> list[int]:
    """Steps of the checkpoints in the run's folder that have a manifest, oldest first."""
    manifests = (run_folder / "checkpoints").glob("step-*/manifest.json")
    return sorted(int(re.sub(r"\D", "", path.parent.name)) for path in manifests)


def logged_steps(run_folder: Path) -> list[int]:
    """Steps of the checkpoints that ``commits.jsonl`` names, oldest first."""
    return sorted(commit.step for commit in read_commits(run_folder))


def log_commit(run_folder: Path, step: int, **changes: Any) -> None:
    """The row of a checkpoint in the run's folder."""
    folder = f"checkpoints/step-{step:09d}"
    fields = {"step": step, "n": 0, "folder": folder, "sha256": f"of step {step}", "bytes": 0}
    fields |= {"reason": "regular", "time": time.time()}
    append_commit(run_folder, Commit.model_validate(fields | changes))


def children_of(pid: int) -> Sequence[int]:
    """Processes that ``pid``'s main thread started and that still run (Linux)."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in text.split()]


def is_gone(pid: int) -> bool:
    """Whether the process has ended, a zombie included (Linux)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"
