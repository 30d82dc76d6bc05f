"""What a short YAML asks of a run that has begun, in its own words, where it cannot be had."""

from __future__ import annotations

from collections.abc import Iterable

from lmscale.config.finetune import FinetuneConfig
from lmscale.config.load import load_config
from lmscale.config.run import RunConfig
from lmscale.errors import LmscaleError
from lmscale.files.run_files import CONFIG_FILE
from lmscale.finetune.trees import look_up
from lmscale.runs.commits import read_commits
from lmscale.runs.continuation import find_continuation_problems, find_fixed_changes

# The beginning of a key of the whole configuration → the key of the short one by which it was
# planned. The first that fits counts.
PLANNED_BY = {
    "train.freeze": "trainable",
    "train.steps": "epochs",
    "model.lora.": "trainable",
    "model.text_classes": "data",
    "model.token_classes": "data",
    "model.max_positions": "data",
    "model.": "base",
    "objective.names": "data",
    "objective.of_pairs": "data",
    "objective.": "task",
    "stream.sequence_length": "data",
    "run.seed": "seed",
    "run.name": "name",
    "tokenizer.": "base",
}


def find_changed_wishes(asked: FinetuneConfig, run: RunConfig) -> list[str]:
    """Why the run in ``run.folder`` cannot go on with what was planned of ``asked``: by the keys
    that a person has written. Empty where there is no checkpoint.
    """
    newest = max((commit.step for commit in read_commits(run.folder)), default=None)
    if newest is None:
        return []
    try:
        before = load_config(run.folder / CONFIG_FILE)
    except LmscaleError:
        return find_continuation_problems(run)
    problems = []
    if run.train.steps < newest:
        key = _key_of(asked, "train.steps")
        problems.append(
            f"{key}: they come to {run.train.steps:,} steps (train.steps), but the newest "
            f"checkpoint of {run.folder} has {newest:,} already. Raise {key}, or {_OTHER}."
        )
    changed: dict[str, list[str]] = {}
    for key, (there, here) in find_fixed_changes(before, run).items():
        changed.setdefault(_key_of(asked, key), []).append(f"{key} = {here!r}, not {there!r}")
    for key, changes in changed.items():
        problems.append(
            f"{key}: the run in {run.folder} began with another one, and its checkpoints fit "
            f"nothing else ({_shorten(changes)}). Set {key} back as it was, or {_OTHER}."
        )
    return problems


_OTHER = "give the new run another name, such as --set name=NAME-2"


def _shorten(changes: Iterable[str]) -> str:
    first, *others = changes
    cut = first if len(first) <= 160 else f"{first[:157]}…"
    return f"{cut}; and {len(others)} more" if others else cut


def _key_of(asked: FinetuneConfig, key: str) -> str:
    """The key of the short YAML that a key of the whole configuration was planned by."""
    is_given = look_up(asked.settings, key) is not None
    planned = next((by for of, by in PLANNED_BY.items() if key.startswith(of)), None)
    return f"settings.{key}" if is_given or planned is None else planned
