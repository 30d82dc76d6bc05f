import os
import re
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.preflight.__main__ import main
from launcher.preflight.cordon import Entry, active, append, cordon, parse_line, render_line
from lmscale.errors import ClusterError

NOON = 1_795_262_400.0  # 2026-11-21T12:00:00Z


def entry(node="n2", *, hours=0.0, is_out=True, reason="GPU errors: GPU 3"):
    return Entry(
        time=NOON + hours * 3600, node=node, is_out=is_out, user="eve", job="812", reason=reason
    )


def test_a_node_is_out_for_as_long_as_the_profile_says(tmp_path):
    file = tmp_path / "cordon.tsv"
    append(file, entry())
    reason = "GPU errors: GPU 3 (job 812 of eve, 2026-11-21T12:00:00Z)"
    assert active(file, NOON + 3600, 24) == {"n2": reason}
    assert active(file, NOON + 24 * 3600, 24) == {}
    assert active(file, NOON + 3600, 0.5) == {}


def test_the_newest_line_of_a_node_counts(tmp_path):
    file = tmp_path / "cordon.tsv"
    for line in (
        entry(),
        entry("n3"),
        entry(hours=1, is_out=False),
        entry("n3", hours=2, reason="slow"),
    ):
        append(file, line)
    assert list(active(file, NOON + 3 * 3600, 24)) == ["n3"]
    assert active(file, NOON + 3 * 3600, 24)["n3"].startswith("slow")


def test_no_file_is_an_empty_one(tmp_path):
    assert active(tmp_path / "none.tsv", NOON, 24) == {}


def test_what_people_write_into_it_is_passed_over(tmp_path):
    file = tmp_path / "cordon.tsv"
    append(file, entry())
    with open(file, "ab") as stream:
        stream.write(
            b"# a comment\n\nn4 is bad, too\nyesterday\tn5\tout\teve\t1\tslow\n\xff\xfe\t\n"
        )
    append(file, entry("n6"))
    assert list(active(file, NOON, 24)) == ["n2", "n6"]


def test_the_file_reads_without_a_manual(tmp_path):
    file = tmp_path / "cordon.tsv"
    append(file, entry())
    assert file.read_text() == (
        "# Nodes that lmscale leaves out; a node's newest line counts.\n"
        "# time\tnode\tout or in\tuser\tjob\treason\n"
        "2026-11-21T12:00:00Z\tn2\tout\teve\t812\tGPU errors: GPU 3\n"
    )


@given(
    node=st.text(st.characters(codec="utf-8"), min_size=1),
    reason=st.text(st.characters(codec="utf-8")),
    is_out=st.booleans(),
    when=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_reason_holds_it_is_one_line(node, reason, is_out, when):
    line = render_line(
        Entry(time=when, node=node, is_out=is_out, user="eve", job="", reason=reason)
    )
    assert len(line.splitlines()) == 1
    read = parse_line(line)
    assert read is not None
    assert (read.time, read.is_out, read.job) == (when, is_out, "-")
    assert read.reason == (" ".join(reason.split()) or "-")
    assert read.node == (" ".join(node.split()) or "-")


def test_many_jobs_that_end_at_once_lose_no_line(tmp_path):
    file = tmp_path / "cordon.tsv"
    script = textwrap.dedent("""
        import sys
        from launcher.preflight.cordon import cordon
        for number in range(40):
            node, reason = f"n{sys.argv[2]}-{number}", "x" * 3000
            cordon(sys.argv[1], node, reason=reason, job="1")
    """)
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(file), str(number)])
        for number in range(4)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert len(active(file, time.time(), 1)) == 160
    lines = file.read_text().splitlines()
    assert len(lines) == 162 and sum(line.startswith("#") for line in lines) == 2


@pytest.mark.parametrize(
    ("folder_mode", "file_mode"), [(0o775, 0o664), (0o777, 0o666), (0o755, 0o644)]
)
def test_who_may_add_files_to_the_folder_may_add_lines(tmp_path, folder_mode, file_mode):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(folder_mode)
    before = os.umask(0o077)
    try:
        append(folder / "cordon.tsv", entry())
    finally:
        os.umask(before)
    assert (folder / "cordon.tsv").stat().st_mode & 0o777 == file_mode


def test_a_file_that_cannot_be_written_is_an_error_with_advice(tmp_path):
    with pytest.raises(ClusterError, match="Its folder must exist"):
        append(tmp_path / "none" / "cordon.tsv", entry())
    with pytest.raises(ClusterError, match="cannot be read"):
        active(tmp_path, NOON, 24)


def test_a_person_cordons_and_lifts(tmp_path, capsys):
    file = tmp_path / "cordon.tsv"
    arguments = ["--file", str(file), "--node", "n2"]
    assert main(["cordon", *arguments, "--reason", "slow: 40%", "--job", "812"]) == 0
    found = active(file, time.time(), 24)
    assert re.fullmatch(r"slow: 40% \(job 812 of \S+, 20\d\d-.*Z\)", found["n2"])
    assert main(["lift", *arguments]) == 0
    assert active(file, time.time(), 24) == {}
    assert capsys.readouterr().out == ""
    arguments = ["cordon", "--file", str(tmp_path), "--node", "n2", "--reason", "x"]
    assert main(arguments) == 2
    assert "the cordon file cannot be written" in capsys.readouterr().err


def test_a_user_without_a_name_still_cordons(tmp_path, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654)
    cordon(tmp_path / "cordon.tsv", "n2", reason="slow", job="1")
    assert "of 987654" in active(tmp_path / "cordon.tsv", time.time(), 1)["n2"]
