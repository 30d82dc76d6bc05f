"""``RUN/resumes.jsonl``: what every start of a run took up, and what it passed over and why.

::

    {"time": 1700000000.0, "step": 4, "checkpoint": "runs/x/checkpoints/step-000000004",
     "passed_over": [{"step": 6, "checkpoint": "…/step-000000006", "why": ["… is missing"]}]}

``checkpoint`` is null, and ``step`` 0, for a start from scratch that passed something over, or one
that refused to start. A start that found nothing at all leaves no row.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from lmscale.checkpoint.find import Found, PassedOver
from lmscale.files.jsonl import append_row, mend_tail
from lmscale.files.run_files import RESUMES_FILE


def record_resume(run_folder: Path, found: Found | None, passed_over: Sequence[PassedOver]) -> None:
    """Append a row. Rank 0 alone, once it is certain what is taken up."""
    if found is None and not passed_over:
        return
    path = run_folder / RESUMES_FILE
    mend_tail(path)
    append_row(
        path,
        {
            "time": time.time(),
            "step": 0 if found is None else found.manifest.step,
            "checkpoint": None if found is None else found.name,
            "passed_over": [
                {"step": one.step, "checkpoint": one.name, "why": list(one.why)}
                for one in passed_over
            ],
        },
    )
