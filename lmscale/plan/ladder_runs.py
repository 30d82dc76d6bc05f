"""A ladder's file of rows, and what its runs have come to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig
from lmscale.config.load import parse_yaml, read_text
from lmscale.errors import ConfigError
from lmscale.files.jsonl import Row, read_rows
from lmscale.files.run_files import METRICS_FILE
from lmscale.plan.changes import change
from lmscale.plan.ladder import Ladder, count
from lmscale.plan.ladder_law import Point

LAST_PART = 0.1  # of a run's lines whose mean is its loss where nothing is held out


@dataclass(frozen=True, kw_only=True)
class LadderRun:
    """One run of a ladder, whether or not it has been made."""

    name: str
    folder: Path
    values: Mapping[str, Any]
    parameters: int
    tokens: int
    rate: float
    loss: float | None
    """Nats per token, held out where the configuration has a set; None: it is not finished."""


def render_rows(ladder: Ladder, *, config: str, name: str) -> str:
    """The YAML file that ``lmscale launch slurm --array`` and `lmscale plan ladder` read."""
    rows = [json.dumps(rung.values) for rung in ladder.rungs]
    told = [
        f"{rung.parameters:,} parameters, {rung.tokens:,} tokens, {rung.flops:.2e} FLOPs"
        for rung in ladder.rungs
    ]
    lines = [
        f"# The ladder {name} of {config}: {len(rows)} runs, {ladder.flops:.3g} FLOPs.",
        f"#   lmscale launch slurm {config} --cluster PROFILE --array THIS_FILE --sweep {name}",
        f"#   lmscale plan ladder {config}      tells what they foretell, once they are finished",
        "runs:",
    ]
    for row, what in zip(rows, told, strict=True):
        lines += [f"# {what}", f"- {row}"]
    return "\n".join([*lines, ""])


def read_ladder(path: Path, config: RunConfig, *, name: str) -> tuple[LadderRun, ...]:
    """The runs of a file of rows, as a sweep of that name has them beside the run's own folder.

    Raises ``ConfigError`` for a file of anything else.
    """
    rows = parse_yaml(read_text(path), str(path)).get("runs")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: no ladder's file. Remove it, or name another one with --out.")
    runs = []
    for index, values in enumerate(rows):
        try:
            smaller = change(config, values)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: its run {index} is none of this configuration any more "
                f"({' '.join(str(error).split())[:200]}). Remove the file to plan anew."
            ) from None
        of_run = f"{name}-{index:03d}"
        folder = config.folder.parent / name / of_run
        runs.append(
            LadderRun(
                name=of_run,
                folder=folder,
                values=values,
                parameters=count(smaller),
                tokens=smaller.trained_tokens,
                rate=smaller.engine.optimizer.lr,
                loss=read_loss(folder, smaller),
            )
        )
    return tuple(runs)


def read_loss(folder: Path, config: RunConfig) -> float | None:
    """What a finished run has come to: the whole first held-out set, or else its last steps."""
    rows = read_rows(folder / METRICS_FILE)
    sets = config.evaluation.of_loop if config.evaluation.at_end else ()
    if sets:
        return _last(rows, f"final/{sets[0]}/loss")
    trained = [row for row in rows if row.get("train/loss") is not None]
    if not trained or trained[-1]["step"] < config.train.steps:
        return None
    part = trained[-max(1, round(LAST_PART * len(trained))) :]
    return sum(row["train/loss"] for row in part) / len(part)


def _last(rows: Sequence[Row], name: str) -> float | None:
    found = next((row[name] for row in reversed(rows) if row.get(name) is not None), None)
    return found if found is not None and math.isfinite(found) else None


def choose_best(runs: Sequence[LadderRun]) -> tuple[LadderRun, ...]:
    """Of each size and number of tokens the finished run with the best learning rate."""
    best: dict[tuple[int, int], LadderRun] = {}
    for run in runs:
        key = (run.parameters, run.tokens)
        if run.loss is not None and (key not in best or run.loss < (best[key].loss or math.inf)):
            best[key] = run
    return tuple(best[key] for key in sorted(best))


def points_of(runs: Sequence[LadderRun]) -> tuple[Point, ...]:
    return tuple(Point(run.parameters, run.tokens, run.loss) for run in runs if run.loss)
