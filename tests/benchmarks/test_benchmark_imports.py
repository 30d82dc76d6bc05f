"""What the benchmarks take from each other and from the tests is there: no one runs all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "benchmarks", ROOT / "tests", ROOT / "tests" / "slurm"]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def names_at_the_top(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        else:
            names |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    return names


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_benchmark_imports_from_a_neighbour_is_there(script):
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level:
            continue
        paths = [folder / f"{node.module}.py" for folder in FOLDERS]
        neighbour = next((path for path in paths if path.exists()), None)
        if neighbour is not None:
            missing = {alias.name for alias in node.names} - names_at_the_top(neighbour)
            assert not missing, f"{neighbour.relative_to(ROOT)} has no {', '.join(missing)}"
