"""Runs and GGUF files → the models that are measured, and the sets that they are measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

from lmscale.compress.measure import NEW_TOKENS, ROUNDS, Contender, Speeds
from lmscale.errors import ConfigError
from lmscale.evaluation.found import FoundRun
from lmscale.evaluation.held_out import open_evaluation_sets
from lmscale.evaluation.run import DTYPES, load_found
from lmscale.exchange.gguf_read import read_checkpoint_hash, read_gguf
from lmscale.exchange.llama_cpp import time_gguf
from lmscale.stream.dataset import Dataset


def load_contender(found: FoundRun, *, device: torch.device, name: str = "") -> Contender:
    """A run's model, in the precision that it is evaluated in."""
    loaded = load_found(found, device=device)
    parameters = [*loaded.model.parameters()]
    return Contender(
        name=name or found.config.run.name,
        config=loaded.config,
        tokenizer=loaded.tokenizer,
        model=loaded.model,
        dtype=next(name for name, dtype in DTYPES.items() if dtype == parameters[0].dtype),
        bytes=sum(each.numel() * each.element_size() for each in parameters),
    )


def load_files(
    files: Sequence[Path], runs: Sequence[FoundRun], prompt: Sequence[int]
) -> list[Contender]:
    """GGUF files of the runs' checkpoints. The loss is of the weights in a file, in the run's own
    model; the speeds are llama.cpp's, which reads ``prompt`` and writes behind it.

    Raises ``ConfigError`` for a file of another checkpoint.
    """
    hashes = [read_checkpoint_hash(file) for file in files]
    owners = {run.manifest.hash: run for run in runs}
    strangers = [str(file) for file, each in zip(files, hashes, strict=True) if each not in owners]
    if strangers:
        names = ", ".join(run.name for run in runs)
        raise ConfigError(
            f"{', '.join(strangers)}: made of another checkpoint than {names}. Name the run, with "
            "the step, that it was made of, too."
        )
    rates = time_gguf(files, prompt, count=NEW_TOKENS, rounds=ROUNDS) if files else []
    return [
        _load_file(file, owners[each], speeds)
        for file, each, speeds in zip(files, hashes, rates, strict=True)
    ]


def _load_file(file: Path, found: FoundRun, rates: tuple[float, float]) -> Contender:
    stored = read_gguf(found, file)
    return Contender(
        name=file.name,
        config=found.config.model_copy(update={"model": stored.section}),
        tokenizer=found.tokenizer,
        model=stored.model,
        dtype=stored.dtype,
        bytes=stored.bytes,
        engine="llama.cpp",
        speeds=Speeds(scoring=rates[0], generating=rates[1]),
    )


@contextmanager
def opened_sets(found: FoundRun, names: Sequence[str] | None) -> Iterator[dict[str, Dataset]]:
    """Held-out sets of a run, those of ``names`` or all."""
    with ExitStack() as stack:
        sets = open_evaluation_sets(found.config, found.tokenizer.fingerprint, names)
        for dataset in sets.values():
            stack.enter_context(closing(dataset))
        yield sets
