"""Tokens per second of lmscale's loader beside other ways to read training tokens, in one run.

    python benchmarks/stream.py [--rounds 5] [--seconds 1] [--folder DIR]

All read the same documents, shuffled, in windows of T + 1 tokens. Rounds are interleaved (A B C A B
C …), so that a machine whose speed drifts slows all of them; medians are printed. litdata and
mosaicml-streaming are read with their own loaders and one worker, where they are installed (``pip
install litdata mosaicml-streaming``).
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from random_shards import EOS, write_dataset

from lmscale.config.data import StreamConfig, plan_batches
from lmscale.objective.causal import CausalPreparation
from lmscale.stream.loader import open_loader
from lmscale.stream.stream import Stream, open_stream
from lmscale.stream.worker import LoaderJob

VOCAB = 32_000
NUM_SHARDS, SHARD_DOCUMENTS, MEAN_TOKENS = 10, 5_000, 700
WARM_UP = 4  # batches, not timed: workers start and fill their queues


@dataclass(frozen=True, kw_only=True)
class Contender:
    name: str
    gives: str
    open: Callable[[], Iterator[object]] | None
    """An iterator over batches of the same number of windows; None: not installed."""


def build_documents() -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    for length in random.exponential(MEAN_TOKENS, NUM_SHARDS * SHARD_DOCUMENTS).astype(int):
        yield np.append(random.integers(4, VOCAB, length), EOS).astype(np.uint16)


def write_shards(folder: Path) -> None:
    documents = build_documents()
    shards = (islice(documents, SHARD_DOCUMENTS) for _ in range(NUM_SHARDS))
    write_dataset(folder, shards, vocab_size=VOCAB, block_tokens=2**20)


def open_lmscale(folder: Path, packing: str, length: int) -> Stream:
    config = StreamConfig.model_validate(
        {
            "sources": {"random": {"shards": str(folder / "shards")}},
            "sequence_length": length,
            "packing": packing,
            "cache": {"folder": str(folder / "cache")},
        }
    )
    return open_stream(config, seed=1)


def read_lmscale(stream: Stream, batch: int, workers: int) -> Iterator[object]:
    plan = plan_batches(global_windows=batch, micro_windows=batch, data_ranks=1)
    job = LoaderJob(
        stream=stream,
        preparation=CausalPreparation(mask_documents=stream.config.mask_documents),
        plan=plan,
        data_rank=0,
        first_n=0,
        num_steps=10**6,
    )
    with open_loader(job, workers=workers) as loader:
        yield from loader


def read_memmap(path: Path, length: int, batch: int) -> Iterator[object]:
    """As nanoGPT's get_batch does it: random positions, int64 x and y, no order to resume."""
    random = np.random.default_rng(0)
    while True:
        tokens = np.memmap(path, dtype=np.uint16, mode="r")
        begins = random.integers(0, len(tokens) - length - 1, batch)
        x = np.stack([tokens[i : i + length].astype(np.int64) for i in begins])
        y = np.stack([tokens[i + 1 : i + 1 + length].astype(np.int64) for i in begins])
        yield x, y


def plan_litdata(folder: Path, length: int, batch: int) -> Callable[[], Iterator[object]] | None:
    try:
        import torch
        from litdata import (  # pyright: ignore[reportMissingImports]  # optional
            StreamingDataLoader,
            StreamingDataset,
            TokensLoader,
        )
        from litdata.streaming.writer import (  # pyright: ignore[reportMissingImports]  # optional
            BinaryWriter,
        )
    except ImportError:
        return None
    target = folder / "litdata"
    if not target.exists():
        item_loader = TokensLoader(block_size=length + 1)
        writer = BinaryWriter(str(target), chunk_bytes="16MB", item_loader=item_loader)
        for number, document in enumerate(build_documents()):
            writer.add_item(number, torch.from_numpy(document))
        writer.done()
        writer.merge()

    def read() -> Iterator[object]:
        dataset = StreamingDataset(
            str(target), item_loader=TokensLoader(block_size=length + 1), shuffle=True
        )
        return iter(StreamingDataLoader(dataset, batch_size=batch, num_workers=1))

    return read


def plan_mosaic(folder: Path, length: int, batch: int) -> Callable[[], Iterator[object]] | None:
    try:
        from streaming import (  # pyright: ignore[reportMissingImports]  # optional
            MDSWriter,
            StreamingDataset,
        )
        from torch.utils.data import DataLoader
    except ImportError:
        return None
    target = folder / "mds"
    if not target.exists():
        tokens = np.fromfile(folder / "tokens.bin", dtype=np.uint16)
        with MDSWriter(out=str(target), columns={"tokens": f"ndarray:uint16:{length + 1}"}) as out:
            for begin in range(0, len(tokens) - length - 1, length):
                out.write({"tokens": tokens[begin : begin + length + 1]})

    def read() -> Iterator[object]:
        dataset = StreamingDataset(local=str(target), shuffle=True, batch_size=batch)
        return iter(DataLoader(dataset, batch_size=batch, num_workers=1, collate_fn=list))

    return read


def measure(batches: Iterator[object], tokens: int, seconds: float) -> float:
    """Millions of tokens per second after the warm-up; ends early where an epoch ends."""
    for _ in range(WARM_UP):
        next(batches)
    done, started = 0, time.perf_counter()
    for _ in batches:
        done += 1
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            break
    if isinstance(batches, Iterator) and hasattr(batches, "close"):
        batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    return done * tokens / elapsed / 1e6


def measure_seek(stream: Stream, n: int) -> float:
    """Milliseconds until sample ``n`` is read by a fresh reader of a known dataset."""
    times = []
    content = pickle.dumps(stream)
    for _ in range(7):
        fresh = pickle.loads(content)
        started = time.perf_counter()
        fresh.read_rows(n, 1)
        times.append(time.perf_counter() - started)
        fresh.close()
    return 1e3 * statistics.median(times)


def machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def render_table(contenders: list[Contender], speeds: dict[str, list[float]]) -> str:
    base = statistics.median(speeds["memmap"])
    lines = [f"{'reader':26} {'M tokens/s':>11} {'× memmap':>9}  gives"]
    for contender in contenders:
        if contender.open is None:
            lines.append(f"{contender.name:26} {'not installed':>21}  {contender.gives}")
            continue
        speed = statistics.median(speeds[contender.name])
        lines.append(f"{contender.name:26} {speed:11.1f} {speed / base:9.2f}  {contender.gives}")
    return "\n".join(lines)


def run(folder: Path, *, rounds: int, seconds: float, length: int, batch: int) -> None:
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    if not (folder / "shards" / "manifest.json").exists():
        write_shards(folder / "shards")
        with open(folder / "tokens.bin", "wb") as file:
            for document in build_documents():
                document.tofile(file)
    concat = open_lmscale(folder, "concat", length)
    best_fit = open_lmscale(folder, "best_fit", length)
    compact = "uint16, document starts, digest"
    contenders = [
        Contender(
            name="memmap",
            gives="int64 x, y; random positions (nanoGPT), same process",
            open=lambda: read_memmap(folder / "tokens.bin", length, batch),
        ),
        Contender(
            name="lmscale, thread", gives=compact, open=lambda: read_lmscale(concat, batch, 0)
        ),
        Contender(
            name="lmscale, 1 worker", gives=compact, open=lambda: read_lmscale(concat, batch, 1)
        ),
        Contender(
            name="lmscale best_fit, 1 worker",
            gives=compact,
            open=lambda: read_lmscale(best_fit, batch, 1),
        ),
        Contender(
            name="litdata, 1 worker",
            gives="uint16 windows, shuffled",
            open=plan_litdata(folder, length, batch),
        ),
        Contender(
            name="mosaicml-streaming, 1 w.",
            gives="uint16 windows, shuffled",
            open=plan_mosaic(folder, length, batch),
        ),
    ]
    speeds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            if contender.open is not None:
                speed = measure(contender.open(), batch * length, seconds)
                speeds[contender.name].append(speed)
    print(f"{machine()}; T = {length}, {batch} windows a batch, median of {rounds} rounds")
    print(render_table(contenders, speeds))
    near, far = measure_seek(concat, 1_000), measure_seek(concat, 10**9)
    print(f"time to the next sample: {near:.1f} ms at n = 1,000, {far:.1f} ms at n = 1,000,000,000")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=128, help="windows in a batch")
    parser.add_argument("--folder", type=Path, help="keep the data here; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmscale-benchmark-") as temporary:
        run(
            arguments.folder or Path(temporary),
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            length=arguments.sequence_length,
            batch=arguments.windows,
        )


if __name__ == "__main__":
    main()
