import json
import os
import stat
import subprocess
import threading
import time

import pytest

from launcher.preflight import node_checks
from launcher.preflight.node_checks import (
    GPU_FIELDS,
    PROCESS_FIELDS,
    REMAP_FIELDS,
    Check,
    find_busy,
    find_gpu_errors,
    find_shard_problem,
    library_versions,
    look_at_gpus,
    look_at_machine,
    look_at_run_folder,
    look_at_shards,
    look_at_space,
    memory_gib,
    parse_rows,
    run_looks,
    select_visible,
)
from lmscale.config.cluster import parse_cluster

# What nvidia-smi prints with --format=csv,noheader,nounits, as its manual and public logs show it.
TWO_GPUS = """\
0, GPU-a895322e-0001, NVIDIA H100 80GB HBM3, 550.54.15, 4, 0
1, GPU-455e672a-0002, NVIDIA H100 80GB HBM3, 550.54.15, 4, 0
"""
WITHOUT_ECC = "0, GPU-101b1cf0-f7d7, NVIDIA GeForce RTX 4090, 535.104.05, 1, [N/A]\n"
NEEDS_RESET = (
    "1, GPU-455e672a-0002, NVIDIA A100-SXM4-80GB, 550.54.15, [GPU requires reset], "
    "[GPU requires reset]\n"
)
REMAPPED = """\
GPU-a895322e-0001, No, No
GPU-455e672a-0002, Yes, No
"""
NONE_REMAPPED = REMAPPED.replace("Yes", "No")
LOST = "Unable to determine the device handle for GPU0000:CB:00.0: Unknown Error\n"


def gpus(text=TWO_GPUS):
    return parse_rows(text, GPU_FIELDS)


def test_rows_are_read_by_their_fields():
    assert gpus()[1] == {
        "index": "1",
        "uuid": "GPU-455e672a-0002",
        "name": "NVIDIA H100 80GB HBM3",
        "driver_version": "550.54.15",
        "memory.used": "4",
        "ecc.errors.uncorrected.volatile.total": "0",
    }
    assert parse_rows("\n", GPU_FIELDS) == []
    line = "GPU-a895322e-0001, 812, python train.py, --set a=1\n"
    assert parse_rows(line, PROCESS_FIELDS)[0]["process_name"] == "python train.py, --set a=1"


def test_a_row_of_another_form_is_the_finding():
    with pytest.raises(ValueError, match="Unable to determine the device handle for GPU0000:CB"):
        parse_rows(LOST, GPU_FIELDS)


def test_sound_gpus_have_no_errors():
    assert find_gpu_errors(gpus(), parse_rows(NONE_REMAPPED, REMAP_FIELDS)) == []
    assert find_gpu_errors(gpus(WITHOUT_ECC), []) == []
    not_remapping = parse_rows("GPU-101b1cf0-f7d7, [N/A], [N/A]", REMAP_FIELDS)
    assert find_gpu_errors(gpus(WITHOUT_ECC), not_remapping) == []


def test_memory_errors_are_named_with_the_gpu():
    bad = TWO_GPUS.replace("4, 0\n1", "4, 3\n1")
    assert find_gpu_errors(gpus(bad), parse_rows(REMAPPED, REMAP_FIELDS)) == [
        "GPU 0: 3 uncorrected memory errors since its start",
        "GPU 1: remapping of memory rows is pending: reset it",
    ]
    failed = parse_rows("GPU-a895322e-0001, Yes, Yes", REMAP_FIELDS)
    assert find_gpu_errors(gpus(), failed) == [
        "GPU 0: remapping of memory rows has failed: replace it"
    ]


def test_a_gpu_that_wants_a_reset_says_so():
    assert find_gpu_errors(gpus(NEEDS_RESET), []) == ["GPU 1: [GPU requires reset]"]


def test_who_computes_on_a_gpu_is_named():
    processes = parse_rows(
        "GPU-455e672a-0002, 4711, /opt/other/python\nGPU-of-another-job, 1, x\n", PROCESS_FIELDS
    )
    assert find_busy(gpus(), processes) == ["GPU 1: process 4711 (/opt/other/python)"]
    assert find_busy(gpus(TWO_GPUS.replace("4, 0\n1", "40000, 0\n1")), []) == [
        "GPU 0: 40000 MiB of its memory are in use"
    ]


@pytest.mark.parametrize(
    ("visible", "indices"),
    [("", "01"), ("0,1", "01"), ("1", "1"), ("GPU-a895322e-0001", "0")],
)
def test_only_the_jobs_own_gpus_are_looked_at(visible, indices):
    chosen = select_visible(gpus(), {"CUDA_VISIBLE_DEVICES": visible})
    assert "".join(gpu["index"] for gpu in chosen) == indices
    assert len(select_visible(gpus(), {})) == 2


def install_nvidia_smi(folder, monkeypatch, body):
    """A program of that name, first on PATH."""
    folder.mkdir()
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def answers(*, gpus=TWO_GPUS, remapped=NONE_REMAPPED, processes="", code=0):
    return f"""
case "$1" in
--query-gpu=*) printf '%s' '{gpus}'; exit {code} ;;
--query-remapped-rows=*) printf '%s' '{remapped}' ;;
--query-compute-apps=*) printf '%s' '{processes}' ;;
esac"""


def test_good_gpus_are_counted_and_described(tmp_path, monkeypatch):
    install_nvidia_smi(tmp_path / "bin", monkeypatch, answers())
    versions = {}
    checks = look_at_gpus(2, {}, versions)
    assert [(check.name, check.is_ok) for check in checks] == [
        ("GPUs alive", True),
        ("GPU errors", True),
        ("GPUs idle", True),
    ]
    assert versions == {"driver": "550.54.15", "gpus": "NVIDIA H100 80GB HBM3"}


def test_a_missing_gpu_and_a_busy_one_are_both_told(tmp_path, monkeypatch):
    monkeypatch.setattr(node_checks, "BUSY_SECONDS", 0.0)
    busy = "GPU-455e672a-0002, 4711, python\n"
    install_nvidia_smi(tmp_path / "bin", monkeypatch, answers(processes=busy))
    missing, errors, idle = look_at_gpus(8, {}, {})
    assert missing.found == "2 GPUs (NVIDIA H100 80GB HBM3), the profile says 8"
    assert (missing.is_ok, errors.is_ok, idle.is_ok) == (False, True, False)
    assert idle.found == "GPU 1: process 4711 (python)"


def test_a_gpu_that_is_being_let_go_of_is_awaited(tmp_path, monkeypatch):
    once = tmp_path / "asked"
    body = answers().replace(
        "printf '%s' '' ;;",
        f"[ -e {once} ] || echo 'GPU-a895322e-0001, 9, python'; touch {once} ;;",
    )
    install_nvidia_smi(tmp_path / "bin", monkeypatch, body)
    assert [check.is_ok for check in look_at_gpus(2, {}, {})] == [True] * 3
    assert once.exists()


def test_a_driver_that_does_not_answer_is_a_failed_check(tmp_path, monkeypatch):
    monkeypatch.setattr(node_checks, "COMMAND_SECONDS", 0.2)
    install_nvidia_smi(tmp_path / "bin", monkeypatch, "exec sleep 60")
    checks, _ = run_looks({"GPUs alive": lambda: look_at_gpus(2, {}, {})}, 10)
    text = "nvidia-smi gave no answer within 0 s"
    assert checks == [Check(name="GPUs alive", is_ok=False, found=text)]


def test_what_nvidia_smi_says_as_it_fails_is_told(tmp_path, monkeypatch):
    said = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."
    install_nvidia_smi(tmp_path / "bin", monkeypatch, answers(gpus=said, code=9))
    with pytest.raises(ValueError, match="ended with code 9: NVIDIA-SMI has failed because"):
        look_at_gpus(2, {}, {})
    monkeypatch.setenv("PATH", str(tmp_path))
    (check,) = look_at_gpus(2, {}, {})
    assert (check.name, check.is_ok) == ("nvidia-smi", False)  # not held against the node
    assert "nvidia-smi is not installed" in check.found


def test_a_driver_that_knows_no_remapping_is_no_error(tmp_path, monkeypatch):
    body = answers().replace("--query-remapped-rows=*)", "--query-remapped-rows=*) exit 2;")
    install_nvidia_smi(tmp_path / "bin", monkeypatch, body)
    assert all(check.is_ok for check in look_at_gpus(2, {}, {}))


def attempt_folder(tmp_path):
    folder = tmp_path / "slurm" / "preflight" / "812.1"
    folder.mkdir(parents=True)
    (folder / "token").write_text("812.1\n")
    return folder


def test_a_run_folder_that_all_share_is_fine_and_stays_clean(tmp_path):
    folder, clock = attempt_folder(tmp_path), {}
    assert look_at_run_folder(folder, "n1", clock)[0].is_ok
    assert abs(clock["ahead_of_folder"]) < 1
    assert [path.name for path in folder.iterdir()] == ["token"]


def test_a_run_folder_that_is_not_seen_is_named_and_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(node_checks, "TOKEN_SECONDS", 0.0)
    folder = tmp_path / "slurm" / "preflight" / "812.1"
    (check,) = look_at_run_folder(folder, "n1", {})
    assert not check.is_ok and "is not to be seen from here" in check.found
    assert not list(tmp_path.iterdir())


def test_a_token_that_comes_a_moment_later_is_awaited(tmp_path):
    folder = attempt_folder(tmp_path)
    (folder / "token").unlink()
    timer = threading.Timer(0.3, lambda: (folder / "token").write_text("812.1\n"))
    timer.start()
    assert look_at_run_folder(folder, "n1", {})[0].is_ok
    timer.join()


def test_another_folder_of_the_same_name_is_noticed(tmp_path):
    folder = attempt_folder(tmp_path)
    (folder / "token").write_text("700.0\n")
    (check,) = look_at_run_folder(folder, "n1", {})
    assert not check.is_ok and "not the same folder" in check.found


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
    (check,) = look_at_run_folder(folder, "n1", {})
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


def test_shards_that_are_there_are_fine(tmp_path):
    folder = dataset(tmp_path)
    assert find_shard_problem(str(folder)) is None
    assert find_shard_problem(f"file://{folder}") is None
    assert find_shard_problem("s3://bucket/data") is None


def test_a_missing_or_short_shard_is_named(tmp_path):
    folder = dataset(tmp_path)
    (folder / "2.tar").write_bytes(b"")
    assert find_shard_problem(str(folder)) == f"{folder}/2.tar has 0 bytes, 12 in its manifest"
    (folder / "2.tar").unlink()
    assert find_shard_problem(str(folder)) == f"{folder}/2.tar: there is no such file"
    (folder / "manifest.json").write_text("[]")
    assert "not a manifest of shards" in str(find_shard_problem(str(folder)))
    checks = look_at_shards({"web": str(tmp_path / "none"), "far": "s3://bucket/data"})
    assert [(check.name, check.is_ok) for check in checks] == [
        ("shards of web", False),
        ("shards of far", True),
    ]


def test_a_file_system_that_hangs_holds_nobody(tmp_path):
    """Reading a pipe that nobody writes to never returns, as on a server that went away."""
    os.mkfifo(tmp_path / "manifest.json")
    looks = {
        "shards": lambda: look_at_shards({"web": str(tmp_path)}),
        "scratch": lambda: look_at_space("scratch", tmp_path, 0, {}),
    }
    began = time.monotonic()
    checks, took = run_looks(looks, 0.3)
    assert time.monotonic() - began < 2
    assert checks[0] == Check(name="shards", is_ok=False, found="no answer within 0 s")
    assert checks[1].is_ok and took["shards"] == 0.3
    with open(tmp_path / "manifest.json", "w"):  # lets the thread end
        pass


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
    assert memory_gib(text) == gib


def test_versions_name_the_code_that_runs():
    versions = library_versions()
    assert set(versions) == {"python", "torch", "lmscale", "libc", "kernel"}
    assert all(versions.values())
    assert versions["lmscale"].endswith("/lmscale")
