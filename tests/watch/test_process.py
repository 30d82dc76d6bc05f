"""Whether a process that a file names is still there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmscale.watch.process import is_gone, own_process


def ended():
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        return child.pid  # which has been waited for, on the way out


def test_only_a_process_of_this_machine_that_has_ended_is_gone():
    me = own_process()
    assert is_gone(me) is False
    assert is_gone({**me, "started": "1"}) is True  # its number is another's now
    assert is_gone({**me, "pid": ended()}) is True
    assert is_gone({**me, "machine": "another"}) is None


@pytest.mark.parametrize("words", [None, [], {}, {"pid": 1}, "x", {"pid": "x", "machine": 1}])
def test_words_of_something_else_tell_nothing(words):
    assert is_gone(words) is None
    assert is_gone({**own_process(), "pid": 10**30}) is None


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])  # hidepid of 2 and 1
def test_another_user_s_process_that_proc_hides_is_not_taken_for_ended(monkeypatch, error):
    me, read_text = own_process(), Path.read_text

    def hide(path, *args, **more):
        if path.name == "stat":
            raise error
        return read_text(path, *args, **more)

    def refuse(pid, signal):
        raise PermissionError if pid == me["pid"] else ProcessLookupError

    monkeypatch.setattr(Path, "read_text", hide)
    monkeypatch.setattr(os, "kill", refuse)
    assert is_gone(me) is None
    assert is_gone({**me, "pid": me["pid"] + 1}) is True
