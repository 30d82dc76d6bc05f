"""``lmscale distill``: what the student is, which blocks it begins with, what it may not be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from handmade_runs import make_run
from tiny_run import log_commit, tiny_config, tiny_tree, write_tiny_config

from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.cli.main import main
from lmscale.compress.student import Shape, pick_blocks, plan_model
from lmscale.config import RunConfig, load_config
from lmscale.runs.beginnings import check_start
from lmscale.runs.commits import read_commits
from lmscale.tokenizer.codec import load_tokenizer

LAYERS = 4


@pytest.fixture(scope="module")
def teacher(tiny_data: Path, tmp_path_factory) -> RunConfig:
    folder = tmp_path_factory.mktemp("distill") / "teacher"
    config = tiny_config(
        tiny_data,
        folder,
        {
            "model.layers": LAYERS,
            "run.name": "teacher",
            "train.freeze": ["blocks.0.*"],  # what a student does not take over
        },
    )
    make_run(config, load_tokenizer(tiny_data / "tokenizer"))
    log_commit(folder, 7)
    return config


def distill(capsys, *words: object) -> tuple[int, str]:
    code = main(["distill", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out + said.err


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_weights(LocalPlace(folder / "checkpoints"))


def test_a_shallow_student_begins_with_every_second_block_of_its_teacher(
    teacher, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ("--layers", 2, "--set", "train.steps=5", "--temperature", 3)
    code, said = distill(capsys, teacher.folder, "shallow", *words)
    assert code == 0, said
    assert "blocks 0, 2 of it" in said
    student = load_config(tmp_path / "shallow.yaml")
    assert student.folder == teacher.folder.parent / "shallow"
    assert (student.train.steps, student.objective.temperature) == (5, 3)
    assert student.objective.teacher == f"{teacher.folder}@7"
    assert not student.train.freeze
    check_start(student)
    theirs, first = weights_of(teacher.folder), weights_of(Path(student.run.init_from))
    picked = {"blocks.0.": "blocks.0.", "blocks.1.": "blocks.2."}
    for name, weight in first.items():
        own = name[: len("blocks.0.")]
        there = picked[own] + name[len(own) :] if own in picked else name
        assert torch.equal(weight, theirs[there])
    assert len(first) < len(theirs)
    assert read_commits(Path(student.run.init_from))[-1].step == 0


def test_a_narrow_student_keeps_the_width_of_heads_and_begins_by_itself(
    teacher, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, said = distill(capsys, teacher.folder, "narrow", "--width", 16)
    assert code == 0 and "random weights" in said, said
    model = load_config(tmp_path / "narrow.yaml").model
    assert (model.width, model.heads, model.kv_heads, model.ffn_width) == (16, 2, 2, 32)
    assert model.resolved_head_width == teacher.model.resolved_head_width
    code, said = distill(capsys, teacher.folder, "narrow", "--width", 16)
    assert code == 2 and "narrow.yaml exists" in said


def test_blocks_are_picked_evenly_and_only_where_all_else_is_alike(teacher):
    def picked(**changes: int) -> tuple[int, ...]:
        return pick_blocks(teacher, plan_model(teacher, Shape(**changes)))

    assert (picked(layers=3), picked(layers=1)) == ((0, 1, 2), (0,))
    assert picked(layers=2, width=16) == picked(layers=5) == ()
    model = plan_model(teacher, Shape(layers=2))
    windows = teacher.model.model_copy(update={"sliding_windows": (8, 0)})
    assert pick_blocks(teacher.model_copy(update={"model": windows}), model) == ()


def test_what_does_not_fit_is_one_line_and_a_teacher_of_other_tokens_is_refused(
    teacher, tiny_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert distill(capsys, teacher.folder, "x") == (
        2,
        "error: Nothing is smaller: give --layers, --width, or both.\n",
    )
    code, said = distill(capsys, teacher.folder, "x", "--layers", LAYERS)
    assert code == 2 and ": nothing is smaller. Give fewer --layers" in said
    tree = tiny_tree(tiny_data, tmp_path / "run", {"tokenizer.vocab_size": 700})
    other = write_tiny_config(
        tmp_path / "other.yaml", tiny_data, tmp_path / "run", {"tokenizer.vocab_size": 700}
    )
    assert tree["tokenizer"]["vocab_size"] == 700
    code, said = distill(capsys, teacher.folder, "x", "--layers", 2, "--data", other)
    assert code == 2 and len(said.strip().splitlines()) == 1, said
    assert "model.vocab_size = 512 is smaller than tokenizer.vocab_size = 700" in said
    assert not (tmp_path / "x.yaml").exists() and not (teacher.folder.parent / "x-first").exists()
