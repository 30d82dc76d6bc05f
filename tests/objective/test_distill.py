"""Distillation's loss and gradient, and what of a teacher is told before a rank starts."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from rank_cases import Case, run_cases
from tiny_run import log_commit, tiny_config, write_tiny_config

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.config.model import DecoderConfig, RecurrentConfig, Sizes
from lmscale.config.objective import DistillConfig
from lmscale.config.run import with_absolute_places
from lmscale.errors import ConfigError
from lmscale.files.locations import CheckpointPlace
from lmscale.model.family import build_model
from lmscale.model.initialize import Declared
from lmscale.objective.cross_entropy import IGNORED, Teacher, chunked_cross_entropy
from lmscale.objective.distill_scoring import DistillScoring
from lmscale.ranks.ranks import Ranks
from lmscale.runs.beginnings import check_start, find_teacher_problems
from lmscale.runs.students import read_students, record_student
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.train.initial import draw_weights, fill_weights, open_weights_of
from lmscale.train.source import find_source
from lmscale.train.teacher import fit_to_machines

TOKENS, WIDTH, IDS = 12, 6, 10


def plain_loss(logits, teacher, labels, *, share, temperature, z_loss, smoothing):
    """The same by torch's own functions, all logits at once."""
    is_target = labels != IGNORED
    logits, teacher, labels = logits[is_target], teacher[is_target], labels[is_target]
    hard = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    log_p, log_q = (F.log_softmax(x / temperature, -1) for x in (logits, teacher))
    soft = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    z = z_loss * logits.logsumexp(-1).square().sum()
    return (1 - share) * hard + share * temperature**2 * soft + z, soft


@pytest.mark.parametrize("chunk_tokens", [5, 100])
@pytest.mark.parametrize(
    ("share", "temperature", "z_loss", "smoothing", "softcap"),
    [(0.5, 1.0, 0.0, 0.0, 0.0), (0.3, 2.5, 0.1, 0.2, 4.0), (1.0, 0.5, 0.0, 0.0, 0.0)],
)
def test_the_loss_and_its_gradient_are_those_of_all_logits_at_once(
    chunk_tokens, share, temperature, z_loss, smoothing, softcap
):
    generator = torch.Generator().manual_seed(1)
    hidden, other = (torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(2))
    weight, theirs = (torch.randn(IDS, WIDTH, generator=generator) for _ in range(2))
    labels = torch.randint(IDS, (TOKENS,), generator=generator)
    labels[::4] = IGNORED
    hidden.requires_grad_()
    weight.requires_grad_()

    def cap(x):
        return softcap * torch.tanh(x / softcap) if softcap else x

    expected, divergence = plain_loss(
        cap(hidden @ weight.T),
        cap(other @ theirs.T),
        labels,
        share=share,
        temperature=temperature,
        z_loss=z_loss,
        smoothing=smoothing,
    )
    wanted = torch.autograd.grad(3 * expected, (hidden, weight))
    sums = chunked_cross_entropy(
        hidden,
        weight,
        labels_N=labels,
        chunk_tokens=chunk_tokens,
        z_loss=z_loss,
        label_smoothing=smoothing,
        softcap=softcap,
        teacher=Teacher(other, theirs, softcap=softcap),
        teacher_share=share,
        temperature=temperature,
    )
    torch.testing.assert_close(sums.loss, expected)
    torch.testing.assert_close(sums.divergence, divergence)
    torch.testing.assert_close(torch.autograd.grad(3 * sums.loss, (hidden, weight)), wanted)


def test_a_model_is_not_apart_from_itself():
    hidden, weight = torch.randn(TOKENS, WIDTH), torch.randn(IDS, WIDTH)
    sums = chunked_cross_entropy(
        hidden,
        weight,
        labels_N=torch.zeros(TOKENS, dtype=torch.int64),
        chunk_tokens=5,
        teacher=Teacher(hidden, weight),
        teacher_share=0.5,
    )
    assert float(sums.divergence) == 0
    torch.testing.assert_close(sums.loss, 0.5 * sums.nll)


def test_a_scoring_asks_its_teacher_in_training_alone_and_holds_no_parameter_of_it():
    settings = DecoderConfig.model_validate({"layers": 1, "width": 16, "heads": 2})
    sizes = Sizes(vocab_size=IDS, max_positions=TOKENS, sequence_length=TOKENS)
    student, teacher = (build_model(settings, sizes) for _ in range(2))
    for model, seed in ((student, 1), (teacher, 2)):
        fill_weights(model, draw_weights(seed))
    config = DistillConfig(name="distill", teacher="x", teacher_share=1.0)
    scoring = DistillScoring(student, config, mask_documents=True)
    scoring.set_teacher(teacher)
    assert len(list(scoring.parameters())) == len(list(student.parameters()))
    tokens = torch.arange(TOKENS + 1).remainder(IDS)[None]
    windows = {"tokens": tokens, "starts": torch.tensor([0]), "lengths": torch.tensor([TOKENS])}
    apart = scoring(**windows)
    assert apart.loss.total == apart.figures["teacher_kl"].total > 0
    alone = scoring.eval()(**windows)
    assert alone.loss.total == alone.figures["loss"].total == apart.figures["loss"].total
    apart.loss.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    teacher.load_state_dict(student.state_dict())
    assert float(scoring.train()(**windows).loss.total.detach()) == pytest.approx(0, abs=1e-5)


def test_a_teacher_attends_as_this_run_s_machines_can():
    teacher, own = DecoderConfig(layers=3), DecoderConfig(layers=2, attention="sdpa")
    assert fit_to_machines(teacher, own) == DecoderConfig(layers=3, attention="sdpa")
    assert fit_to_machines(teacher, RecurrentConfig(family="recurrent")) == teacher


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """A teacher of one rank; students of it at several stages, one of them in two attempts."""
    root = tmp_path_factory.mktemp("distill")
    learning = {"objective.name": "distill", "objective.teacher": str(root / "teacher")}
    learning |= {"model.width": 16, "model.ffn_width": 32, "objective.teacher_share": 0.7}
    short = {"train.steps": 4, "checkpoint.every_steps": 2}

    def case(name, **overrides):
        folder = str(root / name.partition(".")[0])
        overrides = {"run.name": "student", **short, **overrides}
        return Case(name=name, data=str(tiny_data), folder=folder, overrides=overrides)

    def student(name, stage, **more):
        return case(name, **learning, **{"engine.zero_stage": stage}, **more)

    cut = student("cut.begun", 1)
    starts = {
        1: [
            case("teacher", **{"run.name": "teacher", "engine.ema_decay": 0.5}),
            student("alone", 1),
        ],
        2: [
            Case(**{**asdict(cut), "stop_after": 2}),
            student("cut.ended", 1),
            student("whole", 1),
            student("stage-0", 0),
            student("stage-3", 3),
        ],
    }
    return root, run_cases(starts, root / "starts"), learning


@pytest.mark.ranks
def test_every_stage_and_number_of_ranks_learns_the_same_of_its_teacher(runs):
    _, reports, _ = runs
    for name in ("alone", "stage-0", "stage-3"):
        for report, other in zip(reports[name], reports["whole"], strict=True):
            assert report.loss == pytest.approx(other.loss, rel=1e-5)
            assert report.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)


@pytest.mark.ranks
def test_a_run_that_goes_on_does_so_bit_by_bit_and_keeps_no_teacher_of_its_own(runs):
    root, reports, _ = runs
    assert [*reports["cut.begun"], *reports["cut.ended"]] == reports["whole"]
    manifest, teachers = (
        load_manifest(LocalPlace(root / name / "checkpoints"), 4) for name in ("whole", "teacher")
    )
    assert manifest.state["teacher"] == {
        "run": "teacher",
        "checkpoint": str(root / "teacher/checkpoints/step-000000004"),
        "step": 4,
        "weights": teachers.weights,
    }
    assert manifest.parameters.keys() == teachers.parameters.keys()
    assert not manifest.replicated


@pytest.mark.ranks
def test_a_teacher_knows_each_of_its_students_once(runs):
    root, _, _ = runs
    students = [(row["step"], row["student"]) for row in read_students(root / "teacher")]
    names = ("alone", "cut", "stage-0", "stage-3", "whole")
    assert sorted(students) == [(4, str(root / name)) for name in names]


@pytest.mark.ranks
def test_of_a_teacher_that_keeps_an_average_of_its_weights_the_average_is_taken(runs, tiny_data):
    folder, name = runs[0] / "teacher", "embedding.weight"
    trained, average = (
        load_weights(LocalPlace(folder / "checkpoints"), 4, weights=kept)[name]
        for kept in ("trained", "average")
    )
    fingerprint = load_tokenizer(str(tiny_data / "tokenizer")).fingerprint
    where = CheckpointPlace(folder, 4)
    source = find_source("x", where, Ranks(), tokenizer_fingerprint=fingerprint)
    with open_weights_of(source, takes_average=True) as weights:
        taken = weights.value(name, average.shape, Declared(kind="embedding"))
    assert torch.equal(taken, average) and not torch.equal(taken, trained)
    assert weights.described == "the average of its weights"


@pytest.mark.ranks
def test_a_run_goes_on_with_no_other_teacher(runs, tiny_data):
    root, _, learning = runs
    more = {"objective.teacher": f"{root}/teacher@2", "train.steps": 6, "run.name": "student"}
    case = Case(
        name="other", data=str(tiny_data), folder=str(root / "cut"), overrides=learning | more
    )
    with pytest.raises(AssertionError, match="this run began with a teacher of"):
        run_cases({1: [case]}, root / "refused")


@pytest.fixture
def teacher(tiny_data, tmp_path):
    """A run's folder with a commit, as far as a look at it tells."""
    write_tiny_config(tmp_path / "config.yaml", tiny_data, tmp_path)
    log_commit(tmp_path, 4)
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({}, None),
        ({"objective.teacher": "nowhere"}, "is not a run's folder"),
        ({"objective.teacher": "@7"}, "no checkpoint of step 7. There are: 4"),
        ({"model.vocab_size": 640}, "its model has 512 ids and this run's 640"),
        ({"stream.sequence_length": 64}, "it knows 32 positions, fewer than"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_told_before_a_rank_starts(
    teacher, tiny_data, tmp_path, overrides, problem
):
    named = overrides.get("objective.teacher", "")
    place = named if named == "nowhere" else f"{teacher}{named}"
    config = tiny_config(
        tiny_data,
        tmp_path / "student",
        {**overrides, "objective": {"name": "distill", "teacher": place}}
        | {key: value for key, value in overrides.items() if key != "objective.teacher"},
    )
    problems = find_teacher_problems(config)
    assert (problems == []) if problem is None else (problem in problems[0])
    if problem is not None:
        with pytest.raises(ConfigError):
            check_start(config)


def test_a_run_that_goes_on_is_told_before_a_rank_starts_that_its_teacher_is_gone(
    teacher, tiny_data, tmp_path
):
    settings = {"objective": {"name": "distill", "teacher": str(teacher)}}
    config = tiny_config(tiny_data, tmp_path / "student", settings)
    record_student(teacher, step=2, student=config.folder)
    assert find_teacher_problems(config) == []  # it begins anew
    config.folder.mkdir()
    log_commit(config.folder, 3)
    (problem,) = find_teacher_problems(config)
    assert problem.endswith("that run has no checkpoint of step 2. There are: 4.")
    other = {"objective": {"name": "distill", "teacher": f"{teacher}@4"}}
    (problem,) = find_teacher_problems(tiny_config(tiny_data, config.folder, other))
    assert "this run began with that run's step 2. Name that one" in problem


def test_a_teacher_of_another_tokenizer_is_told(teacher, tiny_data, tmp_path):
    kept = teacher / "tokenizer"
    kept.mkdir()
    (kept / "meta.json").write_text(json.dumps({"fingerprint": "f" * 64}))
    settings = {"objective": {"name": "distill", "teacher": str(teacher)}}
    (problem,) = find_teacher_problems(tiny_config(tiny_data, tmp_path / "student", settings))
    assert "its tokenizer is another one" in problem


def test_a_teacher_is_found_from_any_working_directory(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"objective": {"name": "distill", "teacher": "runs/big@400"}}
    config = with_absolute_places(tiny_config(tiny_data, tmp_path / "student", settings))
    assert config.objective.teacher == f"{tmp_path}/runs/big@400"
