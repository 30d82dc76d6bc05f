"""Task files in folders: which tasks there are, and what is wrong with them or with their data.

A task is a YAML file as lm-evaluation-harness reads it. What is read here of a task whose data are
local JSON lines is enough to say at once what would fail later, in the middle of a training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta
import yaml

from lmscale.config.training import is_task_place
from lmscale.errors import ConfigError, DataError, LmscaleError
from lmscale.files.reading import open_plain, reading
from lmscale.files.strangers import parse_json

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
        listed = self.settings.get("task") if "group" in self.settings else None
        names = (each.get("task") if isinstance(each, dict) else each for each in listed or ())
        return tuple(name for name in names if isinstance(name, str))

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
    included = settings.pop("include", ())
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
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
    if kind not in _NEEDS:
        raise ConfigError(f"{where}: output_type = {kind!r}; known are {', '.join(_NEEDS)}.")
    problems = [
        f"{where} has no `{field}`, which output_type: {kind} needs."
        for field in _NEEDS[kind]
        if settings.get(field) is None and "use_prompt" not in settings
    ]
    if not (settings.get("test_split") or settings.get("validation_split")):
        problems.append(f"{where} has neither `test_split` nor `validation_split`.")
    if not (settings.get("dataset_kwargs") or {}).get("data_files"):
        problems.append(f"{where} has no `dataset_kwargs: {{data_files: …}}` with its files.")
    if problems:
        raise ConfigError(problems)


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
                rows += _read_lines(_find_file(task, str(place)), needed)
            except LmscaleError as error:
                problems += error.problems
        if not rows and not problems:
            problems.append(f"{task.path}: the split {split!r} of {task.name!r} holds no row.")
        splits[split] = rows
    if problems:
        raise DataError(problems)
    return splits


def _find_file(task: TaskFile, place: str) -> Path:
    """As it stands, or from the task file's folder on, or, of a folder of tasks that was moved,
    under the same name there.
    """
    here = task.path.parent
    tried = [here / place, Path(place), here / "data" / Path(place).name, here / Path(place).name]
    for path in tried:
        if path.is_file():
            return path
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
        try:
            names = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(text))
        except jinja2.TemplateError as error:
            raise ConfigError(f"{field}: {text[:80]!r} is no template: {error}.") from None
        yield from ((name, field) for name in sorted(names))


def expand(names: Iterable[str], known: Mapping[str, TaskFile]) -> tuple[list[TaskFile], list[str]]:
    """The local tasks among ``names``, groups by their tasks, and the names that are of no file;
    each once.
    """
    found: dict[str, TaskFile] = {}
    others: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        task = known.get(name)
        if task is None:
            others[name] = None
        elif task.members:
            waiting = [*(each for each in task.members if each != name), *waiting]
        else:
            found[name] = task
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
    for place in [include_path] if include_path else []:
        try:
            known |= find_task_files(place)
        except LmscaleError as error:
            problems += error.problems
    for word in asked:
        if not is_task_place(word):
            names.append(word)
            continue
        try:
            files = find_task_files(word)
            known |= files
            tasks = [task.name for task in files.values() if not task.members]
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
