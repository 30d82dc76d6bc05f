"""Dialogues through shards and stream: the loss is of the answers alone, whatever stands beside."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelled_data import labelled_tree, records
from test_pairs import open_for, run_config, score, scoring_of, train

from lmscale.cli.main import main
from lmscale.config import RunConfig
from lmscale.config.data import WindowShape
from lmscale.corpus.build import build_corpus
from lmscale.errors import DataError
from lmscale.evaluation.held_out import find_other_templates
from lmscale.objective.objective import build_preparation
from lmscale.shards.dialogues import encode_dialogue
from lmscale.shards.manifest import load_manifest
from lmscale.shards.members import find_wrong_values
from lmscale.stream.overlong import describe_overlong
from lmscale.stream.stream import open_stream
from lmscale.stream.whole_documents import check_fit, cut_overlong
from lmscale.tokenizer.chat_template import ChatTemplate
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.kept_template import choose_run_template, save_template

MODEL = {"layers": 1, "width": 48, "heads": 4, "kv_heads": 4}


@pytest.fixture
def config(labelled):
    return run_config(labelled, "dialogue", source="dialogues", model=MODEL, sequence_length=224)


def test_of_every_dialogue_the_answers_are_targets_with_what_ends_them_and_nothing_else(
    labelled, config
):
    tokenizer = load_tokenizer(labelled.tokenizer.folder)
    with open_for(config) as stream:
        rows = stream.read_rows(0, sum(stream.datasets["dialogues"].counts))
        manifest = stream.datasets["dialogues"].manifest
    prepared = build_preparation(config).prepare(rows)
    chosen = prepared.arrays["chosen"].reshape(-1) == 1
    assert len(rows.starts) == manifest.documents > 1.5 * len(rows.tokens)
    ids = rows.tokens.reshape(-1)
    found = [
        tokenizer.decode_bytes(part[mask], shows_special=True).decode()
        for part, mask in zip(
            np.split(ids, rows.starts[1:]), np.split(chosen, rows.starts[1:]), strict=True
        )
    ]
    known = {
        "".join(f" {m['content']}</s>" for m in row["messages"] if m["role"] == "assistant")
        for row in records("dialogues")
    }
    assert set(found) <= known and len(set(found)) > 100
    assert (
        prepared.targets
        == chosen.sum()
        == len(build_preparation(config).target_ids(prepared.arrays))
    )


def test_the_loss_is_that_of_transformers_with_the_other_labels_masked(labelled, config):
    from theirs import import_transformers

    import_transformers()
    from transformers.loss.loss_utils import ForCausalLMLoss

    scoring, preparation = scoring_of(config), build_preparation(config)
    with open_for(config) as stream:
        rows = stream.read_rows(3, 2)
    arrays = preparation.prepare(rows).arrays
    loss = score(scoring, arrays).loss
    ids = torch.from_numpy(rows.tokens.astype(np.int64))
    total = torch.zeros(())
    edges = [*rows.starts.tolist(), ids.numel()]
    for begin, end in zip(edges, edges[1:], strict=False):
        row = begin // ids.shape[1]
        end = min(end, row * ids.shape[1] + int(rows.lengths[row]))
        one_1T = ids.view(-1)[begin:end][None]
        labels_1T = one_1T.where(
            torch.from_numpy(arrays["chosen"]).view(-1)[begin:end][None] == 1, -100
        )
        layout = scoring.model.lay_out(torch.arange(end - begin)[None] == 0, mask_documents=True)
        logits = scoring.model.head(scoring.model(one_1T, layout))
        total += ForCausalLMLoss(logits, labels_1T, logits.shape[-1], num_items_in_batch=1)
    assert int(loss.targets) == arrays["chosen"].sum() > 0
    torch.testing.assert_close(loss.total, total)


def test_a_sample_is_the_same_in_every_order_of_reading_and_its_digest_covers_the_answers(config):
    with open_for(config) as stream:
        whole = stream.read_rows(0, 8)
        state = stream.state_at(4)
    with open_stream(config.stream, seed=3, shape=config.window, state=state) as again:
        rest = again.read_rows(4, 4)
    assert rest.digests.tolist() == whole.digests[4:].tolist()
    assert (rest.members["replies"] == whole.members["replies"][4:]).all()
    plain = replace(config.window, has_turns=False, has_pairs=False)
    with open_stream(config.stream, seed=3, shape=plain) as other:
        bare = other.read_rows(0, 8)
    assert not bare.members and bare.digests.tolist() != whole.digests.tolist()


def test_a_shard_cannot_say_other_things_of_its_tokens():
    docs = np.array([0, 300, 600])
    replies = np.ones(600, dtype=np.uint8)
    assert not [*find_wrong_values({"replies": replies}, docs, None)]
    replies[300:] = 0
    replies[7] = 2
    assert [*find_wrong_values({"replies": replies}, docs, None)] == [
        "replies has 2, which is neither 0 nor 1",
        "document 1 is a dialogue without an answer",
    ]


def test_answers_are_learned(config):
    losses = train(config, steps=16, windows=2)
    assert losses[-1] < 0.6 * losses[0]


def test_what_is_no_dialogue_or_does_not_fit_is_refused(labelled, config):
    sources = {"pairs": {"shards": f"{labelled.shards.folder}/pairs/train"}}
    other = config.stream.model_copy(
        update={"sources": type(config.stream).model_validate({"sources": sources}).sources}
    )
    with pytest.raises(DataError, match="its documents are no dialogues. Name messages_field"):
        open_stream(other, seed=3, shape=config.window)
    with pytest.raises(ValueError, match="'dialogue' is of whole documents: set stream.packing"):
        run_config(labelled, "dialogue", source="dialogues", model=MODEL, packing="concat")
    shape = WindowShape(stride=9, overlap=1, has_turns=True)
    with pytest.raises(DataError, match="leave them out with stream.on_overlong: drop"):
        check_fit(np.array([11]), shape, where="x")
    manifest = load_manifest(f"{labelled.shards.folder}/dialogues/train")
    assert manifest.version == 4 and manifest.chat_template.startswith("{{ bos_token }}")


def documents_of(config) -> list[tuple[list[int], list[int]]]:
    """The ids of every document of the stream, and which are an answer's; sorted."""
    with open_for(config) as stream:
        (dataset,) = stream.datasets.values()
        rows = dataset.read(range(dataset.num_windows))
    edges = [*rows.starts.tolist(), rows.tokens.size]
    tokens, replies = rows.tokens.reshape(-1), rows.members["replies"].reshape(-1)
    width, found = rows.tokens.shape[1], []
    for begin, end in zip(edges, edges[1:], strict=False):
        row = begin // width
        end = min(end, row * width + int(rows.lengths[row]))
        found.append((tokens[begin:end].tolist(), replies[begin:end].tolist()))
    return sorted(found)


def test_dialogues_longer_than_a_window_are_left_out_or_cut_behind_an_answer(
    labelled, config, caplog
):
    every = documents_of(config)
    tokens = sorted(len(ids) for ids, _ in every)[len(every) // 2]
    fitting = [each for each in every if len(each[0]) <= tokens]
    made = {
        word: config.model_copy(
            update={
                "stream": config.stream.model_copy(
                    update={"sequence_length": tokens - 1, "on_overlong": word}
                )
            }
        )
        for word in ("refuse", "drop", "truncate", None)
    }
    with pytest.raises(DataError, match="are longer than a window of"):
        open_for(made["refuse"])
    assert documents_of(made["drop"]) == documents_of(made[None]) == fitting
    with open_for(made["drop"]) as stream:
        (told,) = describe_overlong(stream.datasets, "stream.sources")
    assert told.startswith(f"stream.sources.dialogues: {len(every) - len(fitting)} of {len(every)}")
    cut = list(documents_of(made["truncate"]))
    for each in fitting:
        cut.remove(each)
    assert 0 < len(cut) <= len(every) - len(fitting)
    for ids, replies in cut:
        assert replies[-1] == 1 and len(ids) <= tokens
        assert any(whole[: len(ids)] == ids and its[len(ids)] == 0 for whole, its in every
                   if len(whole) > tokens)  # fmt: skip
    short = made["drop"].stream.model_copy(update={"sequence_length": 4})
    with pytest.raises(DataError, match="all its .* documents are longer than a window of 5"):
        open_for(made["drop"].model_copy(update={"stream": short}))


@given(
    replies=st.lists(st.booleans(), min_size=2, max_size=40),
    tokens=st.integers(1, 40),
)
def test_what_stays_of_a_dialogue_ends_with_the_last_answer_that_fits(replies, tokens):
    is_reply = np.array(replies)
    (kept,) = cut_overlong(np.array([len(replies)]), tokens, lambda number: is_reply)
    if len(replies) <= tokens:
        assert kept == len(replies)
        return
    ends = [n for n in range(1, tokens + 1) if is_reply[n - 1] and not is_reply[n]]
    assert kept == max(ends, default=0)
    assert cut_overlong(np.array([len(replies)]), tokens, None) == [0]


def test_a_run_keeps_one_chat_template_and_takes_no_source_with_another(config, tmp_path):
    run = config.run.model_copy(update={"folder": str(tmp_path)})
    config = config.model_copy(update={"run": run})
    assert choose_run_template(config, {"a": "one", "b": "one"}) == "one"
    with pytest.raises(DataError, match="sources.b: its dialogues were written by another chat"):
        choose_run_template(config, {"a": "one", "b": "two"})
    (tmp_path / "tokenizer").mkdir()
    save_template("one", tmp_path / "tokenizer")
    with pytest.raises(DataError, match="another chat template than what the run has read so far"):
        choose_run_template(config, {"b": "two"})


def test_a_dialogue_of_which_the_template_writes_no_answer_is_refused(labelled):
    hides_thoughts = (
        "{% for m in messages %}{{ m.role }}{% generation %}{% if m.role == 'assistant' and "
        "m.content != 'hidden' %}{{ m.content + eos_token }}{% endif %}{% endgeneration %}"
        "{% endfor %}"
    )
    template = ChatTemplate(hides_thoughts, load_tokenizer(labelled.tokenizer.folder))
    asked = {"role": "user", "content": "a"}
    assert encode_dialogue([asked, {"role": "assistant", "content": "b"}], template).is_answer.any()
    with pytest.raises(DataError, match="writes no answer of this dialogue"):
        encode_dialogue([asked, {"role": "assistant", "content": "hidden"}], template)


def test_held_out_dialogues_by_another_template_are_named(config, tmp_path):
    with open_for(config) as stream:
        sets = {"heldout": stream.datasets["dialogues"]}
        (tmp_path / "tokenizer").mkdir()
        save_template(sets["heldout"].manifest.chat_template, tmp_path / "tokenizer")
        assert find_other_templates(sets, tmp_path) == []
        save_template("other", tmp_path / "tokenizer")
        (problem,) = find_other_templates(sets, tmp_path)
    assert "evaluation.sets.heldout: its dialogues were written by another" in problem


def test_the_build_of_shards_tells_what_is_too_long_of_all_datasets(labelled, tmp_path, capsys):
    lines = "".join(json.dumps(record) + "\n" for record in records("dialogues")[:20])
    (tmp_path / "chats.jsonl").write_text(lines, encoding="utf-8")
    tree = labelled_tree(tmp_path, {"chats": {"messages_field": "messages"}})
    tree["corpus"]["heldout_fraction"] = 0.5
    tree["tokenizer"] = labelled.tokenizer.model_dump()
    tree |= {
        "objective": {"name": "dialogue"},
        "stream": {"sequence_length": 24, "packing": "best_fit", "on_overlong": "refuse"},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    build_corpus(RunConfig.model_validate(tree).corpus)
    assert main(["shards", "build", str(tmp_path / "run.yaml")]) == 2
    out, told = capsys.readouterr()
    assert out.count("with dialogues") == 2  # what was built is shown all the same
    for split in ("train", "heldout"):
        assert re.search(rf"{split}/\S+: \d+ of its \d+ documents are longer than", told), told
    words = ["stream.on_overlong=drop", "stream.sequence_length=60"]
    main(["shards", "build", str(tmp_path / "run.yaml"), *(w for s in words for w in ("--set", s))])
    assert re.search(r"warning: shards\.\S+: \d+ of \d+ documents are longer than a window of 61 "
                     "tokens and left out", capsys.readouterr().err)  # fmt: skip
