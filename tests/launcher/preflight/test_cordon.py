import os
import re
import subprocess
import sys
import textwrap
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.preflight import cordon as cordon_file
from launcher.preflight.__main__ import main
from launcher.preflight.cordon import active, cordon
from lmscale.errors import ClusterError

NOON = 1_795_262_400.0  # 2026-11-21T12:00:00Z
MOMENT = (2026, 11, 21, 12, 0, 0, 5, 325, 0)


def line(node="n2", *, when="2026-11-21T12:00:00Z", state="out", reason="GPUs alive: 7 GPUs"):
    return f"{when}\t{node}\t{state}\teve\t812\t{reason}\n"


def test_a_node_is_out_for_as_long_as_the_profile_says(tmp_path):
    file = tmp_path / "cordon.tsv"
    file.write_text(line())
    reason = "GPUs alive: 7 GPUs (job 812 of eve, 2026-11-21T12:00:00Z)"
    assert active(file, NOON + 3600, 24) == {"n2": reason}
    assert active(file, NOON + 24 * 3600, 24) == {}
    assert active(file, NOON + 3600, 0.5) == {}


def test_the_newest_line_of_a_node_counts(tmp_path):
    file = tmp_path / "cordon.tsv"
    lifted = line(when="2026-11-21T13:00:00Z", state="in")
    again = line("n3", when="2026-11-21T14:00:00Z", reason="slow")
    file.write_text(line() + line("n3") + lifted + again)
    assert list(active(file, NOON + 3 * 3600, 24)) == ["n3"]
    assert active(file, NOON + 3 * 3600, 24)["n3"].startswith("slow")


def test_no_file_is_an_empty_one(tmp_path):
    assert active(tmp_path / "none.tsv", NOON, 24) == {}


def test_what_people_write_into_it_is_passed_over(tmp_path):
    file = tmp_path / "cordon.tsv"
    strange = b"# a comment\n\nn4 is bad, too\nyesterday\tn5\tout\teve\t1\tslow\n\xff\xfe\t\n"
    file.write_bytes(line().encode() + strange + line("n2", state="off").encode())
    cordon(file, "n6", reason="slow", job="1")
    assert list(active(file, NOON, 24)) == ["n2", "n6"]


def test_the_file_reads_without_a_manual(tmp_path, monkeypatch):
    monkeypatch.setattr(cordon_file, "user_name", lambda: "eve")
    monkeypatch.setattr(cordon_file.time, "gmtime", lambda: time.struct_time(MOMENT))
    file = tmp_path / "cordon.tsv"
    cordon(file, "n2", reason="GPUs alive: 7 GPUs", job="812")
    assert file.read_text() == (
        "# Nodes that lmscale leaves out; a node's newest line counts.\n"
        "# time\tnode\tout or in\tuser\tjob\treason\n"
        "2026-11-21T12:00:00Z\tn2\tout\teve\t812\tGPUs alive: 7 GPUs\n"
    )


@given(
    node=st.text(st.characters(codec="utf-8"), min_size=1),
    reason=st.text(st.characters(codec="utf-8")),
)
@settings(max_examples=100, deadline=None)
def test_whatever_a_reason_holds_it_is_one_line(tmp_path_factory, node, reason):
    file = tmp_path_factory.mktemp("cordon") / "cordon.tsv"
    cordon(file, node, reason=reason, job="")
    assert len(file.read_text().splitlines()) == 3
    (found,) = active(file, time.time(), 1).items()
    assert found[0] == (" ".join(node.split()) or "-")
    assert found[1].startswith(f"{' '.join(reason.split()) or '-'} (job - of ")


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
        cordon(folder / "cordon.tsv", "n2", reason="slow", job="1")
    finally:
        os.umask(before)
    assert (folder / "cordon.tsv").stat().st_mode & 0o777 == file_mode


def test_a_file_that_cannot_be_written_is_an_error_with_advice(tmp_path):
    with pytest.raises(ClusterError, match="Its folder must exist"):
        cordon(tmp_path / "none" / "cordon.tsv", "n2", reason="slow", job="1")
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
