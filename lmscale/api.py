"""What programs of one's own may rely on: ``import lmscale``, then the names of ``__all__``.

They are few, read only, and stay what they are; whatever else the package holds may change between
versions. docs/python.md shows each in a few lines. A name loads what it needs when it is called:
what reads figures and samples needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from lmscale.config import RunConfig, load_config
from lmscale.config.data import BatchPlan
from lmscale.config.training import Weights
from lmscale.errors import ConfigError, LmscaleError
from lmscale.files.jsonl import Row, sift_rows
from lmscale.files.progress import progress
from lmscale.files.run_files import METRICS_FILE
from lmscale.files.run_rows import FIGURES
from lmscale.files.tokenizer_files import find_meta
from lmscale.runs.run_folder import RunStatus, load_run_config, read_status
from lmscale.stream.audit import open_recorded
from lmscale.stream.batches import Rows, StepBatch
from lmscale.stream.ledger import LedgerRow, load_record, read_ledger
from lmscale.stream.loader import open_loader
from lmscale.stream.stream import Stream
from lmscale.stream.worker import LoaderJob
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.codec import load_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lmscale.evaluation.run import LoadedRun

__all__ = [
    "ConfigError",
    "LedgerRow",
    "LmscaleError",
    "Rows",
    "RunConfig",
    "RunStatus",
    "StepBatch",
    "Stream",
    "Tokenizer",
    "generate",
    "iterate_steps",
    "load_config",
    "load_run",
    "load_run_config",
    "load_tokenizer",
    "open_run_stream",
    "open_stream",
    "read_ledger",
    "read_metrics",
    "read_status",
    "read_weights",
]


def read_metrics(folder: str | Path) -> list[Row]:
    """Every row of a run's figures, as ``metrics.jsonl`` has them, oldest first. A figure that was
    not finite is None. Raises ``ConfigError`` where the folder is no run's.
    """
    load_run_config(folder)
    return sift_rows(Path(folder) / METRICS_FILE, FIGURES).rows


def open_run_stream(folder: str | Path) -> Stream:
    """The samples of a run that has begun, by their numbers, with every mixture that it has had
    and without what it jumped; close it, or use it in a ``with`` block.

    ``read_rows(n, count)`` gives samples n to n + count - 1; those of a step, its row in
    ``read_ledger`` names. Raises ``DataError`` where the shards are no longer those that it read.
    """
    state, locations = load_record(folder)
    return open_recorded(load_run_config(folder), state, locations, look="")


def open_stream(config: RunConfig) -> Stream:
    """The stream of a run that begins, checked against the config's tokenizer if that is there.

    Raises ``ConfigError`` and ``DataError`` with all that is wrong with settings and shards.
    """
    from lmscale.stream import stream

    folder = config.tokenizer.folder
    fingerprint = load_tokenizer(folder).fingerprint if find_meta(Path(folder)) else None
    is_packed = config.stream.packing == "best_fit"
    packing = progress("Packing shards", None, "shards")
    with packing if is_packed else nullcontext(lambda shards: None) as advance:
        return stream.open_stream(
            config.stream,
            seed=config.run.seed,
            shape=config.window,
            tokenizer_fingerprint=fingerprint,
            advance=advance,
        )


def iterate_steps(
    config: RunConfig, *, steps: int, first_step: int = 0, data_rank: int = 0, data_ranks: int = 1
) -> Iterator[StepBatch]:
    """What one of ``data_ranks`` ranks is fed with in ``steps`` steps from ``first_step`` on: the
    arrays of its micro-batches, as the objective makes them.

    ``first_step``: how many were done before. A step's samples are the same for every number of
    ranks. ``stream.workers`` processes read ahead while the next step is asked for. Raises
    ``ConfigError`` for ranks and steps that there are none of, and once the first step is asked
    for, as ``open_stream``.
    """
    problems = [
        f"{name} = {value}: it must be at least {least}."
        for name, value, least in (
            *(("steps", steps, 0), ("first_step", first_step, 0), ("data_ranks", data_ranks, 1)),
        )
        if value < least
    ]
    if not problems and not 0 <= data_rank < data_ranks:
        ranks = f"0 to {data_ranks - 1}"
        problems = [f"data_rank = {data_rank}: the ranks of data_ranks = {data_ranks} are {ranks}."]
    if problems:
        raise ConfigError(problems)
    plan = config.batch.plan(data_ranks)
    return _iterate_steps(config, plan, data_rank, first_step=first_step, steps=steps)


def _iterate_steps(
    config: RunConfig, plan: BatchPlan, data_rank: int, *, first_step: int, steps: int
) -> Iterator[StepBatch]:
    from lmscale.objective.objective import build_preparation

    with open_stream(config) as stream:
        job = LoaderJob(
            stream=stream,
            preparation=build_preparation(config),
            plan=plan,
            data_rank=data_rank,
            first_n=plan.samples_before(first_step),
            num_steps=steps,
            first_step=first_step,
        )
        with open_loader(job, workers=config.stream.workers) as loader:
            yield from loader


def load_run(
    folder: str | Path,
    *,
    step: int | None = None,
    device: str | torch.device | None = None,
    weights: Weights | None = None,
) -> LoadedRun:
    """A run's ``model`` with the weights of a checkpoint, its ``tokenizer`` and its ``config``.

    ``step`` None: the newest sound checkpoint. ``device`` None: a GPU if there is one. ``weights``:
    ``trained`` or ``average``; None: as the run is evaluated. Raises ``ConfigError`` where this is
    no run, and ``CheckpointError`` where it has no such checkpoint that is sound.
    """
    import torch

    from lmscale.evaluation import run
    from lmscale.ranks.device import select_device
    from lmscale.ranks.ranks import Ranks

    device = select_device(Ranks()) if device is None else torch.device(device)
    return run.load_run(Path(folder), step=step, device=device, weights=weights)


def read_weights(
    folder: str | Path, *, step: int | None = None, weights: Weights | None = None
) -> dict[str, Tensor]:
    """The weights of a checkpoint by the names of the model's parameters, and its buffers, whole,
    on the CPU; what was trained in fp32. Whatever ranks and ZeRO stage wrote them, it needs neither
    DeepSpeed nor the model. Arguments and errors are those of ``load_run``.
    """
    from lmscale.checkpoint import load
    from lmscale.evaluation.found import find_run

    found = find_run(Path(folder), step=step, weights=weights)
    return load.read_weights(found.place, found.manifest, found.weights)


def generate(
    run: LoadedRun,
    prompt: str | Sequence[int] = "",
    *,
    suffix: str | None = None,
    max_tokens: int = 200,
    special_tokens: bool = False,
    stops: str | Sequence[str] = (),
    **sampling: float | bool | None,
) -> Iterator[str]:
    """The model's continuation of a prompt, piece by piece; of a run of pairs or with a gap to
    fill, its answer.

    ``suffix``: text behind a gap, of a run that fills them. ``special_tokens``: their names in the
    prompt are those tokens, and those that come are shown. ``stops`` end it: texts, or names of
    special tokens. ``sampling``: the fields of ``Sampling``: temperature, top_k, top_p,
    repetition_penalty, is_greedy, seed. A prompt of ids is taken as it is, without the run's
    ``bos_id``. Raises ``ConfigError`` for what the model cannot be asked.
    """
    from lmscale.evaluation.generate import Generation, stream_answer
    from lmscale.evaluation.prompts import Prompt, build_prompt, let_end
    from lmscale.evaluation.sampling import Sampling

    config, tokenizer = run.config, run.tokenizer
    stops = (stops,) if isinstance(stops, str) else stops
    if isinstance(prompt, str):
        question = build_prompt(
            *(config, tokenizer, prompt, suffix),
            bos_id=run.bos_id,
            special=special_tokens,
            stops=stops,
        )
    elif suffix is not None:
        raise ConfigError("suffix goes with a prompt of text: ids have all that the model is asked")
    else:
        asked = Prompt(ids=tuple(map(int, prompt)))
        question = let_end(asked, config, tokenizer, special=special_tokens, stops=stops)
    how = Sampling(**sampling)  # type: ignore[arg-type]
    generation = Generation(run.model, tokenizer, question, how, max_tokens=max_tokens)
    return stream_answer(generation)
