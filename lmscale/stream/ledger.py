"""The ledger: which samples every step used, one line a step, in the run folder.

``ledger.jsonl`` holds the steps that count. On resume, steps beyond the checkpoint were thrown
away: their lines move to ``ledger.rewound.jsonl``. ``stream.json`` beside it says what the numbers
mean: the stream's seed, geometry and segments, and where each source's shards were.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, TypeAdapter

from lmscale.errors import DataError, LmscaleError, NoSpaceError
from lmscale.files.atomic import fsync_file, fsync_folder, write_bytes, writing
from lmscale.files.jsonl import (
    RowFile,
    append_rows,
    mend_tail,
    read_rows,
    renew_rows,
    sift_rows,
)
from lmscale.files.locations import absolute_location
from lmscale.files.reading import read_plain, seal, unseal
from lmscale.files.strangers import Count, ImplausibleError, Text, Tree, checked
from lmscale.runs.commits import Commit, read_commits
from lmscale.runs.given_weights import read_import, read_made
from lmscale.stream.stream import Stream, StreamState

logger = logging.getLogger(__name__)

LEDGER = "ledger.jsonl"
REWOUND = "ledger.rewound.jsonl"
RECORD = "stream.json"


def _from_hex(digest: Any) -> int:
    return int(digest, 16) if isinstance(digest, str) else -1  # which no digest is


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One optimizer step over all ranks."""

    step: Count  # done before it: 0 is what figures and checkpoints call step 1
    first_n: Count
    samples: Count
    tokens: Count  # trained on: the targets, which the loss counts
    digest: Annotated[Count, BeforeValidator(_from_hex)]  # sum modulo 2^63 of the samples' digests
    more_tokens: tuple[Count, ...] = ()  # targets of each further term of the loss; older rows: ()

    def to_json(self) -> dict[str, Any]:
        tree = asdict(self) | {"digest": f"{self.digest:016x}"}
        if not self.more_tokens:
            del tree["more_tokens"]
        return tree

    def to_line(self) -> str:
        return json.dumps(self.to_json()) + "\n"


class _Record(BaseModel):
    """What ``stream.json`` holds."""

    state: Tree
    shards: dict[Text, Text]
    bos: Count | None = None  # before every document of the sources; older files do not say
    undone: dict[Text, Text] = {}  # checkpoint's name → hash


_ROW = TypeAdapter(LedgerRow)
_RECORD = TypeAdapter(_Record)


class Ledger:
    """Appends rows, unbuffered. One process of a run holds it (rank 0)."""

    def __init__(self, file: RowFile) -> None:
        self._file = file

    def append(self, row: LedgerRow) -> None:
        """Write the row: it outlives this process and, once ``sync`` is called, the machine.

        Raises ``NoSpaceError`` when the disk is full; the file is then as it was.
        """
        self._file.append(row.to_json())

    def sync(self) -> None:
        """Call before a checkpoint is committed: it must not know of steps the ledger lacks."""
        self._file.sync()

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.close()
        except (LmscaleError, OSError):
            if kind is None:  # else the error on its way out is the one to tell
                raise


def open_ledger(run_folder: str | Path, *, next_step: int, stream: Stream, n: int) -> Ledger:
    """The run's ledger, ready for step ``next_step``, whose first sample is ``n``.

    ``stream.json`` is brought up to date. Rows of ``next_step`` and later move to
    ``ledger.rewound.jsonl``, and a torn last line is dropped. Steps that have no row are named in
    the log, and lines that are no rows stay where they are; the audit will speak of both.

    The ledger is always copied into a new file, which costs less than the reading of it: rows that
    an older copy of the run still writes go to the old one, and no path is taken only then.
    """
    folder = Path(run_folder)
    path, aside = folder / LEDGER, folder / REWOUND
    with writing("the ledger", folder):
        folder.mkdir(parents=True, exist_ok=True)
        path.touch()
        sifted = sift_rows(path, _ROW)
        rows = sifted.values
        rewound = [row for row in rows if row.step >= next_step]
        save_record(folder, stream, n)
        if rewound:
            # First there, then away from here: a kill in between leaves a row twice in the rewound
            # file.
            mend_tail(aside)
            append_rows(aside, [row.to_json() for row in rewound])
            fsync_file(aside)
        file = renew_rows(path, next_step - 1, no_space=NoSpaceError)
        fsync_folder(folder)
    if rewound:
        logger.info(
            "%d steps that were done after step %d are undone: training goes on from there",
            *(len(rewound), next_step),
        )
    for problem in sifted.problems:
        logger.warning("%s/%s", folder, problem)
    missing = next_step - len({row.step for row in rows} & set(range(next_step)))
    if missing:
        logger.warning(
            "%s: %d of the %d steps done so far have no row: the file was cut or edited. Training "
            "goes on; `lmscale runs audit` will name the steps as lost.",
            path,
            missing,
            next_step,
        )
    return Ledger(file)


def read_ledger(run_folder: str | Path) -> list[LedgerRow]:
    """The rows in the order of the file, without a torn last line. Raises ``DataError``."""
    path = Path(run_folder) / LEDGER
    if not path.exists():
        raise DataError(
            f"{path}: there is no ledger. Is {run_folder} the folder of a run that has done a step?"
        )
    rows = []
    for number, tree in enumerate(read_rows(path), start=1):
        try:
            rows.append(checked(_ROW, tree))
        except ImplausibleError as error:
            shown = json.dumps(tree)[:80]
            raise DataError(
                f"{path}, line {number}: not a row of a ledger ({error}): {shown}."
            ) from None
    return rows


def save_record(run_folder: Path, stream: Stream, n: int) -> None:
    """Write ``stream.json``: the state as of ``n``, and where all sources so far were.

    And the checkpoints of later steps, which a start at ``n`` undoes.
    """
    locations = {name: dataset.location for name, dataset in stream.datasets.items()}
    path = run_folder / RECORD
    record = _parse_record(path)
    if record is not None:
        locations = record.shards | locations
    elif path.exists():
        logger.warning(
            "%s cannot be read, and is written anew without the places of sources that have left "
            "the mixture: the audit will want them in the configuration, with weight 0.",
            path,
        )
    absolute = {name: absolute_location(location) for name, location in sorted(locations.items())}
    tree = {
        "state": stream.state_at(n).to_json(),
        "shards": absolute,
        "bos": stream.bos_id,
        "undone": {
            commit.name: commit.sha256 for commit in read_commits(run_folder) if commit.n > n
        },
    }
    write_bytes(path, seal(tree))


def copy_record(run_folder: Path, folder: Path, state: StreamState) -> None:
    """Write the ``stream.json`` of a run in ``folder`` that goes on where that of ``run_folder``
    was at ``state``.
    """
    record = _read_record(run_folder)
    tree = {"state": state.to_json(), "shards": record.shards, "bos": record.bos, "undone": {}}
    write_bytes(folder / RECORD, seal(tree))


def load_record(run_folder: str | Path) -> tuple[StreamState, Mapping[str, str]]:
    """The state of the run's last start, and source name → folder or URL of its shards."""
    record = _read_record(run_folder)
    return StreamState.from_json(record.state), record.shards


def load_bos(run_folder: str | Path) -> int | None:
    """The id that began every document which the run has read, or what its weights came from; None:
    there was none, or it is not known. Raises ``DataError`` for a record that cannot be read.
    """
    if (Path(run_folder) / RECORD).exists():
        return _read_record(run_folder).bos
    begun = read_import(Path(run_folder)) or read_made(Path(run_folder))
    return begun and begun.bos


def has_read(run_folder: Path) -> bool:
    """Whether the run, or what its weights were made of, has read documents: how they begin, it has
    learned (``load_bos``), whatever its tokenizer's own file says.
    """
    made = read_made(run_folder)
    return (run_folder / RECORD).exists() or (made is not None and made.has_read)


def newest_commit(run_folder: str | Path) -> Commit | None:
    """The newest checkpoint, those aside that the run's last start has undone."""
    undone = set(_read_record(run_folder).undone.values())
    counted = (commit for commit in read_commits(run_folder) if commit.sha256 not in undone)
    return max(counted, key=lambda commit: commit.n, default=None)


def _parse_record(path: Path) -> _Record | None:
    """None for a file that is missing, cannot be read, or is not as it was written."""
    try:
        return checked(_RECORD, unseal(read_plain(path)))
    except (OSError, ValueError):
        return None


def _read_record(run_folder: str | Path) -> _Record:
    path = Path(run_folder) / RECORD
    record = _parse_record(path)
    if record is not None:
        return record
    if path.exists():
        raise DataError(
            f"{path} cannot be read, or is not the record of a run's stream. Restore it, or train "
            "on: a start of the run writes it anew."
        )
    raise DataError(
        f"{path}: the run's stream is not recorded here. Is {run_folder} the folder of a run?"
    )


def sum_rows(rows: Sequence[LedgerRow]) -> tuple[int, int]:
    """Samples and tokens of the rows."""
    return sum(row.samples for row in rows), sum(row.tokens for row in rows)
