"""The examples do what they say: Python's documentation as text, a run's loss as a picture."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest
from forked_processes import ROOT


def load_example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documentation_is_large_and_stays_as_it_is_when_written_again(tmp_path):
    pydocs = load_example("pydocs")
    parts = pydocs.gather_documentation()
    pydocs.write_parts(tmp_path, parts)
    paths = [tmp_path / f"{part}.jsonl" for part in ("topics", "docstrings", "comments", "modules")]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    written = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    assert sum(len(content) for content, _ in written[:3]) > 2_000_000  # English
    texts = [json.loads(line)["text"] for content, _ in written for line in content.splitlines()]
    assert len(texts) == sum(map(len, parts.values()))
    assert min(map(len, texts)) >= 80
    assert any("class JSONDecoder" in text and "def raw_decode(self" in text for text in texts)
    pydocs.write_parts(tmp_path, parts)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == written


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw(run: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples/loss_curve.py"), str(run)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_loss_curve_shows_every_report_every_evaluation_and_every_later_start(tmp_path):
    reports = [{"step": step, "train/loss": 8.0 - step / 10} for step in range(10, 50, 10)]
    broken = {"step": 50, "train/loss": None}
    scored = {"step": 40, "evaluation/heldout/loss": 4.5}
    write_rows(tmp_path / "metrics.jsonl", [*reports, broken, scored])
    starts = [
        {"event": "start", "first_step": 0, "world_size": 2, "zero_stage": 1},
        {"event": "end"},
        {"event": "start", "first_step": 20, "world_size": 1, "zero_stage": 2},
    ]
    write_rows(tmp_path / "attempts.jsonl", starts)
    drawn = draw(tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stdout.strip() == str(tmp_path / "loss.svg")
    picture = ElementTree.parse(tmp_path / "loss.svg").getroot()
    kind = "{http://www.w3.org/2000/svg}"
    (curve,) = picture.iter(f"{kind}polyline")
    assert len(curve.attrib["points"].split()) == 4
    assert len(list(picture.iter(f"{kind}circle"))) == 1
    texts = [text.text for text in picture.iter(f"{kind}text")]
    assert [text for text in texts if text and "resumed" in text] == ["resumed: 1 rank, ZeRO 2"]
    assert "4.50" in texts


def test_a_folder_that_is_no_runs_is_told_and_a_line_that_is_being_written_left_out(tmp_path):
    drawn = draw(tmp_path)
    assert drawn.returncode == 2
    assert f"{tmp_path} cannot be read as a run's folder: " in drawn.stderr
    write_rows(tmp_path / "metrics.jsonl", [{"step": 1, "train/loss": 8.0}])
    write_rows(tmp_path / "attempts.jsonl", [])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "train/lo')
    assert draw(tmp_path).returncode == 0


def test_a_run_without_a_loss_yet_has_no_picture(tmp_path):
    for name in ("metrics.jsonl", "attempts.jsonl"):
        write_rows(tmp_path / name, [])
    drawn = draw(tmp_path)
    assert drawn.returncode == 1
    assert drawn.stderr.endswith("metrics.jsonl holds no train/loss yet.\n")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 300, [0, 50, 100, 150, 200, 250, 300]),
        (3, 9, [3, 4, 5, 6, 7, 8, 9]),
        (4, 5, [4, 4.2, 4.4, 4.6, 4.8, 5]),
    ],
)
def test_the_axes_are_marked_at_round_numbers(low, high, expected):
    assert load_example("loss_curve").ticks(low, high) == expected
