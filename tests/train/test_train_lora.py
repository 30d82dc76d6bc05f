"""Runs that train adapters of low rank: at every ZeRO stage, over restarts, and from each other."""

from pathlib import Path

import pytest
import torch
from rank_cases import Case, run_cases
from recipes import ENCODER, PAIRS
from tiny_run import tiny_config

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.evaluation.run import load_run
from lmscale.model.family import build_model
from lmscale.model.lora import is_adapter
from lmscale.ranks.ranks import Ranks
from lmscale.runs.run_folder import load_run_config
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.train.initial import draw_weights, fill_weights, open_initial_weights

STEPS = {"train.steps": 4, "checkpoint.every_steps": 2}
OWN = {"lora": {"rank": 3, "alpha": 6}}
LORA = {"model.lora": OWN["lora"]}
RANDOM = {"run.allow_faults": True}  # adapters beside weights that nobody has trained
DROPPING = {"model.lora": {"rank": 3, "alpha": 6, "dropout": 0.2}, "engine.ema_decay": 0.9}
pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """A run, runs that adapt it, and one that learns from an adapted one as it adapts it."""
    folder = tmp_path_factory.mktemp("lora")

    def case(name, *, stop_after=None, stage=1, source="source", **overrides):
        begins = {"run.init_from": str(folder / source)} if source else {}
        return Case(
            name=f"{name}, {'begun' if stop_after else 'done'}",
            data=str(tiny_data),
            folder=str(folder / name),
            overrides={**STEPS, **begins, "run.name": name, "engine.zero_stage": stage} | overrides,
            stop_after=stop_after,
        )

    of_masks = {"model": {**ENCODER, **OWN}, "objective": {"name": "masked"}}
    of_spans = {"model": {**PAIRS, **OWN}, "objective": {"name": "spans"}}
    of_spans |= {"stream.mask_documents": False}
    taught = {"objective": {"name": "distill", "teacher": str(folder / "adapted")}}
    starts = {
        2: [
            case("source", source=""),
            case("adapted", **LORA),
            case("bf16", **LORA, **{"engine.precision": "bf16"}),
            case("encoder", source="", stage=2, **of_masks, **RANDOM),
            case("pairs", source="", stage=3, **of_spans, **RANDOM),
            case("moved", stop_after=2, stage=3, **LORA),
        ],
        1: [
            case("moved", stage=0, **LORA),
            case("whole", stage=2, **DROPPING),
            case("halves", stop_after=2, stage=2, **DROPPING),
            case("halves", stage=2, **DROPPING),
            case("student", source="adapted", **LORA, **taught),
        ],
    }
    return folder, run_cases(starts, folder / "starts")


def weights_of(folder: Path, step: int | None = None):
    return load_weights(LocalPlace(folder / "checkpoints"), step)


def filled(config):
    """The bare model with its first weights."""
    model = build_model(config.model, config.sizes)
    own = load_tokenizer(config.tokenizer.folder).fingerprint
    with open_initial_weights(config, Ranks(), tokenizer_fingerprint=own) as initial:
        fill_weights(model, initial, seed=config.run.seed)
    return model.eval()


def logits_of(model):
    ids = torch.arange(24).view(2, 12)
    layout = model.lay_out(torch.zeros_like(ids, dtype=torch.bool), mask_documents=False)
    with torch.no_grad():
        return model.head(model(ids, layout))


@pytest.mark.parametrize("name", ["adapted", "moved", "whole", "bf16"])
def test_adapters_alone_are_trained_and_have_states_and_what_they_adapt_keeps_its_bits(runs, name):
    before, after = weights_of(runs[0] / "source"), weights_of(runs[0] / name)
    manifest = load_manifest(LocalPlace(runs[0] / name / "checkpoints"), 4)
    assert all(map(is_adapter, manifest.parameters)) and manifest.states == {
        n: ("master", "exp_avg", "exp_avg_sq") + ("average",) * (name == "whole")
        for n in manifest.parameters
    }
    assert manifest.replicated.keys() == before.keys()
    for tensor, value in after.items():
        if tensor in before:
            assert torch.equal(value, before[tensor].to(value.dtype)), tensor
        else:
            assert value.any(), tensor


@pytest.mark.parametrize("name", ["encoder", "pairs"])
def test_so_they_are_in_the_other_families(runs, name):
    manifest = load_manifest(LocalPlace(runs[0] / name / "checkpoints"), 4)
    assert all(map(is_adapter, manifest.parameters))
    model = build_model((config := load_run_config(runs[0] / name)).model, config.sizes)
    fill_weights(model, draw_weights(config.run.seed))
    for tensor, value in weights_of(runs[0] / name).items():
        first = model.get_parameter(tensor)
        assert torch.equal(value, first) == (not is_adapter(tensor)), tensor


def test_adapters_are_trained_alike_at_other_stages_and_on_other_numbers_of_ranks(runs):
    seen = runs[1]
    moved = [*seen["moved, begun"], *seen["moved, done"]]
    assert [report.step for report in moved] == [1, 2, 3, 4]
    for report, other in zip(moved, seen["adapted, done"], strict=True):
        assert (report.digest, report.targets) == (other.digest, other.targets)
        assert report.loss == pytest.approx(other.loss, rel=1e-5)
        assert report.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


def test_a_run_with_adapters_and_dropout_goes_on_bit_by_bit(runs):
    whole, halves = (runs[0] / name for name in ("whole", "halves"))
    for weights in ("trained", "average"):
        expected, found = (
            load_weights(LocalPlace(folder / "checkpoints"), weights=weights)
            for folder in (whole, halves)
        )
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert runs[1]["whole, done"][2:] == runs[1]["halves, done"]


def test_evaluation_and_generation_load_the_model_with_its_adapters(runs):
    cpu = torch.device("cpu")
    source, adapted = (
        load_run(runs[0] / name, step=None, device=cpu) for name in ("source", "adapted")
    )
    assert any(map(is_adapter, dict(adapted.model.named_parameters())))
    assert not torch.allclose(logits_of(source.model), logits_of(adapted.model), atol=1e-3)


def test_a_run_begins_with_another_one_s_adapters_where_its_own_are_the_same(
    runs, tiny_data, tmp_path
):
    source = {"run.init_from": str(runs[0] / "adapted")}
    model = filled(tiny_config(tiny_data, tmp_path, source | LORA | {"model.lora.dropout": 0.5}))
    expected = weights_of(runs[0] / "adapted")
    assert dict(model.named_parameters()).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.named_parameters())


@pytest.mark.parametrize(
    "lora",
    [{}, {"model.lora": {"rank": 5}}, {"model.lora": OWN["lora"] | {"alpha": 12}}],
    ids=["none", "rank", "scale"],
)
def test_it_begins_with_the_merged_matrices_where_it_has_none_or_others(
    runs, tiny_data, tmp_path, lora
):
    source = {"run.init_from": str(runs[0] / "adapted")}
    model = filled(tiny_config(tiny_data, tmp_path, source | lora))
    adapted = load_run(runs[0] / "adapted", step=None, device=torch.device("cpu")).model
    torch.testing.assert_close(logits_of(model), logits_of(adapted))
    for name, value in model.named_parameters():
        assert ("lora_b" in name) == (not value.any()), name


def test_a_student_with_adapters_learns_from_a_teacher_with_adapters(runs):
    teacher = load_manifest(LocalPlace(runs[0] / "adapted" / "checkpoints"), 4)
    student = load_manifest(LocalPlace(runs[0] / "student" / "checkpoints"), 4)
    assert student.state["teacher"]["weights"] == teacher.weights
    assert student.state["initial"]["weights"] == teacher.weights
    assert len(runs[1]["student, done"]) == 4
