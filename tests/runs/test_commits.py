"""RUN/commits.jsonl as everybody reads it: what was committed and is not removed."""

from __future__ import annotations

import json

from lmscale.files.run_files import COMMITS_FILE
from lmscale.runs.commits import read_commits


def commit(step):
    row = {"event": "commit", "step": step, "n": 8 * step, "folder": f"checkpoints/step-{step:09d}"}
    return row | {"sha256": f"{step:064x}", "bytes": 10, "reason": "regular", "time": 1.5}


def test_the_newest_checkpoint_is_the_highest_step_whatever_the_order_of_the_rows(tmp_path):
    """A start adds rows that a full disk had kept out: older steps behind newer ones."""
    rows = [commit(200), commit(100), commit(300), {"event": "remove", "step": 300, "time": 2.5}]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / COMMITS_FILE).write_text(text + "no row\n")
    assert [found.step for found in read_commits(tmp_path)] == [100, 200]
