"""``lmscale export --format peft``: what PEFT loads of a run's adapters, and what is refused."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from handmade_runs import make_run
from recipes import ENCODER
from theirs import import_transformers
from tiny_run import tiny_config

from lmscale.errors import ConfigError, DataError
from lmscale.evaluation.run import load_run
from lmscale.exchange.export import export_run
from lmscale.exchange.export_peft import export_peft
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.peft_card import PeftExported, report_peft
from lmscale.tokenizer.codec import load_tokenizer

transformers = import_transformers()
LORA = {"model.lora": {"rank": 2, "alpha": 4, "targets": ["qkv", "down"]}}
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory) -> Path:
    """A run, its export, and a run that adapts it."""
    folder = tmp_path_factory.mktemp("peft")
    tokenizer = load_tokenizer(tiny_data / "tokenizer")
    source = make_run(tiny_config(tiny_data, folder / "source"), tokenizer)
    begins = {"run.init_from": str(folder / "source")}
    adapted = tiny_config(tiny_data, folder / "adapted", begins | LORA)
    make_run(adapted, tokenizer, begins=source.state_dict())
    export_run(ExportRequest(folder=folder / "source", out=folder / "base"))
    return folder


def export(runs: Path, out: Path, *, run: str = "adapted", **more) -> PeftExported:
    request = {"folder": runs / run, "out": out, "base": runs / "base"}
    return export_peft(ExportRequest(**request | more))


def logits_of_run(runs: Path, ids: torch.Tensor) -> torch.Tensor:
    model = load_run(runs / "adapted", step=None, device=torch.device("cpu")).model
    layout = model.lay_out(torch.zeros_like(ids, dtype=torch.bool), mask_documents=False)
    return model.head(model(ids, layout))[..., :512]


@torch.no_grad()
def test_peft_loads_a_run_s_adapters_beside_its_base_and_so_does_a_merged_export(runs, tmp_path):
    exported = export(runs, tmp_path / "out")
    assert exported.check.parity.error < 1e-5 and exported.check.parity.written > 20
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4)
    assert config["target_modules"] == ["q_proj", "k_proj", "v_proj", "down_proj"]
    assert config["base_model_name_or_path"] == str(runs / "base")
    assert "PEFT gave the logits" in (tmp_path / "out/README.md").read_text()
    base = transformers.AutoModelForCausalLM.from_pretrained(runs / "base")
    peft = importlib.import_module("peft")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ids = torch.randint(0, 512, (2, 20))
    expected = logits_of_run(runs, ids)
    close(adapted(ids).logits, expected)
    close(adapted.merge_and_unload()(ids).logits, expected)

    export_run(ExportRequest(folder=runs / "adapted", out=tmp_path / "merged"))
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    close(merged(ids).logits, expected)


def close(found, expected):
    assert (found - expected).norm() <= 1e-5 * expected.norm()


def test_another_base_than_the_run_adapts_is_told_tensor_by_tensor(runs, tmp_path):
    """The adapted run's own export: only the matrices that it changed are others."""
    export_run(ExportRequest(folder=runs / "adapted", out=tmp_path / "other"))
    with pytest.raises(DataError) as caught:
        export(runs, tmp_path / "out", base=tmp_path / "other")
    (problem,) = caught.value.problems
    assert "other is not the model that" in problem
    assert problem.count("has other values") == 3 and f"and {2 * (3 + 1) - 3} more" in problem
    assert "its model.layers.0.self_attn.q_proj.weight has other values" in problem
    assert f"lmscale export {runs / 'source'} --out DIR" in problem
    assert not (tmp_path / "out").exists()


def test_without_the_memory_for_the_base_it_is_said_that_peft_was_not_asked(runs, tmp_path):
    exported = export(runs, tmp_path / "out", verify="tensors")
    said = dict(report_peft(exported).rows)["verified"]
    assert said == "Logits were not compared: only tensors were asked for (--verify tensors)."
    assert said in (tmp_path / "out/README.md").read_text()


def test_what_is_folded_into_matrices_is_folded_into_their_adapters(tiny_data, tmp_path):
    tokenizer = load_tokenizer(tiny_data / "tokenizer")
    mup = {"model.mup": {"base_width": 8, "base_head_width": 2}, "model.tied_embeddings": True}
    source = make_run(tiny_config(tiny_data, tmp_path / "source", mup), tokenizer)
    adapted = tiny_config(tiny_data, tmp_path / "adapted", mup | LORA)
    make_run(adapted, tokenizer, begins=source.state_dict())
    for dtype in ("fp32", "bf16"):
        base = tmp_path / dtype
        export_run(ExportRequest(folder=tmp_path / "source", out=base, dtype=dtype))
        verify = "logits" if dtype == "fp32" else "tensors"
        exported = export(tmp_path, tmp_path / "out", base=base, verify=verify)
    assert exported.adaptation.plan.target.folding.scales


def test_a_classifier_is_beside_the_adapters_of_the_model_that_it_stands_on(tiny_data, tmp_path):
    """Of another class in the base, and of fewer rows than the run was given to begin with it."""
    tokenizer = load_tokenizer(tiny_data / "tokenizer")
    body = {"model": ENCODER | {"token_types": 2}, "objective": {"name": "masked"}}
    source = make_run(tiny_config(tiny_data, tmp_path / "source", body), tokenizer)
    task = {"pooler": True, "text_classes": 3, "token_types": 2, "vocab_size": 640}
    adapted = {
        "model": ENCODER | task | {"lora": LORA["model.lora"]},
        "objective": {"name": "classes", "names": ["a", "b", "c"]},
        "stream.packing": "best_fit",
    }
    config = tiny_config(tiny_data, tmp_path / "adapted", adapted)
    make_run(config, tokenizer, begins=source.state_dict())
    export_run(ExportRequest(folder=tmp_path / "source", out=tmp_path / "base"))
    exported = export(tmp_path, tmp_path / "out")
    assert exported.check.parity.error < 1e-5
    assert exported.adaptation.saved_modules == ["bert.pooler.dense", "classifier"]
    code = (tmp_path / "out/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    loaded = {}
    exec(code.replace('"DIR"', repr(str(tmp_path / "out"))), loaded)
    assert loaded["model"].config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_base_that_is_rounded_is_the_base(runs, tmp_path):
    export_run(ExportRequest(folder=runs / "source", out=tmp_path / "base", dtype="bf16"))
    assert export(runs, tmp_path / "out", base=tmp_path / "base").check.parity.error < 1e-5


def test_what_is_asked_for_in_vain_is_told_with_what_to_do(runs, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"has no adapters .model\.lora.*Leave it out"):
        export(runs, tmp_path / "out", run="source")
    with pytest.raises(ConfigError) as caught:
        export(runs, tmp_path / "out", base=None, dtype="bf16")
    assert "needs --base DIR" in caught.value.problems[0]
    assert "leave --dtype out" in caught.value.problems[1]
    with pytest.raises(ConfigError, match="is the base, which it would replace"):
        export(runs, runs / "base", force=True)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[peft\]' -c constraints\.txt"):
        export(runs, tmp_path / "out")
