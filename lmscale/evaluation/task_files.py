"""Task files in folders: which tasks there are, and what is wrong with them or with their data.

A task is a YAML file as lm-evaluation-harness reads it. What is read here of a task whose data are
local JSON lines is enough to say at once what would fail later, in the middle of a training.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import yaml

from lmscale.config.training import is_task_place
from lmscale.errors import ConfigError, DataError, LmscaleError
from lmscale.files.reading import open_plain, reading
from lmscale.files.strangers import parse_json

RECORD = "made.json"  # what a folder of `lmscale suite make` has beside its tasks
SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
_DATA = "Correct the file, or make the tasks again."
_NEEDS = {  # what is asked → the fields that say it
    "loglikelihood": ("doc_to_text", "doc_to_target"),
    "loglikelihood_rolling": ("doc_to_target",),
    "generate_until": ("doc_to_text", "doc_to_target"),
    "multiple_choice": ("doc_to_text", "doc_to_target", "doc_to_choice"),
}
_LOCAL = ("json", "csv", "parquet", "text", "arrow")  # of datasets' own readers of files


@dataclass(frozen=True, kw_only=True)
class TaskFile:
    """A task, or a group of tasks, of a folder."""

    name: str
    path: Path
    settings: Mapping[str, Any]  # with what it includes; a ``!function`` is its text

    @property
    def members(self) -> tuple[str, ...]:
        """Of a group, the names of its tasks; of a task none."""
        names = (each.get("task") if isinstance(each, dict) else each for each in self._listed)
        return tuple(name for name in names if isinstance(name, str))

    @property
    def member_problem(self) -> str | None:
        """What a group asks of its tasks beside their names, which is not to be dropped unseen."""
        odd = [
            each
            for each in self._listed
            if not (isinstance(each, str) or (isinstance(each, dict) and list(each) == ["task"]))
        ]
        if not odd:
            return None
        return (
            f"{self.path}: the group {self.name!r} has the member {odd[0]!r}, and only names are "
            "taken over. Give these settings to a task of a file of its own, which may include "
            "the other one (`include: FILE`), and name it here."
        )

    @property
    def _listed(self) -> Sequence[Any]:
        listed = self.settings.get("task") if "group" in self.settings else ()
        return listed if isinstance(listed, list) else ()

    @property
    def is_local(self) -> bool:
        """Whether its data are files of this machine."""
        if "group" in self.settings:
            return True  # as far as its tasks are
        place = str(self.settings.get("dataset_path", ""))
        return place in _LOCAL or Path(place).exists() or "custom_dataset" in self.settings

    @property
    def reads_json(self) -> bool:
        return self.settings.get("dataset_path") == "json" and "group" not in self.settings


class _Loader(yaml.SafeLoader):
    """Functions that a file names are lm-eval's to import."""


_Loader.add_constructor("!function", lambda loader, node: f"!function {node.value}")


def find_task_files(folder: str | Path) -> dict[str, TaskFile]:
    """The tasks and groups in a folder, or in a single file, by name.

    Files that others include, and those whose names begin with ``_``, need be no tasks. Raises
    ``ConfigError`` with every file that is none.
    """
    folder = Path(folder)
    if not folder.exists():
        raise ConfigError(f"{folder}: there is no such folder of tasks.")
    paths = sorted(folder.rglob("*.yaml")) if folder.is_dir() else [folder]
    problems: list[str] = []
    found: dict[str, TaskFile] = {}
    includes: set[Path] = set()
    parts: dict[Path, str] = {}
    for path in paths:
        try:
            settings = _read_settings(path, includes)
        except LmscaleError as error:
            problems += error.problems
            continue
        name = settings.get("group") or settings.get("task")
        if not isinstance(name, str):
            parts[path.resolve()] = f"{path}: has neither `task` nor `group`, so it has no name."
        elif name in found:
            problems.append(f"{path}: {name!r} is the name of {found[name].path} as well.")
        else:
            found[name] = TaskFile(name=name, path=path, settings=settings)
    problems += [
        problem
        for path, problem in parts.items()
        if path not in includes and not path.name.startswith("_")
    ]
    if problems:
        raise ConfigError(problems)
    return found


def _read_settings(path: Path, includes: set[Path], depth: int = 0) -> dict[str, Any]:
    with reading(path, "Correct the file."), open_plain(path) as file:
        try:
            settings = yaml.load(file.read(), Loader=_Loader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: is no mapping of a task's fields.")
    included = settings.pop("include", [])
    names = [included] if isinstance(included, str) else included
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{path}: include = {included!r} names no file, nor a list of files.")
    merged: dict[str, Any] = {}
    for name in names:
        place = (path.parent / name).resolve()
        includes.add(place)
        if depth > 10:
            raise ConfigError(f"{path}: includes itself.")
        merged |= _read_settings(place, includes, depth + 1)
    return merged | settings


def check_task(task: TaskFile) -> None:
    """Raise ``ConfigError`` for what a task of local JSON lines lacks."""
    settings, where = task.settings, f"{task.path}: the task {task.name!r}"
    kind = settings.get("output_type", "generate_until")
    if not (isinstance(kind, str) and kind in _NEEDS):
        raise ConfigError(f"{where}: output_type = {kind!r}; known are {', '.join(_NEEDS)}.")
    problems = [
        f"{where} has no `{field}`, which output_type: {kind} needs."
        for field in _NEEDS[kind]
        if settings.get(field) is None and "use_prompt" not in settings
    ]
    if not (settings.get("test_split") or settings.get("validation_split")):
        problems.append(f"{where} has neither `test_split` nor `validation_split`.")
    problems += [
        f"{where}: {key} = {settings[key]!r} is no name of a split."
        for key in SPLITS
        if not isinstance(settings.get(key) or "", str)
    ]
    more = settings.get("dataset_kwargs")
    files = more.get("data_files") if isinstance(more, dict) else None
    by_split = files if isinstance(files, dict) else {"train": files}
    if not files:
        problems.append(f"{where} has no `dataset_kwargs: {{data_files: …}}` with its files.")
    else:
        problems += [
            f"{where}: data_files of {split!r} = {places!r}: neither a file's name nor a list."
            for split, places in by_split.items()
            if not _are_names(places)
        ]
    if problems:
        raise ConfigError(problems)


def _are_names(places: Any) -> bool:
    listed = [places] if isinstance(places, str) else places
    return isinstance(listed, list) and bool(listed) and all(isinstance(p, str) for p in listed)


def read_rows(task: TaskFile) -> dict[str, list[dict[str, Any]]]:
    """Split → the rows of a task's JSON lines. Raises ``DataError`` for files that are missing or
    none, for a split without rows, and for rows without what the task's fields name.
    """
    files: Any = task.settings["dataset_kwargs"]["data_files"]
    by_split = files if isinstance(files, dict) else {"train": files}
    needed = dict(_named_keys(task.settings))
    splits: dict[str, list[dict[str, Any]]] = {}
    problems: list[str] = []
    for split in dict.fromkeys(task.settings[key] for key in SPLITS if task.settings.get(key)):
        places = by_split.get(split)
        if places is None:
            problems.append(
                f"{task.path}: the task {task.name!r} reads the split {split!r}, and data_files "
                f"has {', '.join(map(repr, by_split))}."
            )
            continue
        rows: list[dict[str, Any]] = []
        for place in [places] if isinstance(places, str) else places:
            try:
                for path in _find_files(task, place):
                    rows += _read_lines(path, needed)
            except LmscaleError as error:
                problems += error.problems
        if not rows and not problems:
            problems.append(f"{task.path}: the split {split!r} of {task.name!r} holds no row.")
        splits[split] = rows
    if problems:
        raise DataError(problems)
    return splits


def _find_files(task: TaskFile, place: str) -> list[Path]:
    """As it stands, or from the task file's folder on, or, of a folder of tasks that was moved,
    under the same name there. ``*`` may stand for many.
    """
    here = task.path.parent
    moved = [here / "data" / Path(place).name, here / Path(place).name]
    tried = [here / place, Path(place), *moved]
    if (here / RECORD).is_file():  # of a copy the place that is written there is the first one's
        tried = [*moved, *tried]
    for path in tried:
        if path.is_file():
            return [path]
        if found := [each for each in map(Path, sorted(glob.glob(str(path)))) if each.is_file()]:
            return found
    raise DataError(
        f"{task.path}: the data of {task.name!r}, {place}, are not there, nor beside the task's "
        f"file. {_DATA}"
    )


def _read_lines(path: Path, needed: Mapping[str, str]) -> list[dict[str, Any]]:
    rows = []
    with reading(path, _DATA), open_plain(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: is no JSON object. {_DATA}")
            for key, field in needed.items():
                if key not in row:
                    raise DataError(
                        f"{path}, line {number}: has no key {key!r}, which the task's {field} "
                        f"names. It has {', '.join(map(repr, row)) or 'none'}. {_DATA}"
                    )
            rows.append(row)
    return rows


def _named_keys(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The keys of a row that a task's fields name, each with one of these: a plain word, or the
    names in a template. What a function reads is not known.
    """
    if "process_docs" in settings:
        return  # it makes other rows of them
    for field in ("doc_to_text", "doc_to_choice", "doc_to_target"):
        text = settings.get(field)
        if not isinstance(text, str) or text.startswith("!function"):
            continue
        if text.isidentifier():
            yield text, field
            continue
        environment = jinja2.Environment()
        try:
            tree = environment.parse(text)
            names = jinja2.meta.find_undeclared_variables(tree)
        except jinja2.TemplateError as error:
            raise ConfigError(f"{field}: {text[:80]!r} is no template: {error}.") from None
        needed = names - environment.globals.keys() - _optional_names(tree)
        yield from ((name, field) for name in sorted(needed))


def _optional_names(tree: jinja2.nodes.Template) -> set[str]:
    """What a template asks for (``is defined``) or replaces (``default``) where it is missing."""
    asked = (
        each.node
        for each in tree.find_all((jinja2.nodes.Test, jinja2.nodes.Filter))
        if each.name in ("defined", "undefined", "default", "d")
    )
    return {node.name for node in asked if isinstance(node, jinja2.nodes.Name)}


def expand(names: Iterable[str], known: Mapping[str, TaskFile]) -> tuple[list[TaskFile], list[str]]:
    """The local tasks among ``names``, groups by their tasks, and the names that are of no file;
    each once. Raises ``ConfigError`` for groups that ask more of their tasks than their names say.
    """
    found: dict[str, TaskFile] = {}
    others: dict[str, None] = {}
    opened: dict[str, str | None] = {}  # groups, which may hold each other → what is wrong
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        task = known.get(name)
        if task is None:
            others[name] = None
        elif "group" not in task.settings:
            found[name] = task
        elif name not in opened:
            opened[name] = task.member_problem
            waiting = [*task.members, *waiting]
    if problems := [problem for problem in opened.values() if problem]:
        raise ConfigError(problems)
    return list(found.values()), list(others)


def name_tasks(
    asked: Sequence[str], include_path: str | Path | None
) -> tuple[list[str], dict[str, TaskFile]]:
    """The names of the tasks that are asked for, by name or by folder, and all local ones.

    Raises ``ConfigError`` with the problems of all folders.
    """
    problems: list[str] = []
    names: list[str] = []
    known: dict[str, TaskFile] = {}

    def add(place: str | Path) -> list[TaskFile]:
        files = find_task_files(place)
        twice = [
            f"{file.path}: {name!r} is the name of {known[name].path} as well. Score one folder at "
            "a time, or give one of the two another name."
            for name, file in files.items()
            if name in known and known[name].path.resolve() != file.path.resolve()
        ]
        if twice:
            raise ConfigError(twice)
        known.update(files)
        return list(files.values())

    for place in [include_path] if include_path else []:
        try:
            add(place)
        except LmscaleError as error:
            problems += error.problems
    for word in asked:
        if not is_task_place(word):
            names.append(word)
            continue
        try:
            tasks = [task.name for task in add(word) if "group" not in task.settings]
            names += tasks
            if not tasks:
                problems.append(f"{word}: the folder holds no task.")
        except LmscaleError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(names)), known


def render_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """As JSON lines."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
