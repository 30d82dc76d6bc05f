"""Where a run's first weights come from, and what of them is never trained."""

import math
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rank_cases import Case, run_cases
from recipes import ENCODER, ORDER
from safetensors.torch import load_file, save_file
from tiny_run import log_commit, tiny_config
from torch import nn

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.load import FragmentReader, load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.config import dump_config
from lmscale.config.run import with_absolute_places
from lmscale.errors import CheckpointError, ConfigError
from lmscale.evaluation.run import fill_weights as fill_evaluated
from lmscale.model.family import build_model
from lmscale.model.initialize import Linear
from lmscale.ranks.ranks import Ranks
from lmscale.runs.beginnings import find_source_problems
from lmscale.runs.continuation import find_continuation_problems
from lmscale.runs.origins import Origin, describe_origin, read_origins
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.train.initial import (
    InitialWeights,
    fill_weights,
    freeze_parameters,
    open_initial_weights,
)

STEPS = {"train.steps": 4, "checkpoint.every_steps": 2}
FROZEN = ["embedding.*", "blocks.0.*"]
MASKED = {"objective": {"name": "masked_order"}, "stream.mask_documents": False}
LONGER = {
    "run.seed": 2,
    "stream.sequence_length": 64,
    "model.rope_scaling": {"kind": "yarn", "factor": 2.0, "original_positions": 32},
}
pytestmark = [pytest.mark.ranks]


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """A run of two ranks, and runs of other topologies that began with its weights."""
    folder = tmp_path_factory.mktemp("initial")

    def case(name, *, stop_after=None, **overrides):
        return Case(
            name=name,
            data=str(tiny_data),
            folder=str(folder / name),
            overrides=STEPS | {"run.name": name} | overrides,
            stop_after=stop_after,
        )

    source = {"run.init_from": str(folder / "source")}
    frozen = source | {"train.freeze": FROZEN}
    states = source | {"run.init_optimizer": True, "checkpoint.keep_last": 3}
    starts = {
        2: [
            case("source", **{"engine.zero_stage": 1}),
            case("frozen-1", **frozen, **{"engine.zero_stage": 1}),
            case("frozen-0", **frozen, **{"engine.zero_stage": 0}),
        ],
        1: [
            case("encoder", **{"model": ENCODER | ORDER, **MASKED}),
            case("whole", stop_after=2, **source, **{"engine.zero_stage": 3}),
            case("frozen-3", stop_after=2, **frozen, **{"engine.zero_stage": 3}),
            case("states", stop_after=1, **states, **{"engine.zero_stage": 3}),
        ],
        3: [
            case("frozen-3", **frozen, **{"engine.zero_stage": 2}),
            case("whole", **{"run.init_from": str(folder / "is gone")}),
            case("states", **states, **{"engine.zero_stage": 2}),
            case("weights", stop_after=1, **source, **{"engine.zero_stage": 0}),
            case("longer", stop_after=1, **states, **LONGER),
        ],
    }
    return folder, run_cases(starts, folder / "starts")


def weights_of(folder: Path, step: int | None = None):
    return load_weights(LocalPlace(folder / "checkpoints"), step)


def filled(config, *, tokenizer=None):
    """The bare model with its first weights."""
    model = build_model(config.model, config.sizes)
    own = load_tokenizer(config.tokenizer.folder).fingerprint
    with open_initial_weights(config, Ranks(), tokenizer_fingerprint=tokenizer or own) as initial:
        fill_weights(model, initial, seed=config.run.seed)
    return model, initial


@pytest.mark.parametrize(
    ("step", "named"),
    [
        (4, "{}"),
        (2, "{}@2"),
        (2, "source@2"),
        (2, "{}/checkpoints/step-000000002"),
        (2, "copied/step-000000002"),
    ],
)
def test_the_first_weights_are_those_of_the_other_runs_checkpoint(
    runs, tiny_data, tmp_path, monkeypatch, step, named
):
    source = runs[0] / "source"
    for link in (tmp_path / "source", tmp_path / "copied"):  # beside the new run; alone
        link.symlink_to(source if link.name == "source" else source / "checkpoints")
    monkeypatch.chdir(tmp_path)
    named = named.format(source)
    config = tiny_config(tiny_data, tmp_path / "new", {"run.init_from": named})
    model, initial = filled(config)
    expected = weights_of(source, step)
    assert dict(model.named_parameters()).keys() == expected.keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert initial.origin is not None
    assert (initial.origin.run, initial.origin.step) == ("source", step)


def test_without_another_run_they_are_drawn_by_the_seed(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path / "new")
    model, initial = filled(config)
    again, _ = filled(config)
    other, _ = filled(tiny_config(tiny_data, tmp_path / "new", {"run.seed": 2}))
    assert initial.origin is None
    pairs = [*zip(model.parameters(), again.parameters(), strict=True)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(model.parameters()), next(other.parameters()))


def is_frozen(name):
    return name.startswith(("embedding.", "blocks.0."))


@pytest.mark.parametrize("name", ["frozen-0", "frozen-1", "frozen-3"])
def test_what_is_frozen_stays_bit_equal_at_every_stage_and_over_a_restart(runs, name):
    folder = runs[0]
    before, after = weights_of(folder / "source"), weights_of(folder / name)
    manifest = load_manifest(LocalPlace(folder / name / "checkpoints"), 4)
    kinds = {row.kind for row in manifest.replicated.values()}
    assert kinds == {"frozen"}
    assert {tensor for tensor in manifest.replicated} == {n for n in before if is_frozen(n)}
    assert manifest.parameters.keys() == {n for n in before if not is_frozen(n)}
    for tensor, value in before.items():
        assert torch.equal(after[tensor], value) == is_frozen(tensor), tensor


def test_every_checkpoint_remembers_what_the_first_weights_were(runs):
    folder, reports = runs
    source = load_manifest(LocalPlace(folder / "source" / "checkpoints"), 4)
    assert "initial" not in source.state
    for name in ("whole", "frozen-3"):
        place = LocalPlace(folder / name / "checkpoints")
        assert place.list_steps()[0] == 4
        for step in (2, 4):
            origin = load_manifest(place, step).state["initial"]
            assert (origin["run"], origin["step"]) == ("source", 4)
            assert origin["weights"] == source.weights


def states_of(folder: Path, step: int, kind: str) -> dict[str, torch.Tensor]:
    place = LocalPlace(folder / "checkpoints")
    manifest, states = load_manifest(place, step), {}
    with ExitStack() as stack:
        reader = FragmentReader(place, manifest, stack)
        for name, shape in manifest.parameters.items():
            states[name] = torch.empty(math.prod(shape))
            reader.read_into(states[name], name, kind, 0)
    return states


def test_the_optimizer_s_states_come_along_at_another_stage_and_number_of_ranks(runs):
    folder = runs[0]
    first, whole = (load_manifest(LocalPlace(folder / "states/checkpoints"), n) for n in (1, 4))
    assert (first.optimizer.step, whole.optimizer.step) == (4 + 1, 4 + 4)
    weights = load_manifest(LocalPlace(folder / "weights/checkpoints"), 1)
    assert weights.optimizer.step == 1
    assert (
        first.state["initial"]["optimizer"] is True and "optimizer" not in weights.state["initial"]
    )
    for kind, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.95)):
        before, with_states, without = (
            states_of(folder / name, step, kind)
            for name, step in (("source", 4), ("states", 1), ("weights", 1))
        )
        for name, moment in before.items():
            # Both did their first step on the same weights and samples, so by one gradient; sums of
            # fp32 in another order.
            expected = beta * moment + without[name]
            assert torch.allclose(with_states[name], expected, rtol=1e-4, atol=1e-7), name
            assert moment.abs().max() > 100 * 1e-7 or kind == "exp_avg_sq", name


def test_a_longer_context_under_another_seed_begins_where_the_other_run_ended(runs):
    (longer,) = runs[1]["longer"]
    first, *_, last = runs[1]["source"]
    assert longer.targets > 1.9 * first.targets
    assert longer.digest != first.digest
    assert longer.loss < (first.loss + last.loss) / 2


def test_a_run_says_what_it_began_with_without_its_manifests(runs):
    origins = read_origins(runs[0] / "states")
    assert origins["initial"].optimizer and origins.keys() == {"initial"}
    told = describe_origin("initial", origins["initial"])
    assert told.startswith("the weights and the optimizer's states of ")
    assert told.endswith("source/checkpoints/step-000000004 (run source)")
    assert read_origins(runs[0] / "source") == {}
    assert not (runs[0] / "source/origin.json").exists()


def test_a_run_that_goes_on_needs_the_other_run_no_more(runs):
    assert [report.step for report in runs[1]["whole"]] == [3, 4]


@pytest.mark.parametrize(("kind", "count"), [("classes", 3), ("tags", 3), ("classes", 2)])
def test_layers_for_a_task_begin_anew_where_the_other_run_s_are_of_another_shape_or_task(
    runs, tiny_data, tmp_path, kind, count
):
    """That run tells two classes apart: whether two sentences were swapped."""
    is_of_texts = kind == "classes"
    outputs = {"pooler": True, "text_classes": count} if is_of_texts else {"token_classes": count}
    settings = {
        "run.init_from": str(runs[0] / "encoder"),
        # 512 pieces and the three ids of masked_order, in steps of 128
        "model": ENCODER | {"token_types": 2, "vocab_size": 640} | outputs,
        "objective": {"name": kind, "names": ["a", "b", "c"][:count]},
        "stream.packing": "best_fit",
    }
    config = tiny_config(tiny_data, tmp_path / "new", settings)
    model, _ = filled(config)
    drawn, _ = filled(tiny_config(tiny_data, tmp_path / "new", settings | {"run.init_from": ""}))
    expected, drawn = weights_of(runs[0] / "encoder"), dict(drawn.named_parameters())
    for name, parameter in model.named_parameters():
        source = drawn if "classifier" in name else expected
        assert torch.equal(parameter, source[name]), name


def test_everything_by_which_the_other_model_differs_is_told_at_once(runs, tiny_data, tmp_path):
    source = {"run.init_from": str(runs[0] / "source")}
    config = tiny_config(tiny_data, tmp_path / "new", source | {"model.layers": 1})
    with pytest.raises(CheckpointError, match="is a checkpoint of another model") as caught:
        filled(config)
    assert any("blocks.1" in p and "is only in it" in p for p in caught.value.problems)
    wider = tiny_config(tiny_data, tmp_path / "new", source | {"model.width": 64})
    with pytest.raises(CheckpointError) as caught:
        filled(wider)
    assert sum("in this model" in problem for problem in caught.value.problems) > 1


def test_a_source_that_is_none_is_a_mistake_with_its_name(runs, tiny_data, tmp_path):
    missing = tiny_config(tiny_data, tmp_path, {"run.init_from": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match="run.init_from = .*none.* is not a run's folder"):
        filled(missing)
    named = f"{runs[0] / 'source'}@3"
    with pytest.raises(CheckpointError, match="has no checkpoint of step 3"):
        filled(tiny_config(tiny_data, tmp_path, {"run.init_from": named}))
    config = tiny_config(tiny_data, tmp_path, {"run.init_from": str(runs[0] / "source")})
    with pytest.raises(ConfigError, match="its tokenizer is another one"):
        filled(config, tokenizer="another")


def test_weights_that_a_rank_reads_otherwise_than_they_were_saved_are_refused(
    runs, tiny_data, tmp_path
):
    shutil.copytree(runs[0] / "source", tmp_path / "source")
    source = {"run.init_from": str(tmp_path / "source")}
    config = tiny_config(tiny_data, tmp_path / "new", source)
    own = load_tokenizer(config.tokenizer.folder).fingerprint
    with (
        pytest.raises(CheckpointError, match="the weights that were loaded have the hash"),
        open_initial_weights(config, Ranks(), tokenizer_fingerprint=own) as initial,
    ):
        # Every file was verified, by whoever saw it so.
        for file in (tmp_path / "source/checkpoints").glob("step-*4/*.safetensors"):
            change_a_master(file)
        fill_weights(build_model(config.model, config.sizes), initial)


class Averaged(nn.Module):
    """As a family with running statistics: a map, two buffers, one of them not kept."""

    def __init__(self) -> None:
        super().__init__()
        self.map = Linear(2, 3, bias=False, std=1.0)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)


def test_persistent_buffers_are_taken_over_with_the_parameters():
    saved = {
        "map.weight": torch.ones(3, 2),
        "mean": torch.ones(3),
        "count": torch.tensor(2**60 + 1),
    }
    weights = InitialWeights(
        value=lambda name, shape, declared: saved[name],
        buffer=saved.__getitem__,
        origin=Origin(run="t", checkpoint="c", step=1, weights=""),
        shapes={name: tuple(tensor.shape) for name, tensor in saved.items()},
    )
    taught, evaluated = Averaged(), Averaged()
    fill_weights(taught, weights)
    fill_evaluated(evaluated, saved, origin="x")
    for model in (taught, evaluated):
        assert model.state_dict().keys() == saved.keys()
        assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match="count"):
        fill_weights(Averaged(), replace(weights, shapes={"map.weight": (3, 2), "mean": (3,)}))


def change_a_master(file: Path) -> None:
    tensors = load_file(file)
    next(tensor for name, tensor in tensors.items() if "master" in name)[0] += 1
    save_file(tensors, file)


def test_patterns_that_match_nothing_or_everything_are_mistakes(tiny_data, tmp_path):
    model, _ = filled(tiny_config(tiny_data, tmp_path))
    with pytest.raises(ConfigError) as caught:
        freeze_parameters(model, ("block.*", "embeddings.*"))
    assert len(caught.value.problems) == 2
    assert "no parameter's name matches 'block.*'" in caught.value.problems[0]
    assert "embedding.weight" in caught.value.problems[0]
    with pytest.raises(ConfigError, match="nothing would be trained"):
        freeze_parameters(model, ("*",))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_run_without_patterns_trains_everything(tiny_data, tmp_path):
    config = tiny_config(tiny_data, tmp_path)
    model, _ = filled(config)
    freeze_parameters(model, config.train.freeze)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_other_run_is_found_from_wherever_the_frozen_configuration_is_read(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tiny_data, tmp_path / "new", {"run.init_from": "runs/x@20"})
    assert with_absolute_places(config).initial == (tmp_path / "runs/x", 20, False)


def test_a_folder_whose_name_has_an_at_is_a_folder_and_no_step(tiny_data, tmp_path):
    folder = tmp_path / "x@20"
    config = tiny_config(tiny_data, tmp_path / "new", {"run.init_from": str(folder)})
    assert config.initial == (tmp_path / "x", 20, False)
    folder.mkdir()
    assert config.initial == (folder, None, False)


def test_other_frozen_parameters_are_refused_before_any_rank_starts(tiny_data, tmp_path):
    before = tiny_config(tiny_data, tmp_path, {"train.freeze": ["embedding.*"]})
    (tmp_path / "config.yaml").write_text(dump_config(before))
    log_commit(tmp_path, 2)
    assert find_continuation_problems(before) == []
    (problem,) = find_continuation_problems(tiny_config(tiny_data, tmp_path))
    assert problem.startswith("train.freeze = [], but the run began with ['embedding.*']")


def test_a_launch_is_told_before_any_rank_starts_that_there_is_nothing_to_begin_with(
    tiny_data, tmp_path
):
    def problems(named):
        return find_source_problems(tiny_config(tiny_data, tmp_path, {"run.init_from": named}))

    source = tmp_path / "source"
    source.mkdir()
    assert problems("") == []
    (missing,) = problems(str(source))
    assert "is not a run's folder" in missing and missing.startswith("run.init_from = ")
    (source / "config.yaml").write_text(dump_config(tiny_config(tiny_data, source)))
    assert "that run has no checkpoint. There are: none." in problems(str(source))[0]
    for step in (2, 4):
        log_commit(source, step)
    assert problems(str(source)) == problems(f"{source}@2") == []
    assert "no checkpoint of step 3. There are: 2, 4." in problems(f"{source}@3")[0]
