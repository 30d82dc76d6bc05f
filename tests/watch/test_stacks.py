import os
import signal
import subprocess
import sys
import time

from lmscale.watch.stacks import children_of, stacks_path

SOON = 120.0
# Real processes: what is tested ends its process, or needs a signal handler of its own.
HEAD = """
import ctypes, os, subprocess, sys, time
from pathlib import Path
from lmscale.watch.stacks import StackDumps
dumps = StackDumps(Path(sys.argv[1]), 3)
def where_it_hangs():
    {hang}
"""


def start(folder, *, hang, then):
    script = HEAD.format(hang=hang) + then
    return subprocess.Popen([sys.executable, "-c", script, str(folder)])


def test_the_net_ends_a_process_whose_interpreter_is_stuck_and_leaves_its_stack(tmp_path):
    stuck = "ctypes.PyDLL(None).sleep(60)"  # PyDLL keeps the interpreter's lock meanwhile
    then = "dumps.arm(0.5, is_last=True)\nwhere_it_hangs()"
    process = start(tmp_path, hang=stuck, then=then)
    assert process.wait(timeout=SOON) == 1
    text = stacks_path(tmp_path, 3).read_text()
    assert "Timeout" in text and "in where_it_hangs" in text


def test_a_net_that_is_armed_again_in_time_does_not_fire(tmp_path):
    arms = "for _ in range(20): dumps.arm(3.0, is_last=True); time.sleep(0.05)\n"
    process = start(tmp_path, hang="pass", then=f"{arms}dumps.close()\ntime.sleep(3.2)")
    assert process.wait(timeout=SOON) == 0
    assert not stacks_path(tmp_path, 3).exists(), "no file where nothing happened"


def test_sigquit_shows_the_stack_of_a_process_that_runs_no_python(tmp_path):
    ready = tmp_path / "ready"
    then = f"Path({str(ready)!r}).touch()\nwhere_it_hangs()"
    process = start(tmp_path, hang="ctypes.PyDLL(None).pause()", then=then)
    while not ready.exists():
        time.sleep(0.01)
    time.sleep(0.2)  # for the pause
    process.send_signal(signal.SIGQUIT)
    process.wait(timeout=SOON)  # the pause is over
    assert "in where_it_hangs" in stacks_path(tmp_path, 3).read_text()


def test_a_dump_has_a_headline_all_threads_and_the_state_of_the_children(tmp_path):
    child = "[sys.executable, '-c', 'import time; time.sleep(60)  # lmscale.stream.worker']"
    then = (
        f"child = subprocess.Popen({child})\n"
        "time.sleep(0.3); child.send_signal(19); time.sleep(0.1)\n"
        "dumps.dump('rank 3 in data of step 812')\n"
        "dumps.wait(100); child.kill(); child.wait(); dumps.close()"
    )
    process = start(tmp_path, hang="pass", then=then)
    assert process.wait(timeout=SOON) == 0
    text = stacks_path(tmp_path, 3).read_text()
    assert f": rank 3 in data of step 812 (process {process.pid})" in text
    assert "most recent call first" in text and "in dump" in text
    assert "---- loader worker, process" in text and "state T (stopped)" in text


def test_another_process_of_the_node_is_described_as_far_as_one_sees_it(tmp_path):
    stopped = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    stopped.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    others = {7: stopped.pid, 8: 2**22 + 1}
    then = f"dumps.dump('rank 3 in data', others={others})\ndumps.wait(100)"
    assert start(tmp_path, hang="pass", then=then).wait(timeout=SOON) == 0
    stopped.kill()
    stopped.wait()
    text = stacks_path(tmp_path, 7).read_text()
    assert ": seen by rank 3 in data" in text
    assert f"---- process {stopped.pid}: state T (stopped)" in text
    assert "No such file" in stacks_path(tmp_path, 8).read_text()


def test_the_children_of_a_process_are_found():
    child = subprocess.Popen(["sleep", "60"])
    assert child.pid in children_of(os.getpid())
    child.kill()
    child.wait()
    assert child.pid not in children_of(os.getpid())
