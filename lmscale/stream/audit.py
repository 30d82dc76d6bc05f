"""The audit of a run: the ledger against the shards, over all restarts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmscale.config.run import RunConfig
from lmscale.errors import DataError
from lmscale.runs.commits import Commit
from lmscale.runs.continuation import STREAM_KEYS
from lmscale.stream.batches import Preparation, add_digests, reads_partners, sum_terms
from lmscale.stream.dataset import open_datasets
from lmscale.stream.ledger import (
    LedgerRow,
    load_record,
    newest_commit,
    read_ledger,
    sum_rows,
)
from lmscale.stream.stream import Stream, StreamState, find_changed_data

ROWS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What the ledger says, and every way in which it is not what the shards say."""

    steps: int
    samples: int
    tokens: int
    lost: tuple[str, ...]
    """Samples that no step used, rows missing at the ledger's end included."""
    repeated: tuple[str, ...]
    """Samples that more than one step used."""
    altered: tuple[str, ...]
    """Steps whose samples differ from the samples of their numbers in the shards."""
    jumped: int
    """Samples that the run left out on purpose, as its rewinds say; they are not lost."""

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.repeated or self.altered)


def audit_run(
    config: RunConfig,
    run_folder: str | Path,
    prepare: Callable[[RunConfig], Preparation],
    progress: Callable[[float], None] = lambda samples: None,
) -> AuditReport:
    """Recompute every step's digest from the shards and compare it with the run's ledger.

    Nothing that a cache holds is believed: every shard that was read is hashed, and packed, once
    again, and has to have as many windows as it is said to have.

    ``prepare`` gives the preparation of a configuration, which counts the targets. ``progress`` is
    called with the number of samples just checked. Sources that left the mixture
    are found where they were; the config may name another place for any of them. Raises
    ``DataError`` for shards that are missing, damaged or not the ones that the run read.
    """
    rows = read_ledger(run_folder)
    lost, repeated = check_sequence(rows)
    altered: list[str] = []
    state, locations = load_record(run_folder)
    lost += find_missing_tail(rows, started_at=state.n, newest=newest_commit(run_folder))
    with open_recorded(config, state, locations, look=secrets.token_hex(8)) as stream:
        preparation = prepare(config.model_copy(update={"stream": stream.config}))
        for row in rows:
            problem = check_row(stream, row, preparation, progress)
            if problem:
                altered.append(problem)
        jumped = stream.mixture.jumped_at(
            max((row.first_n + row.samples for row in rows), default=0)
        )
    samples, tokens = sum_rows(rows)
    return AuditReport(
        steps=len(rows),
        samples=samples,
        tokens=tokens,
        lost=tuple(lost),
        repeated=tuple(repeated),
        altered=tuple(altered),
        jumped=jumped,
    )


def open_recorded(
    config: RunConfig, state: StreamState, recorded: Mapping[str, str], *, look: str
) -> Stream:
    """The stream of ``state`` with every source it ever had, whatever the mixture is now.

    ``look``: as ``NodeCache`` has it; empty believes the caches, as a run does.
    """
    named = {name: source.shards for name, source in config.stream.sources.items()}
    used = {name for segment in state.segments for name in segment.quotas}
    places = {**recorded, **named}
    unknown = sorted(used - set(places))
    if unknown:
        raise DataError(
            [
                f"stream.sources.{name}: the run used this source, but neither the config nor the "
                f"run's stream.json says where its shards are. Add it to the config with weight 0."
                for name in unknown
            ]
        )
    settings = {key: state.geometry.get(key) for key in STREAM_KEYS}
    section = config.stream.model_copy(update=settings | {"verify_hashes": True})
    shape = config.model_copy(update={"stream": section}).window
    locations = {name: places[name] for name in sorted(used)}
    datasets = open_datasets(section, locations, shape=shape, look=look)
    problems = find_changed_data(datasets, state.segments)
    if problems:
        raise DataError(problems)
    return Stream(section, seed=state.seed, datasets=datasets, segments=state.segments)


def check_sequence(rows: Sequence[LedgerRow]) -> tuple[list[str], list[str]]:
    """Lost and repeated samples.

    The rows must be steps 0, 1, 2, … and their samples 0, 1, 2, … without a gap.
    """
    lost: list[str] = []
    repeated: list[str] = []
    next_step = next_n = 0
    for row in sorted(rows, key=lambda row: (row.first_n, row.step)):
        end = row.first_n + row.samples
        if row.first_n > next_n:
            where = (
                f"between step {next_step - 1} and step {row.step}"
                if next_step
                else f"before step {row.step}"
            )
            lost.append(f"samples {next_n} to {row.first_n - 1} were used by no step ({where})")
        elif row.first_n < next_n:
            last = min(end, next_n) - 1
            repeated.append(f"samples {row.first_n} to {last} were used again by step {row.step}")
        elif row.step != next_step:
            lost.append(f"step {row.step} stands where step {next_step} should")
        next_step, next_n = row.step + 1, max(next_n, end)
    return lost, repeated


def find_missing_tail(
    rows: Sequence[LedgerRow], *, started_at: int, newest: Commit | None
) -> list[str]:
    """Used samples beyond the ledger's end, as a list of at most one problem.

    The evidence is the last start, at sample ``started_at``, and the newest checkpoint. The ledger
    may be ahead of both: a run can be killed between two saves.
    """
    end = max((row.first_n + row.samples for row in rows), default=0)
    used_up_to, witness = started_at, "the run's last start (stream.json)"
    if newest is not None and newest.n >= used_up_to:
        used_up_to, witness = newest.n, f"checkpoint {newest.name}"
    if end >= used_up_to:
        return []
    where = f"after step {max(row.step for row in rows)}" if rows else "it has no rows"
    return [
        f"samples {end} to {used_up_to - 1} are missing at the ledger's end ({where}): {witness} "
        f"has {used_up_to} samples used. The file was cut, or is another run's."
    ]


def check_row(
    stream: Stream,
    row: LedgerRow,
    preparation: Preparation,
    progress: Callable[[float], None] = lambda samples: None,
) -> str | None:
    """What is wrong with the row's digest or its tokens, or None. Rows of older versions do not
    count those of further terms.
    """
    digest, num_read = 0, 0
    counts: list[tuple[int, ...]] = []
    partners = reads_partners(preparation)
    while num_read < row.samples:
        count = min(ROWS_AT_ONCE, row.samples - num_read)
        rows = stream.read_rows(row.first_n + num_read, count, partners=partners)
        digest = add_digests([digest, *rows.digests.tolist()])
        prepared = preparation.prepare(rows)
        counts.append((prepared.targets, *prepared.more_targets))
        num_read += len(rows.tokens)
        progress(len(rows.tokens))
    where = f"step {row.step} (samples {row.first_n} to {row.first_n + row.samples - 1})"
    if digest != row.digest:
        return f"{where}: the ledger's digest is {row.digest:016x}, the shards give {digest:016x}"
    targets, *more_targets = sum_terms(counts) or (0,)
    if targets != row.tokens:
        return f"{where}: the ledger counts {row.tokens} tokens, the shards give {targets}"
    if row.more_tokens and row.more_tokens != (*more_targets,):
        return (
            f"{where}: the ledger counts {list(row.more_tokens)} targets of the loss's further "
            f"terms, the shards give {more_targets}"
        )
    return None
