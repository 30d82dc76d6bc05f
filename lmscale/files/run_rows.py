"""What the rows of a run's bookkeeping may say: the keys that lmscale reads, and their bounds.

All of them are read by ``sift_rows``, which leaves out what is none and says so: bookkeeping stops
no training, and the damage of one run no look at another. Keys that are not named here are kept.
``Commit`` (runs/commits.py), ``Event`` (runs/starts.py), ``Rewind`` (history/history.py) and
``LedgerRow`` (stream/ledger.py) are the rows of the files that others decide by.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter

from lmscale.files.strangers import Count, Finite, Instant, Text, is_count

Seconds = Annotated[Finite, Field(ge=0, lt=1e10)]  # 317 years


class _Process(BaseModel):
    """Of ``watch.process.own_process``."""

    pid: Count
    machine: Text
    started: Text | None


class _AttemptStart(BaseModel):
    event: Literal["start"]
    time: Instant
    attempt: Count
    job: Text | None
    restart: Count
    first_step: Count
    host: Text
    world_size: Count
    zero_stage: Count
    process: _Process | None = None  # rank 0's; older rows have none, nor the next
    found_step: Count | None = None


class _AttemptProgress(BaseModel):
    event: Literal["progress"]
    time: Instant
    attempt: Count
    step: Count
    seconds: dict[Text, Seconds]
    skipped_steps: Count = 0


class _AttemptRewind(_AttemptProgress):
    event: Literal["rewind"]  # pyright: ignore[reportIncompatibleVariableOverride]
    to_step: Count


class _AttemptEnd(_AttemptProgress):
    event: Literal["end"]  # pyright: ignore[reportIncompatibleVariableOverride]
    reason: Text


class _Watch(BaseModel):
    event: Text
    time: Instant
    text: Text


class _PassedOver(BaseModel):
    step: Count
    checkpoint: Text
    why: list[Text]


class _MixtureChange(BaseModel):
    from_n: Count
    before: dict[Text, Finite]
    now: dict[Text, Finite]


class _Resume(BaseModel):
    time: Instant
    step: Count = 0
    passed_over: list[_PassedOver]
    mixture: _MixtureChange | None = None


class _Rewind(BaseModel):
    number: Count
    at_step: Count
    to_step: Count
    jump_samples: Count
    time: Instant
    why: Text


class _Fault(BaseModel):
    time: Instant
    fault: Text


class _Step(BaseModel):
    step: Count


class _Student(BaseModel):
    time: Instant
    step: Count
    student: Text


class _Export(BaseModel):
    time: Instant
    step: Count
    sha256: Text
    state: Text


class _HeldOut(BaseModel):
    step: Count
    time: Instant
    sets: dict[Text, Text]


class _TaskFigures(BaseModel):
    step: Count
    time: Instant
    weights: Text
    limit: Count | None = None
    figures: dict[Text, Finite | None]


class _Upstream(BaseModel):
    kind: Text
    job: Text
    output: Text


class _Submission(BaseModel):
    time: Instant
    submission: Text
    job: Text
    jobs: list[Text | Count] | None
    kind: Text
    nodes: tuple[Count, Count] | None = None
    folder: Text | None = None
    after: Text | None = None
    pipeline: list[_Upstream] = []
    limit_seconds: Seconds | None = None
    signal_seconds: Seconds = 0.0


def _check_figures(row: dict[str, Any]) -> dict[str, Any]:
    if not is_count(row.get("step")):
        raise ValueError("has no step")
    for name, value in row.items():
        if type(value) not in (int, float, type(None)) or not math.isfinite(value or 0):
            raise ValueError(f"has a figure {name[:80]!r} that is no number")
    if not 0 <= (row.get("time") or 0) < 250_000_000_000:
        raise ValueError("has no time")
    return row


ATTEMPT = TypeAdapter[Any](
    Annotated[
        _AttemptStart | _AttemptProgress | _AttemptRewind | _AttemptEnd,
        Field(discriminator="event"),
    ]
)
EXPORT = TypeAdapter[Any](_Export)
HELD_OUT = TypeAdapter[Any](_HeldOut)
WATCH, RESUME, REWIND, FAULT, STEP, STUDENT, SUBMISSION, TASK_FIGURES = map(
    TypeAdapter[Any], (_Watch, _Resume, _Rewind, _Fault, _Step, _Student, _Submission, _TaskFigures)
)
OF_AVERAGE = "of_average"  # on a line whose figures are of the average of the weights: 1
AT_END = "at_end"  # on the last line of a series, of a step where none was due but for the end: 1
FIGURES = TypeAdapter[Any](Annotated[dict[str, Any], AfterValidator(_check_figures)])
