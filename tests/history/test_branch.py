"""A branch goes on where another run was: in the same samples, until a setting differs."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from tiny_run import (
    committed_steps,
    ledger_of,
    losses_of,
    run_lmscale,
    settings,
    write_tiny_config,
)
from typer.testing import CliRunner

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.places.run_place import open_place
from lmscale.checkpoint.retention import remove
from lmscale.cli.app import app
from lmscale.cli.main import main
from lmscale.errors import CheckpointError, ConfigError, DataError
from lmscale.history import branch as branching
from lmscale.history.branch import make_branch, plan_branch
from lmscale.runs.commits import read_commits
from lmscale.runs.origins import read_origins
from lmscale.runs.run_folder import load_run_config, read_status

STEP = "checkpoints/step-000000004"
pytestmark = [pytest.mark.ranks]


@pytest.fixture(scope="module")
def origin(tiny_data, tmp_path_factory):
    """The folder of a run of ten steps with every checkpoint; its learning rate is constant."""
    root = tmp_path_factory.mktemp("origin")
    overrides = {"run.name": "base", "checkpoint.keep_last": 9}
    config = write_tiny_config(root / "c.yaml", tiny_data, root / "base", overrides)
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    return root / "base"


@pytest.fixture
def base(origin, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(origin, tmp_path / "base")
    return tmp_path / "base"


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_a_branch_does_the_steps_of_its_run_until_a_setting_differs_and_its_ledger_holds(base):
    decay = {
        "engine.schedule.kind": "wsd",
        "engine.schedule.decay_steps": 2,
        "engine.schedule.final_ratio": 0.0,
        "train.steps": 8,  # so it decays from step 6 on
    }
    made = invoke("runs", "branch", f"{base}@4", "second", *settings(decay))
    assert made.exit_code == 0, made.output
    folder = base.with_name("second")
    assert f"{folder}: goes on from step 4 of {base} (1 file linked" in made.output
    assert "otherwise: engine.schedule.kind: 'constant' → 'wsd'" in made.output
    config = folder / "config.yaml"
    assert f"next: lmscale launch local {config} --nproc 1" in made.output
    before = invoke("runs", "audit", folder)
    assert before.exit_code == 0 and "clean. 4 steps" in before.output  # not yet begun

    shutil.rmtree(base / "checkpoints")  # whatever becomes of that run
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    assert "resumed from" in ended.output and "at step 4" in ended.output
    assert ledger_of(folder) == ledger_of(base)[:8]
    here, there = losses_of(folder), losses_of(base)
    assert [here[step] for step in range(1, 8)] == [there[step] for step in range(1, 8)]
    assert here[8] != there[8]  # step 7 had another rate
    audit = invoke("runs", "audit", folder)
    assert audit.exit_code == 0 and "clean. 8 steps" in audit.output
    assert "The first 4 of these steps are those of the run base" in audit.output
    newest = load_manifest(LocalPlace(folder / "checkpoints"), 8)
    assert newest.state["branch"]["run"] == "base" and newest.state["branch"]["step"] == 4
    status = invoke("runs", "status", folder)
    assert f"branch of        run base from step 4 on ({base}/{STEP})" in status.output
    assert not read_status(folder).problems


def test_what_the_other_run_removes_stays_in_the_branch_linked_or_copied(base, monkeypatch):
    link = branching.os.link

    def no_link(source, target):
        if target.suffix == ".safetensors":
            raise OSError("another file system")
        link(source, target)

    assert make_branch(plan_branch(f"{base}@4", "linked")) is True
    monkeypatch.setattr(branching.os, "link", no_link)
    assert make_branch(plan_branch(f"{base}@4", "copied")) is False
    remove(base, LocalPlace(base / "checkpoints"), [4])
    for name in ("linked", "copied"):
        folder = base.with_name(name)
        assert committed_steps(folder) == [4]
        place = LocalPlace(folder / "checkpoints")
        manifest = load_manifest(place, 4)
        assert manifest.identity["run"] == name
        assert [place.describe_damage(4, entry) for entry in manifest.files] == [None]
        assert read_origins(folder)["branch"].optimizer
        rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        assert max(row["step"] for row in rows) == 4


@pytest.mark.parametrize("name", ["007", "null", "1e3"])
@pytest.mark.parametrize("place", ["a #1", "b: c", "d [e", "f\U0001f600"])
def test_a_name_and_a_folder_mean_what_they_say_whatever_they_are_in_yaml(
    origin, tmp_path, name, place
):
    (tmp_path / place).mkdir()
    (tmp_path / place / "base").symlink_to(origin)
    plan = plan_branch(f"{tmp_path}/{place}/base@4", name)
    assert (plan.config.run.name, plan.config.folder) == (name, tmp_path / place / name)


def test_the_command_to_go_on_is_one_that_a_shell_takes(origin, tmp_path, monkeypatch):
    (tmp_path / "a b/runs").mkdir(parents=True)
    (tmp_path / "a b/runs/base").symlink_to(origin)
    monkeypatch.chdir(tmp_path / "a b")
    made = invoke("runs", "branch", "base@4", "new", "--json")
    config = tmp_path / "a b/runs/new/config.yaml"
    assert config.is_file()
    command = json.loads(made.output[made.output.index("{") :])["next"]
    assert shlex.split(command) == ["lmscale", "launch", "local", str(config), "--nproc", "1"]
    # Not as it was typed: whoever reads it later is in another folder.
    checkpoint = read_origins(config.parent)["branch"].checkpoint
    assert checkpoint == str(tmp_path / f"a b/runs/base/{STEP}")


def test_a_run_that_removes_its_checkpoint_while_it_is_looked_at_does_not_harm_the_branch(
    base, monkeypatch
):
    look = LocalPlace.describe_damage

    def remove_first(place, step, entry):
        shutil.rmtree(base / STEP, ignore_errors=True)
        return look(place, step, entry)

    plan = plan_branch(f"{base}@4", "new")
    monkeypatch.setattr(LocalPlace, "describe_damage", remove_first)
    assert make_branch(plan)
    assert committed_steps(base.with_name("new")) == [4]


def test_what_is_left_of_a_killed_one_goes_and_of_two_at_once_the_second_is_refused(
    base, monkeypatch
):
    (base.parent / ".new.0123abcd.partial").mkdir()
    plan = plan_branch(f"{base}@4", "new", [f"checkpoint.folder={base.parent}/elsewhere"])
    save = branching.save_origins

    def save_late(work, origins):
        base.with_name("new").mkdir()
        (base.with_name("new") / "config.yaml").touch()  # the first one's
        save(work, origins)

    monkeypatch.setattr(branching, "save_origins", save_late)
    with pytest.raises(DataError, match="Something has appeared there meanwhile: name"):
        make_branch(plan)
    assert {path.name for path in base.parent.iterdir()} == {"base", "elsewhere", "new"}
    assert LocalPlace(base.parent / "elsewhere").list_steps() == []  # it may be named again


def test_checkpoints_behind_a_url_are_copied_to_a_place_of_the_branch_s_own(base):
    one, two = (f"checkpoint.folder=memory://branches/{name}" for name in ("one", "two"))
    assert make_branch(plan_branch(f"{base}@4", "one", [one])) is False
    (commit,) = read_commits(base.with_name("one"))
    assert commit.folder == "memory://branches/one/step-000000004"
    assert make_branch(plan_branch(str(base.with_name("one")), "two", [two])) is False
    place = open_place(load_run_config(base.with_name("two")))
    manifest = load_manifest(place, 4)
    assert [place.describe_damage(4, entry) for entry in manifest.files] == [None]
    assert manifest.state["branch"]["checkpoint"] == commit.folder
    with pytest.raises(ConfigError, match="holds checkpoints already .of step 4.. Name an empty"):
        make_branch(plan_branch(f"{base}@4", "three", [two]))


@pytest.mark.parametrize(
    ("named", "overrides", "told"),
    [
        ("base@3", {}, "no checkpoint of step 3. There are: 2, 4, 6, 8, 10."),
        ("base@4", {"run.seed": 2}, "run.seed = 2, but the run has 1, and a branch goes on in the"),
        ("base@4", {"model.layers": 3}, "model.layers = 3, but the run has 2"),
        ("base@4", {"train.steps": 4}, "with 4 steps done: nothing is left"),
        ("base@4", {"run.name": "x"}, "the branch is called new; leave it out"),
        ("base@4", {"run.folder": "BASE"}, "is there already. Give the branch another name"),
        (f"base/{STEP}", {"stream.sequence_length": 64}, "stream.sequence_length = 64, but the"),
        ("none@4", {}, "is not a run's folder"),
        (f"alone/{Path(STEP).name}", {}, "a branch needs the run's own folder"),
    ],
)
def test_what_no_branch_can_be_is_refused_and_leaves_nothing(
    origin, tmp_path, named, overrides, told
):
    (tmp_path / "alone").symlink_to(origin / "checkpoints")
    (tmp_path / "base").symlink_to(origin)
    overrides = {k: str(v).replace("BASE", str(origin)) for k, v in overrides.items()}
    given = [f"{key}={value}" for key, value in overrides.items()]
    with pytest.raises(ConfigError) as caught:
        plan_branch(f"{tmp_path}/{named}", "new", given)
    assert told in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_all_that_stands_against_a_branch_is_told_at_once(base):
    with pytest.raises(ConfigError) as caught:
        plan_branch(f"{base}@4", "base", ["run.seed=2", "model.layers=3", "train.steps=3"])
    assert len(caught.value.problems) == 4


def test_checkpoints_elsewhere_go_to_an_empty_place_of_the_branch_s_own(base, tmp_path):
    elsewhere = f"checkpoint.folder={tmp_path}/elsewhere"
    make_branch(plan_branch(f"{base}@4", "new", [elsewhere]))
    place = LocalPlace(tmp_path / "elsewhere")
    (commit,) = read_commits(base.with_name("new"))
    assert commit.folder == place.name_of(4) and place.list_steps() == [4]
    with pytest.raises(ConfigError, match="holds checkpoints already .of step 10.. Name an"):
        make_branch(plan_branch(f"{base}@4", "other", [f"checkpoint.folder={base}/checkpoints"]))
    assert committed_steps(base) == [2, 4, 6, 8, 10] and not base.with_name("other").exists()
    with pytest.raises(ConfigError, match="and each run has a place of its own. Name another"):
        plan_branch(str(base.with_name("new")), "third")


def test_a_damaged_checkpoint_makes_no_branch_and_leaves_no_folder(base):
    (file,) = (base / STEP).glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not have the hash that its manifest gives"):
        make_branch(plan_branch(f"{base}@4", "new"))
    assert sorted(path.name for path in base.parent.iterdir()) == ["base"]


def test_a_branch_has_the_rewinds_and_the_mixtures_that_its_checkpoint_knows(base):
    rewind = {
        "at_step": 3, "to_step": 2, "to_n": 24, "jump_from_n": 36, "jump_samples": 12, "why": "x",
        "time": 1.0, "segments": [],
    }  # fmt: skip
    rows = "".join(json.dumps({"number": n, **rewind}) + "\n" for n in (1, 2))
    (base / "rewinds.jsonl").write_text(rows)
    with pytest.raises(CheckpointError, match="the guard has undone step 4 since"):
        plan_branch(f"{base}@4", "new")
    make_branch(plan_branch(f"{base}@2", "new"))
    assert not (base.with_name("new") / "rewinds.jsonl").exists()  # it was of neither


def test_a_branch_from_before_a_change_of_the_mixture_says_which_it_goes_on_with(base, capsys):
    assert "mixture" not in invoke("runs", "branch", f"{base}@4", "same").output
    path = base / "config.yaml"
    path.write_text(path.read_text().replace("weight: 3.0", "weight: 1.0"))  # as it was given later
    made = invoke("runs", "branch", f"{base}@4", "new")
    told = "from sample 48 (step 5) on: a 75 % → 50 %, b 25 % → 50 %"
    assert f"  otherwise: the mixture of its config.yaml, {told}\n" in made.output
    config = base.with_name("new") / "config.yaml"
    ended = run_lmscale("train", config, *settings({"train.steps": 5}))
    assert f"the mixture changes {told}" in ended.output
    row = invoke("runs", "branch", f"{base}@4", "third", "--json").output
    assert json.loads(row[row.index("{") :])["mixture"]["now"] == {"a": 0.5, "b": 0.5}
    assert main(["runs", "list", str(base.parent)]) == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("third")]
    assert line.split()[:7] == ["third", "not", "started", "4/10", "1,536", "-", "-"], line
    assert main(["runs", "list", str(base.parent), "--json"]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["third"]["figures"], rows["third"]["heldout"]) == ({}, None)
    assert rows["new"]["figures"]["train/loss"] > 0
