"""`lmscale train` by its exit codes and words: real processes, each a lone rank."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_run import (
    committed_steps,
    ledger_of,
    losses_of,
    run_lmscale,
    settings,
    tiny_tree,
    write_tiny_config,
)

from lmscale.cli.main import main
from lmscale.cli.runs.look import read_page
from lmscale.cli.runs.view import render_page
from lmscale.config import load_config
from lmscale.files.jsonl import read_rows
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.train import train_tokenizer

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


@pytest.fixture(scope="module")
def lmscale():
    return run_lmscale


@pytest.fixture(scope="module")
def finished(lmscale, tiny_data, tmp_path_factory):
    """The folder of a run of 6 steps, finished; tests copy it."""
    root = tmp_path_factory.mktemp("finished")
    config = write_tiny_config(root / "tiny.yaml", tiny_data, root / "run", {"train.steps": 6})
    ended = lmscale("train", config)
    assert ended.code == 0, ended.output
    return root / "run"


@pytest.fixture
def go_on(lmscale, finished, tiny_data, tmp_path):
    """Train 4 steps more in a copy of the finished run's folder, with other settings."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))

    def train(overrides=None, **limits):
        overrides = {"train.steps": 10, **(overrides or {})}
        config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, run, overrides)
        return lmscale("train", config, **limits)

    train.run = run
    return train


def refused(ended) -> str:
    """What a refused command said: a message without a traceback, and exit code 2."""
    assert ended.code == 2, ended.output
    assert "error: " in ended.output
    assert "Traceback" not in ended.output
    return ended.output


def audit(run) -> int:
    return main(["runs", "audit", str(run)])


def test_a_finished_run_has_nothing_left_to_do(go_on):
    before = ledger_of(go_on.run)
    ended = go_on({"train.steps": 6})
    assert ended.code == 0, ended.output
    assert ledger_of(go_on.run) == before
    assert committed_steps(go_on.run) == [4, 6]


def test_a_longer_run_goes_on_where_the_shorter_one_ended(go_on, finished):
    ended = go_on()
    assert ended.code == 0, ended.output
    assert "resumed from" in ended.output and "at step 6" in ended.output
    assert ledger_of(go_on.run)[:6] == ledger_of(finished)
    assert sorted(losses_of(go_on.run)) == list(range(1, 11))
    assert committed_steps(go_on.run) == [8, 10]
    assert audit(go_on.run) == 0


def test_a_changed_mixture_begins_a_segment_and_nothing_is_lost_or_repeated(go_on):
    ended = go_on({"stream.sources.a.weight": 1, "stream.sources.b.weight": 3})
    assert ended.code == 0, ended.output
    record = json.loads((go_on.run / "stream.json").read_text())
    state = record["state"]
    assert record["bos"] == load_tokenizer(go_on.run / "tokenizer").bos_id == 1
    assert [segment["start"] for segment in state["segments"]] == [0, 6 * 12]
    first, second = (segment["quotas"] for segment in state["segments"])
    assert first == {"a": 48, "b": 16} and second == {"a": 16, "b": 48}
    assert audit(go_on.run) == 0
    told = "from sample 72 (step 7) on: a 75 % → 25 %, b 25 % → 75 %"
    assert f"the mixture changes {told}" in ended.output
    shares = {"from_n": 72, "before": {"a": 0.75, "b": 0.25}, "now": {"a": 0.25, "b": 0.75}}
    assert read_rows(go_on.run / "resumes.jsonl")[-1]["mixture"] == shares
    page = read_page(go_on.run)
    assert page.to_json()["mixture"] == {
        "shares": shares["before"],
        "changes": [shares | {"step": 7}],
    }
    lines = render_page(page).splitlines()
    place = lines.index("mixture          a 75 %, b 25 %")
    assert lines[place + 1].strip() == told
    figures = read_rows(go_on.run / "metrics.jsonl")
    drawn = {row["step"]: row.get("mixture/a/share") for row in figures}
    assert drawn[7] == 0.25 and 0.75 in drawn.values()


def test_a_source_can_leave_and_the_run_is_still_audited(go_on):
    ended = go_on(
        {
            "stream.sources": {
                "b": load_config(go_on.run / "config.yaml").stream.sources["b"].model_dump()
            }
        }
    )
    assert ended.code == 0, ended.output
    state = json.loads((go_on.run / "stream.json").read_text())["state"]
    assert set(state["segments"][1]["quotas"]) == {"b"}
    assert audit(go_on.run) == 0


def test_precision_schedule_and_rate_may_change_on_resume(go_on):
    changes = {
        "engine.precision": "bf16",
        "engine.zero_stage": 3,
        "engine.optimizer.lr": 1e-3,
        "engine.schedule": {"kind": "cosine", "warmup_steps": 2},
        "model.dropout": 0.1,
        "model.activation_checkpoint_every": 1,
        "batch.micro_windows": 12,
        "stream.workers": 2,
    }
    ended = go_on(changes)
    assert ended.code == 0, ended.output
    assert "at step 6" in ended.output
    assert "from step 7 on, changed: engine.optimizer.lr: " in ended.output
    assert audit(go_on.run) == 0


def test_an_automatic_precision_stays_what_the_run_began_in(go_on):
    ended = go_on({"engine.precision": "auto"})
    assert ended.code == 0, ended.output
    assert "engine.precision: auto is fp32: in which the run began" in ended.output
    assert "changed: engine.precision" not in ended.output
    assert load_config(go_on.run / "config.yaml").engine.precision == "fp32"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"model.layers": 3, "model.ffn_width": 96},
            [
                "model.layers = 3, but the run began with 2",
                "model.ffn_width = 96, but the run began with 64",
            ],
        ),
        ({"engine.precision": "fp16"}, ["fp16", "--set engine.precision=bf16"]),
        ({"stream.sources.a.shards": "/nowhere"}, ["/nowhere"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_may_not_change_on_resume_is_refused_by_name_and_nothing_changes(
    go_on, finished, change, words
):
    """Of every other key: tests/runs/test_continuation.py."""
    said = refused(go_on(change))
    for word in words:
        assert word in said
    for name in ("config.yaml", "ledger.jsonl", "metrics.jsonl", "stream.json"):
        assert (go_on.run / name).read_bytes() == (finished / name).read_bytes()
    assert committed_steps(go_on.run) == [4, 6]


def test_a_changed_batch_changes_the_step_but_loses_no_sample(go_on):
    ended = go_on({"batch.global_windows": 8})
    assert ended.code == 0, ended.output
    rows = [json.loads(line) for line in ledger_of(go_on.run)]
    assert [row["first_n"] for row in rows[5:8]] == [60, 72, 80]
    assert audit(go_on.run) == 0


def test_a_full_disk_ends_with_a_message_and_the_older_checkpoint_resumes(go_on):
    # Every other file of this run is smaller; a checkpoint's are not.
    largest = max(p.stat().st_size for p in go_on.run.glob("checkpoints/*/*.safetensors"))
    full = go_on(max_file_bytes=largest - 1)
    assert full.code == 75, full.output
    assert "No space is left in" in full.output and "while writing a checkpoint" in full.output
    assert "The run is whole" in full.output and "Traceback" not in full.output
    assert committed_steps(go_on.run) == [6]  # the older one went first, for want of room
    ended = go_on()
    assert ended.code == 0, ended.output
    assert "at step 6" in ended.output
    assert audit(go_on.run) == 0


def test_a_damaged_checkpoint_is_named_and_its_steps_are_done_again(go_on, finished):
    damaged = go_on.run / "checkpoints" / "step-000000006" / "rank-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    ended = go_on()
    assert ended.code == 0, ended.output
    assert "checkpoint of step 6 passed over" in ended.output and str(damaged) in ended.output
    assert "at step 4" in ended.output
    assert ledger_of(go_on.run)[:6] == ledger_of(finished)
    assert (go_on.run / "ledger.rewound.jsonl").read_text().splitlines() == ledger_of(finished)[4:]
    assert sorted(losses_of(go_on.run)) == list(range(1, 11))
    assert audit(go_on.run) == 0


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_from_scratch(go_on):
    for path in go_on.run.glob("checkpoints/*/*.safetensors"):
        path.write_bytes(b"")
    said = refused(go_on())
    assert "None of the 2 checkpoints" in said
    row = json.loads((go_on.run / "resumes.jsonl").read_text().splitlines()[-1])
    assert row["checkpoint"] is None and [one["step"] for one in row["passed_over"]] == [6, 4]
    assert len(ledger_of(go_on.run)) == 6


def test_a_diverged_run_is_stopped_by_the_guard_with_76_and_can_be_resumed(go_on):
    growing = {"engine.optimizer.lr": 1000.0, "engine.optimizer.weight_decay": 1000.0}
    ended = go_on({**growing, "train.steps": 16, "guard.max_nonfinite_steps": 2})
    assert ended.code == 76, ended.output
    assert "2 steps in a row were not finite" in ended.output
    assert "Traceback" not in ended.output
    ended = go_on()
    assert ended.code == 0, ended.output
    assert audit(go_on.run) == 0


@pytest.fixture
def broken(tiny_data, tmp_path):
    """A copy of the data to break, and a configuration that reads it."""
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    return data, write_tiny_config(tmp_path / "tiny.yaml", data, tmp_path / "run")


def test_a_missing_tokenizer_is_told_with_the_command_that_makes_one(lmscale, broken):
    data, config = broken
    shutil.rmtree(data / "tokenizer")
    said = refused(lmscale("train", config))
    assert str(data / "tokenizer") in said and "lmscale tokenizer train" in said
    assert not (config.parent / "run").exists()  # nothing is left of a start that was refused


def test_a_tokenizer_that_is_not_the_shards_is_refused(lmscale, broken):
    data, config = broken
    shutil.rmtree(data / "tokenizer")
    section = load_config(config).tokenizer.model_copy(update={"vocab_size": 480})
    train_tokenizer(section, data / "corpus", ["a", "b"])
    said = refused(lmscale("train", config))
    for name in "ab":
        assert f"stream.sources.{name}: its shards were made with another tokenizer" in said


def test_a_tokenizer_larger_than_the_embedding_is_refused(lmscale, broken):
    said = refused(
        lmscale(
            "train", broken[1], *settings({"tokenizer.vocab_size": 300, "model.vocab_size": 400})
        )
    )
    assert "512 pieces" in said and "only 400 embeddings" in said


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "a-000000.tar").unlink(), "a-000000.tar"),
        (lambda folder: _cut(folder / "a-000000.tar"), "a-000000.tar"),
        (lambda folder: _flip_all(folder), "its content has changed since it was built"),
        (lambda folder: (folder / "manifest.json").unlink(), "lmscale shards build"),
    ],
    ids=["missing shard", "cut shard", "flipped bytes", "missing manifest"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_shards_are_named_and_end_the_run_with_2(lmscale, broken, harm, words, workers):
    data, config = broken
    harm(data / "shards" / "a" / "train")
    said = refused(lmscale("train", config, *settings({"stream.workers": workers})))
    assert said.count(words) == 1


def _cut(path):
    path.write_bytes(path.read_bytes()[:-512])


def _flip_all(folder):
    """One bit in the middle of every shard: which one is read first is the order's business."""
    for path in folder.glob("*.tar"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("file", "is a file; run.folder must name a folder"),
        ("folder", "is not empty and holds no run"),
    ],
)
def test_a_place_that_is_not_the_runs_is_left_alone(lmscale, tiny_data, tmp_path, what, words):
    place = tmp_path / "run"
    if what == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("mine")
    config = write_tiny_config(tmp_path / "tiny.yaml", tiny_data, place)
    assert words in refused(lmscale("train", config))
    left = [place] if what == "file" else list(place.iterdir())
    assert [path.read_text() for path in left] == ["mine"]


def test_all_problems_of_a_configuration_are_told_before_anything_is_written(
    lmscale, tiny_data, tmp_path
):
    tree = tiny_tree(tiny_data, tmp_path / "run")
    tree["trian"] = {"steps": 5}
    tree["model"]["hedas"] = 4
    tree["engine"]["zero_stage"] = 7
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(tree))
    said = refused(lmscale("train", config))
    assert "trian: unknown key. Did you mean train?" in said
    assert "model.hedas: unknown key. Did you mean heads?" in said
    assert "engine.zero_stage" in said
    assert not (tmp_path / "run").exists()
