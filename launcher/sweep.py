"""A sweep: one run for every combination of some settings, or for every row of a file of them,
below one folder. Pure but for YAML.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from lmscale.config import RunConfig, load_config
from lmscale.config.load import parse_yaml, read_text
from lmscale.config.run import with_absolute_places
from lmscale.errors import ConfigError
from lmscale.files.locations import find_checkpoint
from lmscale.files.run_files import SLURM_FOLDER, SWEEP_FILE
from lmscale.runs.sweep_folder import Sweep, SweepMember, read_sweep

MAX_RUNS = 1000  # Slurm's own default for the size of an array is 1001


def parse_axis(text: str) -> tuple[str, tuple[str, ...]]:
    """``engine.optimizer.lr=1e-3,3e-4`` → the key and its values, as --set takes them.

    A comma inside of [brackets], {braces} or quotes separates nothing.
    """
    key, separator, values = text.partition("=")
    advice = f"--array {text}: write it as section.key=value1,value2."
    if not separator or not key.strip():
        raise ConfigError(advice)
    if key.strip() in ("run.name", "run.folder"):
        raise ConfigError(f"--array {text}: a sweep names its runs and their folders itself.")
    try:
        node = yaml.compose(f"[{values}]", Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        node = None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise ConfigError(advice)
    parts = tuple(f"[{values}]"[item.start_mark.index : item.end_mark.index] for item in node.value)
    if len(set(parts)) < len(parts) or not all(parts):
        raise ConfigError(f"--array {text}: every value once, and none empty.")
    return key.strip(), parts


def is_rows(text: str) -> bool:
    """Whether a word of --array is a file of rows, not an axis."""
    return "=" not in text and text.endswith((".yaml", ".yml"))


def read_rows(path: Path) -> tuple[dict[str, str], ...]:
    """``runs`` of a YAML file: a list of mappings from section.key to a value.

    Raises ``ConfigError`` for a file of anything else.
    """
    tree = parse_yaml(read_text(path), str(path)).get("runs")
    advice = "give runs: a list of mappings with the same keys, such as {train.steps: 100}"
    if not (isinstance(tree, list) and tree and all(isinstance(r, dict) and r for r in tree)):
        raise ConfigError(f"--array {path}: {advice}.")
    if len({tuple(sorted(map(str, row))) for row in tree}) > 1:
        raise ConfigError(f"--array {path}: its rows name different keys; {advice}.")
    if named := {"run.name", "run.folder"} & tree[0].keys():
        raise ConfigError(
            f"--array {path}: {' and '.join(sorted(named))}: a sweep names its runs and their "
            "folders itself."
        )
    # str: what YAML takes for a date is the text that stands there.
    rows = [{str(k): json.dumps(value, default=str) for k, value in row.items()} for row in tree]
    if len({frozenset(row.items()) for row in rows}) < len(rows):
        raise ConfigError(f"--array {path}: every row once.")
    return tuple(rows)


def name_keys(text: str) -> tuple[str, ...]:
    """The settings that a word of --array gives values to. Raises ``ConfigError``."""
    return (*read_rows(Path(text))[0],) if is_rows(text) else (text.partition("=")[0].strip(),)


def plan_sweep(
    config_path: Path,
    overrides: Sequence[str],
    axes: Sequence[tuple[str, tuple[str, ...]]],
    *,
    rows: Sequence[Mapping[str, str]] = ({},),
    name: str | None = None,
) -> Sweep:
    """The runs NAME-000, NAME-001, …: the last axis turns fastest, and ``rows`` slowest.

    Each run has a folder of its own, also below ``checkpoint.folder`` where that is set.

    Raises ``ConfigError`` with the problems of all runs.
    """
    base = with_absolute_places(load_config(config_path, overrides))
    name = name or f"{base.run.name}-sweep"
    root = base.folder.parent / name
    keys = [*rows[0], *(key for key, _ in axes)]
    if len(set(keys)) < len(keys):
        raise ConfigError("--array: name every key once, with all of its values.")
    choices = [
        {**row, **dict(zip((key for key, _ in axes), values, strict=True))}
        for row in rows
        for values in itertools.product(*(values for _, values in axes))
    ]
    if len(choices) > MAX_RUNS:
        raise ConfigError(f"--array: {len(choices)} runs are more than {MAX_RUNS}.")
    runs, configs = [], []
    problems: dict[str, str] = {}
    for index, values in enumerate(choices):
        given = [f"{key}={value}" for key, value in values.items()]
        run = f"{name}-{index:03d}"
        own = [f"run.name={json.dumps(run)}", f"run.folder={json.dumps(str(root / run))}"]
        try:
            config = load_config(config_path, [*overrides, *own], axes=given)
            if config.checkpoint.folder and "checkpoint.folder" not in keys:
                place = f"{config.checkpoint.folder.rstrip('/')}/{run}"
                own.append(f"checkpoint.folder={json.dumps(place)}")
                config = load_config(config_path, [*overrides, *own], axes=given)
        except ConfigError as error:
            for problem in error.problems:  # of a key that every run has, once
                problems.setdefault(problem, f"{' '.join(given)}: {problem}")
            continue
        configs.append(with_absolute_places(_name_initial(config, beside=root.parent)))
        runs.append(SweepMember(index=index, run=run, folder=root / run, values=values))
    if problems:
        raise ConfigError([*problems.values()])
    return Sweep(
        name=name,
        root=root,
        keys=tuple(keys),
        base_config=base.model_dump(mode="json"),
        runs=tuple(runs),
        configs=tuple(configs),
    )


def _name_initial(config: RunConfig, *, beside: Path) -> RunConfig:
    """``run.init_from`` by its folder: its name is looked for where the sweep is, not in there."""
    if not config.run.init_from:
        return config
    place = find_checkpoint(config.run.init_from, beside=beside).absolute
    return config.model_copy(update={"run": config.run.model_copy(update={"init_from": place})})


def find_conflict(sweep: Sweep) -> str | None:
    """Why the sweep's folder cannot take these runs, or None. A sweep may be submitted again."""
    root = sweep.root
    if not root.is_file() and not (root / SWEEP_FILE).exists():
        if all(path.name == SLURM_FOLDER for path in root.glob("*")):
            return None
        return f"{root} is not empty and holds no sweep. Name another one with --sweep."
    try:
        old = read_sweep(root)
    except ConfigError:
        return f"{root / SWEEP_FILE} cannot be read. Name another sweep with --sweep."
    if [(row.run, row.values) for row in old.runs] == [(r.run, r.values) for r in sweep.runs]:
        return None
    return (
        f"{root} holds a sweep over other values ({', '.join(old.keys)}, {len(old.runs)} runs). "
        "Name another one with --sweep."
    )
