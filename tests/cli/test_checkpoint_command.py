"""``lmscale checkpoint`` on what a real run has saved."""

import json
import os
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_run import run_lmscale, write_tiny_config

from lmscale.checkpoint.manifest import parse_manifest
from lmscale.files.jsonl import append_row
from lmscale.ranks.attempt import Attempt
from lmscale.runs.lease import Lease

pytestmark = pytest.mark.slow
STEPS = (6, 4, 2)


@pytest.fixture(scope="module")
def lmscale():
    return run_lmscale


@pytest.fixture(scope="module")
def trained(lmscale, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    overrides = {"train.steps": 6, "checkpoint.every_steps": 2, "checkpoint.keep_last": 3}
    config = write_tiny_config(folder / "c.yaml", tiny_data, folder / "run", overrides)
    ended = lmscale("train", config)
    assert ended.code == 0, ended.output
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy, elsewhere than its config.yaml says."""
    return shutil.copytree(trained, tmp_path / "run")


def folder_of(run, step):
    return run / "checkpoints" / f"step-{step:09d}"


def steps_of(run):
    return sorted(int(p.parent.name[5:]) for p in run.glob("checkpoints/*/manifest.json"))[::-1]


def set_key(run, key, value):
    path = run / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    *sections, name = key.split(".")
    place = tree
    for section in sections:
        place = place[section]
    place[name] = value
    path.write_text(yaml.safe_dump(tree))


def change_manifest(run, step, **changes):
    path = folder_of(run, step) / "manifest.json"
    manifest = replace(parse_manifest(path.read_text(), path), **changes)
    path.write_text(json.dumps(manifest.to_json()))


def flip_byte(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def files_of(run, step):
    return sorted(folder_of(run, step).glob("*.safetensors"))


def ask(lmscale, *words, code=0):
    ended = lmscale("checkpoint", *words, "--json")
    assert ended.code == code, ended.output
    return json.loads(ended.output[ended.output.index("{") :])


# ---- list


def test_list_has_a_row_for_every_step_the_newest_first(lmscale, run):
    (folder_of(run, 7)).mkdir()  # of a save that was cut off
    ended = lmscale("checkpoint", "list", run)
    assert ended.code == 0, ended.output
    head, *rows = ended.output.splitlines()
    assert head.split()[:2] == ["step", "state"]
    assert [row.split()[:2] for row in rows] == [
        ["7", "torn"],
        *[[str(step), "committed"] for step in STEPS],
    ]
    assert all("fp32" in row and "last" in row for row in rows[1:])


def test_lists_json_says_what_it_is_and_why_it_is_kept(lmscale, run):
    set_key(run, "checkpoint.keep_last", 1)
    set_key(run, "checkpoint.keep_every_steps", 4)
    set_key(run, "evaluation.sets", {"heldout": "not opened"})
    set_key(run, "evaluation.every_steps", 2)
    best = {"metric": "evaluation/heldout/loss", "count": 1, "mode": "min"}
    set_key(run, "checkpoint.keep_best", best)
    for step, loss in ((2, 1.0), (4, 2.0), (6, None)):
        append_row(run / "metrics.jsonl", {"step": step, "evaluation/heldout/loss": loss})
    change_manifest(run, 4, reason="asked")
    content = ask(lmscale, "list", run)
    assert content["location"] == str(run / "checkpoints")
    rows = {row["step"]: row for row in content["checkpoints"]}
    assert list(rows) == list(STEPS)
    assert {step: row["kept_for"] for step, row in rows.items()} == {
        6: ["last"],
        4: ["every", "asked"],
        2: ["best"],
    }
    six = rows[6]
    assert (six["state"], six["is_finite"], six["world_size"], six["zero_stage"]) == (
        "committed",
        True,
        1,
        1,
    )
    assert six["bytes"] == sum(path.stat().st_size for path in files_of(run, 6))
    assert six["time"] > 1e9 and six["precision"] == "fp32"


def test_list_names_what_cannot_be_gone_on_from(lmscale, run):
    path = folder_of(run, 6) / "manifest.json"
    flip_byte(path, path.read_bytes().index(b'"weights":"') + len(b'"weights":"'))
    change_manifest(run, 4, is_finite=False)
    row = {"number": 1, "at_step": 3, "to_step": 0, "to_n": 0, "jump_from_n": 24}
    row |= {"jump_samples": 12, "why": "a spike", "time": 1.0}
    (run / "rewinds.jsonl").write_text(json.dumps(row) + "\n")
    change_manifest(run, 4, is_finite=False, rewinds=1)
    rows = {row["step"]: row for row in ask(lmscale, "list", run)["checkpoints"]}
    assert [rows[step]["state"] for step in STEPS] == ["unreadable", "committed", "undone"]
    assert "does not match its own hash" in rows[6]["problems"][0]
    assert rows[4]["is_finite"] is False and rows[4]["kept_for"] == []
    assert rows[2]["problems"][0].endswith("step-000000002: the guard has undone step 2 since")
    shown = lmscale("checkpoint", "show", run, "--step", 2).output
    assert re.search(r"state +undone\n.*the guard has undone step 2 since", shown), shown


def test_a_run_without_checkpoints_has_none(lmscale, run):
    shutil.rmtree(run / "checkpoints")
    for command in ("list", "verify"):
        ended = lmscale("checkpoint", command, run)
        assert ended.code == 0 and "holds no checkpoints yet" in ended.output
    assert lmscale("checkpoint", "show", run).code == 2


def test_what_is_no_runs_folder_is_a_clear_error(lmscale, tmp_path):
    for command in ("list", "verify", "show", "prune"):
        ended = lmscale("checkpoint", command, tmp_path)
        assert ended.code == 2 and "is not a run's folder" in ended.output


# ---- verify


def test_verify_reads_every_file_and_says_that_it_is_whole(lmscale, run):
    ended = lmscale("checkpoint", "verify", run)
    assert ended.code == 0, ended.output
    for step in STEPS:
        assert f"step-{step:09d}: whole, 1 file" in ended.output
    assert all(row["is_whole"] for row in ask(lmscale, "verify", run)["checkpoints"])


DAMAGES = {
    "does not have the hash": lambda path: flip_byte(path),
    "bytes instead of": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "is missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_verify_ends_with_2_and_names_what_is_damaged(lmscale, run, what):
    DAMAGES[what](files_of(run, 4)[0])
    ended = lmscale("checkpoint", "verify", run)
    assert ended.code == 2
    assert what in ended.output and "step-000000004/rank-00000.safetensors" in ended.output
    assert "step-000000006: whole" in ended.output, "the others are told all the same"
    assert lmscale("checkpoint", "verify", run, "--step", "6").code == 0
    (row,) = ask(lmscale, "verify", run, "--step", "4", code=2)["checkpoints"]
    assert row["is_whole"] is False and what in row["problems"][0]


def test_verify_finds_a_damaged_manifest_and_elements_that_no_file_has(lmscale, run):
    flip_byte(folder_of(run, 6) / "manifest.json", 50)
    path = folder_of(run, 4) / "manifest.json"
    (entry,) = parse_manifest(path.read_text(), path).files
    change_manifest(run, 4, files=(replace(entry, fragments=entry.fragments[1:]),))
    ended = lmscale("checkpoint", "verify", run)
    assert ended.code == 2
    assert "step-000000006/manifest.json" in ended.output
    assert "are missing or doubled" in ended.output and "step-000000002: whole" in ended.output


def test_a_step_that_is_not_there_is_told_with_those_that_are(lmscale, run):
    for command in ("verify", "show"):
        ended = lmscale("checkpoint", command, run, "--step", "5")
        assert ended.code == 2 and "no checkpoint of step 5. There are: 6, 4, 2." in ended.output


# ---- show


def test_show_tells_what_a_checkpoint_holds(lmscale, run):
    ended = lmscale("checkpoint", "show", run)
    assert ended.code == 0, ended.output
    manifest = json.loads((folder_of(run, 6) / "manifest.json").read_text())
    for text in (
        "step-000000006",
        "trained, in",
        "master (",
        "exp_avg_sq (",
        "1 rank, ZeRO 1, fp32, torch",
        f"{manifest['state']['progress']['n']:,} samples",
        "mixture          a 75.0%, b 25.0%",
        "train/loss ",
        manifest["weights"],
        "last",
    ):
        assert text in ended.output, text


def test_shows_json_is_the_manifest_and_what_is_known_beside_it(lmscale, run):
    content = ask(lmscale, "show", run, "--step", "4")
    assert content["manifest"] == json.loads((folder_of(run, 4) / "manifest.json").read_text())
    assert content["figures"]["train/loss"] > 0 and content["kept_for"] == ["last"]


# ---- prune


def test_a_dry_run_of_prune_says_what_would_go_and_removes_nothing(lmscale, run):
    ended = lmscale("checkpoint", "prune", run, "--keep-last", "1", "--dry-run")
    assert ended.code == 0, ended.output
    assert "would remove" in ended.output and "would keep steps: 6" in ended.output
    assert steps_of(run) == list(STEPS)


def test_prune_keeps_the_newest_the_multiples_and_those_asked_for(lmscale, run):
    (folder_of(run, 7)).mkdir()
    change_manifest(run, 2, reason="asked")
    content = ask(lmscale, "prune", run, "--keep-last", "1")
    assert [row["step"] for row in content["deleted"]] == [7, 4]
    assert content["sound_step"] == 6 and steps_of(run) == [6, 2]
    assert not folder_of(run, 7).exists()
    assert ask(lmscale, "prune", run, "--keep-last", "1", "--keep-every", "2")["deleted"] == []
    ask(lmscale, "prune", run, "--keep-last", "1", "--asked")
    assert steps_of(run) == [6]


def test_prune_never_removes_the_last_good_one(lmscale, run):
    """By their manifests the newer ones are good; on the disk they are not any more."""
    flip_byte(files_of(run, 6)[0])
    files_of(run, 4)[0].unlink()
    ended = lmscale("checkpoint", "prune", run, "--keep-last", "1")
    assert ended.code == 0, ended.output
    assert "the newest whole one is of step 2" in ended.output
    assert steps_of(run) == [6, 2]
    flip_byte(files_of(run, 2)[0])
    ended = lmscale("checkpoint", "prune", run, "--keep-last", "1")
    assert "none of them is whole" in ended.output and steps_of(run) == [6, 2]


def test_prune_takes_the_undone_before_the_good(lmscale, run):
    row = {"number": 1, "at_step": 7, "to_step": 2, "to_n": 24, "jump_from_n": 36}
    row |= {"jump_samples": 12, "why": "a spike", "time": 1.0}
    (run / "rewinds.jsonl").write_text(json.dumps(row) + "\n")
    ask(lmscale, "prune", run, "--keep-last", "1")
    assert steps_of(run) == [2]


def test_what_an_unfinished_run_may_go_back_to_is_listed_with_the_reason_and_not_pruned(
    lmscale, run
):
    set_key(run, "train.steps", 100)
    set_key(run, "checkpoint.keep_last", 1)
    rows = ask(lmscale, "list", run)["checkpoints"]
    assert {row["step"]: row["kept_for"] for row in rows} == {6: ["last"], 4: [], 2: ["rewind"]}
    shown = lmscale("checkpoint", "show", run, "--step", "2").output
    assert re.search(r"kept for +rewind \(the guard goes back to it", shown), shown
    shown = lmscale("checkpoint", "show", run, "--step", "4").output
    assert "nothing: the next save removes it" in shown
    ended = lmscale("checkpoint", "prune", run)
    assert ended.code == 0 and "kept steps: 6, 2 (rewind)" in ended.output, ended.output
    assert steps_of(run) == [6, 2]


def test_prune_is_refused_while_the_run_is_live_and_a_dry_run_is_not(lmscale, run):
    lease = Lease(Attempt(), run)
    lease.take(["here"])
    ended = threading.Event()

    def beat():
        while not ended.wait(0.1):
            os.utime(run / "lease.json")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        refused = lmscale("checkpoint", "prune", run, "--keep-last", "1")
        assert refused.code == 2 and "is being trained" in refused.output
        assert lmscale("checkpoint", "prune", run, "--keep-last", "1", "--dry-run").code == 0
    finally:
        ended.set()
        thread.join()
    assert steps_of(run) == list(STEPS)
    assert lmscale("checkpoint", "prune", run, "--keep-last", "1").code == 0, "it beats no more"
    assert steps_of(run) == [6]


# ---- elsewhere


def test_checkpoints_in_another_folder_are_found_by_the_runs_configuration(lmscale, run, tmp_path):
    shutil.move(run / "checkpoints", tmp_path / "elsewhere")
    set_key(run, "checkpoint.folder", str(tmp_path / "elsewhere"))
    content = ask(lmscale, "list", run)
    assert content["location"] == str(tmp_path / "elsewhere") and len(content["checkpoints"]) == 3
    ask(lmscale, "prune", run, "--keep-last", "1")
    assert [path.name for path in (tmp_path / "elsewhere").glob("step-*")] == ["step-000000006"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_checkpoints_behind_a_url_are_listed_verified_and_pruned(run, capsys):
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3
    from s3_server import open_s3

    from lmscale.cli.main import main

    with open_s3("listed") as (host, port):
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        for path in sorted((run / "checkpoints").rglob("*.*")):
            key = f"tiny/{Path(path).relative_to(run / 'checkpoints')}"
            client.put_object(Bucket="listed", Key=key, Body=path.read_bytes())
        shutil.rmtree(run / "checkpoints")
        set_key(run, "checkpoint.folder", "s3://listed/tiny")
        assert main(["checkpoint", "verify", str(run)]) == 0
        assert "s3://listed/tiny/step-000000004: whole" in capsys.readouterr().out
        key = "tiny/step-000000004/rank-00000.safetensors"
        client.put_object(Bucket="listed", Key=key, Body=b"damaged")
        assert main(["checkpoint", "verify", str(run), "--step", "4"]) == 2
        assert main(["checkpoint", "prune", str(run), "--keep-last", "1"]) == 0
        capsys.readouterr()
        assert main(["checkpoint", "list", str(run), "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)["checkpoints"]
        assert [row["step"] for row in listed] == [6]
        client.close()
