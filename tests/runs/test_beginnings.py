"""What a run may begin with, and what of it may differ, is told before a rank starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_run import log_commit, tiny_config

from lmscale.config import RunConfig, dump_config, parse_config
from lmscale.config.run import with_absolute_places
from lmscale.errors import ConfigError
from lmscale.files.locations import find_checkpoint
from lmscale.runs.beginnings import check_start, find_source_problems
from lmscale.runs.continuation import CHANGES, model_identity
from lmscale.runs.taken_over import RULES, TAKEN, Taking

STEP = "step-000000004"


def make_run(folder: Path, **overrides) -> RunConfig:
    """The folder of a run with checkpoints of the steps 2 and 4, as far as this looks."""
    config = tiny_config(folder.parent, folder, {"run.name": folder.name, **overrides})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    for step in (2, 4):
        log_commit(folder, step)
    return config


def make_checkpoint(folder: Path, config: RunConfig, kind: str = "adamw") -> Path:
    folder.mkdir(parents=True)
    tree = {"identity": {"model": model_identity(config)}, "optimizer": {"kind": kind}}
    (folder / "manifest.json").write_text(json.dumps(tree))
    return folder


@pytest.fixture
def base(tmp_path):
    config = make_run(tmp_path / "runs/base")
    make_checkpoint(tmp_path / f"runs/base/checkpoints/{STEP}", config)
    make_checkpoint(tmp_path / f"kept/{STEP}", config)
    return tmp_path


def problems(root: Path, named: str, **overrides) -> list[str]:
    settings = {"run.name": "new", "run.init_from": named, **overrides}
    return find_source_problems(tiny_config(root, root / "runs/new", settings))


def test_a_run_is_named_by_its_folder_its_name_or_a_checkpoint_of_it(base, monkeypatch):
    monkeypatch.chdir(base)
    for named, folder, step, is_alone in (
        ("runs/base", "runs/base", None, False),
        ("runs/base@4", "runs/base", 4, False),
        ("base", "runs/base", None, False),  # beside the new run's folder
        ("base@2", "runs/base", 2, False),
        (f"runs/base/checkpoints/{STEP}", "runs/base", 4, False),
        (f"runs/base/checkpoints/{STEP}/", "runs/base", 4, False),
        (f"kept/{STEP}", "kept", 4, True),
    ):
        place = find_checkpoint(named, beside=base / "runs")
        found = (place.folder.absolute(), place.step, place.is_alone)
        assert found == (base / folder, step, is_alone), named
        assert problems(base, named) == [], named
        config = tiny_config(base, base / "runs/new", {"run.init_from": named})
        frozen = with_absolute_places(config)  # as another machine, or folder, reads it
        monkeypatch.chdir("/")
        assert frozen.initial == (base / folder, step, is_alone), named
        monkeypatch.chdir(base)


def test_a_run_in_this_folder_goes_before_one_beside_the_new_one(base, monkeypatch):
    make_run(base / "base")
    monkeypatch.chdir(base)
    assert find_checkpoint("base", beside=base / "runs").folder == Path("base")
    shutil.rmtree(base / "base")
    (base / "base").mkdir()  # of something else
    assert find_checkpoint("base", beside=base / "runs").folder == base / "runs/base"
    (base / "runs/base@2").mkdir()
    assert find_checkpoint("base@2", beside=base / "runs") == (base / "runs/base@2", None, False)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("s3://bucket/base", "that is a URL. Name the folder of the run"),
        ("new", "new is not a run's folder, nor a checkpoint's. Write the folder or the name of a"),
        ("bass@4", "(ROOT/runs has base), with @STEP for a step of it."),
        ("ROOT/runs/base/checkpoints", "Write run.init_from: ROOT/runs/base, or ROOT/runs/base@4."),
        (f"ROOT/runs/base@{STEP}", "behind @ stands the number of a step. Write run.init_from: "),
        ("base@latest", "behind @ stands the number of a step. Write run.init_from: base@500, say"),
        ("ROOT/runs/new", "that is this run's own folder"),
        ("ROOT/runs/base@3", "that run has no checkpoint of step 3. There are: 2, 4."),
        ("ROOT/empty", "is not a run's folder: it holds no config.yaml"),
        ("ROOT/torn/step-000000009", "it has no manifest.json, or a damaged one"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_to_write(base, named, told):
    for folder in ("empty", "torn/step-000000009"):
        (base / folder).mkdir(parents=True)
    named = named.replace("ROOT", str(base))
    (problem,) = problems(base, named)
    assert problem.startswith(f"run.init_from = {named}: ")
    assert told.replace("ROOT", str(base)) in problem and "\n" not in problem


def test_the_rules_name_every_key_of_a_model_that_lmscale_has_and_no_other():
    named = [key for rule in RULES for key in rule.keys]
    assert len(named) == len(set(named)) and set(named) <= set(CHANGES)
    assert {key for key in CHANGES if key.startswith("model.")} <= set(named)


OTHERS = {
    "model.layers": 3,
    "model.norm_eps": 1e-6,
    "model.logit_softcap": 30.0,
    "model.rope_theta": 5e5,
    "model.rope_scaling": {"kind": "linear", "factor": 2.0},
    "model.max_positions": 64,
    "stream.sequence_length": 64,
    "model.sliding_windows": [8],
    "model.dropout": 0.1,
    "model.lora": {"rank": 2},
    "run.seed": 7,
    "engine.optimizer.kind": "lion",
    "train.freeze": ["embedding.*"],
    "batch.global_windows": 24,
}


@pytest.mark.parametrize("key", OTHERS)
@pytest.mark.parametrize("is_alone", [False, True])
def test_each_setting_may_differ_or_not_as_its_rule_says(base, key, is_alone):
    source = str(base / ("kept" if is_alone else "runs/base/checkpoints") / STEP)
    inner = f"{key}.rank" if key == "model.lora" else key
    inner = f"{key}.kind" if key == "model.rope_scaling" else inner
    taking = TAKEN.get(inner, Taking.FREE)
    told = problems(base, source, **{key: OTHERS[key]})
    assert len(told) == (taking is Taking.SAME), told
    with_states = problems(base, source, **{key: OTHERS[key], "run.init_optimizer": True})
    is_known = not (is_alone and key == "train.freeze")  # which its manifest does not say
    assert len(with_states) == (taking is not Taking.FREE and is_known), with_states
    assert all(f"{inner}: " in line for line in (*told, *with_states))  # what to write


def test_all_that_may_not_differ_is_told_at_once(base):
    told = problems(base, "base", **OTHERS, **{"run.init_optimizer": True})
    keys = ("model.layers", "model.norm_eps", "model.logit_softcap", "model.lora.rank")
    assert len(told) == len(keys) + 2
    for key in (*keys, "engine.optimizer.kind", "train.freeze"):
        assert any(key in line for line in told), key
    config = tiny_config(base, base / "runs/new", {"run.init_from": "base", "model.layers": 3})
    with pytest.raises(ConfigError, match="there model.layers is 2, and here 3. Write model.layer"):
        check_start(config)
    config.folder.mkdir()
    log_commit(config.folder, 2)  # it goes on with its own checkpoint
    assert find_source_problems(config) == []


def test_positions_that_were_learned_cannot_become_more(tmp_path):
    learned = {"model.positions": "learned"}
    make_run(tmp_path / "runs/base", **learned)
    longer = {**learned, "stream.sequence_length": 64}
    (problem,) = problems(tmp_path, "base", **longer)
    assert "there model.max_positions is 32, and here 64" in problem


def test_what_is_left_out_is_the_same_as_what_it_stands_for(tmp_path):
    make_run(tmp_path / "runs/base", **{"model.kv_heads": None})
    assert problems(tmp_path, "base", **{"model.kv_heads": 4, "model.head_width": 8}) == []
    same = {"model.kv_heads": None, "model.attention_width": 8}
    assert problems(tmp_path, "base", **same) == []


def test_an_import_has_no_states_of_an_optimizer(base):
    imported = {
        "folder": "llama", "model_type": "llama", "transformers": "", "dtype": "F32", "rows": 512,
        "files": {},
    }  # fmt: skip
    (base / "runs/base/import.json").write_text(json.dumps(imported))
    (problem,) = problems(base, "base", **{"run.init_optimizer": True})
    assert "it is an import, of weights alone: leave run.init_optimizer out." in problem
    (problem,) = problems(base, "base", **{"model.vocab_size": 640})
    assert problem.endswith("or import it once more with --vocab-size 640, which makes new rows.")


def test_the_beta_that_made_schedule_frees_points_is_told_before_a_rank_starts(tmp_path):
    averaging = {"engine.optimizer.kind": "schedule_free", "engine.schedule.kind": "constant"}
    config = make_run(tmp_path / "runs/base", **averaging)
    kept = make_checkpoint(tmp_path / f"kept/{STEP}", config, "schedule_free")
    tree = json.loads((kept / "manifest.json").read_text())
    tree["optimizer"]["averaging"] = {"beta": 0.9, "weight_sum": 1.0, "largest_rate": 1e-3}
    (kept / "manifest.json").write_text(json.dumps(tree))
    for betas, count in (([0.9, 0.99], 0), ([0.95, 0.99], 1)):
        others = averaging | {"engine.optimizer.betas": betas}
        for named in ("base", str(kept)):
            assert problems(tmp_path, named, **others) == []
            told = problems(tmp_path, named, **others, **{"run.init_optimizer": True})
            assert len(told) == count, told
            assert all("engine.optimizer.betas begin with 0.9, which made" in line for line in told)


def test_states_need_a_run_that_has_them():
    with pytest.raises(ConfigError, match="init_optimizer = true needs init_from"):
        parse_config("run: {name: a, init_optimizer: true}")
