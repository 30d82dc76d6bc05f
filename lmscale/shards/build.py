"""Build datasets from the corpus: tokenise slices, then number and list the shards.

A split's document files are laid end to end and cut into slices, each expected to fill one shard,
so the shards are the same, byte for byte, however many processes or tasks (``lmscale.tasks``) share
them. In ``SHARDS/<source>/.<split>.building`` each finished shard has a record with its size, hash
and the place where the next one begins, so a killed build goes on from its last shard.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig
from lmscale.corpus.documents import (
    SPLITS,
    DocumentFile,
    check_documents,
    document_paths,
    load_corpus_manifest,
)
from lmscale.errors import ConfigError, DataError
from lmscale.files.atomic import (
    atomic_path,
    have_sizes,
    write_bytes,
    write_bytes_once,
    writing,
)
from lmscale.files.printing import say
from lmscale.files.reading import read_plain, reading, seal, sha256_file, unseal
from lmscale.shards.dialogues import load_chat_template
from lmscale.shards.manifest import (
    Manifest,
    ShardEntry,
    load_manifest,
    render_manifest,
)
from lmscale.shards.slices import Slice, expect_bytes, plan_slices, tokenize_slice
from lmscale.shards.writer import Documents, write_shard
from lmscale.tasks.building import Builder, BuildSummary
from lmscale.tasks.finishing import Progress
from lmscale.tasks.processes import run_tasks
from lmscale.tasks.target import ArrayTask, Move, Target, Unit, UnitsMissing
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.codec import load_configured
from lmscale.tokenizer.exactness import describe_consequences

SLICES = "slices.json"
logger = logging.getLogger(__name__)


def build_shards(
    config: RunConfig,
    task: ArrayTask | None = None,
    *,
    processes: int | None = None,
    force: bool = False,
) -> BuildSummary[Manifest]:
    """Build ``SHARDS/<source>/train`` and ``heldout`` for every source, or do one task's share.

    The shards are the same whatever the number of processes (``shards.processes`` by default). A
    split without documents gets no dataset. ``Builder.build`` says what ``force`` does. What the
    tokenizer means for them, if it is not lmscale's own, is said before.
    """
    tokenizer = load_configured(config.tokenizer)
    for line in describe_consequences(tokenizer):
        say(f"{config.tokenizer.folder}: {line}", err=True)
    return _builder(config, tokenizer, processes).build(task, force=force)


def shards_progress(config: RunConfig, num_tasks: int) -> tuple[Progress, ...]:
    """How far each dataset is when built by ``num_tasks`` tasks. Changes nothing."""
    tokenizer = load_configured(config.tokenizer)
    return _builder(config, tokenizer, None).progress(num_tasks)


@dataclass(frozen=True, kw_only=True)
class Dataset(Target[Manifest]):
    """One dataset to build, of shards that the slices of a split become."""

    kind = "dataset"
    setting = "shards.folder"
    contents = ("*.tar",)

    what: str = "shards"
    units: tuple[SliceTask, ...] = ()  # empty until planned
    documents: Path  # the folder of the document files
    files: tuple[DocumentFile, ...]
    tokenizer: Tokenizer
    manifest: Manifest  # without its shards
    max_bytes: int  # of a shard

    def planned(self, *, keep: bool) -> Dataset:
        """The dataset with its slices, which ``keep`` writes down, for all tasks."""
        path = self.work / SLICES
        rows = None
        with (
            reading(path, "Delete it, and run the same command again."),
            suppress(FileNotFoundError),
        ):
            rows = unseal(read_plain(path))["slices"]
        if rows is None:
            slices = plan_slices(
                sum(file.bytes for file in self.files),
                expected_bytes=expect_bytes(
                    *(self.documents, self.files, self.tokenizer, self.manifest.members)
                ),
                max_bytes=self.max_bytes,
            )
            rows = [vars(part) for part in slices]
        if keep:
            with writing("the plan of the shards", self.final.parent):
                self.parts.mkdir(parents=True, exist_ok=True)
                rows = unseal(write_bytes_once(path, seal({"slices": rows})))["slices"]
        return replace(self, units=tuple(SliceTask(**row, dataset=self) for row in rows))

    def load(self, folder: Path) -> Manifest:
        return load_manifest(folder)

    def key_of(self, manifest: Manifest) -> str:
        return manifest.inputs

    def files_of(self, manifest: Manifest) -> Iterable[tuple[str, int]]:
        return ((entry.name, entry.bytes) for entry in manifest.shards)

    def describe_difference(self, manifest: Manifest) -> str:
        old, new = manifest.tokenizer_fingerprint, self.tokenizer.fingerprint
        if old == new and manifest.bos_id != self.manifest.bos_id:
            word, value = ("with", "true") if self.manifest.bos_id is None else ("without", "false")
            return f"{word} bos before its documents. Set shards.bos: {value} to keep it as it is."
        mine = self.manifest
        if (manifest.has_pairs, manifest.labels) != (mine.has_pairs, mine.labels):
            return "with other pairs or labels."
        if manifest.chat_template != mine.chat_template:
            return "with another chat template (tokenizer.chat_template), or with none."
        if old == new:
            return "from other documents or with another shards.max_bytes or shards.block_tokens."
        return f"with another tokenizer ({old[:12]}; this one is {new[:12]})."

    def assemble(self, processes: int) -> tuple[dict[str, Any], list[Move]]:
        self._check_parts(finished_shards(self.units), processes)
        parts = finished_shards(self.units)
        shards = [
            replace(part, name=f"{self.manifest.source}-{number:06d}.tar")
            for number, part in enumerate(parts)
        ]
        self._compare_counts(shards)
        folder = self.parts.relative_to(self.folder)
        moves = [
            (str(folder / part.name), shard.name, part.bytes)
            for part, shard in zip(parts, shards, strict=True)
        ]
        return render_manifest(replace(self.manifest, shards=tuple(shards))), moves

    def _check_parts(self, parts: Sequence[ShardEntry], processes: int) -> None:
        """Forget the shards that are not any more what was written; a build may go on for weeks."""
        tasks = [(self.parts / entry.name, entry.sha256) for entry in parts]
        for (path, _), is_whole in run_tasks(_has_hash, tasks, processes=processes):
            if not is_whole:
                logger.warning("%s: damaged since it was written; it is made again.", path)
                path.with_suffix(".json").unlink(missing_ok=True)

    def _compare_counts(self, shards: Sequence[ShardEntry]) -> None:
        """What the shards hold with what the corpus has: no document may be lost on the way."""
        found, wanted = (
            (sum(each.documents for each in part), sum(each.text_bytes for each in part))
            for part in (shards, self.files)
        )
        if found != wanted:
            raise DataError(
                f"{self.folder}: its shards hold {found[0]:,} documents of {found[1]:,} bytes of "
                f"text, and {self.documents} has {wanted[0]:,} of {wanted[1]:,}. Delete the "
                "former, and run the same command again."
            )


@dataclass(frozen=True, kw_only=True)
class SliceTask(Slice, Unit):
    """One slice to tokenise; crosses to a worker process."""

    dataset: Dataset  # without its units

    def is_done(self) -> bool:
        return self.find_finished()[1] is None

    def do(self) -> None:
        """Write the slice's missing shards."""
        entries, start = self.find_finished()
        if start is None:
            return
        number, dataset = len(entries), self.dataset
        base = 0
        for file in dataset.files:
            if start < base + file.bytes and base < self.end:
                check_documents(dataset.documents / file.name, file)
            base += file.bytes
        with writing("shards", dataset.parts):
            texts = tokenize_slice(
                *(dataset.documents, dataset.files, start, self.end),
                tokenizer=dataset.tokenizer,
                dataset=dataset.manifest,
            )
            documents = Documents(texts)
            while start is not None:
                name = self._name_of(number)
                entry = None
                if documents.peek() is not None:
                    with atomic_path(dataset.parts / f"{name}.tar") as temporary:
                        entry = write_shard(
                            temporary,
                            name=f"{name}.tar",
                            key=f"{dataset.manifest.source}-{self.number:05d}-{number:03d}",
                            documents=documents,
                            dataset=dataset.manifest,
                            max_bytes=dataset.max_bytes,
                        )
                rest = documents.peek()
                start = rest.offset if rest else None
                record = {"entry": asdict(entry) if entry else None, "next_offset": start}
                write_bytes(dataset.parts / f"{name}.json", seal(record))
                number += 1

    def find_finished(self) -> tuple[list[ShardEntry | None], int | None]:
        """A record's shard, if it has one, for each record up to the first that is missing or whose
        shard is not whole; and the offset where to go on, None if the slice is finished.
        """
        entries: list[ShardEntry | None] = []
        start: int | None = self.start
        while start is not None:
            path = self.dataset.parts / f"{self._name_of(len(entries))}.json"
            try:
                record = unseal(read_plain(path))
            except FileNotFoundError:
                break
            except (OSError, ValueError) as error:
                logger.warning("%s: damaged: %s. The shard is made again.", path, error)
                break
            entry = ShardEntry(**record["entry"]) if record["entry"] else None
            shard = path.with_suffix(".tar")
            if entry and (entry.name != shard.name or not have_sizes([(shard, entry.bytes)])):
                break
            entries.append(entry)
            start = record["next_offset"]
        return entries, start

    def _name_of(self, number: int) -> str:
        return f"part-{self.number:05d}-{number:03d}"


def finished_shards(tasks: Sequence[SliceTask]) -> list[ShardEntry]:
    """The shards of all slices in order. Raises ``UnitsMissing`` for unfinished slices."""
    finished = [task.find_finished() for task in tasks]
    missing = [number for number, (_, start) in enumerate(finished) if start is not None]
    if missing:
        raise UnitsMissing(missing)
    return [entry for entries, _ in finished for entry in entries if entry is not None]


def _has_hash(task: tuple[Path, str]) -> bool:
    path, sha256 = task
    return sha256_file(path) == sha256


def _builder(config: RunConfig, tokenizer: Tokenizer, processes: int | None) -> Builder[Manifest]:
    return Builder(
        targets=plan_datasets(config, tokenizer),
        title="shards",
        processes=config.shards.processes if processes is None else processes,
    )


def plan_datasets(config: RunConfig, tokenizer: Tokenizer) -> list[Dataset]:
    """Train and heldout of every source; a split without documents has none."""
    if not config.corpus.sources:
        raise ConfigError("corpus.sources: names no source; there is nothing to make shards of.")
    if config.shards.bos and tokenizer.bos_id is None:
        raise ConfigError(
            f"shards.bos = true, but the tokenizer in {config.tokenizer.folder} has no bos. Set "
            "shards.bos to false, or name another tokenizer.folder."
        )
    datasets, template = [], ""
    for source in config.corpus.sources:
        corpus = Path(config.corpus.folder) / source
        fields = load_corpus_manifest(corpus).fields
        if fields.has_dialogues:
            bos = config.shards.bos
            template = template or load_chat_template(config.tokenizer, tokenizer, bos=bos).text
        for split in SPLITS:
            files = tuple(file for _, file in document_paths(corpus, split))
            if not files:
                continue
            final = Path(config.shards.folder) / source / split
            max_bytes, block_tokens = config.shards.max_bytes, config.shards.block_tokens
            unkeyed = Manifest(
                source=source,
                split=split,
                tokenizer_fingerprint=tokenizer.fingerprint,
                vocab_size=tokenizer.vocab_size,
                dtype=tokenizer.dtype.name,
                bos_id=tokenizer.bos_id if config.shards.bos else None,
                eos_id=tokenizer.eos_id,
                pad_id=tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id,
                block_tokens=block_tokens,
                inputs="",
                has_pairs=fields.has_pairs,
                labels=fields.labels,
                chat_template=template if fields.has_dialogues else "",
                shards=(),
            )
            # All that decides the bytes of a dataset; not where anything lies.
            content = [unkeyed.version, source, split]
            content += [[[file.bytes, file.xxh128] for file in files]]
            content += [tokenizer.fingerprint, max_bytes, block_tokens]
            content += [fields.labels and asdict(fields.labels)] if unkeyed.members else []
            content += [template] if unkeyed.has_turns else []
            key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
            dataset = Dataset(
                name=str(final),
                final=final,
                key=key,
                rank=len(datasets),
                documents=corpus / split,
                files=files,
                tokenizer=tokenizer,
                manifest=replace(unkeyed, inputs=key),
                max_bytes=max_bytes,
            )
            datasets.append(dataset)
    return datasets
