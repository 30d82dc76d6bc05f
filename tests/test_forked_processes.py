"""The server that forks the others is killed, as the system does it where memory runs out."""

from __future__ import annotations

import os
import select
import shutil
from pathlib import Path

import forked_processes
import pytest
from forked_processes import Server, run_process, share_server, start_process

SCRIPT = "import sys, time; print('begun', flush=True); time.sleep(float(sys.argv[1]))"
# A whole server, but for what it loads before it answers.
SERVER = f"""
import sys
sys.path.insert(0, {str(forked_processes.TESTS)!r})
import fork_server
fork_server.prepare = lambda: None
fork_server.main(*sys.argv[1:])
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Sleeps for the seconds it is given. For this test, this process shares a server."""
    (tmp_path / "fork_server.py").write_text(SERVER)
    monkeypatch.setattr(forked_processes, "TESTS", tmp_path)
    for name, of_this_test in {"_ASKED": {}, "_SHARED": {}, "_STARTED": []}.items():
        monkeypatch.setattr(forked_processes, name, of_this_test)
    share_server(tmp_path / "forks", owner=os.getpid())
    path = tmp_path / "sleep.py"
    path.write_text(SCRIPT)
    yield path
    shutil.rmtree(kill_server(tmp_path / "forks"))


def kill_server(note: Path) -> Path:
    """The folder that it leaves."""
    process = forked_processes._STARTED[-1]
    process.kill()
    process.wait()
    return Path(note.read_text())


@pytest.mark.parametrize("has_asked", [True, False])
def test_where_the_server_was_killed_its_forks_end_and_the_next_who_asks_starts_another(
    script, tmp_path, capsys, has_asked
):
    sleeper = start_process("script", [script, 600], output=tmp_path / "output")
    end = os.pidfd_open(sleeper.pid)
    folder = kill_server(tmp_path / "forks")
    assert select.select([end], [], [], 60)[0] == [end]
    os.close(end)
    with pytest.raises(ConnectionError, match="has ended"):
        sleeper.wait()
    if not has_asked:
        forked_processes._ASKED.clear()
    assert run_process("script", [script, 0]) == (0, "begun\n")
    assert (f"The server in {folder} has ended" in capsys.readouterr().err) == has_asked
    assert folder.exists() != has_asked
    shutil.rmtree(folder, ignore_errors=True)
    # Of all who ask for the first time, none starts a third.
    another = Server(folder=Path((tmp_path / "forks").read_text()))
    assert run_process("script", [script, 0], server=another) == (0, "begun\n")
    another.close()
    assert len(forked_processes._STARTED) == 2
