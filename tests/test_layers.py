"""Imports flow one way, vendors stay where they belong, files and functions stay small."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lmscale
from lmscale.layers import LAYERS, SHARED, TORCH_FREE, VENDORS

ROOT = Path(lmscale.__file__).parents[1]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
LAUNCHER_MAY_IMPORT = {"yaml", "jinja2", "launcher", *sys.stdlib_module_names}
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


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_folder_imports_only_itself_the_shared_ones_and_those_to_its_left(path):
    own = folder_of(module_of(path))
    if own is None or own == "__main__" or path.is_relative_to(ROOT / "launcher"):
        return
    if own in SHARED:
        allowed = set(SHARED[: SHARED.index(own) + 1])
    else:
        assert own in LAYERS, f"{own}/ has no place in lmscale/layers.py"
        allowed = {*SHARED, *LAYERS[: LAYERS.index(own) + 1]}
    for module in imports_of(path):
        if module.split(".")[0] == "launcher":
            assert own == "cli", f"{path} imports {module}: only the command line starts ranks"
        folder = folder_of(module)
        assert folder is None or folder in allowed, f"{path} imports {module}"


def test_every_folder_of_lmscale_has_its_place_in_the_order():
    folders = {path.parent.name for path in (ROOT / "lmscale").glob("*/__init__.py")}
    assert folders - {"assets"} <= {*LAYERS, *SHARED}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_vendors_library_enters_only_where_it_is_allowed(path):
    where = path.relative_to(ROOT).as_posix().removeprefix("lmscale/")
    for module in imports_of(path):
        for vendor, places in VENDORS.items():
            if module == vendor or module.startswith(f"{vendor}."):
                assert where.startswith(places), f"{path} imports {module}; allowed in {places}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.is_relative_to(ROOT / "launcher")], ids=module_of
)
def test_the_launcher_imports_little(path):
    for module in imports_of(path):
        is_ours = module.startswith(("lmscale.config", "lmscale.errors"))
        assert is_ours or module.split(".")[0] in LAUNCHER_MAY_IMPORT, f"{path} imports {module}"


def torch_free_modules() -> Iterator[str]:
    for module in sorted(MODULES):
        if folder_of(module) in TORCH_FREE or module.split(".")[0] == "launcher":
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
    """Imports for type checking only are left out: they exist for no interpreter."""
    graph = {module_of(path): runtime_imports_of(path) & MODULES for path in FILES}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module not in done:
            for imported in sorted(graph[module] - {module}):
                visit(imported, (*way, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def runtime_imports_of(path: Path) -> frozenset[str]:
    type_only: set[str] = set()
    tree = parse(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and inner.module:
                    type_only.add(inner.module)
    return imports_of(path) - type_only


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_stay_small(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_FILE_LINES, f"{path} has {num_lines} lines: what is its second thing?"
    for node in ast.walk(parse(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = lines_without_docstring(node)
            assert length <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {length} lines"


def lines_without_docstring(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length
