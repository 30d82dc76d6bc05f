"""Tasks of lm-evaluation-harness on a run's own model: one file, so that one worker loads it."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import task_ranks
import torch
import typer
from forked_ranks import run_starts
from handmade_runs import STEP, make_run
from rank_cases import Case
from task_cases import build_suite
from tiny_run import tiny_config
from typer.testing import CliRunner

from lmscale.cli.evaluate import evaluate
from lmscale.cli.runs.look import read_page
from lmscale.cli.runs.view import render_page
from lmscale.config import RunConfig, dump_config
from lmscale.errors import ConfigError, DataError
from lmscale.evaluation.generate import Generation
from lmscale.evaluation.harness import open_tasks, score_tasks
from lmscale.evaluation.respondent import Respondent, build_respondent
from lmscale.evaluation.run import LoadedRun, load_run
from lmscale.evaluation.sampling import Sampling
from lmscale.evaluation.task_scores import name_figures, read_results
from lmscale.evaluation.token_requests import plan_batches as plan_passes
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import ExportRequest
from lmscale.files.reading import seal
from lmscale.objective.objective import build_scoring
from lmscale.ranks.mesh import Axis
from lmscale.runs.run_folder import read_status
from lmscale.runs.stop import StoppedError
from lmscale.tokenizer.codec import KEPT_FOLDER, load_tokenizer, save_tokenizer
from lmscale.tokenizer.train import train_tokenizer
from lmscale.train.votes import StopPoll

pytest.importorskip("lm_eval")

CPU = torch.device("cpu")
LENGTH = 640
app = typer.Typer()
app.command()(evaluate)


@pytest.fixture(scope="module")
def run(tiny_data, tmp_path_factory) -> RunConfig:
    """A run that begins documents with bos, and a checkpoint of step 7."""
    overrides = {"stream.sequence_length": LENGTH, "model.init_std": 0.2}
    sets = {"evaluation.sets": {"heldout": str(tiny_data / "shards/a/heldout")}}
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("scored") / "run", overrides | sets)
    changes = {"kind": "bpe", "folder": str(config.folder.parent / "tokenizer")}
    # Of BPE every library makes the same ids; of unigram's ties it may take another one.
    settings = config.tokenizer.model_copy(update=changes)
    tokenizer = train_tokenizer(settings, config.corpus.folder, ["a"])
    make_run(config.model_copy(update={"tokenizer": settings}), tokenizer)
    record = {"state": {}, "shards": {}, "bos": tokenizer.bos_id}
    (config.folder / "stream.json").write_bytes(seal(record))
    return config


@pytest.fixture(scope="module")
def suite(tmp_path_factory) -> Path:
    """The local tasks of a corpus in two languages: sixteen."""
    root = tmp_path_factory.mktemp("suite")
    build_suite(root, rows=6)
    return root / "tasks"


@pytest.fixture(scope="module")
def loaded(run) -> LoadedRun:
    return load_run(run.folder, step=None, device=CPU)


def ask(loaded: LoadedRun, **changes: object) -> Respondent:
    respondent = build_respondent(
        loaded.config,
        build_scoring(loaded.model, loaded.config).eval(),
        loaded.model,
        loaded.tokenizer,
        bos_id=loaded.bos_id,
        data=Axis(),
        device=CPU,
    )
    return replace(respondent, **changes)


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_tasks_of_a_folder_are_scored_shown_and_kept_beside_the_runs_own_figures(run, suite):
    printed = json.loads(call(run.folder, "--tasks", suite, "--json"))
    assert (printed["step"], printed["weights"], printed["in_front"]) == (STEP, "trained", "bos")
    assert len(printed["tasks"]) == 16
    for name, row in printed["tasks"].items():
        assert row["documents"] == 6, name
        assert {"acc", "bits_per_byte", "exact_match.word"} & set(row)
    status = read_status(run.folder)
    choice = printed["tasks"]["local_zh_word_choice"]
    assert status.figures["tasks/local_zh_word_choice/acc"] == choice["acc"]
    assert status.figure_steps["tasks/local_zh_word_choice/acc"] == STEP
    assert "tasks/local_en_text/bits_per_byte" in render_page(read_page(run.folder))
    assert list((run.folder / "events/tasks").iterdir())
    table = call(run.folder, "--tasks", "local_en_text", "--include-path", suite, "--limit", 2)
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["task", "documents", "figure", "value", "±", "error"]
    assert lines[1][:3] == ["local_en_text", "2", "bits_per_byte"] and len(lines[1]) == 4
    assert "limit: the first 2 documents of each task" in table
    # A part of a task hides no figure of the whole.
    assert read_status(run.folder).figures == status.figures


@pytest.mark.parametrize("batch_tokens", [1, 300, 10**6])
@torch.no_grad()
def test_a_batch_gives_what_each_text_alone_gives(loaded, batch_tokens):
    """Rows of many lengths side by side, in fp32, whose products round by their shapes."""
    respondent = ask(loaded)
    respondent.plan = replace(respondent.plan, batch_tokens=batch_tokens, chunk_tokens=7)
    pairs = [
        ("One", " two"),
        ("", "three"),
        ("天地 " * 300, "玄黄"),
        ("a b c ", "d"),
        ("x " * 900, "y"),
    ]
    answers = respondent.score_pairs(pairs)
    assert respondent.num_cut == 2
    for (context, continuation), answer in zip(pairs, answers, strict=True):
        ids, start = respondent.encode_pair(context, continuation)
        row = torch.tensor([ids[:-1]])
        layout = loaded.model.lay_out(torch.zeros_like(row, dtype=torch.bool), mask_documents=False)
        logits = loaded.model.head(loaded.model(row, layout))[0, :, : loaded.config.num_ids]
        log_p = logits.log_softmax(-1)[range(start - 1, len(ids) - 1), ids[start:]]
        assert answer.log_p == pytest.approx(float(log_p.sum()), abs=1e-4)
        best = logits[start - 1 :].argmax(-1).tolist()
        assert answer.is_greedy == (best == ids[start:])


def test_batches_hold_every_request_once_and_no_more_tokens_than_they_may():
    import numpy as np

    lengths = np.random.default_rng(0).integers(2, 60, size=200)
    batches = plan_passes(lengths, batch_tokens=100)
    assert sorted(np.concatenate(batches)) == list(range(200))
    for batch in batches:
        columns = lengths[batch].max() - 1
        assert len(batch) == 1 or columns * len(batch) <= 100


def test_texts_are_cut_into_ids_as_the_harness_does_it(loaded):
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    respondent, tokenizer = ask(loaded), loaded.tokenizer
    front = respondent.front_id
    theirs = SimpleNamespace(
        backend="causal", tok_encode=lambda text: tokenizer.encode(text).tolist()
    )
    for context, continuation in (
        ("a b  ", "c"),
        ("天地", "玄黄"),
        ("x\n", "y"),
        ("The cat", " sat."),
        ("returned.", "\n\nSee"),  # which have a piece in common
    ):
        before, after = TemplateLM._encode_pair(theirs, context, continuation)
        ids, start = respondent.encode_pair(context, continuation)
        assert (ids[1:start], ids[start:]) == (before, after) and ids[0] == front
    for words in (0, 1, 30, 200, 700):
        ids = tokenizer.encode("word " * words).tolist()
        windows = get_rolling_token_windows(
            ids, prefix_token=front, max_seq_len=LENGTH, context_len=1
        )
        rows = [
            ([*before, *after], len(before)) for before, after in map(make_disjoint_window, windows)
        ]
        assert respondent.encode_text("word " * words) == rows


def test_what_has_no_token_of_its_own_is_told(loaded):
    with pytest.raises(DataError, match="is no token of its own"):
        ask(loaded).encode_pair("a", "")


def test_loaded_tasks_give_the_same_figures_again(loaded, suite):
    tasks = open_tasks([str(suite)], limit=2)
    respondent = ask(loaded)
    first = score_tasks(tasks, respondent)
    assert len(first) == 16 and score_tasks(tasks, respondent) == first


def test_a_text_is_written_until_a_task_says_or_as_long_as_it_may_be(loaded):
    respondent, tokenizer = ask(loaded), loaded.tokenizer
    ids = [loaded.bos_id, *tokenizer.encode("The").tolist()]
    tokens = list(Generation(loaded.model, tokenizer, ids, Sampling(is_greedy=True), max_tokens=9))
    whole = tokenizer.decode(tokens)
    stop = whole[3:5]
    settings = {"do_sample": False, "max_gen_toks": 9}
    asked = [("The", settings), ("The", settings | {"until": [stop, "\0"]})]
    assert respondent.write(asked) == [whole, whole[: whole.index(stop)]]
    assert respondent.num_cut == 0
    respondent.write([("The " * 900, {"max_gen_toks": 2}), ("The", {"max_gen_toks": LENGTH})])
    assert (respondent.num_cut, respondent.num_short) == (1, 1)
    with pytest.raises(DataError, match="num_beams cannot be asked of a run's model. Known: until"):
        respondent.write([("The", {"num_beams": 2})])


def test_eos_stands_in_front_where_documents_do_not_begin_with_bos(run, suite, loaded, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    record = {"state": {}, "shards": {}, "bos": None}
    (tmp_path / "run/stream.json").write_bytes(seal(record))
    asked = (tmp_path / "run", "--tasks", "local_en_order", "--include-path", suite)
    assert "; eos stands in front of every text" in call(*asked)
    respondent = ask(replace(loaded, bos_id=None))
    assert respondent.encode_pair("", "x")[0][0] == loaded.tokenizer.eos_id


def test_a_request_to_stop_ends_the_scoring_between_two_batches(loaded, suite):
    tasks = open_tasks([str(suite)])
    respondent = ask(loaded, between_batches=StopPoll(lambda: "SIGTERM"))
    with pytest.raises(StoppedError, match="SIGTERM"):
        score_tasks(tasks, respondent)


def test_a_task_whose_own_code_fails_is_told_as_that(tmp_path):
    (tmp_path / "code.py").write_text("def choose(row):\n    return row['nothing']\n")
    mine = write_mine(tmp_path, "loglikelihood", "doc_to_target: !function code.choose\n")
    with pytest.raises(DataError, match="cannot be loaded: KeyError: 'nothing'"):
        open_tasks([mine])


def write_mine(folder: Path, kind: str, more: str) -> str:
    rows = "".join(json.dumps({"text": f"row {n}", "number": n}) + "\n" for n in range(12))
    (folder / "rows.jsonl").write_text(rows)
    (folder / "mine.yaml").write_text(
        "task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: rows.jsonl}}\n"
        f"test_split: test\noutput_type: {kind}\ndoc_to_text: text\n{more}"
    )
    return str(folder)


def test_what_no_model_could_answer_is_told_before_anything_is_scored(tmp_path):
    more = "doc_to_target: text\ngeneration_kwargs: {presence_penalty: 1.0, until: [x]}\n"
    with pytest.raises(DataError, match="the task 'mine': generation_kwargs: presence_penalty"):
        open_tasks([write_mine(tmp_path, "generate_until", more)])
    with pytest.raises(DataError, match="the task 'mine' asks of 0, which is no text"):
        open_tasks([write_mine(tmp_path, "loglikelihood", "doc_to_target: number\n")])


def test_every_evaluation_draws_the_same_few_shot_examples(loaded, tmp_path):
    more = "doc_to_target: '{{number}}'\nnum_fewshot: 2\nfewshot_split: test\n"
    tasks = open_tasks([write_mine(tmp_path, "loglikelihood", more)], limit=3)
    respondent = ask(loaded)
    asked = []
    for _ in range(2):
        score_tasks(tasks, respondent)
        asked.append([request.args for request in tasks.loaded["tasks"]["mine"].instances])
    assert asked[0] == asked[1] and asked[0][0][0].count("row") == 3


def test_a_run_that_predicts_no_next_token_is_refused(run, tmp_path):
    tree = run.model_dump(mode="json", exclude={"model"})
    tree |= {"objective": {"name": "masked"}, "model": {"family": "encoder"}}
    (tmp_path / "config.yaml").write_text(dump_config(RunConfig.model_validate(tree)))
    with pytest.raises(ConfigError, match="learns to predict no next token"):
        call(tmp_path, "--tasks", "any")
    tree["evaluation"]["tasks"] = ["any"]
    with pytest.raises(ValueError, match="evaluation.tasks: tasks ask how likely"):
        RunConfig.model_validate(tree)


def test_options_that_mean_nothing_together_are_refused(run):
    with pytest.raises(ConfigError, match="give --tasks, or beside --limit --written, as well"):
        call(run.folder, "--limit", 3)
    with pytest.raises(ConfigError, match="which are not scored with --tasks"):
        call(run.folder, "--tasks", "x", "--max-windows", 3)
    with pytest.raises(ConfigError, match="name at least one task"):
        call(run.folder, "--tasks", ",")


def ask_theirs(folder: Path, **settings: object) -> Any:
    """lm-eval's own model of an exported folder."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4, **settings)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="transformers needs Python 3.11")
def test_lm_evals_own_model_of_the_export_gives_the_same_numbers(run, loaded, suite, tmp_path):
    """Request by request, in nats, and figure by figure. bos in front of a context is an option
    there, of which a whole text would get two.
    """
    from lm_eval.evaluator import evaluate

    export_run(ExportRequest(folder=run.folder, out=tmp_path / "export"))
    tasks = open_tasks([str(suite)], limit=4)
    respondent = ask(loaded)
    ours = score_tasks(tasks, respondent)
    requests: dict[str, list[Any]] = {}
    for task in tasks.loaded["tasks"].values():
        for request in task.instances:
            requests.setdefault(request.request_type, []).append(request)
    theirs = ask_theirs(tmp_path / "export", add_bos_token=True)
    pairs = requests["loglikelihood"]
    answers = respondent.score_pairs([request.args for request in pairs])
    for answer, (log_p, is_greedy) in zip(answers, theirs.loglikelihood(pairs), strict=True):
        assert answer.log_p == pytest.approx(log_p, abs=1e-4, rel=1e-6)  # theirs is added in fp32
        assert answer.is_greedy == is_greedy
    written = requests["generate_until"]
    asked = [request.args for request in written]
    # Of bytes that are no UTF-8 each library makes other characters.
    both = zip(respondent.write(asked), theirs.generate_until(written), strict=True)
    whole = [pair for pair in both if "\ufffd" not in "".join(pair)]
    assert whole and all(own == other for own, other in whole)
    texts = requests["loglikelihood_rolling"]
    alone = ask_theirs(tmp_path / "export", add_bos_token=False)
    totals = respondent.score_texts([request.args[0] for request in texts])
    assert totals == pytest.approx(alone.loglikelihood_rolling(texts), abs=1e-4, rel=1e-6)

    results = evaluate(theirs, tasks.loaded, limit=4, bootstrap_iters=0, log_samples=False)
    figures = read_results(results)
    for name, score in ours.items():
        if not name.endswith(("_text", "zh_written_word")):
            assert score.figures == pytest.approx(figures[name].figures, rel=1e-4), name


LOOPS = {  # on 2 ranks; ZeRO 3 last: it changes torch for good
    "zero 1, average": {"engine.zero_stage": 1, "engine.ema_decay": 0.5},
    "zero 3": {"engine.zero_stage": 3},
}


@pytest.fixture(scope="module")
def loops(tiny_data, suite, tmp_path_factory) -> Path:
    """A folder of runs, one for each of ``LOOPS``, that have scored tasks after steps 2 and 3."""
    root = tmp_path_factory.mktemp("loops")
    common = {"train.steps": 3, "checkpoint.every_steps": 3, "evaluation.tasks": [str(suite)]}
    common |= {"evaluation.tasks_every_steps": 2, "evaluation.tasks_limit": 1}
    cases = []
    for name, changes in LOOPS.items():
        folder, overrides = root / name, common | changes
        config = tiny_config(tiny_data, folder, overrides)
        folder.mkdir()
        (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        save_tokenizer(load_tokenizer(tiny_data / "tokenizer"), folder / KEPT_FOLDER)
        more = {"data": str(tiny_data), "folder": str(folder), "overrides": overrides}
        cases.append(asdict(Case(name=name, **more)))
    (root / "cases.json").write_text(json.dumps(cases))
    run_starts(Path(task_ranks.__file__), root, [2])
    return root


@pytest.mark.ranks
@pytest.mark.parametrize("way", LOOPS)
def test_figures_in_the_loop_are_those_of_the_checkpoint_offline(loops, suite, way):
    """On any ranks and stage, also what is written, of the weights that held-out figures are of.

    The last row is of a start that had nothing else to do.
    """
    folder = loops / way
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3]
    offline = load_run(folder, step=3, device=CPU)
    assert (offline.weights == "average") == ("average" in way)
    record = {"state": {}, "shards": {}, "bos": offline.tokenizer.bos_id}  # the loop's own rank 0
    (folder / "stream.json").write_bytes(seal(record))
    offline = load_run(folder, step=3, device=CPU)
    figures = name_figures(score_tasks(open_tasks([str(suite)], limit=1), ask(offline)))
    told = {name: value for name, value in rows[-1].items() if name.startswith("tasks/local")}
    assert told == pytest.approx(figures, rel=1e-5) and len(told) > 16
    assert ("tasks/of_average" in rows[-1]) == ("average" in way)
    assert rows[-1]["tasks/seconds"] > 0


@pytest.mark.ranks
def test_a_request_that_one_rank_has_heard_ends_the_scoring_on_all(loops):
    for way in LOOPS:
        for rank in range(2):
            assert (loops / way / f"stopped-{rank}").read_text() == "SIGTERM"


@pytest.mark.ranks
def test_a_task_that_fails_in_the_loop_gives_no_figures_and_ends_no_training(loops):
    for way in LOOPS:
        assert len(list((loops / way).glob("went-on-*"))) == 2
        rows = (loops / way / "metrics.jsonl").read_text().splitlines()
        assert max(json.loads(row)["step"] for row in rows) == 3
