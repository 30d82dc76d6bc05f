import json
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Sequence

import pytest

from launcher.preflight import node_checks
from launcher.preflight.node_checks import (
    Check,
    library_versions,
    look_at_gpus,
    look_at_health,
    look_at_machine,
    look_at_run_folder,
    look_at_shards,
    look_at_space,
    run_looks,
)
from lmscale.config.cluster import parse_cluster


def install_nvidia_smi(folder, monkeypatch, body):
    """A program of that name, first on PATH."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_gpus_are_counted_and_described(tmp_path, monkeypatch):
    two = "printf 'NVIDIA H200, 570.1\\nNVIDIA H200, 570.1\\n'"
    install_nvidia_smi(tmp_path / "bin", monkeypatch, two)
    versions = {}
    (check,) = look_at_gpus(2, versions, 10)
    assert (check.name, check.is_ok) == ("GPUs alive", True)
    assert versions == {"gpus": "NVIDIA H200, 570.1"}
    (check,) = look_at_gpus(8, {}, 10)
    assert not check.is_ok
    assert check.found == "2 GPUs (NVIDIA H200, 570.1), the profile says 8"


def test_a_driver_that_does_not_answer_is_a_failed_check(tmp_path, monkeypatch):
    install_nvidia_smi(tmp_path / "bin", monkeypatch, "exec sleep 60")
    checks, _ = run_looks({"GPUs alive": lambda: look_at_gpus(2, {}, 0.2)}, 10)
    assert checks == [Check("GPUs alive", False, "no answer within 0 s")]


def test_what_nvidia_smi_says_as_it_fails_is_told(tmp_path, monkeypatch):
    install_nvidia_smi(tmp_path / "bin", monkeypatch, "echo no driver; exit 9")
    (check,) = look_at_gpus(2, {}, 10)
    assert (check.name, check.is_ok) == ("GPUs alive", False)
    assert check.found == "nvidia-smi ended with code 9: no driver"
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = look_at_gpus(2, {}, 10)
    assert (check.name, check.is_ok) == ("nvidia-smi", False)  # not held against the node
    assert "nvidia-smi is not installed" in check.found


def test_a_sites_own_health_check_speaks_for_the_node():
    assert look_at_health("true", 10)[0].is_ok
    (check,) = look_at_health("seq 1 9 >&2; exit 3", 10)
    assert (check.name, check.is_ok) == ("health check", False)
    assert check.found == "seq 1 9 >&2; exit 3: ended with code 3 | 5 | 6 | 7 | 8 | 9"


def test_a_health_check_that_cannot_run_or_end_is_the_profiles_mistake(tmp_path):
    (missing,) = look_at_health("no-such-health-check", 10)
    assert (missing.name, missing.is_ok) == ("preflight.command", False)
    assert "ended with code 127" in missing.found
    (endless,) = look_at_health(f"(sleep 100000; touch {tmp_path}/late) | cat", 0.3)
    assert (endless.name, endless.is_ok) == ("preflight.command", False)
    assert endless.found.endswith("| cat: no answer within 0 s")


def test_what_a_health_check_says_is_kept_without_secrets_and_escapes_and_short():
    command = r"printf '\033[2Jx\nAPI_KEY=%s\n%0500d\n' s3cr3t 7; false --token s3cr3t"
    (check,) = look_at_health(command, 10)
    start, *lines = check.found.split(" | ")
    assert start.endswith("false --token ***: ended with code 1")
    assert lines == [r"\x1b[2Jx", "API_KEY=***", "0" * 200]
    (endless,) = look_at_health("sleep 60\n: \x1b --token s3cr3t", 0.1)
    assert endless.found == r"sleep 60 : \x1b --token ***: no answer within 0 s"


def test_a_health_check_that_leaves_a_daemon_behind_has_ended(tmp_path):
    try:
        daemon = f"sleep 100000 & echo $! > {tmp_path}/daemon; echo fit"
        (check,) = look_at_health(daemon, 300)
        assert check.is_ok and check.found.endswith("ended with code 0 | fit")
        os.kill(int((tmp_path / "daemon").read_text()), 0)  # still there
    finally:
        os.kill(int((tmp_path / "daemon").read_text()), signal.SIGKILL)


def test_of_a_health_check_that_says_much_the_end_is_kept():
    (check,) = look_at_health("echo API_KEY=$(printf %099999d 5); seq 9 | head -c 17", 10)
    assert check.found.endswith("ended with code 0 | 5 | 6 | 7 | 8 | 9")
    (check,) = look_at_health("printf API_KEY=%099999d 5", 10)
    assert check.found.endswith("ended with code 0"), "half a line may be half a secret"


def test_a_health_check_may_write_to_its_files_by_name():
    (check,) = look_at_health("echo a; echo b >> /dev/stderr; echo c > /dev/stdout; echo d", 10)
    assert check.is_ok and check.found.endswith("c | d")


def attempt_folder(tmp_path):
    folder = tmp_path / "slurm" / "preflight" / "812.1"
    folder.mkdir(parents=True)
    (folder / "token").write_text("812.1\n")
    return folder


def test_a_run_folder_that_all_share_is_fine_and_stays_clean(tmp_path):
    folder = attempt_folder(tmp_path)
    assert look_at_run_folder(folder, "n1")[0].is_ok
    assert [path.name for path in folder.iterdir()] == ["token"]


def test_a_run_folder_that_is_not_seen_is_named_and_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(node_checks, "TOKEN_SECONDS", 0.0)
    folder = tmp_path / "slurm" / "preflight" / "812.1"
    (check,) = look_at_run_folder(folder, "n1")
    assert not check.is_ok and "is not to be seen from here" in check.found
    assert not list(tmp_path.iterdir())


def test_a_token_that_comes_a_moment_later_is_awaited(tmp_path):
    folder = attempt_folder(tmp_path)
    (folder / "token").unlink()
    timer = threading.Timer(0.3, lambda: (folder / "token").write_text("812.1\n"))
    timer.start()
    assert look_at_run_folder(folder, "n1")[0].is_ok
    timer.join()


def test_another_folder_of_the_same_name_is_noticed(tmp_path):
    folder = attempt_folder(tmp_path)
    (folder / "token").write_text("700.0\n")
    with pytest.raises(ValueError, match="not the same folder"):
        look_at_run_folder(folder, "n1")


@pytest.fixture
def full_disk(tmp_path):
    """A file system of its own without a free byte; root only."""
    folder = tmp_path / "full"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs root and the right to mount, to make a full disk")
    try:
        with pytest.raises(OSError):
            (folder / "filler").write_bytes(b"x" * (1 << 20))
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_noticed_by_its_size_and_by_writing(full_disk):
    free = {}
    (check,) = look_at_space("scratch", full_disk, 10, free)
    assert not check.is_ok and free == {"scratch": 0.0}
    assert check.found == f"0.0 GB are free in {full_disk}, 10 are wanted"
    folder = full_disk / "812.1"
    folder.mkdir()
    os.truncate(full_disk / "filler", 4096)
    (folder / "token").write_text("812.1\n")
    with open(full_disk / "more", "wb") as file, pytest.raises(OSError):
        file.write(b"x" * (1 << 20))
        file.flush()
    (check,), _ = run_looks({"run folder": lambda: look_at_run_folder(folder, "n1")}, 10)
    assert not check.is_ok and "No space left" in check.found


def test_a_scratch_folder_that_is_missing_is_named(tmp_path):
    looks = {"scratch": lambda: look_at_space("scratch", tmp_path / "none", 10, {})}
    checks, _ = run_looks(looks, 10)
    assert not checks[0].is_ok and str(tmp_path / "none") in checks[0].found


def dataset(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    shards = [{"name": f"{number}.tar", "bytes": 10 + number} for number in range(3)]
    for shard in shards:
        (folder / shard["name"]).write_bytes(b"x" * shard["bytes"])
    (folder / "manifest.json").write_text(json.dumps({"shards": shards}))
    return folder


def shard_check(location):
    (check,) = look_at_shards({"web": str(location)})
    assert check.name == "shards of web"
    return check


def test_shards_that_are_there_are_fine(tmp_path):
    folder = dataset(tmp_path)
    for location in (folder, f"file://{folder}", "s3://bucket/data"):
        assert shard_check(location).is_ok


def test_a_missing_or_short_shard_is_named(tmp_path):
    folder = dataset(tmp_path)
    (folder / "2.tar").write_bytes(b"")
    short = Check("shards of web", False, f"{folder}: 2.tar (0 bytes in place of 12)")
    assert shard_check(folder) == short
    (folder / "2.tar").unlink()
    assert shard_check(folder).found == f"{folder}: 2.tar (No such file or directory)"
    (folder / "manifest.json").write_text("[]")
    assert "not a manifest of shards" in shard_check(folder).found
    assert str(tmp_path / "none") in shard_check(tmp_path / "none").found


def test_a_file_system_that_hangs_holds_nobody(tmp_path):
    """A read that never returns, as from a server that went away."""
    is_back = threading.Event()

    def hang() -> Sequence[Check]:
        is_back.wait()
        return look_at_shards({"web": str(tmp_path)})

    looks = {"shards": hang, "scratch": lambda: look_at_space("scratch", tmp_path, 0, {})}
    checks, took = run_looks(looks, 0.3)
    assert checks[0] == Check("shards", False, "no answer within 0 s")
    assert checks[1].is_ok and took["shards"] == 0.3
    is_back.set()  # lets the thread end


def profile(text):
    return parse_cluster(f"time: '01:00:00'\n{text}")


def test_cores_and_memory_are_held_against_the_profile():
    cores = os.cpu_count()
    checks = look_at_machine(profile("tasks_per_node: 1\nmemory_per_node: 1G"))
    assert [(check.name, check.is_ok) for check in checks] == [("cores", True), ("memory", True)]
    text = f"tasks_per_node: {cores + 1}\nmemory_per_node: 900T"
    checks = look_at_machine(profile(text))
    assert [check.is_ok for check in checks] == [False, False]
    assert f"the profile wants {cores + 1}" in checks[0].found
    assert "takes 921600 GiB" in checks[1].found
    # 0 is all that the node has
    assert len(look_at_machine(profile("tasks_per_node: 1\nmemory_per_node: '0'"))) == 1


@pytest.mark.parametrize(
    ("text", "gib"), [("64G", 64), ("65536", 64), ("65536m", 64), ("2T", 2048), ("1048576K", 1)]
)
def test_memory_is_read_as_slurm_reads_it(text, gib):
    assert profile(f"tasks_per_node: 1\nmemory_per_node: {text}").memory_kib == gib * 2**20


def test_versions_name_the_code_that_runs():
    versions = library_versions()
    assert set(versions) == {"python", "torch", "lmscale", "libc"}
    assert all(versions.values())
    assert versions["lmscale"].endswith("/lmscale")
