"""What builds, the stream, its caches and the audit read back, as scenes of tests/damage.py."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

from damage import Scene

from lmscale.config import RunConfig
from lmscale.config.data import plan_batches
from lmscale.corpus.build import build_corpus
from lmscale.errors import DataError
from lmscale.files.reading import sha256_file
from lmscale.objective.objective import build_preparation
from lmscale.shards.build import build_shards
from lmscale.shards.verify import verify_dataset
from lmscale.stream.audit import audit_run
from lmscale.stream.ledger import open_ledger
from lmscale.stream.loader import digest_steps
from lmscale.stream.stream import open_stream
from lmscale.tasks.target import ArrayTask
from lmscale.tokenizer.train import train_tokenizer

STEPS = 12
PLAN = plan_batches(global_windows=8, micro_windows=4, data_ranks=1)


def config_of(folder: Path, *, sources: str | Path | None = None, **stream) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": {"name": "t", "seed": 1},
            "corpus": {
                "folder": str(folder / "corpus"),
                "sources": {"s": {"inputs": [f"{folder}/raw/*.jsonl"]}},
                "heldout_fraction": 0.1,
                "part_bytes": 1,
            },
            "tokenizer": {"folder": str(folder / "tokenizer"), "vocab_size": 300},
            "shards": {
                "folder": str(folder / "shards"),
                "max_bytes": 2**16,
                "block_tokens": 4096,
                "processes": 1,
            },
            "stream": {
                "sources": {"s": {"shards": str(sources or folder / "shards/s/train")}},
                "sequence_length": 64,
                "window_shards": 2,
                "mixture_block": 16,
                "packing": "best_fit",
                "cache": {"folder": str(folder / "cache"), "retries": 0},
                **stream,
            },
        }
    )


def write_raw(folder: Path) -> RunConfig:
    """Three files of texts, some of which come again in the next file."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=5)) for _ in range(200)]
    texts = [" ".join(draw.choices(words, k=300)) for _ in range(50)]
    (folder / "raw").mkdir(parents=True)
    for number in range(3):
        part = texts[number * 15 : number * 15 + 20]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        (folder / "raw" / f"{number}.jsonl").write_text(lines)
    return config_of(folder)


def write_corpus(folder: Path) -> RunConfig:
    config = write_raw(folder)
    build_corpus(config.corpus)
    train_tokenizer(config.tokenizer, config.corpus.folder, ["s"])
    return config


def write_dataset(folder: Path) -> RunConfig:
    config = write_corpus(folder)
    build_shards(config)
    shutil.rmtree(folder / "corpus")
    return config


class Stop(Exception):  # noqa: N818  # a kill, as far as the files are concerned
    pass


@contextmanager
def stopping_at(name: str, call: int = 1) -> Iterator[None]:
    """What a kill leaves that comes before the so-many-th call of a function of the finisher."""
    from lmscale.tasks import finishing

    calls, real = [], getattr(finishing, name)

    def stop(*arguments, **named):
        calls.append(name)
        if len(calls) == call:
            raise Stop
        return real(*arguments, **named)

    with mock.patch.object(finishing, name, stop), suppress(Stop):
        yield


def list_files(folder: Path) -> str:
    """Every file that is not hidden, with its hash; of JSON what it says, however it is set."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    shown = ((path.relative_to(folder), path) for path in files)
    return "\n".join(
        f"{name} {json.loads(path.read_bytes()) if name.suffix == '.json' else sha256_file(path)}"
        for name, path in shown
        if not any(part.startswith(".") for part in name.parts)
    )


def finish_corpus(folder: Path) -> str:
    build_corpus(config_of(folder).corpus)
    return list_files(folder / "corpus")


def finish_all(folder: Path) -> str:
    """The documents of a corpus are looked at when something is made of them."""
    config = config_of(folder)
    build_corpus(config.corpus)
    train_tokenizer(config.tokenizer, config.corpus.folder, ["s"])
    build_shards(config)
    return list_files(folder / "corpus") + list_files(folder / "shards")


def finish_shards(folder: Path) -> str:
    build_shards(config_of(folder))
    problems = [
        problem
        for split in ("train", "heldout")
        for problem in verify_dataset(folder / "shards/s" / split)
    ]
    if problems:
        raise DataError(problems)
    return list_files(folder / "shards")


def read_samples(config: RunConfig) -> str:
    with open_stream(config.stream, seed=1) as stream:
        rows = digest_steps(
            stream,
            PLAN,
            preparation=build_preparation(config),
            first_step=0,
            num_steps=STEPS,
            workers=0,
        )
    return "".join(row.to_line() for row in rows)


def read_stream(folder: Path) -> str:
    return read_samples(config_of(folder))


def read_remote(folder: Path) -> str:
    """From a store in this process's memory, by the copies in the cache."""
    samples = read_samples(config_of(folder, sources="memory://shards"))
    for thread in threading.enumerate():  # a fetch under way outlives its stream, and writes there
        if thread.name.startswith("fetch-shards"):
            thread.join()
    return samples


def build_remote(folder: Path) -> None:
    import fsspec

    write_dataset(folder)
    store = fsspec.filesystem("memory")
    for path in (folder / "shards/s/train").iterdir():
        store.pipe_file(f"/shards/{path.name}", path.read_bytes())
    read_remote(folder)


def build_run(folder: Path) -> None:
    config = write_dataset(folder)
    with open_stream(config.stream, seed=1) as stream:
        rows = digest_steps(
            stream,
            PLAN,
            preparation=build_preparation(config),
            first_step=0,
            num_steps=STEPS,
            workers=0,
        )
        with open_ledger(folder / "run", next_step=0, stream=stream, n=0) as ledger:
            for row in rows:
                ledger.append(row)


def audit(folder: Path) -> str:
    """What is not clean is told, as the command does, by the samples or steps in question."""
    report = audit_run(config_of(folder), folder / "run", build_preparation)
    problems = [*report.lost, *report.repeated, *report.altered]
    if problems:
        raise DataError([f"{folder / 'run' / 'ledger.jsonl'}: {each}" for each in problems])
    return repr(report)


def then(make: Callable[[Path], object], *more: Callable[[Path], object]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        for step in (make, *more):
            step(folder)

    return build


def stopped_corpus(name: str, call: int = 1) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        config = write_raw(folder)
        with stopping_at(name, call):
            build_corpus(config.corpus)

    return build


def stopped_shards(name: str, call: int = 1) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        config = write_corpus(folder)
        with stopping_at(name, call):
            build_shards(config)

    return build


def half_shards(folder: Path) -> None:
    build_shards(write_corpus(folder), ArrayTask(0, 2))


def build_beside(folder: Path) -> None:
    """The counts lie in the cache alone."""
    write_dataset(folder)
    read_stream(folder)
    (folder / "shards/s/train/windows-best_fit-64.json").unlink()


CORPUS, SHARDS = "corpus/.s.building", "shards/s/.train.building"
SCENES = [
    Scene(
        name="corpus",
        build=write_corpus,  # pyright: ignore[reportArgumentType]  # its value is not wanted
        use=finish_shards,
        rows={
            "corpus: `manifest.json`": ["corpus/s/manifest.json"],
            "corpus: documents": ["corpus/s/*/documents-*.jsonl"],
            "tokenizer: `meta.json`": ["tokenizer/meta.json"],
            "`tokenizer.model`": ["tokenizer/tokenizer.model"],
        },
    ),
    Scene(
        name="parts",
        build=stopped_corpus("write_bytes"),
        use=finish_corpus,
        rows={
            "unfinished corpus: `part.json`": [f"{CORPUS}/parts/*/part.json"],
            "unfinished corpus: `index.npy`": [f"{CORPUS}/parts/*/index.npy"],
            "unfinished corpus: records of files without duplicates": [f"{CORPUS}/*/kept/*.json"],
            "unfinished corpus: markers of tasks": [f"{CORPUS}/tasks/*.json"],
        },
    ),
    Scene(
        name="documents",
        build=stopped_corpus("write_bytes"),
        use=finish_all,
        rows={
            "unfinished corpus: documents": [
                f"{CORPUS}/parts/*/*/documents-*.jsonl",
                f"{CORPUS}/*/kept/*.jsonl",
            ]
        },
    ),
    Scene(
        name="moves",
        build=stopped_corpus("fsync_folder"),
        use=finish_corpus,
        rows={"unfinished corpus: `moves.json`": [f"{CORPUS}/*/moves.json"]},
    ),
    Scene(
        name="slices",
        build=half_shards,
        use=finish_shards,
        rows={
            "unfinished shards: `slices.json`": [f"{SHARDS}/*/slices.json"],
            "unfinished shards: records": [f"{SHARDS}/*/parts/*.json"],
            "unfinished shards: tars": [f"{SHARDS}/*/parts/*.tar"],
            "unfinished shards: markers of tasks": [f"{SHARDS}/tasks/*.json"],
        },
    ),
    Scene(
        name="named",
        build=stopped_shards("replace_folder"),
        use=finish_shards,
        rows={"unfinished shards: `manifest.json`": [f"{SHARDS}/*/manifest.json"]},
    ),
    Scene(
        name="stream",
        build=then(write_dataset, read_stream),
        use=read_stream,
        rows={
            "shards: `manifest.json`": ["shards/s/train/manifest.json"],
            "shards: tars": ["shards/s/train/*.tar"],
            "shards: counts of windows": ["shards/s/train/windows-*.json"],
            "cache: plans of best fit": ["cache/*-pieces.npy"],
            "cache: markers of shards": ["cache/verified/*"],
        },
    ),
    Scene(
        name="counts",
        build=build_beside,
        use=read_stream,
        rows={"cache: counts of windows": ["cache/*-windows-*.json"]},
    ),
    Scene(
        name="remote",
        build=build_remote,
        use=read_remote,
        rows={"cache: copies of remote shards": ["cache/*.tar"]},
    ),
    Scene(
        name="audit",
        build=build_run,
        use=audit,
        rows={
            "run: shards, for an audit": ["shards/s/train/*.tar"],
            "run: plans of best fit, for an audit": ["cache/*-pieces.npy"],
        },
    ),
]
