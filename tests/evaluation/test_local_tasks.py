"""Tasks made of held-out text, and what is told of task files, without lm-eval."""

from __future__ import annotations

import errno
import json
import random
import shutil
from pathlib import Path

import pytest
import yaml
from task_cases import build_suite

from lmscale.errors import ConfigError, DataError, LmscaleError
from lmscale.evaluation.harness import open_tasks
from lmscale.evaluation.local_tasks import KINDS, make_tasks
from lmscale.evaluation.passages import CONTEXT, Spot, cut_passages, find_spots, language_of
from lmscale.evaluation.task_files import (
    check_task,
    expand,
    find_task_files,
    name_tasks,
    read_rows,
)
from lmscale.evaluation.task_scores import TaskScore


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("held-out")
    build_suite(root)
    return root


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


def rows_of(folder: Path, name: str) -> list[dict]:
    lines = (folder / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_each_language_has_eight_tasks_whose_right_answers_are_the_text(root):
    files = find_task_files(root / "tasks")
    assert set(files) == {f"local_{language}_{kind}" for language in ("en", "zh") for kind in KINDS}
    corpus = root / "corpus/both/heldout"
    lines = "".join(path.read_text(encoding="utf-8") for path in corpus.iterdir()).splitlines()
    texts = [json.loads(line)["text"] for line in lines]

    def stands(*parts: str) -> bool:
        return any("".join(parts) in text for text in texts)

    for name in files:
        for row in rows_of(root / "tasks", name):
            kind = name.split("_", 2)[2]
            if kind in ("last_word", "written_word"):
                assert stands(row["context"], row["target"]) and row["word"] in row["context"]
            elif kind == "beginning":
                assert stands(row["choices"][row["gold"]], row["ending"])
            elif kind == "text":
                assert stands(row["text"])
            elif kind != "order":  # whose passages are joined by one space
                right = row["choices"][row["gold"]]
                assert stands(row["context"], right)
                assert len(set(row["choices"])) == 4
    gold = [row["gold"] for row in rows_of(root / "tasks", "local_en_continuation")]
    assert len(set(gold)) > 1


def test_the_same_corpus_and_seed_make_the_same_files_and_another_seed_others(root, tmp_path):
    source = [root / "corpus/both"]
    made = contents(root / "tasks")
    shutil.copytree(root / "tasks", tmp_path / "kept")
    make_tasks(source, root / "tasks", rows=8, force=True)
    assert contents(root / "tasks") == made
    make_tasks(source, tmp_path / "other", rows=8, seed=1)
    name = "data/local_en_continuation.jsonl"
    assert contents(tmp_path / "other")[name] != made[name]


def test_passages_join_to_the_text_and_are_short():
    text = (
        "A sentence that is not so long, at all. " * 3
        + "word " * 200
        + "End of it, surely so. " * 9
    )
    passages = cut_passages(text, "en")
    assert text.startswith("".join(passages)) and len(text) - sum(map(len, passages)) < 40
    assert max(map(len, passages)) <= 200
    assert language_of("你好，世界 hello") == "zh" and language_of("Привет мир") is None
    assert language_of("1234 5678") is None and find_spots(["short"]) == {}


def test_a_folder_that_is_there_is_replaced_only_if_it_is_ours_and_that_is_asked_for(
    root, tmp_path
):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="was not made by this"):
        make_tasks([root / "corpus/both"], tmp_path / "mine", force=True)
    with pytest.raises(ConfigError, match="--force makes them again"):
        make_tasks([root / "corpus/both"], root / "tasks")


def test_force_deletes_nothing_that_this_has_not_made_and_nothing_before_the_new_is_whole(
    root, tmp_path, monkeypatch
):
    out = tmp_path / "tasks"
    shutil.copytree(root / "tasks", out)
    (out / "own.yaml").write_text("task: own\n")
    with pytest.raises(ConfigError, match=r"--force would delete .*own.yaml, which were not made"):
        make_tasks([root / "corpus/both"], out, rows=8, force=True)
    (out / "own.yaml").unlink()
    old = contents(out)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill_disk)
        with pytest.raises(LmscaleError, match="tasks"):
            make_tasks([root / "corpus/both"], out, rows=8, seed=1, force=True)
    assert contents(out) == old and list(tmp_path.iterdir()) == [out]


def fill_disk(path: Path, content: bytes) -> int:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def of_document(number: int, passages: int) -> list[Spot]:
    texts = [f"Document {number}, passage {place}. " for place in range(passages)]
    places = range(CONTEXT, passages)
    return [
        Spot(
            document=number,
            before=tuple(texts[place - CONTEXT : place]),
            after=tuple(texts[place : place + 3]),
        )
        for place in places
    ]


def test_wrong_choices_are_of_the_documents_that_a_question_says_and_as_the_right_one_stands():
    """Of many documents, too: those of one's own are few among all."""
    spots = [spot for number in range(300) for spot in of_document(number, 12)]
    draw = random.Random(0)
    for spot in spots[::40]:
        own = f"Document {spot.document}, "
        row = KINDS["next_passage"].make(spot, spots, "en", draw)
        seen = {text.strip() for text in (*spot.before, *spot.after[1:])}
        assert row is not None and all(own in choice for choice in row["choices"])
        assert not seen & {choice.strip() for choice in row["choices"]}
        assert all(choice.startswith(" Document") for choice in row["choices"])
        row = KINDS["continuation"].make(spot, spots, "en", draw)
        assert row is not None and [own in choice for choice in row["choices"]].count(True) == 1
        assert all(choice.startswith(" Document") for choice in row["choices"])
        row = KINDS["beginning"].make(spot, spots, "en", draw)
        assert row is not None and [own in choice for choice in row["choices"]].count(True) == 1
    few = [*of_document(0, 10), *of_document(1, 4)]
    for kind in ("continuation", "beginning"):  # one other spot is no three
        assert KINDS[kind].make(few[0], few, "en", draw) is None


def test_of_beginnings_no_length_is_made_even(root):
    task = find_task_files(root / "tasks")["local_en_beginning"]
    assert [metric["metric"] for metric in task.settings["metric_list"]] == ["acc"]


def test_a_corpus_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="there is no corpus here"):
        make_tasks([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_tasks_that_was_moved_still_finds_its_data(root, tmp_path):
    shutil.copytree(root / "tasks", tmp_path / "moved")
    task = find_task_files(tmp_path / "moved")["local_en_order"]
    path = tmp_path / "moved/local_en_order.yaml"
    path.write_text(path.read_text().replace(str(root), "/nowhere"))
    moved = find_task_files(tmp_path / "moved")["local_en_order"]
    assert read_rows(moved) == read_rows(task)
    # The first one's place is written in a copy, where another suite may stand by now.
    shutil.copytree(root / "tasks", tmp_path / "copy")
    copied = find_task_files(tmp_path / "copy")["local_en_order"]
    data = tmp_path / "copy/data/local_en_order.jsonl"
    data.write_text(data.read_text(encoding="utf-8").splitlines()[0], encoding="utf-8")
    assert len(read_rows(copied)["test"]) == 1 < len(read_rows(task)["test"])
    (tmp_path / "moved/data/local_en_order.jsonl").unlink()
    with pytest.raises(DataError, match="are not there, nor beside the task's file"):
        read_rows(moved)


CHOICE = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}} Answer:",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
}
ROW = {"question": "1 + 1?", "choices": ["1", "2"], "gold": 1}


def write_task(folder: Path, rows: list[object] | None = None, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {key: value for key, value in (CHOICE | changes).items() if value is not None}
    (folder / "mine.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows or [ROW]]
    (folder / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


BAD = {
    "no choices": ({"doc_to_choice": None}, None, "has no `doc_to_choice`, which output_type"),
    "no target": ({"doc_to_target": None}, None, "has no `doc_to_target`"),
    "no name": ({"task": None}, None, "mine.yaml: has neither `task` nor `group`"),
    "no split": ({"test_split": None}, None, "has neither `test_split` nor `validation_split`"),
    "no files": ({"dataset_kwargs": None}, None, "has no `dataset_kwargs"),
    "another split": (
        {"test_split": "dev"},
        None,
        "reads the split 'dev', and data_files has 'tes",
    ),
    "a kind": ({"output_type": "essay"}, None, "output_type = 'essay'; known are loglikelihood"),
    "no data": (
        {"dataset_kwargs": {"data_files": {"test": "gone.jsonl"}}},
        None,
        "the data of 'mine', gone.jsonl, are not there",
    ),
    "a template": ({"doc_to_text": "{{ question"}, None, "is no template"),
    "a key": ({}, [ROW, {"question": "?", "gold": 0}], "rows.jsonl, line 2: has no key 'choices'"),
    "a key in a template": ({}, [{"choices": [], "gold": 0}], "line 1: has no key 'question'"),
    "no object": ({}, [ROW, "[1]"], "line 2: is no JSON object"),
    "no JSON": ({}, [ROW, "{"], "line 2: is no JSON object"),
    "no rows": ({}, [""], "the split 'test' of 'mine' holds no row"),
    "a list for a split": ({"test_split": ["a"]}, None, "test_split = ['a'] is no name"),
    "a list for a kind": ({"output_type": ["essay"]}, None, "output_type = ['essay']; known"),
    "a word for files": ({"dataset_kwargs": "x"}, None, "has no `dataset_kwargs"),
    "null for files": (
        {"dataset_kwargs": {"data_files": {"test": None}}},
        None,
        "data_files of 'test' = None: neither a file's name nor a list",
    ),
    "a number to include": ({"include": 5}, None, "include = 5 names no file"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_task_that_cannot_be_asked_is_told_in_a_line(tmp_path, case):
    changes, rows, said = BAD[case]
    with pytest.raises(LmscaleError) as caught:
        for task in find_task_files(write_task(tmp_path / "tasks", rows, **changes)).values():
            check_task(task)
            read_rows(task)
    assert len(caught.value.problems) == 1 and said in caught.value.problems[0]
    assert caught.value.exit_code == 2


def test_what_is_no_folder_of_tasks_is_told(tmp_path):
    with pytest.raises(ConfigError, match="there is no such folder of tasks"):
        name_tasks([f"{tmp_path}/gone"], None)
    with pytest.raises(ConfigError, match="the folder holds no task"):
        name_tasks([str(tmp_path)], None)
    (tmp_path / "a.yaml").write_text("task: [")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(ConfigError) as caught:
        name_tasks([str(tmp_path)], None)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "is no YAML",
        "is no mapping of a task's fields.",
    ]


def test_included_files_give_fields_and_a_group_stands_for_its_tasks(tmp_path):
    write_task(tmp_path, task=None, doc_to_text=None)
    (tmp_path / "mine.yaml").rename(tmp_path / "base")
    (tmp_path / "one.yaml").write_text("include: base\ntask: one\ndoc_to_text: question\n")
    (tmp_path / "all.yaml").write_text("group: all\ntask: [one, {task: hellaswag}, all]\n")
    names, known = name_tasks([str(tmp_path)], None)
    assert names == ["one"] and read_rows(known["one"]) == {"test": [ROW]}
    tasks, others = expand(["all"], known)
    assert [task.name for task in tasks] == ["one"] and others == ["hellaswag"]


def test_a_template_may_ask_for_a_key_that_is_not_there(tmp_path):
    text = "{% if hint is defined %}{{hint}}{% endif %}{{unit|default('')}}{{range(2)|first}}"
    write_task(tmp_path, doc_to_text=text + "{{question}}")
    assert read_rows(find_task_files(tmp_path)["mine"]) == {"test": [ROW]}


def test_one_name_may_stand_for_many_files_of_data(tmp_path):
    write_task(tmp_path, dataset_kwargs={"data_files": {"test": "part-*.jsonl"}})
    (tmp_path / "rows.jsonl").rename(tmp_path / "part-2.jsonl")
    first = ROW | {"question": "0?"}
    (tmp_path / "part-1.jsonl").write_text(json.dumps(first))
    assert read_rows(find_task_files(tmp_path)["mine"]) == {"test": [first, ROW]}


def test_two_tasks_of_one_name_are_refused_and_one_file_may_be_named_twice(tmp_path):
    one, two = write_task(tmp_path / "one"), write_task(tmp_path / "two")
    with pytest.raises(ConfigError, match=r"two/mine.yaml: 'mine' is the name of .*one/mine.yaml"):
        name_tasks([str(one), str(two)], None)
    with pytest.raises(ConfigError, match="Score one folder at a time"):
        name_tasks([str(two)], one)
    assert name_tasks([str(one), str(one)], one)[0] == ["mine"]


def test_groups_that_hold_each_other_end_and_settings_of_a_member_are_refused(tmp_path):
    write_task(tmp_path)
    (tmp_path / "a.yaml").write_text("group: a\ntask: [b, mine]\n")
    (tmp_path / "b.yaml").write_text("group: b\ntask: [a]\n")
    tasks, others = expand(["a", "b"], find_task_files(tmp_path))
    assert [task.name for task in tasks] == ["mine"] and not others
    (tmp_path / "b.yaml").write_text("group: b\ntask: [{task: mine, num_fewshot: 2}]\n")
    with pytest.raises(ConfigError, match="the group 'b' has the member .* only names are taken"):
        expand(["a"], find_task_files(tmp_path))


def test_a_figure_that_is_no_share_has_no_error():
    score = TaskScore(documents=4, figures={"acc": 1.5, "acc_norm": 0.5})
    assert score.error_of("acc") is None and score.error_of("acc_norm") == pytest.approx(12**-0.5)


def test_without_the_harness_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '.\[lm-eval\]' -c constraints.txt"):
        open_tasks(["any"])
