"""The frozen copy runs by itself, is whole or not there, and stays small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cases import SMALL, make_config, make_request, make_sweep

from launcher.plan import plan_job
from launcher.render import render
from launcher.submit import copy_code, freeze
from lmscale.config import load_config
from lmscale.config.cluster import load_cluster
from lmscale.errors import ClusterError
from lmscale.runs.environment import collect_code
from lmscale.runs.installed import Differences, find_differences, parse_lock, read_installed

MAX_BYTES = 10 * 2**20


def freeze_at(folder: Path, *, sweep: bool = False) -> Path:
    """A frozen copy below ``folder``; its folder."""
    config = make_config("demo", {"run.folder": json.dumps(str(folder))})
    plan = make_sweep().model_copy(update={"root": folder}) if sweep else None
    request = make_request(SMALL, config=config, sweep=plan)
    job = plan_job(request, "train")
    script = freeze(job, request, render(job))
    assert script == job.frozen_folder / "job.sh"
    return job.frozen_folder


def test_a_frozen_copy_holds_what_runs(tmp_path):
    frozen = freeze_at(tmp_path / "run")
    assert {path.name for path in frozen.iterdir()} == {
        *("job.sh", "config.yaml", "cluster.yaml", "code", "code.json", "requirements.lock")
    }
    here = read_installed()
    locked = parse_lock((frozen / "requirements.lock").read_text())
    assert find_differences(locked, here) == Differences(deciding=(), others=())
    assert load_config(frozen / "config.yaml").folder == tmp_path / "run"
    assert load_cluster(frozen / "cluster.yaml").ranks_per_node == 2
    assert os.access(frozen / "job.sh", os.X_OK)
    assert {path.name for path in (frozen / "code").iterdir()} == {
        *("lmscale", "launcher", "configs", "slurm")
    }


@pytest.mark.parametrize(
    "settings", ["python: /opt/bin/python\n", "modules: [cuda]\n", "setup: [conda activate x]\n"]
)
def test_what_jobs_with_another_python_have_is_left_to_the_first_attempt(settings, tmp_path):
    config = make_config("demo", {"run.folder": json.dumps(str(tmp_path / "run"))})
    request = make_request(SMALL + settings, config=config)
    job = plan_job(request, "train")
    assert not (freeze(job, request, render(job)).parent / "requirements.lock").exists()


def test_a_frozen_copy_runs_by_itself_and_finds_what_comes_with_it(tmp_path):
    code = freeze_at(tmp_path / "run") / "code"
    script = (
        "import lmscale, launcher.render\n"
        "from lmscale.config.assets import find_assets as find\n"
        "print(lmscale.__file__, launcher.__file__, find('configs'), find('slurm'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(code)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found == [
        str(code / "lmscale/__init__.py"),
        str(code / "launcher/__init__.py"),
        str(code / "configs"),
        str(code / "slurm"),
    ]


def test_a_frozen_copy_tells_the_git_state_of_what_it_was_copied_from(tmp_path):
    frozen = freeze_at(tmp_path / "run")
    here = collect_code()
    told = json.loads((frozen / "code.json").read_text())
    assert told == here
    of_copy = collect_code(frozen / "code")
    assert of_copy["git"] == here["git"]
    assert (of_copy["folder"], of_copy["frozen_from"]) == (str(frozen / "code"), here["folder"])


def test_a_frozen_copy_is_small_and_brings_nothing_foreign(tmp_path):
    copy_code(tmp_path / "code")
    files = [path for path in (tmp_path / "code").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    endings = {".py", ".pyi", ".yaml", ".j2", ".md", ".pyc", ".json", ".typed", ".sh"}
    assert {path.suffix for path in files} <= endings
    tag = f".{sys.implementation.cache_tag}.pyc"
    assert all(path.name.endswith(tag) for path in files if path.suffix == ".pyc")


def test_a_sweep_freezes_the_configuration_of_each_run(tmp_path):
    frozen = freeze_at(tmp_path / "rates", sweep=True)
    rates = [
        load_config(frozen / f"configs/{index:03d}.yaml").engine.optimizer.lr for index in (0, 1)
    ]
    assert rates == [1e-3, 3e-4]


def test_a_copy_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "run/slurm").mkdir(parents=True)
    (tmp_path / "run/slurm/20261122-011900-train").mkdir()
    (tmp_path / "run/slurm/20261122-011900-train/old").touch()
    with pytest.raises(ClusterError, match="20261122-011900-train cannot be written"):
        freeze_at(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/slurm").iterdir()] == ["20261122-011900-train"]
    assert [p.name for p in (tmp_path / "run/slurm/20261122-011900-train").iterdir()] == ["old"]
