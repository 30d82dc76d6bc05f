"""Text of others (a run's files, folder names, logs) never steers the terminal that shows it."""

import ast
import io
import os
import re
import sys
from pathlib import Path

import pytest
from whole_runs import OBJECTS, ROWS, build_run, write

import lmscale
from lmscale.cli.main import main

ROOT = Path(lmscale.__file__).parents[1]
STEERS = "\x1b]0;x\x07\x9b2J\r\x08\u202e"
CONTROL = re.compile(r"[^\n\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\U0010ffff]")
# Of which lmscale knows every value, so that another one is no row.
WORDS = ("event", "kind", "job", "jobs", "action", "submission", "state", "ended")
OTHER_PRINTERS = {
    "lmscale/files/printing.py": "the one place",
    "lmscale/files/progress.py": "a bar, of its own words and a unit",
    "lmscale/ranks/exits.py": "past Python's buffers, in a process that ends",
    "lmscale/cli/options.py": "errors and warnings, in colour: through `printable`",
    "lmscale/cli/runs/view.py": "a table: each cell through `printable`",
    "lmscale/cli/doctor.py": "in colour: through `printable`",
    "lmscale/cli/demo.py": "its own words",
    "launcher/task.py": "before anything of lmscale is loaded",
    "launcher/preflight/node_probe.py": "JSON, for the preflight",
    "lmscale/exchange/llama_cpp_child.py": "JSON, for the process that has asked",
}


def steering(value):
    """The value with something that steers in every text in it, and in every key of a figure."""
    if isinstance(value, str):
        return f"{value}{STEERS}"
    if isinstance(value, list):
        return [steering(one) for one in value]
    return value


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no Slurm is asked
    run = build_run(tmp_path / "runs" / f"first{STEERS}")
    for name, rows in (*ROWS.items(), *((name, [one]) for name, one in OBJECTS.items())):
        changed = [
            {key: one if key in WORDS else steering(one) for key, one in row.items()}
            for row in rows
        ]
        for row in changed if name == "metrics.jsonl" else ():
            row[f"train/{STEERS}"] = 1.0
        for row in changed if name == "resumes.jsonl" else ():
            row["passed_over"] = [{"step": 5, "checkpoint": STEERS, "why": [STEERS]}]
        write(run / name, "".join(ast_json(row) for row in changed).encode())
    write(run / "logs/rank-00000.log", f"2026-11-22T01:19:00.1 INFO x: {STEERS}\n".encode())
    write(run / "slurm/job-4.out", f"error: {STEERS}\n".encode())
    write(run / "slurm/faulty.jsonl", b"")
    return run


def ast_json(row):
    import json

    return json.dumps(row, ensure_ascii=False) + "\n"


@pytest.mark.parametrize(
    "words",
    [
        ["list", ".."],
        ["list", "..", "--json"],
        ["status", "."],
        ["status", ".", "--json"],
        ["logs", "."],
        ["logs", ".", "--job"],
        ["audit", "."],
        ["cancel", "."],
        ["status", STEERS],
    ],
    ids=lambda words: " ".join(words).replace(STEERS, "STEERS"),
)
def test_no_text_of_a_runs_files_reaches_the_terminal_as_it_stands(run, words, capsys):
    places = {".": run, "..": run.parent}
    assert main(["runs", *(str(places.get(word, word)) for word in words)]) in (0, 2)
    shown = capsys.readouterr()
    assert shown.out + shown.err
    for text in (shown.out, shown.err):
        found = CONTROL.search(text)
        assert not found, text[max(0, found.start() - 80) : found.end() + 20]


def test_a_text_of_two_lines_makes_no_line_of_its_own_in_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    run = build_run(tmp_path / "first")
    row = ROWS["watch.jsonl"][-1] | {"text": "rank 0\nstate            finished"}
    write(run / "watch.jsonl", ast_json(row).encode())
    assert main(["runs", "status", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("state ") for line in lines) == 1


def test_one_place_prints():
    """Whoever prints by himself is listed here, with what makes that harmless."""
    found = set()
    for package in ("lmscale", "launcher"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if re.search(r"^print$|\becho$|\bsecho$|std(out|err)(__)?\.write|\.print$", called):
                    found.add(str(path.relative_to(ROOT)))
    assert found <= set(OTHER_PRINTERS)


HELP = [[], ["corpus"], ["runs"], ["runs", "status"], ["launch", "slurm"], ["checkpoint"]]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("words", [[*words, "--help"] for words in HELP] + [
    ["runs", "list", "RUNS"], ["runs", "status", "RUN"], ["runs", "status", "RUN", "--json"],
    ["config", "show", "CONFIG"], ["config", "schema"], ["runs", "status", "NOWHERE"],
], ids=" ".join)  # fmt: skip
def test_no_output_fails_on_a_terminals_encoding_or_a_files_name(
    words, encoding, tmp_path, monkeypatch
):
    monkeypatch.setenv("PATH", "")
    runs = tmp_path / os.fsdecode(b"caf\xe9 \xe2\x86\x92 \xff")
    run = build_run(runs / os.fsdecode(b"r\xff"))
    places = {"RUNS": runs, "RUN": run, "CONFIG": run / "config.yaml", "NOWHERE": run / "n\udcff"}
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, name, stream)
    assert main([str(places.get(word, word)) for word in words]) in (0, 2)
    sys.stdout.flush()
    sys.stderr.flush()
    assert sys.stdout.buffer.getvalue() + sys.stderr.buffer.getvalue()
