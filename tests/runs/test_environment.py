import json
import subprocess

from lmscale.config import RunConfig
from lmscale.runs.environment import collect_code, save_provenance, select_variables


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def checkout(folder):
    (folder / "lmscale").mkdir()
    (folder / "lmscale" / "__init__.py").write_text("a = 1\n")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")


def test_a_changed_checkout_is_recorded_with_its_difference(tmp_path):
    checkout(tmp_path)
    (tmp_path / "lmscale" / "__init__.py").write_text("a = 2\n")
    code = collect_code(tmp_path)["git"]
    assert len(code["commit"]) == 40
    assert code["branch"] == "main"
    assert code["changed"] == [" M lmscale/__init__.py"]
    assert "+a = 2" in code["diff"]


def test_an_installed_package_is_not_a_checkout(tmp_path):
    (tmp_path / "lmscale").mkdir()
    assert collect_code(tmp_path)["git"] is None
    assert collect_code(tmp_path)["version"]


def test_a_package_installed_below_somebody_elses_checkout_is_not_one(tmp_path):
    checkout(tmp_path)
    inside = tmp_path / "venv" / "site-packages"
    (inside / "lmscale").mkdir(parents=True)
    assert collect_code(inside)["git"] is None


def test_secrets_are_left_out():
    environ = {
        "CUDA_VISIBLE_DEVICES": "0",
        "RANK": "1",
        "SLURM_JWT": "x",
        "LMSCALE_API_KEY": "x",
        "NCCL_AUTH_TOKEN": "x",
        "TORCH_PASSWORD": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "HOME": "/home/a",
    }
    assert select_variables(environ) == {"CUDA_VISIBLE_DEVICES": "0", "RANK": "1"}


def test_the_run_folder_gets_both_files(tmp_path):
    save_provenance(tmp_path, RunConfig.model_validate({"run": {"name": "a"}}))
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["cpu"]["cores"] >= 1
    assert "version" in json.loads((tmp_path / "code.json").read_text())
