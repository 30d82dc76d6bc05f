"""A whole configuration is planned of base, data and wishes, and what does not fit is told."""

from array import array
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config import parse_config
from lmscale.config.assets import find_assets
from lmscale.config.data import TokenizerConfig
from lmscale.config.finetune import FinetuneConfig, load_finetune
from lmscale.config.load import validate_tree
from lmscale.config.model import FAMILIES
from lmscale.errors import ConfigError
from lmscale.finetune.base import Base
from lmscale.finetune.checks import find_doubts, find_left_out
from lmscale.finetune.plan import plan_run
from lmscale.finetune.recipe import plan_rate
from lmscale.finetune.render import describe_plan, render_plan
from lmscale.finetune.survey import Part, Survey, sort_names
from lmscale.finetune.tasks import find_task_problems
from lmscale.finetune.trees import spread
from lmscale.runs.taken_over import learns_the_same

FAMILY = {
    "encoder": {"family": "encoder", "token_types": 2},
    "decoder": {"family": "decoder"},
    "recurrent": {"family": "recurrent"},
    "encoder_decoder": {"family": "encoder_decoder"},
}
FIELDS = {
    "classes": {"label_field": "kind"},
    "numbers": {"label_field": "score"},
    "tags": {"tags_field": "tags"},
    "pairs": {"target_field": "de"},
    "completion": {"target_field": "answer"},
    "answers": {"target_field": "context", "answer_field": "answer"},
    "dialogue": {"messages_field": "messages"},
}
CAN = {
    "encoder": {"classes", "numbers", "tags", "answers"},
    "decoder": {"classes", "numbers", "completion", "dialogue"},
    "recurrent": {"completion", "dialogue"},
    "encoder_decoder": {"pairs"},
}
TRAINABLE = ("all", "head", {"top": 1}, {"lora": {"rank": 4}})


def asked(task="classes", **keys) -> FinetuneConfig:
    data = {"train": "train.jsonl", **FIELDS[task], **keys.pop("data", {})}
    tree = {"name": "tuned", "base": "runs/base", "task": task, "data": data, **keys}
    return validate_tree(FinetuneConfig, tree, name="short.yaml")


def base_of(family="encoder", **keys) -> Base:
    width = {"layers": 4, "width": 64, "vocab_size": 384, "max_positions": 128}
    heads = {} if family == "recurrent" else {"heads": 4}
    tree = {**FAMILY[family], **width, **heads, **keys}
    return Base(
        init_from="runs/base",
        model=FAMILIES.section(family).model_validate(tree),
        tokenizer=TokenizerConfig(folder="runs/base/tokenizer", vocab_size=320),
        has_bos=True,
        learned={"name": "masked"},
    )


def part(documents=400, tokens=20, counts=(200, 200)) -> Part:
    lengths = array("q", [tokens] * documents)
    labels = Counter(dict(enumerate(counts)))
    first = {number: f"file:{number}" for number, count in labels.items() if count}
    return Part(lengths=lengths, places=labels, first=first, longest="file:7", most=tokens)


def survey(names=("bad", "good"), **parts: Part) -> Survey:
    return Survey(parts={"train": part(), "heldout": part(100), **parts}, names=names)


def survey_for(task: str, **parts: Part) -> Survey:
    return survey(("bad", "good") if task in ("classes", "tags") else (), **parts)


@pytest.mark.parametrize(("task", "family"), [*product(FIELDS, FAMILY)])
@pytest.mark.parametrize("trainable", TRAINABLE, ids=str)
def test_a_task_of_a_family_is_planned_or_told_with_what_the_base_can_do(task, family, trainable):
    config = asked(task, trainable=trainable)
    is_refused = task not in CAN[family]
    if family == "encoder_decoder" and trainable == "head":
        is_refused = True  # its output is its embedding
    if family == "recurrent" and isinstance(trainable, dict) and "lora" in trainable:
        is_refused = True
    if is_refused:
        with pytest.raises(ConfigError):
            text = render_plan(
                config, plan_run(config, base_of(family), survey_for(task), has_gpu=False)
            )
            parse_config(text)
        return
    plan = plan_run(config, base_of(family), survey_for(task), has_gpu=False)
    run = parse_config(render_plan(config, plan))
    assert run.objective.name == task
    assert run.checkpoint.keep_best.metric == run.evaluation.stop.metric == plan.metric
    assert run.model.lora.rank == (4 if trainable == TRAINABLE[3] else 0)
    assert bool(run.train.freeze) == (trainable in TRAINABLE[1:3])
    # 128 documents a step or less, and no window is longer than it has to be.
    assert run.window.tokens >= 20 and run.stream.sequence_length == 32
    assert run.evaluation.sets == {"heldout": "data/tuned/shards/train/heldout"}


def test_classes_of_a_base_go_on_where_their_names_are_the_same_and_else_begin_anew():
    names = {"name": "classes", "names": ["bad", "good"]}
    told = {}
    for learned in (names, names | {"names": ["good", "bad"]}, {"name": "masked_order"}, None):
        base = replace(base_of(pooler=True, text_classes=2), learned=learned)
        plan = plan_run(asked(), base, survey(), has_gpu=False)
        told[str(learned)] = plan.reasons["model"][0].rpartition("its layers")[2]
        (objective,) = (parse_config(render_plan(asked(), plan)).objective,)
        assert told[str(learned)].endswith("begin anew") != learns_the_same(objective, learned)
    assert [each.endswith("begin anew") for each in told.values()] == [False, True, True, False]


def test_a_test_set_is_scored_at_the_end_alone_and_can_decide_nothing():
    found = survey(test=part(100))
    config = asked(data={"test": "test.jsonl"})
    run = parse_config(render_plan(config, plan_run(config, base_of(), found, has_gpu=False)))
    assert run.evaluation.only_at_end == ("test",) and run.evaluation.of_loop == ("heldout",)
    deciding = asked(
        data={"test": "test.jsonl"},
        settings={"evaluation.stop.metric": "evaluation/test/accuracy"},
    )
    plan = plan_run(deciding, base_of(), found, has_gpu=False)
    with pytest.raises(ConfigError, match="'evaluation/test/accuracy' is never measured"):
        parse_config(render_plan(deciding, plan))


def test_names_of_classes_are_those_of_the_data():
    told = list(find_task_problems(asked(settings={"objective": {"names": ["good", "bad"]}})))
    assert told == [
        "settings: objective.names are the names of the data: give data.label_names, in the same "
        "order."
    ]


def test_what_a_base_cannot_do_names_what_it_can():
    with pytest.raises(ConfigError) as caught:
        plan_run(asked("pairs"), base_of("encoder"), survey_for("pairs"), has_gpu=False)
    assert "is of models of the family encoder_decoder, and the base runs/base is of encoder" in (
        str(caught.value)
    )
    assert "which can do classes, numbers, tags" in str(caught.value)


def test_every_label_without_examples_is_told_at_once():
    names = ("bad", "good", "odd", "never")
    found = survey(
        names,
        train=part(counts=(200, 200, 0, 0)),
        heldout=part(100, counts=(50, 40, 10, 0)),
    )
    with pytest.raises(ConfigError) as caught:
        plan_run(asked(), base_of(), found, has_gpu=False)
    first, second = caught.value.problems
    assert (
        "data.heldout: 'odd' (the first at file:2) is no label of the training documents" in first
    )
    assert "data.label_names: the class 'never' has no document in data.train" in second


def test_a_name_that_training_writes_otherwise_is_told_with_the_one_that_is_meant():
    found = survey(
        ("bad", "good", "Good "),
        train=part(counts=(200, 200, 0)),
        heldout=part(100, counts=(50, 40, 10)),
    )
    with pytest.raises(ConfigError, match="or write 'good' in its place"):
        plan_run(asked(), base_of(), found, has_gpu=False)
    both = survey(("bad", "good", "Good "), train=part(400, counts=(200, 199, 1)))
    plan_run(asked(), base_of(), both, has_gpu=False)
    alike, single = [each for each in find_doubts(asked(), base_of().model, both)]
    assert alike.startswith("'good' (199 documents), 'Good ' (1 document) differ by case")
    assert single.startswith("of 'Good ' there is a single training document")


def test_a_stop_by_few_held_out_documents_is_advised_against_before_the_run():
    few = survey(heldout=part(9, counts=(5, 4)))
    (told,) = find_doubts(asked(), base_of().model, few)
    assert told.startswith("data.heldout: only 9 documents: figures are coarse, and early stopping")
    (plain,) = find_doubts(asked(early_stopping=False), base_of().model, few)
    assert plain == "data.heldout: only 9 documents: figures are coarse"


def test_what_balances_the_classes_is_told_before_the_run():
    config = asked(settings={"objective.class_weights": "balanced"})
    found = survey(train=part(counts=(300, 100)))
    plan = plan_run(config, base_of(), found, has_gpu=False)
    (line,) = [line for line in describe_plan(config, plan) if line.startswith("weights")]
    assert line == "weights   bad 0.6667, good 2: balanced, by the training files"
    assert "# bad 0.6667, good 2: balanced" in render_plan(config, plan)
    plain = plan_run(asked(), base_of(), found, has_gpu=False)
    assert not any(line.startswith("weights") for line in describe_plan(asked(), plain))


def test_a_run_computes_in_what_the_machine_is_fast_in():
    plan = plan_run(asked(), base_of(), survey(), has_gpu=False, precision="bf16")
    assert parse_config(render_plan(asked(), plan)).engine.precision == "bf16"


def test_one_class_alone_teaches_nothing():
    with pytest.raises(ConfigError, match="all its documents are of one class, 'good'"):
        plan_run(asked(), base_of(), survey(("good",)), has_gpu=False)


def test_a_document_longer_than_learned_positions_is_told_with_its_place():
    found = survey(train=part(3, tokens=300), heldout=part(2, tokens=20))
    with pytest.raises(ConfigError) as caught:
        plan_run(asked(), base_of(), found, has_gpu=False)
    assert "3 documents of 3 with more than 128 tokens" in str(caught.value)
    assert "The longest has 300, at file:7" in str(caught.value)
    config = asked("completion")
    plan = plan_run(
        config, base_of("decoder"), survey_for("completion", **found.parts), has_gpu=False
    )
    assert plan.tree["model"]["max_positions"] == 512  # rope has no such bound
    told = list(find_doubts(config, base_of("decoder").model, found))
    assert "farther positions are new to it" in " ".join(told)


def test_dialogues_that_no_window_holds_are_left_out_and_told():
    found = survey_for("dialogue", train=part(400, tokens=20))
    found.parts["train"].lengths[7] = found.parts["train"].most = 100
    config = asked("dialogue", settings={"stream.sequence_length": 63})
    plan = plan_run(config, base_of("decoder"), found, has_gpu=False)
    assert plan.limit == 64 and plan.sizes.documents == 399
    (told,) = find_left_out(config, found, plan.limit)
    assert told.startswith("data.train: 1 of 400 documents with more than 64 tokens")
    refused = asked("dialogue", settings={"stream": {"on_overlong": "refuse"}})
    learned = base_of("decoder", positions="learned", max_positions=31)
    with pytest.raises(ConfigError, match="1 document of 400 with more than 32 tokens"):
        plan_run(refused, learned, found, has_gpu=False)
    assert plan_run(asked("dialogue"), learned, found, has_gpu=False).sizes.sequence_length == 31


def test_settings_go_before_what_is_planned_in_either_spelling():
    config = asked(settings={"engine.optimizer.lr": 0.5, "engine": {"zero_stage": 2}})
    plan = plan_run(config, base_of(), survey(), has_gpu=False)
    run = parse_config(render_plan(config, plan))
    assert (run.engine.optimizer.lr, run.engine.zero_stage) == (0.5, 2)
    assert run.engine.optimizer.weight_decay == 0.01  # beside it, what was planned


@given(keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=4), value=st.integers())
def test_a_key_with_dots_is_the_section_that_it_names(keys, value):
    tree = spread({".".join(keys): value})
    for key in keys:
        tree = tree[key]
    assert tree == value


@settings(deadline=None)
@given(
    documents=st.integers(8, 3000),
    tokens=st.integers(3, 128),
    epochs=st.sampled_from([0.5, 1, 3, 7]),
)
def test_steps_are_so_many_epochs_of_windows_that_ranks_can_share(documents, tokens, epochs):
    config = asked(epochs=epochs)
    found = survey(train=part(documents, tokens))
    plan = plan_run(config, base_of(), found, has_gpu=False)
    sizes, windows = plan.sizes, plan.sizes.global_windows
    assert sizes.steps == max(1, int(np.ceil(epochs * sizes.windows / windows)))
    assert windows % 8 == 0 or windows in (1, 2, 4)
    assert sizes.windows == -(-documents // (sizes.sequence_length // tokens))
    run = parse_config(render_plan(config, plan))
    assert run.samples_after(run.train.steps) >= epochs * sizes.windows


def test_the_learning_rate_is_the_papers_of_its_width_and_more_of_a_smaller_model():
    of = {width: base_of(width=width).model for width in (192, 768)}
    assert plan_rate(asked(), of[768])[0] == 3e-5
    assert plan_rate(asked(), of[192])[0] == 1.2e-4
    assert plan_rate(asked(trainable={"lora": {"rank": 8}}), of[768])[0] == 3e-4
    assert plan_rate(asked(trainable="head"), of[768])[0] == 1e-3
    assert plan_rate(asked(learning_rate=2e-5), of[192]) == (2e-5, "as asked for")


def test_keys_of_other_tasks_and_missing_ones_are_told_together():
    config = asked("tags", data={"tags_field": "", "label_field": "kind"})
    told = list(find_task_problems(config))
    assert told == [
        "task: tags needs data.tags_field: the key or column of the files that holds it.",
        "task: tags has no use for data.label_field: leave it out, or name another task.",
    ]


def test_all_mistakes_of_the_short_file_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        asked(epochs=0, trainable={"top": 0}, data={"heldout_fraction": 0}, settings={"nope": 1})
    told = str(caught.value)
    for part_of_it in ("epochs", "trainable", "heldout: name files"):
        assert part_of_it in told


def test_a_whole_configuration_is_answered_with_the_command_that_takes_it():
    path = find_assets("configs") / "demo.yaml"
    with pytest.raises(ConfigError) as caught:
        load_finetune(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path} is the whole configuration of a run")
    assert f"`lmscale launch local {path}`" in problem


def test_names_are_sorted_as_one_reads_them():
    assert sort_names(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert sort_names(["b", "10", "a"]) == ["10", "a", "b"]
