"""Imports flow one way, vendors stay where they belong, files and functions stay small."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmscale
from lmscale.layers import LAUNCHER_MAY_IMPORT, LAYERS, SHARED, TORCH_FREE, VENDORS

ROOT = Path(lmscale.__file__).parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
LIBRARIES_OF_THE_LAUNCHER = {"yaml", "jinja2", "launcher", *sys.stdlib_module_names}
NODE_PROBE = "node_probe"
FILES = sorted([*(ROOT / "lmscale").rglob("*.py"), *(ROOT / "launcher").rglob("*.py")])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = frozenset(map(module_of, FILES))


@functools.cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module a file imports, also inside functions and for type checking only."""
    found: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                # `from lmscale.cli import corpus` means the module, not a name in the package.
                found.add(name if name in MODULES else node.module)
    return frozenset(found)


def folder_of(module: str) -> str | None:
    """The part of lmscale a module belongs to: ``lmscale.stream.order`` → stream."""
    parts = module.split(".")
    return parts[1] if parts[0] == "lmscale" and len(parts) > 1 else None


def test_a_folder_imports_only_itself_the_shared_ones_and_those_to_its_left():
    wrong = []
    for path in FILES:
        own = folder_of(module_of(path))
        if own is None or own == "__main__" or path.is_relative_to(ROOT / "launcher"):
            continue
        if own in SHARED:
            allowed = set(SHARED[: SHARED.index(own) + 1])
        else:
            assert own in LAYERS, f"{own}/ has no place in lmscale/layers.py"
            allowed = {*SHARED, *LAYERS[: LAYERS.index(own) + 1]}
        for module in imports_of(path):
            starts_ranks = module.split(".")[0] == "launcher"
            folder = folder_of(module)
            if (starts_ranks and own != "cli") or (folder is not None and folder not in allowed):
                wrong.append(f"{path} imports {module}")
    assert wrong == []


def test_every_folder_of_lmscale_has_its_place_in_the_order():
    folders = {path.parent.name for path in (ROOT / "lmscale").glob("*/__init__.py")}
    assert folders - {"assets"} <= {*LAYERS, *SHARED}


def test_a_vendors_library_enters_only_where_it_is_allowed():
    wrong = []
    for path in FILES:
        where = path.relative_to(ROOT).as_posix().removeprefix("lmscale/")
        for module in imports_of(path):
            for vendor, places in VENDORS.items():
                is_vendor = module == vendor or module.startswith(f"{vendor}.")
                if is_vendor and not where.startswith(places):
                    wrong.append(f"{path} imports {module}; allowed in {places}")
    assert wrong == []


def test_the_launcher_imports_little():
    """But the probe of a node, a process of its own that nothing else imports."""
    wrong = []
    for path in FILES:
        if not path.is_relative_to(ROOT / "launcher") or path.stem == NODE_PROBE:
            continue
        for module in imports_of(path):
            is_ours = folder_of(module) in LAUNCHER_MAY_IMPORT
            if not is_ours and module.split(".")[0] not in LIBRARIES_OF_THE_LAUNCHER:
                wrong.append(f"{path} imports {module}")
    assert wrong == []


def torch_free_modules() -> Iterator[str]:
    for module in sorted(MODULES):
        is_launcher = module.split(".")[0] == "launcher" and not module.endswith(NODE_PROBE)
        if folder_of(module) in TORCH_FREE or is_launcher:
            yield module
    yield from ("lmscale", "lmscale.cli.main", "lmscale.cli.app")


def test_what_runs_on_login_nodes_loads_no_torch():
    modules = list(torch_free_modules())
    assert len(modules) > len(TORCH_FREE)
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    command = [sys.executable, "-c", script, *modules]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_imports_itself_over_others():
    """Imports for type checking count: a circle of types is a value and its planner in one file."""
    graph = {module_of(path): imports_of(path) & MODULES for path in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module not in done:
            for imported in sorted(graph[module] - {module}):
                visit(imported, (*way, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_only_the_engine_checkpoints_and_the_plan_know_what_deepspeed_is_like_inside():
    # In config it is the name of a field.
    assert (
        find_outside(("config", "engine", "checkpoint", "plan"), r"\bds_[a-z]+|\.deepspeed\b") == []
    )


def test_only_checkpoints_know_how_a_checkpoint_is_laid_out():
    layout = r"step-\S*manifest\.json|checkpoints/(\*|step-\*)|/ \"checkpoints\""
    assert find_outside(("checkpoint",), layout) == []


def find_outside(folders: tuple[str, ...], pattern: str) -> list[str]:
    """The lines of code and of batch scripts, outside these folders of lmscale, that match."""
    files = [path for path in FILES if folder_of(module_of(path)) not in folders]
    return [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (*files, *(ROOT / "slurm").glob("*.j2"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, line)
    ]


def test_files_and_functions_stay_small():
    too_long = []
    for path in FILES:
        num_lines = len(path.read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_FILE_LINES:
            too_long.append(f"{path} has {num_lines} lines: what is its second thing?")
        for node in ast.walk(parse(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = lines_without_docstring(node)
                if length > MAX_FUNCTION_LINES:
                    too_long.append(f"{path}: {node.name} has {length} lines")
    assert too_long == []


def lines_without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length
