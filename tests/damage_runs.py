"""What lmscale reads back of a run's own folder, as a scene of tests/damage.py."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from damage import Scene
from damage_scenes import PLAN, STEPS, audit, build_run, then, write_corpus
from handmade_checkpoints import save, search

from lmscale.checkpoint.commit_log import mend_log, record_commit
from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.config import dump_config
from lmscale.errors import DataError
from lmscale.files.atomic import writing
from lmscale.files.jsonl import append_row
from lmscale.history.history import (
    Rewind,
    attempt_of,
    pending_jumps,
    read_history,
    record_resume,
    record_rewind,
)
from lmscale.ranks.attempt import Attempt
from lmscale.ranks.ranks import Ranks
from lmscale.runs.attempts import AttemptLog
from lmscale.runs.commits import Commit, append_commit
from lmscale.runs.continuation import identity_of
from lmscale.runs.lease import Lease, read_lease
from lmscale.runs.run_folder import load_run_config, read_status
from lmscale.tokenizer.codec import KEPT_FOLDER, load_kept_tokenizer, load_tokenizer, save_tokenizer
from lmscale.watch.heartbeat import Heartbeat, read_heartbeats

WATCH = {"event": "straggler", "time": 1e9, "by": 0, "attempt": "local", "text": "rank 1 is slow"}
REWIND = Rewind(
    number=1,
    at_step=7,
    to_step=5,
    to_n=60,
    jump_from_n=72,
    jump_samples=12,
    why="a spike",
    time=1e9,
)


def write_run(folder: Path) -> None:
    """A run of two checkpoints, of which the weights can be used by what is in its folder alone."""
    config = write_corpus(folder)
    run = folder / "run"
    tokenizer = load_tokenizer(config.tokenizer.folder)
    (run / "heartbeats").mkdir(parents=True)
    (run / "config.yaml").write_text(dump_config(config))
    save_tokenizer(tokenizer, run / KEPT_FOLDER)
    place = LocalPlace(run / "checkpoints")
    with AttemptLog(run, first_step=0, world_size=1, zero_stage=1) as attempt:
        record_rewind(run, REWIND)
        for step in (5, 10):
            attempt.step(step, 1.0)
            identity = identity_of(config, tokenizer.fingerprint)
            by = {**attempt_of(run), "world_size": 1}
            manifest = save(place, step, identity=identity, rewinds=step // 10, written_by=by)
            record_commit(run, place, manifest)
    looking = search(place, identity=None)
    record_resume(run, next(looking), looking.passed_over)
    append_row(run / "watch.jsonl", WATCH)
    row = {"time": 1e9, "fault": "kill:at=step.begin", "rank": 0, "step": 3, "pid": 7}
    append_row(run / "faults.jsonl", row)
    for step in (5, 10):
        append_row(run / "metrics.jsonl", {"step": step, "time": 1e9, "train/loss": 1.0 / step})
        append_row(run / "ledger.jsonl", {"step": step - 1})
    with Heartbeat(run, Ranks(), interval=60.0):
        pass
    Lease(Attempt(), run).take(["n1"])


def use_run(folder: Path) -> str:
    """What a start takes up, what the commands show, and the weights that `generate` gets."""
    run = folder / "run"
    config, place = load_run_config(run), LocalPlace(run / "checkpoints")
    tokenizer = load_kept_tokenizer(run, "/nowhere")
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("lmscale").addHandler(handler)
    mend_log(run, place)
    with writing("the run folder", run):  # as a start does it, which then writes its own
        read_lease(run)
    read_heartbeats(run)  # rewritten every few seconds: the next one counts
    status, history = read_status(run), read_history(run)
    looking = search(place, identity=None, undone=history.undone)
    found = next(looking)
    pending_jumps(history.rewinds, rewinds_in_history=found.manifest.rewinds)
    weights = load_weights(
        place,
        origin=str(run),
        undone=history.undone,
        identity=identity_of(config, tokenizer.fingerprint),
    )
    if warnings or status.problems:  # in the log of a start, and on the page of the run
        raise DataError([*status.problems, *warnings])
    return "\n".join(
        [
            *(f"{commit.step} {commit.sha256}" for commit in status.commits),
            json.dumps(asdict(history), default=str),
            f"{found.manifest.hash} {tokenizer.fingerprint}",
            repr({name: tensor.tolist() for name, tensor in weights.items()}),
        ]
    )


def log_last_commit(folder: Path) -> None:
    """By which the audit knows how far the ledger should reach."""
    fields = {"step": STEPS, "n": STEPS * PLAN.global_windows, "folder": "checkpoints/x"}
    fields |= {"sha256": "ab", "bytes": 9, "reason": "last", "time": 1e9}
    append_commit(folder / "run", Commit.model_validate(fields))


RUN_SCENES = [
    Scene(
        name="run",
        build=write_run,
        use=use_run,
        rows={
            "run: `config.yaml`": ["run/config.yaml"],
            "run: `tokenizer/`": ["run/tokenizer/*"],
            "run: manifests of checkpoints": ["run/checkpoints/*/manifest.json"],
            "run: tensors of checkpoints": ["run/checkpoints/*/*.safetensors"],
            "run: `attempts.jsonl`": ["run/attempts.jsonl"],
            "run: `commits.jsonl`": ["run/commits.jsonl"],
            "run: `rewinds.jsonl`": ["run/rewinds.jsonl"],
            "run: `resumes.jsonl`, `watch.jsonl`, `faults.jsonl`": [
                "run/resumes.jsonl",
                "run/watch.jsonl",
                "run/faults.jsonl",
            ],
            "run: `metrics.jsonl`": ["run/metrics.jsonl"],
            "run: `lease.json`, `heartbeats/`": ["run/lease.json", "run/heartbeats/*.json"],
        },
    ),
    Scene(
        name="ledger",
        build=then(build_run, log_last_commit),
        use=audit,
        rows={
            "run: `ledger.jsonl`": ["run/ledger.jsonl"],
            "run: `stream.json`": ["run/stream.json"],
        },
    ),
]
