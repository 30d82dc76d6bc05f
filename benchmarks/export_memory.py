"""The memory that an export takes, of a checkpoint of a large model's shapes.

    python benchmarks/export_memory.py                                 # Llama 2 7B, 27 GB of zeros
    python benchmarks/export_memory.py --format gguf                   # the same as a GGUF file
    python benchmarks/export_memory.py --config configs/demo.yaml      # whether it runs

The checkpoint is made of sparse files, so it takes no room; the export does, 2 bytes a parameter in
bf16. What is exported is compared with the checkpoint tensor by tensor (``--verify tensors``). Of
the process's memory its own is counted (``RssAnon``); pages of files that it maps (``RssFile``),
which the kernel takes back whenever somebody needs them, are printed beside it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch

from lmscale.checkpoint.layout import fragment_file, step_folder, tensor_name
from lmscale.checkpoint.manifest import MASTER, FileEntry, Manifest, OptimizerKind
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.config import RunConfig, dump_config, load_config
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import Dtype, ExportRequest
from lmscale.exchange.gguf_export import export_gguf
from lmscale.exchange.plan_export import META
from lmscale.files.reading import sha256_file
from lmscale.files.tensor_header import Entry, render_header
from lmscale.files.tokenizer_files import KEPT_FOLDER
from lmscale.model.family import build_model_on
from lmscale.runs.continuation import identity_of
from lmscale.tokenizer.codec import load_tokenizer, save_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from tiny_run import build_tiny_data  # noqa: E402

STEP, RANKS = 1, 4
SAMPLE_SECONDS = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", type=Path, default=Path("configs/llama_7b.yaml"))
    parser.add_argument("--format", choices=("hf", "gguf"), default="hf")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="bf16")
    parser.add_argument("--folder", type=Path, help="with room for the export; default: /tmp")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        shapes = make_sparse_run(load_config(arguments.config), Path(folder))
        report(arguments.format, arguments.dtype, Path(folder), shapes)


def make_sparse_run(config: RunConfig, folder: Path) -> dict[str, tuple[int, ...]]:
    """A run with a checkpoint of zeros, in ``folder``; returns its parameters' shapes."""
    build_tiny_data(folder / "data")
    tokenizer = load_tokenizer(folder / "data/tokenizer")
    tree = config.model_dump(mode="json", exclude={"corpus", "evaluation"})
    tree["run"]["folder"] = str(folder / "run")
    tree["model"]["vocab_size"] = config.vocab_size
    tree["tokenizer"]["vocab_size"] = tokenizer.vocab_size
    config = RunConfig.model_validate(tree)
    config.folder.mkdir()
    (config.folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    save_tokenizer(tokenizer, config.folder / KEPT_FOLDER)
    model = build_model_on(config.model, config.sizes, device=META, dtype=torch.float32)
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    place = LocalPlace(config.folder / "checkpoints")
    place.begin(STEP)
    manifest = Manifest(
        step=STEP,
        parameters=shapes,
        states=dict.fromkeys(shapes, (MASTER,)),
        optimizer=OptimizerKind(kind="adamw", step=STEP),
        loss_scale=None,
        state={},
        identity=identity_of(config, tokenizer.fingerprint),
        written_by={"world_size": RANKS},
        is_finite=True,
        files=tuple(write_sparse(place.root, shapes, rank) for rank in range(RANKS)),
    )
    place.commit(STEP, manifest.to_bytes())
    return shapes


def write_sparse(root: Path, shapes: dict[str, tuple[int, ...]], rank: int) -> FileEntry:
    """A rank's even share of every parameter, all zeros."""
    fragments, entries = [], []
    for name, shape in shapes.items():
        start, end = (prod(shape) * place // RANKS for place in (rank, rank + 1))
        fragments.append((name, start, end - start))
        key = tensor_name(name, MASTER, start)
        entries.append(Entry(key, "F32", (end - start,), 4 * (end - start)))
    path = step_folder(root, STEP) / fragment_file(rank, "local")
    header = render_header(entries)
    size = len(header) + sum(entry.bytes for entry in entries)
    path.write_bytes(header)
    with open(path, "r+b") as file:
        file.truncate(size)
    return FileEntry(
        name=path.name, bytes=size, sha256=sha256_file(path), fragments=tuple(fragments)
    )


def report(format: str, dtype: Dtype, folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    largest = 4 * max(map(prod, shapes.values()))
    request = ExportRequest(
        folder=folder / "run", out=folder / "export", dtype=dtype, verify="tensors"
    )
    began = time.monotonic()
    with watch_memory() as memory:
        exported = (export_gguf if format == "gguf" else export_run)(request)
    seconds = time.monotonic() - began
    print(f"command: python {' '.join(sys.argv)}")
    print(f"parameters          {sum(map(prod, shapes.values())):,} in {len(shapes)} tensors")
    print(f"written             {exported.bytes / 1e9:.2f} GB of {dtype} in {seconds:.0f} s")
    print(f"largest parameter   {largest / 1e9:.3f} GB in fp32")
    print(f"own memory before   {memory['begin'] / 1e9:.3f} GB: Python, torch")
    print(f"own memory at most  {memory['RssAnon'] / 1e9:.3f} GB")
    print(f"of mapped files     {memory['RssFile'] / 1e9:.3f} GB, which the kernel may drop")
    print(f"limit               {(3 * largest + 1e9) / 1e9:.3f} GB: 3 of the largest and 1 GB")


@contextmanager
def watch_memory() -> Iterator[dict[str, int]]:
    """The most that this process had of each kind; a thread looks now and then."""
    peaks = dict(read_memory())
    peaks["begin"] = peaks["RssAnon"]
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(SAMPLE_SECONDS):
            for kind, value in read_memory():
                peaks[kind] = max(peaks[kind], value)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        is_over.set()
        thread.join()


def read_memory() -> Iterator[tuple[str, int]]:
    """Bytes of this process by kind (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        kind, _, value = line.partition(":")
        if kind in ("RssAnon", "RssFile"):
            yield kind, int(value.split()[0]) * 1024


if __name__ == "__main__":
    main()
