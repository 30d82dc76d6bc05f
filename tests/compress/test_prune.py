"""``lmscale prune``: exactly the smallest weights become 0, and stay so in a run that goes on."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from handmade_runs import make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from rank_cases import Case, run_cases
from safetensors.torch import load_file
from tiny_run import tiny_config
from typer.testing import CliRunner

from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.cli.app import app
from lmscale.compress import measure
from lmscale.compress.prune import RETRAIN_FILE, find_border, plan_prune, prune, zero_smallest
from lmscale.config import RunConfig, load_config
from lmscale.errors import ConfigError
from lmscale.evaluation.found import find_run
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.framing import find_beginning
from lmscale.files.reading import seal
from lmscale.runs.beginnings import check_start
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.kept_template import load_kept_template, save_template

SHARE = 0.5
LAYER = "blocks."
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-38, -1e-42, 3.5, 65504.0]) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=9), min_size=1, max_size=4), st.data())
def test_exactly_so_many_become_zero_and_none_that_stays_is_smaller(rows, data):
    tensors = [torch.tensor(row) for row in rows]
    total = sum(map(len, tensors))
    count = data.draw(st.integers(0, total))
    border, ties = find_border(lambda: iter(tensors), count)
    kept, cut, left = [], 0, ties
    for tensor in tensors:
        pruned, left = zero_smallest(tensor, border, left)
        is_same = pruned.view(torch.int32) == tensor.view(torch.int32)
        is_zero = pruned.view(torch.int32) == 0
        assert (is_same | is_zero).all()
        cut += int(is_zero.sum())
        kept += pruned[~is_zero].abs().tolist()
    magnitudes = sorted(torch.cat(tensors).abs().tolist())
    # A +0 that was there beyond those that are asked for is no other one.
    assert cut >= count and (cut == count or magnitudes[count] == 0)
    assert left == 0 and (not kept or count == 0 or min(kept) >= magnitudes[count - 1])


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory) -> RunConfig:
    config = tiny_config(
        tiny_data,
        tmp_path_factory.mktemp("prune") / "run",
        {"evaluation.sets": {"heldout": str(tiny_data / "shards/a/heldout")}},
    )
    make_run(config, load_tokenizer(tiny_data / "tokenizer"))
    return config


@pytest.fixture(scope="module")
def pruned(run: RunConfig) -> Path:
    return prune(plan_prune(find_run(run.folder, step=None), "half", share=SHARE))


def weights_of(folder: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    return load_weights(LocalPlace(folder / "checkpoints"), step)


def invoke(*words: object) -> str:
    result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_by_layer_each_matrix_loses_its_share_and_nothing_else_changes(run, pruned):
    before, after = weights_of(run.folder), weights_of(pruned)
    assert before.keys() == after.keys()
    for name, weight in before.items():
        is_pruned = weight.dim() == 2 and name.startswith(LAYER)
        zeros = round(SHARE * weight.numel()) if is_pruned else 0
        assert int((after[name] == 0).sum()) == zeros, name
        stays = after[name] != 0
        assert torch.equal(after[name][stays], weight[stays])
        if is_pruned:
            assert float(weight[~stays].abs().max()) <= float(weight[stays].abs().min())


def test_over_all_the_smallest_of_all_go_wherever_they_are(run, tmp_path):
    plan = plan_prune(
        find_run(run.folder, step=None),
        str(tmp_path / "all"),
        share=0.3,
        by="all",
        embeddings=True,
    )
    before, after = weights_of(run.folder), weights_of(prune(plan))
    names = [name for name, weight in before.items() if weight.dim() == 2]
    assert {*plan.matrices} == {*names}
    cut = torch.cat([before[n][after[n] == 0].abs().view(-1) for n in names])
    kept = torch.cat([before[n][after[n] != 0].abs().view(-1) for n in names])
    assert len(cut) == plan.num_zeros == round(0.3 * (len(cut) + len(kept)))
    assert float(cut.max()) <= float(kept.min())
    shares = {round(float((after[n] == 0).float().mean()), 2) for n in names}
    assert len(shares) > 1


def test_adapters_are_merged_before_their_matrices_are_pruned(tiny_data, tmp_path):
    lora = {"model.lora": {"rank": 4}, "run.allow_faults": True}
    peft = {"export": {"format": "peft", "base": str(tmp_path)}}  # of adapters, which are no more
    config = tiny_config(tiny_data, tmp_path / "adapted", {**lora, **peft})
    model = make_run(config, load_tokenizer(tiny_data / "tokenizer"))
    out = prune(plan_prune(find_run(config.folder, step=None), "half", share=SHARE))
    for file in ("config.yaml", RETRAIN_FILE):
        merged = load_config(out / file)
        assert merged.model.lora.rank == 0 and merged.export.format is None
    after = weights_of(out)
    assert not any("lora" in name for name in after)
    name = "blocks.0.attention.qkv.weight"
    matrix = dict(model.named_parameters())[name]
    stays = after[name] != 0
    assert int((~stays).sum()) == round(SHARE * matrix.numel())
    assert not torch.equal(after[name][stays], matrix.detach()[stays])  # the adapter's part


def test_the_folder_says_what_it_is_and_no_run_trains_in_it(run, pruned):
    made = json.loads((pruned / "made.json").read_text())
    assert made["run"] == "tiny" and made["step"] == 7
    assert made["how"].startswith("pruned: 50.0% of each of")
    assert "pruned: 50.0%" in invoke("checkpoint", "show", pruned)
    assert "weights alone" in invoke("runs", "status", pruned)
    assert "nothing to audit" in invoke("runs", "audit", pruned)
    with pytest.raises(ConfigError, match="stay as they are.*run.init_from"):
        check_start(load_config(pruned / "config.yaml"))
    with pytest.raises(ConfigError, match="there already"):
        plan_prune(find_run(run.folder, step=None), "half", share=SHARE)
    with pytest.raises(ConfigError, match="--share 1"):
        plan_prune(find_run(run.folder, step=None), "whole", share=1)


def test_the_chat_template_and_how_documents_begin_stay_with_the_weights(tiny_data, tmp_path):
    tokenizer = load_tokenizer(tiny_data / "tokenizer")
    config = tiny_config(tiny_data, tmp_path / "run")
    make_run(config, tokenizer)
    save_template("{{ messages }}", config.folder / "tokenizer")
    record = {"state": {}, "shards": {}, "bos": None}  # it has read documents without bos
    (config.folder / "stream.json").write_bytes(seal(record))
    once = prune(plan_prune(find_run(config.folder, step=None), "once", share=SHARE))
    twice = prune(plan_prune(find_run(once, step=None), "twice", share=0.7))
    for folder in (config.folder, once, twice):
        assert load_kept_template(folder) == "{{ messages }}"
        assert find_beginning(folder, tokenizer) is False


def test_what_retrains_it_is_written_beside_it_and_may_begin(pruned):
    retrain = load_config(pruned / RETRAIN_FILE)
    assert retrain.engine.keep_zeros and retrain.run.init_from == str(pruned)
    assert retrain.folder == pruned.parent / "half-retrained"
    check_start(retrain)


def test_an_export_has_exactly_these_zeros(pruned, tmp_path):
    export_run(ExportRequest(folder=pruned, out=tmp_path / "out", verify="tensors"))
    theirs = load_file(tmp_path / "out" / "model.safetensors")
    ours = weights_of(pruned)
    zeros = {n: int((w == 0).sum()) for n, w in theirs.items() if "proj" in n}
    assert sum(zeros.values()) == sum(int((w == 0).sum()) for w in ours.values()) > 0
    down = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(theirs[down], ours["blocks.1.feed_forward.down.weight"])


def test_the_table_compares_it_with_what_it_was(run, pruned, monkeypatch):
    quick = partial(measure.take_turns, rounds=1, piece_seconds=0)
    monkeypatch.setattr(measure, "take_turns", quick)
    rows = json.loads(invoke("compare", run.folder, f"{pruned}@0", "--json"))
    before, after = rows
    total = sum(weight.numel() for weight in weights_of(run.folder).values())
    assert before["parameters"] == after["parameters"] == total
    assert before["bytes"] == after["bytes"] == 4 * total
    zeros = sum(int((weight == 0).sum()) for weight in weights_of(pruned).values())
    assert (before["zeros"], after["zeros"]) == (0, zeros)
    own = json.loads(invoke("evaluate", pruned, "--json"))["heldout"]
    assert after["sets"]["heldout"]["loss"] == own["loss"] != before["sets"]["heldout"]["loss"]
    assert all(row["generating_tokens_per_second"] > 0 for row in rows)
    text = invoke("compare", run.folder, pruned, "--max-windows", 2)
    assert text.splitlines()[1].split()[5:8] == ["fp32", "1.00×", "1.00×"], text


@pytest.mark.ranks
@pytest.mark.slow
def test_retraining_keeps_the_zeros_and_goes_on_with_the_same_bits(tiny_data, pruned, tmp_path):
    settings = {
        "run.init_from": str(pruned),
        "engine.keep_zeros": True,
        "engine.zero_stage": 2,
        "engine.precision": "bf16",
        "engine.optimizer.kind": "muon",
        "engine.ema_decay": 0.5,
        "train.steps": 4,
        "checkpoint.every_steps": 4,
    }

    def case(name: str, folder: str, stop_after: int | None = None) -> Case:
        return Case(
            name=name,
            data=str(tiny_data),
            folder=str(tmp_path / folder),
            overrides=settings,
            stop_after=stop_after,
        )

    cases = [case("whole", "whole"), case("begun", "cut", 2), case("ended", "cut")]
    saw = run_cases({2: cases}, tmp_path / "starts")
    assert [*saw["begun"], *saw["ended"]] == saw["whole"]
    whole, cut, zeros = (weights_of(f) for f in (tmp_path / "whole", tmp_path / "cut", pruned))
    place = LocalPlace(tmp_path / "whole" / "checkpoints")
    average = load_weights(place, 4, weights="average")
    for name, weight in zeros.items():
        is_zero = weight == 0
        assert torch.equal(whole[name], cut[name])
        assert torch.equal(whole[name] == 0, is_zero) and torch.equal(average[name] == 0, is_zero)
        assert not torch.equal(whole[name], weight)
