"""Sections on the way from raw text to micro-batches: corpus, tokenizer, shards, stream, batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from lmscale.config.base import MAX_BYTES, Place, Section
from lmscale.config.labels import LabelSet
from lmscale.config.special_tokens import (
    MAX_RESERVED,
    find_special_token_problems,
    name_special_tokens,
)
from lmscale.config.token_ids import NamedIds, number_ids
from lmscale.errors import ConfigError

MIN_VOCABULARY = 300  # 256 bytes, the special ids and some pieces of text
MAX_VOCABULARY = 2**24
MAX_POSITIONS = 2**24  # rotations are made of positions in fp32, which is exact so far
OnOverlong = Literal["refuse", "drop", "truncate"]
MAX_PROCESSES = 1024  # on one machine


class TokenizerConfig(Section):
    """Trained on a sample of the corpus, or imported (``lmscale tokenizer import``)."""

    problem_separator = "\n"  # validate_tree takes them apart

    folder: Place = "data/tokenizer"
    kind: Literal["bpe", "unigram", "byte_bpe"] = "bpe"
    """How ``tokenizer train`` trains it: by SentencePiece, or ``byte_bpe`` by tokenizers (the
    ``hf`` extra). Of an imported tokenizer its folder says it.
    """
    vocab_size: int = Field(default=32_000, ge=MIN_VOCABULARY, le=MAX_VOCABULARY)
    """Pieces in all, the special ids and the 256 byte pieces included. Of an imported tokenizer the
    number that the import prints: it makes the embedding.
    """
    character_coverage: float = Field(default=0.9995, ge=0.98, le=1)
    """Part of the sample's characters that get pieces of their own; the rest becomes bytes. Not of
    ``byte_bpe``.
    """
    max_sample_bytes: PositiveInt = Field(default=200_000_000, le=MAX_BYTES)
    """Bytes of UTF-8 text to train on, drawn evenly over all documents of all sources."""
    split_digits: bool = True
    """A digit is a piece of its own. Else numbers are learned as words are, up to three digits at a
    time with ``byte_bpe``.
    """
    special_tokens: tuple[str, ...] = Field(default=(), strict=False)
    """Tokens of your own with an id each, such as ``["<|im_start|>", "<|im_end|>"]``: text never
    becomes one, and ``tokenizer train`` numbers them in this order, behind the ends of a document.
    """
    reserved_tokens: int = Field(default=0, ge=0, le=MAX_RESERVED)
    """So many more for a later use, behind those: ``<|reserved_special_token_0|>`` and so on."""
    chat_template: str = ""
    """How shards of dialogues are written: ``chatml``, ``llama3``, ``plain``, or a file with a
    Jinja template, as transformers reads them. Empty: the ``chat_template.jinja`` in ``folder``.
    """
    ids: NamedIds = Field(default_factory=dict)
    """Pieces of the tokenizer that are ids of an objective, where it would else add ids of its own:
    ``{mask: 103}``, ``{start: 0, end: 1, sentinels: [32099, 32000]}``. An import prints what it
    knows.
    """

    def find_problems(self) -> Iterator[str]:
        yield from find_special_token_problems(
            self.special_tokens, self.reserved_tokens, kind=self.kind, vocab_size=self.vocab_size
        )

    @property
    def all_special_tokens(self) -> tuple[str, ...]:
        """``special_tokens`` and the reserved ones, in the order of their ids."""
        return name_special_tokens(self.special_tokens, self.reserved_tokens)

    def number_ids(self, names: Sequence[str]) -> dict[str, int]:
        """The ids of an objective's names: the tokenizer's, or above it."""
        return number_ids(names, self.ids, first=self.vocab_size)


class ShardsConfig(Section):
    """Documents → uncompressed webdataset tars of token blocks."""

    folder: Place = "data/shards"
    max_bytes: int = Field(default=128 * 2**20, ge=2**16, le=MAX_BYTES)
    """A shard is closed before it would pass this size."""
    block_tokens: int = Field(default=2**20, ge=1024)
    """A block takes whole documents until it holds at least this many tokens."""
    bos: bool = True
    """Put the tokenizer's bos before every document, so that a model learns how texts begin, and
    the first token of a text is a target like the others.
    """
    processes: int = Field(default=0, ge=0, le=MAX_PROCESSES)
    """Worker processes; 0 means one per core."""


class StreamSourceConfig(Section):
    """One dataset (a folder of shards with its manifest) and its share of the mixture."""

    shards: Place
    """Folder or URL (``s3://``, ``gs://``, ``http(s)://``, ``memory://``) of ``manifest.json``."""
    weight: float = Field(default=1.0, ge=0, le=1e18)
    """Share of the samples, relative to the other sources. 0 takes nothing."""


class ShardCacheConfig(Section):
    """Local copies of remote shards: one download per node, bounded."""

    folder: Place = ""
    """Local to the node, shared by its ranks. Default: lmscale-shards-UID in TMPDIR."""
    max_bytes: PositiveInt = Field(default=200 * 2**30, le=MAX_BYTES)
    retries: int = Field(default=8, ge=0, le=100)


class StreamConfig(Section):
    """Shards → the global order of samples, each a window of tokens.

    Of ``sequence_length`` + 1 tokens where the objective predicts the next one.
    """

    sources: dict[str, StreamSourceConfig] = Field(default_factory=dict)
    sequence_length: PositiveInt = Field(default=1024, le=MAX_POSITIONS)
    packing: Literal["concat", "best_fit"] = "concat"
    """``concat`` cuts the run of documents; ``best_fit`` keeps documents whole where they fit."""
    on_overlong: OnOverlong | None = None
    """Of documents that may not be cut (pairs, labels, dialogues) and are longer than a window:
    ``drop`` leaves them out, ``truncate`` cuts a dialogue behind the last answer that fits and
    leaves others out; both are counted and told. Default: dialogues ``drop``, all others
    ``refuse``, as a figure would be of fewer documents.
    """
    mask_documents: bool = True
    """Documents in one window do not see each other, and positions restart at each."""
    window_shards: PositiveInt = 8
    """Shards whose samples are shuffled together: the shuffle's quality, and the cache's bound."""
    mixture_block: int = Field(default=4096, ge=16, le=2**24)
    """Samples in a block of the mixture; every block holds the same whole number of each source."""
    workers: int = Field(default=1, ge=0, le=MAX_PROCESSES)
    """Loader processes per rank. 0 reads on a background thread of the rank itself."""
    prefetch_steps: PositiveInt = Field(default=2, le=1000)
    """Steps that each loader worker keeps ready."""
    verify_hashes: bool = True
    """Hash each shard and look at all of it before its use, once a day per node."""
    cache: ShardCacheConfig = ShardCacheConfig()


@dataclass(frozen=True, kw_only=True)
class WindowShape:
    """How windows lie in a run of tokens: window i begins at i · stride, and its last ``overlap``
    tokens are the first ones of the next.
    """

    stride: int
    overlap: int
    """1 where the next token is predicted, as the last target of a window is the first input of the
    next; 0 where every token of a window may be a target.
    """
    has_pairs: bool = False
    """Whether the objective reads where the second part of each document begins."""
    labels: LabelSet | None = None
    """The labels that it reads."""
    has_turns: bool = False
    """Whether it reads which tokens of a dialogue are its answers."""

    @property
    def is_whole(self) -> bool:
        """Whether a document may not be cut, as what it carries is said of the whole."""
        return self.has_pairs or self.has_turns or self.labels is not None

    @property
    def tokens(self) -> int:
        return self.stride + self.overlap


class BatchConfig(Section):
    """How many windows make a step; ``plan_batches`` divides them into micro-batches."""

    global_windows: PositiveInt = Field(default=512, le=2**20)
    """Windows in an optimizer step, over all ranks. Beside ``warmup`` no key here changes the
    training.
    """
    micro_windows: PositiveInt = 8
    """Most windows a rank takes in a forward pass: it takes the largest divisor of its share."""
    warmup: tuple[Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)], ...] = Field(
        default=(), strict=False
    )
    """Rows of [steps, windows], such as [[500, 64], [1000, 256]]: until so many steps of the run
    are done a step takes so many windows, then those of the next row, and at last
    ``global_windows``. GPT-3 began with small batches (Brown et al. 2020, appendix B).
    """

    def find_problems(self) -> Iterator[str]:
        steps = [0, *(steps for steps, _ in self.warmup)]
        windows = [*(windows for _, windows in self.warmup), self.global_windows]
        if any(after <= before for row in (steps, windows) for before, after in pairwise(row)):
            yield (
                f"warmup = {[list(row) for row in self.warmup]}: each row of [steps, windows] must "
                "have more of both than the row before it, and the last one fewer windows than "
                f"global_windows = {self.global_windows}"
            )

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """The numbers of windows that a step may have, the last one for good."""
        return (*(windows for _, windows in self.warmup), self.global_windows)

    def plan(self, data_ranks: int) -> BatchPlan:
        """The division among so many ranks. Raises ``ConfigError`` where any step's is uneven."""
        plans: list[BatchPlan] = []
        problems: list[str] = []
        for windows in self.step_sizes:
            try:
                plans.append(
                    plan_batches(
                        global_windows=windows,
                        micro_windows=self.micro_windows,
                        data_ranks=data_ranks,
                    )
                )
            except ConfigError as error:
                where = "batch.warmup" if windows < self.global_windows else "batch.global_windows"
                problems += [p.replace("batch.global_windows", where) for p in error.problems]
        if problems:
            raise ConfigError(problems)
        until = (steps for steps, _ in self.warmup)
        return replace(plans[-1], warmup=tuple(zip(until, plans, strict=False)))

    def describe_small(self, plan: BatchPlan) -> list[str]:
        """Where a rank's share divides into much smaller micro-batches than were asked for."""
        told = []
        for of_step in (*(row for _, row in plan.warmup), plan):
            most = min(self.micro_windows, of_step.windows_per_rank)
            if 2 * of_step.micro_windows > most:
                continue
            unit = most * of_step.data_ranks
            below = of_step.global_windows // unit * unit
            key = "batch.global_windows =" if of_step is plan else "batch.warmup:"
            told.append(
                f"{key} {of_step.global_windows} gives each rank {of_step.windows_per_rank} "
                f"windows, which no number near batch.micro_windows = {self.micro_windows} "
                f"divides: it takes {of_step.micro_windows} at a time, which is slow on most "
                f"devices. {below} or {below + unit} windows would be taken {most} at a time."
            )
        return told


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """A step's windows on the data ranks. ``global = data ranks × accumulation × micro``."""

    global_windows: int
    data_ranks: int
    micro_windows: int
    accumulation: int
    warmup: tuple[tuple[int, BatchPlan], ...] = ()  # until so many steps are done, another one

    def at(self, steps_done: int) -> BatchPlan:
        """That of the step after so many."""
        return next((plan for until, plan in self.warmup if steps_done < until), self)

    def samples_before(self, steps: int) -> int:
        """Of the first ``steps`` steps together."""
        total = begin = 0
        for until, plan in (*self.warmup, (steps, self)):
            end = min(until, steps)
            total += (end - begin) * plan.global_windows
            begin = end
        return total

    @property
    def windows_per_rank(self) -> int:
        return self.accumulation * self.micro_windows


def plan_batches(*, global_windows: int, micro_windows: int, data_ranks: int) -> BatchPlan:
    """Deal a step's windows to the ranks; micro-batches are as large as ``micro_windows`` allows.

    The step is the same whatever the number of ranks: only its division changes. Raises
    ``ConfigError`` when the windows cannot be dealt evenly.
    """
    if global_windows % data_ranks:
        below = global_windows // data_ranks * data_ranks
        fits = [n for n in (below, below + data_ranks) if n]
        divisors = [w for w in range(1, global_windows + 1) if global_windows % w == 0]
        near = sorted(sorted(divisors, key=lambda w: abs(w - data_ranks))[:4])
        raise ConfigError(
            f"batch.global_windows = {global_windows} cannot be dealt evenly to "
            f"{data_ranks} ranks. "
            f"Use {' or '.join(map(str, fits))} windows, or "
            f"{', '.join(map(str, near))} rank{'s' * (near != [1])}."
        )
    share = global_windows // data_ranks
    micro = max(m for m in range(1, min(micro_windows, share) + 1) if share % m == 0)
    return BatchPlan(
        global_windows=global_windows,
        data_ranks=data_ranks,
        micro_windows=micro,
        accumulation=share // micro,
    )
