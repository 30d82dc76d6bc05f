"""Configuration → everything a run needs, resumed from its newest good checkpoint if it has one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lmscale.checkpoint import (
    Manifest,
    discard_uncommitted,
    find_resumable,
    load_checkpoint,
)
from lmscale.config import BatchPlan, RunConfig, plan_batches
from lmscale.engine import Engine, build_engine, check_precision, gathered, parameter_context
from lmscale.errors import DataError
from lmscale.model import build_model, count_parameters, init_weights, parameter_kinds
from lmscale.objective import CausalObjective
from lmscale.runtime import heartbeat
from lmscale.runtime.collectives import failing_together
from lmscale.runtime.device import device_name
from lmscale.runtime.lease import NO_LEASE, Lease
from lmscale.runtime.ranks import Ranks
from lmscale.stream.loader import StepLoader, open_loader
from lmscale.stream.state import StreamState
from lmscale.stream.stream import Stream, open_stream
from lmscale.tokenizer import Tokenizer, load_tokenizer
from lmscale.train.folder import CHECKPOINTS, check_identity, freeze_run, identity_of
from lmscale.train.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready for its next step."""

    config: RunConfig
    ranks: Ranks
    device: torch.device
    plan: BatchPlan
    tokenizer: Tokenizer
    stream: Stream
    loader: StepLoader
    engine: Engine
    identity: dict[str, Any]
    start: Progress  # where it goes on: zeros for a new run
    lease: Lease  # this rank's

    @property
    def folder(self) -> Path:
        return self.config.folder

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS


@contextmanager
def open_run(
    config: RunConfig,
    ranks: Ranks,
    device: torch.device,
    *,
    lease: Lease = NO_LEASE,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Run]:
    """Open a run on all ranks together, in a folder that it has claimed (``claim_folder``).

    The process group must be there. ``should_stop`` is asked while a rank waits for data. Raises
    the same ``LmscaleError`` on every rank when any of them cannot go on.
    """
    plan = plan_batches(
        global_windows=config.batch.global_windows,
        micro_windows=config.batch.micro_windows,
        world_size=ranks.world_size,
    )
    check_precision(config.engine, device)
    with failing_together():
        tokenizer = _load_tokenizer(config)
        heartbeat.tick()
    identity = identity_of(config, tokenizer.fingerprint)
    root = config.folder / CHECKPOINTS
    manifest = _find_checkpoint(root, ranks, lease, identity)
    start, stream_state = _read_state(manifest)
    with ExitStack() as stack:
        stream = stack.enter_context(_open_stream(config, ranks, tokenizer, stream_state))
        loader = open_loader(
            stream,
            plan,
            ranks.rank,
            first_n=start.n,
            num_steps=max(0, config.train.steps - start.step),
            workers=config.stream.workers,
            prefetch_steps=config.stream.prefetch_steps,
            should_stop=should_stop,
        )
        stack.enter_context(loader)
        heartbeat.tick()
        engine = build_run_engine(config, plan, device, fill=manifest is None)
        heartbeat.tick()
        if manifest is not None:
            load_checkpoint(root, manifest, engine)
            logger.info("resumed from %s at step %d", root, manifest.step)
        with failing_together():
            if ranks.is_first:
                lease.check()
                freeze_run(config)
            heartbeat.tick()
        logger.info(describe_start(config, plan, device, start))
        yield Run(
            config=config,
            ranks=ranks,
            device=device,
            plan=plan,
            tokenizer=tokenizer,
            stream=stream,
            loader=loader,
            engine=engine,
            identity=identity,
            start=start,
            lease=lease,
        )


def _find_checkpoint(
    root: Path, ranks: Ranks, lease: Lease, identity: dict[str, Any]
) -> Manifest | None:
    """What to resume from, once no older copy of the run can commit anything there any more."""
    with failing_together():
        if ranks.is_first:
            lease.check()  # else this is the older copy
            discard_uncommitted(root)
        heartbeat.tick()
    manifest = find_resumable(root, ranks)
    if manifest is not None:
        check_identity(manifest.identity, identity, where=f"{root}, step {manifest.step}")
    return manifest


def _open_stream(
    config: RunConfig, ranks: Ranks, tokenizer: Tokenizer, state: StreamState | None
) -> Stream:
    with failing_together():
        stream = open_stream(
            config.stream,
            seed=config.run.seed,
            state=state,
            tokenizer_fingerprint=tokenizer.fingerprint,
            check_files=ranks.is_first,  # 512 ranks × 100,000 shards would be 51 million stats
        )
        heartbeat.tick()
    return stream


def describe_start(
    config: RunConfig, plan: BatchPlan, device: torch.device, start: Progress
) -> str:
    """What is about to train, in one line."""
    count = count_parameters(config.model, config.vocab_size, config.max_positions).total
    name = "CPU" if device.type == "cpu" else device_name(device)
    ranks = "1 rank" if plan.world_size == 1 else f"{plan.world_size} ranks"
    return (
        f"{config.run.name}: {count:,} parameters, {ranks} on {name}, {config.engine.precision}, "
        f"ZeRO {config.engine.zero_stage}, {config.tokens_per_step:,} tokens a step "
        f"({plan.accumulation} micro-batches of {plan.micro_windows} windows a rank), steps "
        f"{start.step + 1} to {config.train.steps}, in {config.folder}"
    )


def build_run_engine(
    config: RunConfig, plan: BatchPlan, device: torch.device, *, fill: bool
) -> Engine:
    """The configured model with its objective under DeepSpeed; ``fill`` draws its initial
    weights.
    """
    with parameter_context(config.engine, plan, device):
        model = build_model(
            config.model, vocab_size=config.vocab_size, max_positions=config.max_positions
        )
    if fill:
        # At ZeRO 3 rank 0's values are dealt out; elsewhere every rank draws the same.
        draws = config.engine.zero_stage != 3 or dist.get_rank() == 0
        init_weights(model, config.model, config.run.seed, gathered=gathered, draws=draws)
    if config.engine.compile:
        for block in model.blocks:
            block.compile()
    kinds = parameter_kinds(model)
    objective = CausalObjective(
        model, config.objective, mask_documents=config.stream.mask_documents
    )
    return build_engine(
        objective, kinds, config.engine, plan=plan, device=device, name_prefix="model."
    )


def _load_tokenizer(config: RunConfig) -> Tokenizer:
    tokenizer = load_tokenizer(config.tokenizer.folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise DataError(
            f"{config.tokenizer.folder} holds a tokenizer of {tokenizer.vocab_size} pieces, but "
            "the "
            f"model has only {config.vocab_size} embeddings. Set tokenizer.vocab_size to "
            f"{tokenizer.vocab_size}, or model.vocab_size to as many or more."
        )
    return tokenizer


def _read_state(manifest: Manifest | None) -> tuple[Progress, StreamState | None]:
    if manifest is None:
        return Progress(), None
    return (
        Progress(**manifest.state["progress"]),
        StreamState.from_json(manifest.state["stream"]),
    )
