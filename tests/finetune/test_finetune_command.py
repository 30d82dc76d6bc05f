"""`lmscale finetune` is one run, however it was interrupted; what is wrong is told before it."""

import json
from pathlib import Path

import pytest
import yaml
from labelled_data import records
from tiny_run import committed_steps, ledger_of, run_lmscale, settings

from lmscale.cli.main import main
from lmscale.config import dump_config, load_config
from lmscale.config.finetune import load_finetune
from lmscale.config.run import RunConfig
from lmscale.runs.commits import read_commits
from lmscale.runs.goodput import EARLY
from lmscale.runs.run_folder import read_status

MODEL = {"family": "encoder", "layers": 2, "width": 32, "heads": 4, "vocab_size": 384}


@pytest.fixture(scope="module")
def base(labelled, tmp_path_factory) -> Path:
    """The folder of an encoder's run, of two steps."""
    root = tmp_path_factory.mktemp("base")
    tree = {
        "run": {"name": "base", "folder": str(root / "base")},
        "tokenizer": labelled.tokenizer.model_dump(mode="json"),
        "stream": {
            "sources": {"numbers": {"shards": f"{labelled.shards.folder}/numbers/train"}},
            "sequence_length": 32,
            "workers": 0,
        },
        "batch": {"global_windows": 2, "micro_windows": 2},
        "model": MODEL,
        "objective": {"name": "masked"},
        "engine": {"precision": "fp32"},
        "train": {"steps": 2},
    }
    config = root / "base.yaml"
    config.write_text(dump_config(RunConfig.model_validate(tree)))
    ended = run_lmscale("train", config)
    assert ended.code == 0, ended.output
    return root / "base"


@pytest.fixture(scope="module")
def place(base, tmp_path_factory) -> Path:
    """A folder with labelled files."""
    root = tmp_path_factory.mktemp("short")
    lines = [json.dumps(record) for record in records("classes")]
    empty = json.dumps(records("classes")[0] | {"text": " "})
    (root / "train.jsonl").write_text("\n".join([*lines[:180], empty]))
    (root / "heldout.jsonl").write_text("\n".join(lines[180:]))
    return root


def write_short(place: Path, its_base: Path, name: str, **keys) -> Path:
    """A short YAML; a key of ``data`` that is empty is left out."""
    data = {
        "train": f"{place}/train.jsonl",
        "heldout": f"{place}/heldout.jsonl",
        "label_field": "kind",
        "folder": f"{place}/data",
        **keys.pop("data", {}),
    }
    tree = {
        "name": name,
        "folder": f"{place}/{name}",
        "base": str(its_base),
        "task": "classes",
        "data": {key: value for key, value in data.items() if value},
        **keys,
    }
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


# No accuracy rises by 1: the first evaluation, after step 2, stays the best one.
STOP = {"patience": 2, "min_delta": 1.0}
TINY = {
    "early_stopping": STOP,
    "epochs": 8,
    "trainable": {"top": 1},
    "settings": {
        "run.allow_faults": True,
        "stream.workers": 0,
        "evaluation.every_steps": 2,
        "checkpoint": {"every_steps": 2, "asynchronous": False},
    },
}


@pytest.mark.ranks
def test_a_fine_tuning_that_is_killed_goes_on_elsewhere_as_the_same_run(base, place):
    runs = {}
    # Name → what its second start has otherwise; None: it is never killed.
    resumed = {"whole": None, "same": {}, "other": {"engine.zero_stage": 2}}
    for name, others in resumed.items():
        test = {"data": {"test": f"{place}/train.jsonl"}} if name == "whole" else {}
        config = write_short(place, base, name, **TINY, **test)
        if others is not None:
            fault = {"LMSCALE_FAULTS": "kill:step=4,rank=0"}
            ended = run_lmscale("finetune", config, "--nproc", "2", environment=fault)
            assert ended.code not in (0, 2), ended.output
            assert committed_steps(place / name) == [2]
        ranks = "1" if others else "2"
        ended = run_lmscale("finetune", config, "--nproc", ranks, *settings(others or {}))
        assert ended.code == 0, ended.output
        assert "the best checkpoint by evaluation/heldout/accuracy" in ended.output
        assert "data.train: left out: 1 empty (lmscale corpus dropped" in ended.output
        assert "always " in ended.output and ("\ntest  " in ended.output) == bool(test)
        runs[name] = place / name
    assert ledger_of(runs["whole"]) == ledger_of(runs["same"]) == ledger_of(runs["other"])
    assert len(ledger_of(runs["whole"])) == 6  # of more steps that were planned
    figures = (runs["whole"] / "metrics.jsonl").read_text()
    assert "evaluation/heldout/accuracy" in figures and "final/test/accuracy" in figures
    assert "evaluation/test" not in figures  # nothing is decided by it
    assert load_config(runs["whole"] / "config.yaml").train.steps > 6
    for run in runs.values():
        (end,) = [
            row for row in read_status(run).attempts if row.get("reason", "").find(EARLY) >= 0
        ]
        assert f"{EARLY} at step 6" in end["reason"]
    weights = {name: read_commits(run)[-1] for name, run in runs.items()}
    hashes = {
        name: json.loads((runs[name] / "checkpoints" / commit.name / "manifest.json").read_text())
        for name, commit in weights.items()
    }
    assert hashes["whole"]["weights"] == hashes["same"]["weights"]
    states = hashes["whole"]["states"].items()
    trained = {name for name, kinds in states if len(kinds) > 1}
    assert {name.rpartition(".")[0].partition(".")[0] for name in trained} == {
        "blocks", "pooler", "classifier",
    }  # fmt: skip


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(base, place, capsys):
    short = write_short(place, base, "dry", data={"folder": f"{place}/none"})
    assert main(["finetune", str(short), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "animal" in said and "documents each" in said
    assert f"base      begins with {base}, by its step 2\n" in said
    assert not (place / "none").exists() and not (place / "dry").exists()
    written = place / "whole-plan.yaml"
    words = ["--dry-run", "--write", str(written), "--set", "epochs=2"]
    assert main(["finetune", str(short), *words, "--set", "engine.zero_stage=2"]) == 0
    run = load_config(written)
    assert run.engine.zero_stage == 2 and run.objective.name == "classes"
    assert "# learning rate: BERT's" in written.read_text()
    assert load_finetune(short, ["epochs=2", "train.steps=9"]).settings == {"train": {"steps": 9}}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"base": "nowhere"}, ["base: nowhere: there is no such run, checkpoint or folder"]),
        (
            {"task": "pairs", "base": "nowhere"},
            ["task: pairs needs data.target_field", "has no use for data.label_field", "nowhere"],
        ),
        (
            {"task": "completion", "data": {"label_field": "", "target_field": "kind"}},
            ["the base", "is of encoder, which can do classes, numbers, tags"],
        ),
        ({"data": {"train": "missing.jsonl"}}, ["data.train: no file matches missing.jsonl"]),
        (
            {"data": {"train": "broken"}},
            ["broken.jsonl:1: 3.5 ('kind', label_field)", ":3: no key"],
        ),
        (
            {"data": {"heldout": "unseen"}},
            ["data.heldout: 'plant' (the first at", "unseen.jsonl:1) is no label of the training"],
        ),
        (
            {"data": {"label_names": ["animal", "thing", "plant"]}},
            ["data.label_names: the class 'plant' has no document in data.train"],
        ),
        (
            {"task": "tags", "data": {"label_field": "", "tags_field": "tags", "train": "tagged"}},
            ["tagged.jsonl:1: 'tags' (tags_field) holds 1 tags of 2 words"],
        ),
        ({"data": {"train": "long"}}, ["1 document of 1 with more than 32 tokens", "long.jsonl:1"]),
        ({"nonsense": 1}, ["nonsense: unknown key"]),
        ({"settings": {"train": 3}}, ["with its settings", "train: input should be a section"]),
        (
            {"settings": {"train": 3, "train.steps": 4}},
            ["settings: train.steps: train is given a value beside, 3"],
        ),
        (
            {"early_stopping": {"metric": "f1_entities"}},
            ["early_stopping.metric: 'f1_entities' is none of the held-out figures of classes"],
        ),
        (
            {
                "task": "answers",
                "data": {
                    "label_field": "",
                    "target_field": "context",
                    "answer_field": "answer",
                    "train": "unanswered",
                    "heldout": "unanswered",
                },
            },
            ["unanswered.jsonl:1: the answer 'dog' ('answer', answer_field) does not stand in"],
        ),
    ],
)
def test_what_is_wrong_is_told_at_once_and_nothing_is_built(base, place, capsys, keys, told):
    files = {
        "broken": ['{"text": "x", "kind": 3.5}', '{"text": "x", "kind": "a"}', '{"text": "x"}'],
        "unseen": ['{"text": "x", "kind": "plant"}'],
        "tagged": ['{"text": ["a", "b"], "tags": ["x"]}'],
        "unanswered": [json.dumps({"text": "what?", "context": "a cat", "answer": "dog"})],
        "long": [json.dumps({"text": "zq " * 80, "kind": "animal"})],
    }
    for name, lines in files.items():
        (place / f"{name}.jsonl").write_text("\n".join(lines))
    asked = {"folder": f"{place}/unbuilt", **keys.get("data", {})}
    data = {
        key: f"{place}/{value}.jsonl" if value in [*files] else value
        for key, value in asked.items()
    }
    short = write_short(place, base, "wrong", **keys | {"data": data})
    assert main(["finetune", str(short)]) == 2
    said = capsys.readouterr().err
    for each in told:
        assert each in said
    lines = [line for line in said.splitlines() if not line.startswith("reading the data")]
    assert all(line.startswith(("error: ", "warning: ")) for line in lines), said
    assert not (place / "unbuilt").exists() and not (place / "wrong").exists()
