"""Whatever one of a run's files says: it is told, no other run suffers, and training begins."""

import copy
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_runs import FILES, NOW, OBJECTS, ROWS, TEXTS, build_run, write

from lmscale.checkpoint.commit_log import mend_log, record_removals
from lmscale.checkpoint.find import PassedOver
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.retention import read_figures
from lmscale.cli.main import main
from lmscale.cli.runs.logs import LogFiles
from lmscale.cli.runs.look import RunLook, look_at, read_page
from lmscale.cli.runs.view import print_runs, render_page, to_json
from lmscale.config import load_config
from lmscale.errors import DataError, LmscaleError
from lmscale.files.jsonl import append_row
from lmscale.files.run_files import read_cancelled
from lmscale.history.history import attempt_of, read_rewinds, read_starts, record_resume
from lmscale.ranks.attempt import Attempt
from lmscale.runs import continuation
from lmscale.runs.attempts import AttemptLog
from lmscale.runs.lease import judge_claim, read_lease
from lmscale.runs.run_folder import read_status
from lmscale.runs.trackers import find_cut
from lmscale.stream.ledger import load_record, newest_commit, open_ledger, read_ledger
from lmscale.watch.heartbeat import read_heartbeats

ODD = (None, True, -1, 2**63 - 1, 2**64, 10**30, -0.5, 1e308, float("nan"), float("inf"), "", "12")
ODD += ("\x1b[2J\x07", "\ud800", [], [[1]], {}, {"a": 1}, ["x"], [{}])
LINES = (b"{}", b"[]", b"null", b'"x"', b"", b"\0\0\0\0", b'{"step": 1', b"[" * 100_000)
LINES += (b'{"event": "start"}', b'{"event": "\xe9"}', '{"step": 1}'.encode("utf-16"))
LINES += (b'{"step": ' + b"9" * 5000 + b"}", b"{" + b'"a":{' * 500 + b"}" * 501, b"\xef\xbb\xbf{}")


def read_side_of_a_start(folder):
    """What a start reads of its folder, and writes for the next one."""
    config = load_config(folder / "config.yaml", [f"run.folder={folder}"])
    continuation.check_folder(folder, config)
    continuation.find_continuation_problems(config)
    judge_claim(read_lease(folder), Attempt(job="4", restart=1))
    mend_log(folder, LocalPlace(folder / "checkpoints"))
    read_starts(folder)
    attempt_of(folder)
    read_figures(folder, "train/loss")
    read_heartbeats(folder)
    with AttemptLog(folder, first_step=10, world_size=1, zero_stage=1) as attempt:
        attempt.goodput()
    stream = SimpleNamespace(
        bos_id=1,
        datasets={"a": SimpleNamespace(location="/shards/a")},
        state_at=lambda n: SimpleNamespace(to_json=lambda: {"version": 1}),
    )
    open_ledger(folder, next_step=12, stream=stream, n=96).close()


def odd_contents(name):
    """Contents of a file of that name, of which nearly all is as it was."""
    rows = ROWS.get(name) or [OBJECTS[name]]

    def change(number, key, value):
        changed = copy.deepcopy(rows)
        row = changed[number % len(rows)]
        key = sorted(row)[key % len(row)]
        row.pop(key)
        if value is not Ellipsis:
            row[key] = value
        return "".join(json.dumps(one) + "\n" for one in changed).encode()

    def insert(number, line):
        lines = [json.dumps(one).encode() for one in rows]
        lines[number % (len(rows) + 1) : number % (len(rows) + 1)] = [line]
        return b"\n".join(lines) + b"\n"

    whole = "".join(json.dumps(one) + "\n" for one in rows).encode()
    number = st.integers(0, 99)
    return st.one_of(
        st.builds(change, number, number, st.sampled_from((*ODD, ...))),
        st.builds(insert, number, st.sampled_from(LINES)),
        st.builds(lambda cut: whole[: cut * len(whole) // 100], number),
        st.builds(lambda at, by: bytes([*whole[:at], whole[at] ^ (1 << by), *whole[at + 1 :]]),
                  st.integers(0, len(whole) - 1), st.integers(0, 7)),
        st.sampled_from([b"", b"\xff" * 99, whole.decode().encode("utf-16"), b"\n" * 9]),
    )  # fmt: skip


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder with the run ``first``, which a test damages, and ``second``."""
    monkeypatch.setenv("PATH", "")  # no Slurm is asked
    monkeypatch.setenv("LMSCALE_REQUIRE_SLURM", "")
    for name in ("first", "second"):
        build_run(tmp_path / name)
    (tmp_path / "second" / "config.yaml").write_text("run: {name: second}\n")
    return tmp_path


def look_everywhere(run):
    """What `runs list`, `status`, `logs` and `audit` read and render, with and without --json."""
    other = run.parent / "second"
    looks = look_at([run, other]).runs
    assert isinstance(looks[other], RunLook) and not looks[other].status.problems
    print_runs(looks)
    json.dumps([to_json(*item) for item in looks.items()])
    with suppress(LmscaleError):  # each tells what it cannot read
        page = read_page(run)
        render_page(page)
        json.dumps(page.to_json())
    with suppress(LmscaleError):
        list(LogFiles(run / "logs", "rank-*.log").read(with_torn=True))
    with suppress(LmscaleError):
        read_ledger(run)
    with suppress(LmscaleError):
        load_record(run)
    with suppress(LmscaleError):
        newest_commit(run)


@pytest.mark.parametrize("name", FILES)
def test_no_odd_content_of_a_file_hides_a_run(name, runs):
    @settings(max_examples=8, deadline=None, database=None, derandomize=True)
    @given(content=odd_contents(name))
    def look(content):
        write(runs / "first" / name, content)
        look_everywhere(runs / "first")

    look()


@settings(max_examples=25, deadline=None, database=None, derandomize=True)
@given(data=st.data())
def test_no_odd_content_of_a_file_stops_a_start(data):
    name = data.draw(st.sampled_from(FILES))
    with TemporaryDirectory() as place:
        run = build_run(Path(place) / "first")
        write(run / name, data.draw(odd_contents(name)))
        with suppress(DataError):  # the order of the samples follows from it alone
            read_rewinds(run)
        read_side_of_a_start(run)
        assert read_status(run).attempts[-1]["event"] == "end", "the start has told of itself"


def test_a_row_without_its_keys_is_told_as_that_runs_problem(runs, capsys):
    for name in ROWS:
        append_row(runs / "first" / name, {"odd": 1})
    assert main(["runs", "list", str(runs)]) == 0
    shown = capsys.readouterr()
    assert "second:" not in shown.err
    assert main(["runs", "list", str(runs), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert second["problems"] == []
    assert main(["runs", "status", str(runs / "first")]) == 0
    page = capsys.readouterr().out
    for name in ROWS:
        assert f"warning: first: {name}, " in shown.err
        assert f"damaged          {name}, " in page
        assert any(problem.startswith(f"{name}, ") for problem in first["problems"])


@pytest.mark.parametrize("name", [*FILES, *TEXTS])
@pytest.mark.parametrize("put", ["folder", "pipe", "loop", "nothing"])
def test_what_is_no_file_in_a_files_place_hides_no_run(name, put, runs):
    path = runs / "first" / name
    path.unlink()
    if put == "folder":
        path.mkdir()
    elif put == "pipe":
        os.mkfifo(path)
    elif put == "loop":
        path.symlink_to(path.name)
    look_everywhere(runs / "first")


@pytest.mark.parametrize("content", [b'{"odd": 1}\n', None], ids=["odd", "folder"])
def test_a_cancel_tells_that_it_may_not_know_all_jobs(content, runs, capsys):
    path = runs / "first" / "slurm" / "submissions.jsonl"
    path.unlink()
    path.mkdir() if content is None else write(path, content)
    assert main(["runs", "cancel", str(runs / "first")]) == 2
    told = capsys.readouterr()
    assert f"{runs / 'first'}: slurm/submissions.jsonl" in told.err and "`scancel`" in told.err
    assert "nothing runs or waits" in told.out, "as far as it is known"


def test_a_sweep_that_cannot_be_read_hides_no_run(runs, capsys):
    write(runs / "sweep" / "sweep.json", b'{"runs": [{"run": "../../first"}]}')
    assert main(["runs", "list", str(runs)]) == 0
    shown = capsys.readouterr()
    assert "first" in shown.out and "sweep.json cannot be read as a sweep" in shown.err
    write(runs / "alone" / "sweep" / "sweep.json", b"{")
    assert main(["runs", "list", str(runs / "alone")]) == 0
    assert "sweep.json cannot be read as a sweep" in capsys.readouterr().err


def test_no_sweep_hides_another_one_and_its_keys_are_shown_as_they_stand(runs, capsys):
    member = {"index": 0, "run": "first", "values": {}}
    sweep = {"name": "s", "keys": ["[/x]", "\x1b[2J\n"], "runs": [member]}
    write(runs / "sweep.json", json.dumps(sweep).encode())
    write(runs / "other" / "sweep.json", b"{")
    write(runs / "first" / "watch.jsonl", b"{}\n")
    assert main(["runs", "list", str(runs), "--sweep", "s"]) == 0
    shown = capsys.readouterr()
    assert "[/x]" in shown.out and r"\x1b[2J" in shown.out and "\x1b" not in shown.out
    assert "warning: first: watch.jsonl" in shown.err
    assert main(["runs", "list", str(runs), "--sweep", "gone"]) == 2
    assert "other/sweep.json cannot be read as a sweep" in capsys.readouterr().err


def test_a_log_that_cannot_be_read_is_told_also_where_its_end_is_asked_for(
    runs, capsys, monkeypatch
):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("lmscale.cli.runs.logs.open", refuse, raising=False)
    assert main(["runs", "logs", str(runs / "first"), "-n", "3"]) == 2
    assert "rank-00000.log cannot be read" in capsys.readouterr().err


def test_a_start_whose_row_was_damaged_still_undoes_what_it_went_back_behind(tmp_path, caplog):
    for first_step in (0, 6, 8):
        with AttemptLog(tmp_path, first_step=first_step, world_size=1, zero_stage=1):
            pass
    path = tmp_path / "attempts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    second = next(n for n, line in enumerate(lines) if '"attempt": 2' in line)
    lines[second] = lines[second].replace("first_step", "first_stfp").replace('"crc"', '"crd"')
    path.write_text("".join(lines))
    with caplog.at_level(logging.WARNING):
        starts = read_starts(tmp_path)
    assert [(one.attempt, one.first_step) for one in starts] == [(1, 0), (2, 6), (3, 8)]
    assert f"attempts.jsonl, line {second + 1}: start.first_step is missing" in caplog.text
    with AttemptLog(tmp_path, first_step=9, world_size=1, zero_stage=1):
        pass
    assert attempt_of(tmp_path)["attempt"] == 4
    assert path.read_text().count("first_stfp") == 1, "what a person may mend is kept"


def test_a_file_of_figures_that_ends_early_is_told(runs):
    run = runs / "first"
    assert read_status(run).problems == ()
    rows = [{"step": step, "time": NOW, "train/loss": 1.0} for step in range(10, 1010, 10)]
    assert list(find_cut(rows, 1019)) == []
    (problem,) = find_cut(rows[:50], 1019)
    assert problem == "metrics.jsonl ends at step 500, but 1,019 steps are done: it was cut."
    assert list(find_cut(rows[40:50], 1019)) == [problem], "of a long file the end alone is read"
    assert list(find_cut([], 15, every=10)) == []


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.name)])
def test_what_stands_in_the_place_of_a_record_for_people_stops_no_start(put, tmp_path, caplog):
    for name in ("resumes.jsonl", "commits.jsonl"):
        put(tmp_path / name)
    record_resume(tmp_path, None, [PassedOver(step=1, name="one", why=("damaged",))])
    record_removals(tmp_path, [1])
    assert "resumes.jsonl" in caplog.text and "commits.jsonl" in caplog.text


def test_every_cancelled_job_is_known_however_many_there_are(tmp_path):
    jobs = [f"1234567_{task}" for task in range(10_000)]
    write(tmp_path / "cancel", "\n".join(jobs).encode())
    assert read_cancelled(tmp_path) == set(jobs)
