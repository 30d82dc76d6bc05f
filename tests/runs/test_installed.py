"""What is installed is recorded as a lock, and a difference is told by what it may change."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from lmscale.runs import installed as module
from lmscale.runs.installed import (
    Differences,
    Installed,
    decides,
    find_differences,
    parse_lock,
    read_installed,
    render_lock,
)

BEFORE = Installed(
    python="3.11.7",
    packages={"numpy": "2.4.6", "nvidia-nccl-cu12": "2.27.3", "rich": "15.0.0", "torch": "2.13.0"},
    cuda="12.8",
    driver="570.86.15",
)


def changed(**packages: str | None) -> Installed:
    both = {**BEFORE.packages, **packages}
    return replace(BEFORE, packages={name: v for name, v in both.items() if v is not None})


@pytest.mark.parametrize(
    ("now", "deciding", "others"),
    [
        (BEFORE, (), ()),
        (changed(torch="2.14.0"), ("torch 2.13.0 → 2.14.0",), ()),
        (changed(rich="15.1.0"), (), ("rich 15.0.0 → 15.1.0",)),
        (changed(rich=None), (), ("rich 15.0.0 → not installed",)),
        (changed(triton="3.7.0"), ("triton not installed → 3.7.0",), ()),
        (changed(**{"nvidia-nccl-cu12": "2.28.0"}), ("nvidia-nccl-cu12 2.27.3 → 2.28.0",), ()),
        (changed(lmscale="0.2.0"), (), ()),  # its code is frozen
        (replace(BEFORE, python="3.12.7"), ("Python 3.11.7 → 3.12.7",), ()),
        (replace(BEFORE, python="3.11.9"), (), ("Python 3.11.7 → 3.11.9",)),
        (replace(BEFORE, cuda="13.0"), ("CUDA of torch 12.8 → 13.0",), ()),
        (replace(BEFORE, driver="580.1.1"), (), ("NVIDIA driver 570.86.15 → 580.1.1",)),
        (replace(BEFORE, driver=None), (), ()),
        (
            changed(torch="2.14.0", numpy="2.5.0", rich="15.1.0"),
            ("numpy 2.4.6 → 2.5.0", "torch 2.13.0 → 2.14.0"),
            ("rich 15.0.0 → 15.1.0",),
        ),
    ],
)
def test_every_difference_is_told_by_whether_it_may_change_figures(now, deciding, others):
    added = tuple(told.split()[0] for told in deciding if "not installed →" in told)
    assert find_differences(BEFORE, now) == Differences(
        deciding=deciding, others=others, added=added
    )


def test_what_only_asks_a_gpu_for_its_state_decides_nothing():
    assert decides("nvidia-cublas") and not decides("nvidia-ml-py")


def test_a_lock_reads_back_as_what_was_recorded():
    given = changed(lmscale="0.1.0", toys="1.0", tree="2.0")
    sources = {"toys": "git+https://host/toys@abc", "tree": "/home/ada/tree"}
    assert parse_lock(render_lock(replace(given, sources=sources))) == given


def test_what_is_installed_here_is_found_without_loading_it_and_is_what_python_says():
    from importlib.metadata import version

    here = read_installed()
    names = ("torch", "numpy", "deepspeed", "sentencepiece", "pydantic")
    assert {n: here.packages[n] for n in names} == {n: version(n) for n in names}
    assert here.python == sys.version.split()[0]
    script = "import sys; from lmscale.runs.installed import read_installed as r; r()\n"
    script += "assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_first_on_the_path_counts_and_a_source_is_told_without_its_secret(tmp_path):
    for folder, version in (("a", "1.0"), ("b", "2.0")):
        (tmp_path / folder / f"My_Toys-{version}.dist-info").mkdir(parents=True)
    told = {
        "url": "https://ada:s3cr3t@host/toys",
        "vcs_info": {"vcs": "git", "commit_id": "abc"},
    }
    (tmp_path / "a/My_Toys-1.0.dist-info/direct_url.json").write_text(json.dumps(told))
    (tmp_path / "b/old-3.1-py3.11.egg-info").touch()
    found = read_installed([str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "none")])
    assert found.packages == {"my-toys": "1.0", "old": "3.1"}
    lock = render_lock(found)
    assert "s3cr3t" not in lock and "my-toys @ git+https://" in lock


def test_the_lock_is_a_file_of_requirements_that_pip_reads(tmp_path):
    (tmp_path / "lock").write_text(render_lock(read_installed()))
    lines = (tmp_path / "lock").read_text().splitlines()
    from packaging.requirements import Requirement

    plain = [line for line in lines if not line.startswith(("#", "--extra-index-url "))]
    names = {Requirement(line).name for line in plain}
    assert {"torch", "numpy"} <= names and "lmscale" not in names


def test_the_driver_and_torchs_cuda_are_read_from_what_says_so(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text("cuda: Optional[str] = '12.8'\nhip = None\n")
    (tmp_path / "driver").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15\n")
    monkeypatch.setattr(module, "_DRIVER", tmp_path / "driver")
    found = read_installed([str(tmp_path)])
    assert (found.cuda, found.driver) == ("12.8", "570.86.15")
