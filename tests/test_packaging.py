"""What is installed from a wheel is whole: the command, both packages, the files they bring."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, **more) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **more
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git would clone, without the network."""
    clone = tmp_path_factory.mktemp("clone")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            (clone / name).write_bytes((ROOT / name).read_bytes())
    folder = tmp_path_factory.mktemp("wheel")
    # What pip would have pyproject.toml's build backend do.
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=clone)
    (built,) = folder.glob("lmscale-*.whl")
    return built


def test_the_wheel_brings_both_packages_the_configs_the_templates_and_the_examples(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"lmscale/cli/main.py", "launcher/local.py"} <= names
    configs = {f"lmscale/assets/configs/{path.name}" for path in ROOT.glob("configs/*.yaml")}
    assert configs and configs <= names
    files = [path for path in (ROOT / "slurm").rglob("*") if path.is_file()]
    slurm = {f"lmscale/assets/slurm/{path.relative_to(ROOT / 'slurm')}" for path in files}
    assert slurm <= names
    examples = {f"lmscale/assets/examples/{path.name}" for path in ROOT.glob("examples/*.py")}
    assert examples and examples <= names
    assert {
        "lmscale/assets/slurm/train.sbatch.j2",
        "lmscale/assets/slurm/profiles/lab.yaml",
    } <= slurm
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip would put the packages."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_an_installed_wheel_writes_a_batch_script_and_freezes_itself(site, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(site)}
    config = site / "lmscale/assets/configs/llama_7b.yaml"
    command = (sys.executable, "-m", "lmscale", "launch", "slurm", config, "--cluster", "example")
    script = run(*command, "--nodes", "8", "--dry-run", cwd=tmp_path, env=environment)
    assert script.startswith("#!/bin/bash\n") and "#SBATCH --nodes=8\n" in script
    code = "import pathlib, launcher.submit as f; f.copy_code(pathlib.Path('code'))"
    run(sys.executable, "-c", code, cwd=tmp_path, env=environment)
    frozen = {**os.environ, "PYTHONPATH": str(tmp_path / "code")}
    again = run(*command, "--nodes", "8", "--dry-run", cwd="/", env=frozen)
    assert again.count("#SBATCH") == script.count("#SBATCH")
    assert not (tmp_path / "code/lmscale/assets").exists()


def test_an_installed_wheel_finds_its_demo_config_and_text_outside_any_checkout(site, tmp_path):
    script = "import lmscale.config.assets as a, pathlib as p; print(a.find_config(p.Path('demo')))"
    found = run(
        sys.executable,
        "-c",
        script,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    ).strip()
    assert Path(found) == site / "lmscale" / "assets" / "configs" / "demo.yaml"
    # What it writes is looked at in test_examples.py.
    script = "import lmscale.cli.demo as d; d._run_example('pydocs.py', '--help')"
    environment = {**os.environ, "PYTHONPATH": str(site)}
    written = run(sys.executable, "-c", script, cwd=tmp_path, env=environment)
    assert "$ python examples/pydocs.py --help" in written
    assert "folder of the JSONL files" in written
    shown = run(
        sys.executable,
        *("-m", "lmscale", "config", "show", found),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert shown.startswith("run:\n  name: demo\n")
