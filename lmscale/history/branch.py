"""``lmscale runs branch``: the folder of a new run that goes on where another run was at a step.

It goes on in the same samples, with the optimizer's states, the stream's and the guard's: what the
other run would have done, until a setting differs. Every file is the new run's own, or a second
name of one that no run ever writes to again (a hard link): whatever the other run removes stays.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lmscale.checkpoint.commit_log import describe_commit
from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.layout import step_folder
from lmscale.checkpoint.manifest import FileEntry, Manifest, read_state
from lmscale.checkpoint.places.place import LocalPlace, Place
from lmscale.checkpoint.places.run_place import open_place
from lmscale.config import RunConfig, dump_config, parse_config
from lmscale.config.load import read_text, validate_tree
from lmscale.config.objective import DistillConfig
from lmscale.config.run import RunSection, with_absolute_places
from lmscale.errors import CheckpointError, ConfigError
from lmscale.files.atomic import write_bytes, writing
from lmscale.files.jsonl import append_durable_row, renew_rows
from lmscale.files.locations import RUNS, find_checkpoint, split_checkpoint
from lmscale.files.output_folder import new_folder
from lmscale.files.run_files import (
    CHECKPOINTS,
    CONFIG_FILE,
    LEDGER_FILE,
    METRICS_FILE,
    REWINDS_FILE,
)
from lmscale.files.tokenizer_files import KEPT_FOLDER
from lmscale.history.history import read_history
from lmscale.runs.beginnings import find_missing_checkpoint
from lmscale.runs.commits import append_commit, read_commits
from lmscale.runs.continuation import find_fixed_changes
from lmscale.runs.exports import find_due, record_export
from lmscale.runs.given_weights import describe_import, refuse_training
from lmscale.runs.origins import BRANCH, INITIAL, ORIGINS, Origin, save_origins
from lmscale.runs.run_folder import load_run_config
from lmscale.runs.students import record_student
from lmscale.runs.sweep_folder import refuse_sweep
from lmscale.stream.ledger import copy_record
from lmscale.stream.stream import StreamState

PIECE_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What is to be made: a configuration, and the checkpoint that it goes on from."""

    before: RunConfig  # of the other run
    config: RunConfig
    source: Place
    manifest: Manifest  # the other run's

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.manifest.files)

    @property
    def origin(self) -> Origin:
        manifest = self.manifest
        return Origin(
            run=self.before.run.name,
            checkpoint=self.source.name_of(manifest.step),
            step=manifest.step,
            weights=manifest.weights,
            optimizer=True,
        )


def plan_branch(named: str, name: str, overrides: Sequence[str] = ()) -> Branch:
    """The branch ``name`` beside the run of ``named``, RUN@STEP. Only reads.

    Raises ``ConfigError`` with all that stands against it, and ``CheckpointError`` for a checkpoint
    that no run goes on from.
    """
    found = find_checkpoint(named, beside=RUNS)
    if found.is_alone:
        raise ConfigError(
            f"{named}: a branch needs the run's own folder, which says what was read. Name it as "
            "RUN@STEP; a new run may begin with such a checkpoint: run.init_from."
        )
    folder, step = found.folder, found.step
    refuse_sweep(folder)
    before = load_run_config(folder)
    if imported := describe_import(folder):
        raise ConfigError(
            f"{folder} is an import of {imported}, which has read no data here. Begin a run with "
            f"it: run.init_from: {folder}."
        )
    if made := refuse_training(folder):
        raise ConfigError(made)
    if missing := find_missing_checkpoint(named, folder, step):
        raise ConfigError(missing)
    steps = [commit.step for commit in read_commits(folder)]
    step = steps[-1] if step is None else step
    config = _configure(before, name, overrides)
    if problems := [*_find_problems(before, config, step)]:
        raise ConfigError(problems)
    source = open_place(before, folder.absolute())  # as it is called everywhere
    manifest = load_manifest(source, step)
    undone = read_history(folder).undone(manifest)
    if undone or not manifest.is_finite:
        why = undone or "holds weights that are not finite"
        raise CheckpointError(f"{source.name_of(step)} {why}. There are: {steps}.")
    return Branch(before=before, config=config, source=source, manifest=manifest)


def _configure(before: RunConfig, name: str, overrides: Sequence[str]) -> RunConfig:
    given = {override.partition("=")[0] for override in overrides}
    if "run.name" in given:
        raise ConfigError(f"--set run.name: the branch is called {name}; leave it out.")
    validate_tree(RunSection, {"name": name}, name=f"NAME {name!r}")
    own = {"run.name": name, "run.folder": str(before.folder.absolute().parent / name)}
    # Quoted: a name such as 007, or a folder with a # in its path, is another value in YAML.
    quoted = [f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in own.items() if k not in given]
    path = before.folder / CONFIG_FILE
    return parse_config(read_text(path), [*quoted, *overrides], name=str(path))


def _find_problems(before: RunConfig, config: RunConfig, step: int) -> Iterator[str]:
    if config.folder.exists():
        yield f"{config.folder} is there already. Give the branch another name, or remove it."
    if config.train.steps <= step:
        yield (
            f"train.steps = {config.train.steps:,}, and the branch begins with {step:,} steps "
            f"done: nothing is left. Give more: --set train.steps={2 * step}, say."
        )
    for key, (there, here) in find_fixed_changes(before, config).items():
        if key != "run.name":
            yield (
                f"{key} = {here!r}, but the run has {there!r}, and a branch goes on in the same "
                "samples with the same model. Leave it out, or begin a new run: run.init_from."
            )
    place = config.checkpoint.folder
    if place and place == before.checkpoint.folder:
        yield (
            f"checkpoint.folder = {place} holds the checkpoints of the run {before.run.name!r}, "
            "and each run has a place of its own. Name another: --set checkpoint.folder=…; empty "
            "for the branch's own folder."
        )


def make_branch(branch: Branch, advance: Callable[[float], None] = lambda size: None) -> bool:
    """Make the folder, which appears whole or not at all; whether its files are links.

    ``advance`` is called with the bytes of each file once it is there. Raises ``CheckpointError``
    with everything that is wrong with the checkpoint's files.
    """
    before, config, manifest = branch.before, branch.config, branch.manifest
    step, origin = manifest.step, before.folder
    with writing("the run folder", config.folder.parent):
        with _open_outside(branch) as outside, new_folder(config.folder) as work:
            target = outside or LocalPlace(work / CHECKPOINTS)
            write_bytes(work / CONFIG_FILE, dump_config(with_absolute_places(config)).encode())
            is_linked = _bring_checkpoint(branch, target, work, advance)
            for name, last in ((LEDGER_FILE, step - 1), (METRICS_FILE, step)):
                if (origin / name).is_file():
                    shutil.copyfile(origin / name, work / name)
                    renew_rows(work / name, last).close()
            for row in read_history(origin).rewinds[: manifest.rewinds]:
                append_durable_row(work / REWINDS_FILE, asdict(row))
            copy_record(origin, work, StreamState.from_json(manifest.state.get("stream")))
            if (origin / KEPT_FOLDER).is_dir():
                shutil.copytree(origin / KEPT_FOLDER, work / KEPT_FOLDER)
            for commit in find_due(config.export, work):
                record_export(work, commit, "left out")  # it is the other run's to export
            where = branch.source.name_of(step)
            initial = read_state(manifest, INITIAL, ORIGINS, where=where)
            save_origins(work, {INITIAL: initial, BRANCH: branch.origin})
    if isinstance(config.objective, DistillConfig):  # that run may not remove it meanwhile
        teacher, _ = split_checkpoint(config.objective.teacher)
        learned = read_state(manifest, "teacher", ORIGINS, where=where)
        if learned is not None:
            record_student(teacher, step=learned.step, student=config.folder)
    return is_linked


def _bring_checkpoint(
    branch: Branch, target: Place, work: Path, advance: Callable[[float], None]
) -> bool:
    """Link or copy the files, and commit them as the new run's; whether all are links."""
    config, manifest, source = branch.config, branch.manifest, branch.source
    step, problems = manifest.step, list[str]()
    target.begin(step)
    # Linked at once and looked at then: the other run may remove its own meanwhile.
    linked = {entry.name for entry in manifest.files if _link(source, target, step, entry)}
    for entry in manifest.files:
        is_linked = entry.name in linked
        try:
            if damage := (target if is_linked else source).describe_damage(step, entry):
                damage = damage.replace(target.name_of(step), source.name_of(step))
                problems.append(f"{damage}.")
            elif not is_linked:
                with source.opened(step, entry) as path:
                    target.write_file(step, entry.name, _pieces(path))
        except FileNotFoundError as error:  # removed just now
            problems.append(f"{error.filename} is missing: the run keeps that checkpoint no more.")
        advance(entry.bytes)
    if problems:
        raise CheckpointError(problems)
    writer = {"attempt", "attempt_time", "tier"}  # of a start that is another run's
    own = replace(
        manifest,
        identity={**manifest.identity, "run": config.run.name},
        state={**manifest.state, BRANCH: branch.origin.to_json()},
        written_by={k: v for k, v in manifest.written_by.items() if k not in writer},
    )
    target.commit(own.step, own.to_bytes())
    append_commit(work, describe_commit(work, target, own, at=time.time()))
    return len(linked) == len(manifest.files)


@contextmanager
def _open_outside(branch: Branch) -> Iterator[Place | None]:
    """The place of the branch's checkpoints, if it is none in its folder; on any error the
    checkpoint that was being brought there goes.
    """
    config = branch.config
    if not config.checkpoint.folder:
        yield None
        return
    target = open_place(config)
    if there := [*target.list_steps(), *target.list_steps(committed=False)]:
        raise ConfigError(
            f"checkpoint.folder = {target.location} holds checkpoints already (of step "
            f"{there[0]}). Name an empty place; what a killed `runs branch` has left, remove."
        )
    target.claim(f"{config.run.name} in {config.folder.absolute()}")
    try:
        yield target
    except BaseException:
        target.delete(branch.manifest.step)
        raise


def _link(source: Place, target: Place, step: int, entry: FileEntry) -> bool:
    """Whether the file has a second name now; not on another file system, or one without links."""
    if not (isinstance(source, LocalPlace) and isinstance(target, LocalPlace)):
        return False
    with suppress(OSError):
        name = entry.name
        os.link(step_folder(source.root, step) / name, step_folder(target.root, step) / name)
        return True
    return False


def _pieces(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield memoryview(piece)
