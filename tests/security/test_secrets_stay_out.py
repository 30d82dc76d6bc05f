"""Secrets of the environment, of the command and of the code: none is in what a run leaves."""

import json
import logging
import subprocess
import sys

import pytest
from forked_processes import ROOT
from tiny_run import start_lmscale, write_tiny_config

from lmscale.cli.main import main
from lmscale.config import load_config, parse_config
from lmscale.config.assets import find_assets
from lmscale.config.cluster import parse_cluster
from lmscale.errors import ConfigError
from lmscale.ranks.ranks import Ranks
from lmscale.runs.environment import collect_code, collect_environment, select_variables
from lmscale.runs.logs import close_logging, log_path, setup_logging
from lmscale.runs.trackers import open_trackers

S = "s3cr3tVALUE0123456789"
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": S,
    "HF_TOKEN": S,
    "WANDB_API_KEY": S,
    "SLURM_JWT": S,
    "LMSCALE_PASSWORD": S,
    "NCCL_AUTH": S,
    "TORCH_CREDENTIALS": S,
    "MASTER_SECRET": S,
    "LMSCALE_DB_PASS": S,
    "SLURM_PWD": S,
    "TORCH_SSHPASS": S,
    # Of innocent names, whose values quote one.
    "LMSCALE_MIRROR": f"https://me:{S}@mirror.example/x",
    "PYTHON_INDEX": f"https://mirror.example/x?token={S}",
    "http_proxy": f"http://me:{S}@proxy:3128",
}


def files_that_hold(secret, folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_nothing_that_a_run_writes_or_says_holds_a_secret_of_its_environment(tiny_data, tmp_path):
    overrides = {"train.steps": 4, "checkpoint.every_steps": 2}
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, tmp_path / "run", overrides)
    process = start_lmscale("train", config, environment=ENVIRONMENT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert S not in said
    assert files_that_hold(S, tmp_path / "run") == []
    variables = json.loads((tmp_path / "run/environment.json").read_text())["variables"]
    assert variables["LMSCALE_MIRROR"] == "https://***@mirror.example/x"
    assert "HF_TOKEN" not in variables and "SLURM_JWT" not in variables


def test_no_batch_script_holds_the_environment(monkeypatch, tmp_path, capfd):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    llama = str(find_assets("configs") / "llama_7b.yaml")
    for more in ((), ("--job", "evaluate"), ("--preflight-only",)):
        assert main(["launch", "slurm", llama, "--cluster", "example", *more, "--dry-run"]) == 0
        out, err = capfd.readouterr()
        assert out.startswith("#!/bin/bash") and S not in out + err


def test_no_variable_with_a_secret_is_kept():
    kept = select_variables({**ENVIRONMENT, "LMSCALE_KEPT": "1"})
    assert S not in str(kept)
    assert set(kept) == {"LMSCALE_KEPT", "LMSCALE_MIRROR", "PYTHON_INDEX"}


def test_the_command_that_a_run_keeps_holds_no_secret(monkeypatch):
    monkeypatch.setattr("lmscale.runs.environment.gpu_names", list)  # which would load torch
    command = ["lmscale", "train", "--token", S, f"--password={S}", f"https://me:{S}@host/x"]
    monkeypatch.setattr(sys, "argv", command)
    found = collect_environment()
    assert S not in json.dumps(found["command"])
    assert found["command"][:4] == ["lmscale", "train", "--token", "***"]


PROFILE = "time: 1:00:00\ntasks_per_node: 1\nshared: [/shared]\n"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (f"variables: {{WANDB_API_KEY: {S}}}", "variables: WANDB_API_KEY sounds like a secret"),
        (f"variables: {{MIRROR: 'https://me:{S}@x'}}", "variables: MIRROR"),
        (f"variables: {{DB_PASS: {S}}}", "variables: DB_PASS sounds like a secret"),
        (f"setup: ['export HF_TOKEN={S}']", "setup: 'export HF_TOKEN="),
        (f"setup: ['export MYSQL_PWD={S}']", "setup: 'export MYSQL_PWD="),
        (f"srun_options: ['--container-env=HF_TOKEN={S}']", "srun_options:"),
        (f"sbatch_options: ['--comment=ghp_{S}{S}']", "sbatch_options:"),
        (f"preflight: {{command: 'check --token={S}'}}", "preflight.command: 'check"),
        (f"preflight: {{command: 'nhc --token {S}'}}", "preflight.command: 'nhc --token ***'"),
        (f"setup: ['wandb login --token {S}']", "setup: 'wandb login --token ***'"),
        (f"setup: ['java -Dspring.datasource.password={S}']", "setup: 'java -Dspring."),
    ],
)
def test_a_secret_in_a_cluster_profile_is_refused(text, key):
    with pytest.raises(ConfigError, match="would be written into the batch script") as caught:
        parse_cluster(PROFILE + text)
    assert key in str(caught.value) and S not in str(caught.value)


def test_a_profile_may_say_where_a_secret_is():
    line = "export HF_TOKEN=$(cat ~/.hf-token)"
    assert parse_cluster(f"{PROFILE}setup: ['{line}']").setup == (line,)


@pytest.mark.parametrize(
    "url",
    [f"s3://key:{S}@bucket/x", f"https://me:{S}@host/x", f"https://host/x?X-Amz-Signature={S}"],
)
@pytest.mark.parametrize("is_override", [False, True])
def test_credentials_in_a_url_are_refused_where_config_yaml_would_keep_them(url, is_override):
    key = "stream.sources.a.shards"
    text = "run: {name: a}\n" + (
        "" if is_override else f"stream: {{sources: {{a: {{shards: '{url}'}}}}}}"
    )
    with pytest.raises(ConfigError, match=f"{key}: the URL holds credentials") as caught:
        parse_config(text, [f"{key}={url}"] if is_override else [])
    assert S not in str(caught.value)


def test_a_problem_is_told_without_the_secret_that_it_quotes(tmp_path, capfd):
    (tmp_path / "c.yaml").write_text("run: {name: a}\n")
    value = f"https://me:{S}@host\x1b[2J"
    assert main(["train", str(tmp_path / "c.yaml"), "--set", f"train.steps='{value}'"]) == 2
    _, err = capfd.readouterr()
    assert "https://***@host" in err and S not in err and "\x1b[2J" not in err


def test_logs_hold_neither_secrets_nor_what_steers_a_terminal(tmp_path, capsys):
    setup_logging(tmp_path, Ranks())
    path = log_path(tmp_path, 0)
    try:
        logging.getLogger("lmscale").warning("reading %s failed", f"https://me:{S}@host/x")
        try:
            raise OSError(f"https://host/x?sig={S}")
        except OSError:
            logging.getLogger("lmscale").exception("told \x1b]0;evil\x07 by a peer")
    finally:
        close_logging()
    for text in (path.read_text(), capsys.readouterr().err):
        assert S not in text and "https://***@host/x" in text and "Traceback" in text
        assert "\x1b]0;" not in text


def test_tensorboards_text_holds_no_secret(tmp_path):
    with open_trackers(tmp_path) as trackers:
        trackers.log_text("config", f"shards: s3://key:{S}@bucket/x")
    assert files_that_hold(S, tmp_path) == []


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_codes_state_holds_no_remote_and_no_secret_of_a_changed_file(tmp_path):
    (tmp_path / "lmscale").mkdir()
    code = tmp_path / "lmscale" / "__init__.py"
    code.write_text("a = 1\n")
    git(tmp_path, "init")
    git(tmp_path, "remote", "add", "origin", f"https://oauth2:{S}@host/x.git")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    code.write_text(f'a = 2\nAPI_TOKEN = "{S}"\nURL = "https://me:{S}@host"\n')
    state = collect_code(tmp_path)
    assert "+a = 2" in state["git"]["diff"]
    assert S not in json.dumps(state)


def test_every_example_that_is_shipped_is_taken():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        load_config(path)
