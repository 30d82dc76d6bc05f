"""``lmscale export --format peft``: what PEFT loads of a run's adapters, and what is refused."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from handmade_runs import STEP, make_run
from recipes import ENCODER
from safetensors.torch import load_file
from their_folders import LLAMA, change_tensors, save_theirs
from theirs import import_transformers
from tiny_run import tiny_config

from lmscale.errors import CheckpointError, ConfigError, DataError
from lmscale.evaluation.run import load_run
from lmscale.exchange.export import export_run
from lmscale.exchange.export_peft import export_peft
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.import_config import read_source_config
from lmscale.exchange.peft_adapter import render_adapter
from lmscale.exchange.peft_card import PeftExported, report_peft
from lmscale.exchange.plan_export import plan_export
from lmscale.tokenizer.codec import load_tokenizer

transformers = import_transformers()
export_peft_module = importlib.import_module("lmscale.exchange.export_peft")
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


def test_the_base_is_named_as_the_user_names_it(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    export(runs, tmp_path / "out", base=Path("base"), verify="tensors")
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"


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
    key = "model.layers.0.self_attn.q_proj.weight"  # which a factor is folded into
    change_tensors(tmp_path / "fp32", lambda held: held[key].mul_(1.01))
    with pytest.raises(DataError, match=f"its {key} has other values"):
        export(tmp_path, tmp_path / "wrong", base=tmp_path / "fp32", verify="tensors")


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"mup": {"base_width": 12}},
        {"mup": {"base_width": 8, "base_head_width": 3}},
        {"activation": "geglu", "scaled_embeddings": True},
    ],
    ids=["llama", "norm", "queries", "gemma"],
)
def test_frozen_weights_that_are_kept_in_bf16_are_folded_and_compared_as_numbers_of_fp32(
    tiny_data, tmp_path, model
):
    """By factors that bf16 cannot have; and Gemma's norms are 1 less there."""
    tokenizer = load_tokenizer(tiny_data / "tokenizer")
    own = {f"model.{key}": value for key, value in model.items()}
    source = make_run(tiny_config(tiny_data, tmp_path / "source", own), tokenizer)
    adapted = tiny_config(tiny_data, tmp_path / "adapted", own | LORA)
    begins = source.state_dict()
    make_run(adapted, tokenizer, begins=begins, frozen_dtype=torch.bfloat16)
    merged = export_run(ExportRequest(folder=adapted.folder, out=tmp_path / "merged"))
    assert merged.check.parity.error < 1e-5
    for dtype in ("fp32", "bf16"):
        base = tmp_path / dtype
        export_run(
            ExportRequest(folder=tmp_path / "source", out=base, dtype=dtype, verify="tensors")
        )
        exported = export(tmp_path, tmp_path / f"out_{dtype}", base=base)
        assert exported.check.parity.error < 1e-5
    change_tensors(base, lambda held: held["model.norm.weight"].add_(0.1))
    with pytest.raises(DataError, match=r"its model\.norm\.weight has other values"):
        export(tmp_path, tmp_path / "wrong", base=base)


def test_a_base_of_other_settings_is_refused_before_its_tensors_are_asked(runs, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(runs / "base", base)
    tree = json.loads((base / "config.json").read_text())
    for changed, told in (
        ({"rms_norm_eps": 0.3}, "its config.json says norm_eps = 0.3, and the run 1e-05"),
        ({"model_type": "mistral", "sliding_window": 7}, "says sliding_windows = [7, 7"),
        (transformers.GPT2Config().to_dict(), "its config.json says "),
        (transformers.BertConfig().to_dict(), "of the family encoder, and the run's is decoder"),
    ):
        (base / "config.json").write_text(json.dumps(tree | changed))
        with pytest.raises(DataError, match="is not the model that") as caught:
            export(runs, tmp_path / "out", base=base, verify="tensors")
        assert told in str(caught.value)
    (base / "config.json").unlink()
    with pytest.raises(DataError, match=r"there is no config\.json here"):
        export(runs, tmp_path / "out", base=base, verify="tensors")


ROBERTA = {
    "vocab_size": 640, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 34, "type_vocab_size": 1,
    "pad_token_id": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", ["Qwen2", "Roberta"])
def test_an_original_folder_is_the_base_though_a_run_is_exported_as_something_else(
    name, tiny_data, tmp_path
):
    ends_in, settings = {"Qwen2": ("ForCausalLM", LLAMA), "Roberta": ("ForMaskedLM", ROBERTA)}[name]
    base = save_theirs(tmp_path / "base", name, ends_in, **settings)
    source = read_source_config(base)
    objective = {"objective": {"name": "masked"}} if name == "Roberta" else {}
    changed = source.section.model_dump() | {"vocab_size": None, "max_positions": None}
    lora = {"lora": LORA["model.lora"]}
    config = tiny_config(tiny_data, tmp_path / "adapted", {"model": changed | lora} | objective)
    held = load_file(base / "model.safetensors")
    plan = plan_export(config, model_type=source.architecture.model_type)
    begins = {rule.name: rule.to_ours(held.__getitem__) for rule in plan.rules}
    make_run(config, load_tokenizer(tiny_data / "tokenizer"), begins=begins)
    exported = export(tmp_path, tmp_path / "out")
    assert exported.check.parity.error < 1e-5
    assert plan_export(config).architecture != exported.adaptation.plan.architecture


def test_what_a_run_adapts_is_named_by_its_step_and_by_the_first_of_those_that_go_on(
    runs, tiny_data, tmp_path
):
    """The export of a run with adapters is merged, and is nothing that one beside them adapts."""
    begins = {"run.init_from": f"{runs / 'adapted'}@7"}
    tokenizer = load_tokenizer(tiny_data / "tokenizer")
    export_run(ExportRequest(folder=runs / "adapted", out=tmp_path / "base"))
    for lora, told in (
        (LORA, f"lmscale export {runs / 'source'} --out DIR"),
        ({"model.lora": {"rank": 3}}, f"lmscale export {runs / 'adapted'} --step 7 --out DIR"),
    ):
        folder = tmp_path / f"rank_{lora['model.lora']['rank']}"
        make_run(tiny_config(tiny_data, folder, begins | lora), tokenizer)
        with pytest.raises(DataError) as caught:
            export(runs, tmp_path / "out", run=folder, base=tmp_path / "base")
        assert told in str(caught.value)


def test_peft_s_other_answers_are_told_as_its_own_with_what_to_do(runs, tmp_path, monkeypatch):
    def render_wrong(adapter, a, b_of_parts):
        return render_adapter(adapter, a, [-b for b in b_of_parts])

    monkeypatch.setattr(export_peft_module, "render_adapter", render_wrong)
    with pytest.raises(DataError) as caught:
        export(runs, tmp_path / "out")
    first, *_, advice = caught.value.problems
    assert first.startswith(f"PEFT, beside {runs / 'base'}, gives other answers: the logits of ")
    assert "leave out --format peft" in advice and not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_finite_has_no_adapters_to_write(runs, tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "adapted", LORA)
    make_run(config, load_tokenizer(tiny_data / "tokenizer"), is_finite=False)
    for step in (None, STEP):
        with pytest.raises(CheckpointError, match="not finite"):
            export(runs, tmp_path / "out", run=config.folder, step=step)


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
