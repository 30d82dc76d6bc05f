import json
import logging
import subprocess

from lmscale.config import RunConfig
from lmscale.runs import environment
from lmscale.runs.environment import (
    collect_code,
    find_changes,
    save_provenance,
    select_variables,
)
from lmscale.runs.installed import Differences
from lmscale.train import folder


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
    save_provenance(tmp_path, RunConfig.model_validate({"run": {"name": "a"}}), collect_code())
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert environment["cpu"]["cores"] >= 1
    assert "version" in json.loads((tmp_path / "code.json").read_text())


def test_a_start_knows_what_was_installed_otherwise_at_the_last_one(tmp_path):
    config = RunConfig.model_validate({"run": {"name": "a"}})
    nothing = Differences(deciding=(), others=())
    assert find_changes(tmp_path) == nothing  # the first start
    save_provenance(tmp_path, config, collect_code())
    assert find_changes(tmp_path) == nothing
    path = tmp_path / "environment.json"
    environment = json.loads(path.read_text())
    now = dict(environment["packages"])
    environment["packages"] |= {"torch": "2.11.0", "rich": "1.0", "triton": "9.9"}
    path.write_text(json.dumps(environment))
    changes = find_changes(tmp_path)
    assert f"torch 2.11.0 → {now['torch']}" in changes.deciding
    assert changes.others == (f"rich 1.0 → {now['rich']}",)
    del environment["cuda"]  # of a version that did not list all packages
    path.write_text(json.dumps(environment))
    assert find_changes(tmp_path) == nothing
    path.write_text("{")
    assert find_changes(tmp_path) == nothing


def test_another_environment_is_told_when_a_run_goes_on(tmp_path, caplog, monkeypatch):
    found = Differences(deciding=("torch 2.11.0 → 2.13.0",), others=("rich 1 → 2",))
    monkeypatch.setattr(folder, "find_changes", lambda _: found)
    with caplog.at_level(logging.INFO):
        folder.log_other_environment(tmp_path, {})
    (deciding, others) = caplog.records
    assert deciding.levelname == "WARNING" and "torch 2.11.0 → 2.13.0" in deciding.message
    assert others.levelname == "INFO" and "rich 1 → 2" in others.message


def test_lmscales_own_code_is_told_when_it_is_another_one_than_at_the_last_start(tmp_path):
    def at(commit: str | None, diff: str = "", version: str = "0.1.0") -> dict:
        git = None if commit is None else {"commit": commit, "diff": diff}
        return {"version": version, "git": git}

    assert environment.find_other_code(tmp_path, at(None)) is None  # the first start
    for before, now, told in (
        (at("a" * 40), at("a" * 40), None),
        (at("a" * 40), at("b" * 40), "commit aaaaaaaaaaaa → lmscale 0.1.0, commit bbbbbbbbbbbb"),
        (
            at("a" * 40),
            at("a" * 40, "+x"),
            "aaaaaaaaaaaa → lmscale 0.1.0, commit aaaaaaaaaaaa with",
        ),
        (at("a" * 40, "+x"), at("a" * 40, "+y"), "with changes → lmscale 0.1.0, commit"),
        (at(None), at(None, version="0.2.0"), "lmscale 0.1.0 → lmscale 0.2.0"),
        (at(None), at(None), None),
    ):
        (tmp_path / "code.json").write_text(json.dumps(before))
        found = environment.find_other_code(tmp_path, now)
        assert found is None if told is None else told in found
