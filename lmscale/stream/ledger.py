"""The ledger: which samples every step used, one line a step, in the run folder.

``ledger.jsonl`` holds the steps that count. On resume, steps beyond the checkpoint were thrown
away: their lines move to ``ledger.rewound.jsonl``. ``stream.json`` beside it says what the numbers
mean: the stream's seed, geometry and segments, and where each source's shards were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from lmscale.errors import DataError
from lmscale.runtime.atomic import write_bytes, write_json, writing
from lmscale.stream.batches import DIGEST_BITS
from lmscale.stream.state import StreamState
from lmscale.stream.stream import Stream

LEDGER = "ledger.jsonl"
REWOUND = "ledger.rewound.jsonl"
RECORD = "stream.json"
LIMB_BITS = 16
NUM_LIMBS = 4


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One optimizer step over all ranks."""

    step: int
    first_n: int
    samples: int
    tokens: int
    """Target positions that counted."""
    digest: int
    """Sum modulo 2^63 of the samples' digests."""

    def to_line(self) -> str:
        return json.dumps(asdict(self) | {"digest": f"{self.digest:016x}"}) + "\n"

    @staticmethod
    def from_line(line: str) -> LedgerRow:
        tree = json.loads(line)
        numbers = {key: int(tree[key]) for key in ("step", "first_n", "samples", "tokens")}
        return LedgerRow(**numbers, digest=int(tree["digest"], 16))


def digest_to_limbs(digest: int) -> list[float]:
    """Four 16-bit limbs, lowest first: their float64 sums are exact over 2^37 ranks."""
    mask = 2**LIMB_BITS - 1
    return [float(digest >> (LIMB_BITS * limb) & mask) for limb in range(NUM_LIMBS)]


def limbs_to_digest(limbs: Sequence[float]) -> int:
    """The digest of limbs that were summed over ranks."""
    total = sum(int(value) << (LIMB_BITS * limb) for limb, value in enumerate(limbs))
    return total % 2**DIGEST_BITS


class Ledger:
    """Appends rows. One process of a run holds it (rank 0)."""

    def __init__(self, folder: Path, file: IO[str], rows: int) -> None:
        self.folder = folder
        self.rows = rows
        self._file = file

    def append(self, row: LedgerRow) -> None:
        """Write the row: it outlives this process and, once ``sync`` is called, the machine."""
        with writing("the ledger", self.folder):
            self._file.write(row.to_line())
            self._file.flush()
        self.rows += 1

    def sync(self) -> None:
        """Call before a checkpoint is committed: it must not know of steps the ledger lacks."""
        with writing("the ledger", self.folder):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_ledger(run_folder: str | Path, *, next_step: int, stream: Stream, n: int) -> Ledger:
    """The run's ledger, ready for step ``next_step``, whose first sample is ``n``.

    Rows of ``next_step`` and later move to ``ledger.rewound.jsonl``, and a torn last line is
    dropped. Then ``stream.json`` is brought up to date. Raises ``DataError`` for a damaged ledger.
    """
    folder = Path(run_folder)
    path = folder / LEDGER
    with writing("the ledger", folder):
        folder.mkdir(parents=True, exist_ok=True)
        rows = read_ledger(folder) if path.exists() else []
        kept = [row for row in rows if row.step < next_step]
        rewound = [row for row in rows if row.step >= next_step]
        if rewound:
            # First there, then away from here: a kill in between leaves a row twice in the rewound
            # file.
            with open(folder / REWOUND, "a", encoding="utf-8") as file:
                file.writelines(row.to_line() for row in rewound)
                file.flush()
                os.fsync(file.fileno())
        write_bytes(path, "".join(row.to_line() for row in kept).encode())
        save_record(folder, stream, n)
        return Ledger(folder, open(path, "a", encoding="utf-8"), len(kept))  # noqa: SIM115


def read_ledger(run_folder: str | Path) -> list[LedgerRow]:
    """The rows in the order of the file, without a torn last line. Raises ``DataError``."""
    path = Path(run_folder) / LEDGER
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no ledger. Is {run_folder} the folder of a run that has done a step?"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break  # the process was killed while it wrote this line
        try:
            rows.append(LedgerRow.from_line(line))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: line {number} is damaged ({type(error).__name__}: {error}): "
                f"{line.strip()[:80]!r}."
            ) from None
    return rows


def save_record(run_folder: Path, stream: Stream, n: int) -> None:
    """Write ``stream.json``: the state as of ``n``, and where all sources so far were."""
    locations = {name: dataset.location for name, dataset in stream.datasets.items()}
    path = run_folder / RECORD
    if path.exists():
        locations = dict(load_record(run_folder)[1]) | locations
    absolute = {name: _absolute(location) for name, location in sorted(locations.items())}
    write_json(path, {"state": stream.state_at(n).to_json(), "shards": absolute})


def load_record(run_folder: str | Path) -> tuple[StreamState, Mapping[str, str]]:
    """The state of the run's last start, and source name → folder or URL of its shards."""
    path = Path(run_folder) / RECORD
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return StreamState.from_json(tree["state"]), dict(tree["shards"])
    except FileNotFoundError:
        raise DataError(
            f"{path}: the run's stream is not recorded here. Is {run_folder} the folder of a run?"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({type(error).__name__}: {error}).") from None


def _absolute(location: str) -> str:
    return location if "://" in location else str(Path(location).expanduser().absolute())


def sum_rows(rows: Iterable[LedgerRow]) -> tuple[int, int]:
    """Samples and tokens of the rows."""
    rows = list(rows)
    return sum(row.samples for row in rows), sum(row.tokens for row in rows)
