"""Where an answer begins and ends in a context is scored as transformers' BERT scores it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_data import ENCODERS, records
from test_pairs import open_for, run_config, score, scoring_of
from theirs import compare_gradients, draw_weights, open_theirs

from lmscale.config import RunConfig, parse_config
from lmscale.config.hf.choose import ARCHITECTURES, read_section
from lmscale.config.model import EncoderConfig, Sizes
from lmscale.errors import ConfigError, DataError
from lmscale.model.family import build_model
from lmscale.objective.answers_scoring import (
    build_answers_scoring,
    find_best_spans,
    score_overlap,
)
from lmscale.objective.objective import build_preparation
from lmscale.stream.batches import Rows
from lmscale.tokenizer.codec import load_tokenizer

VOCAB, LENGTH, PAD = 101, 24, 1


def config_of(labelled: RunConfig, *, source: str = "answers", **objective) -> RunConfig:
    parts = ENCODERS["answers"]
    named = parts["objective"] | objective
    return run_config(labelled, named, source=source, model=parts["model"])


def test_an_answer_is_sought_among_the_tokens_of_its_own_context(labelled):
    config = config_of(labelled)
    tokenizer = load_tokenizer(labelled.tokenizer.folder)
    with open_for(config) as stream:
        rows = stream.read_rows(0, 6)
    arrays = build_preparation(config).prepare(rows).arrays
    ids, known = arrays["ids"].reshape(-1), {}
    for record in records("answers"):
        answer = record["answers"]["text"][0] if record["answers"]["text"] else ""
        known[record["question"], record["context"]] = answer
    counts = np.bincount(arrays["first"] > 0)
    assert counts[0] > 3 < counts[1]
    places = zip(
        *(arrays[key].tolist() for key in ("documents", "contexts", "context_lengths")),
        *(arrays[key].tolist() for key in ("first", "last")),
        strict=True,
    )
    for document, context, length, first, last in places:
        question = tokenizer.decode(ids[document:context])
        text = tokenizer.decode(ids[context : context + length])
        found = ids[context + first - 1 : context + last] if first else ids[:0]
        assert tokenizer.decode(found).strip() == known[question, text]
        assert ids[context + length] == tokenizer.eos_id


def test_a_document_is_scored_as_if_it_were_alone_in_its_row(labelled):
    config = config_of(labelled)
    scoring, preparation = scoring_of(config).eval(), build_preparation(config)
    with open_for(config) as stream:
        rows = stream.read_rows(0, 2)
    together = score(scoring, preparation.prepare(rows).arrays)
    loss = torch.zeros(())
    starts = [*rows.starts.tolist(), rows.tokens.size]
    for number, begin in enumerate(rows.starts.tolist()):
        row, column = divmod(begin, rows.tokens.shape[1])
        end = min(starts[number + 1] - row * rows.tokens.shape[1], int(rows.lengths[row]))
        tokens = np.full((1, rows.tokens.shape[1]), rows.tokens[0, -1])
        tokens[0, : end - column] = rows.tokens[row, column:end]
        one = Rows(
            numbers=rows.numbers[:1],
            tokens=tokens,
            lengths=np.array([end - column], dtype=np.int32),
            starts=np.zeros(1, dtype=np.int32),
            digests=rows.digests[:1],
            members={name: values[number : number + 1] for name, values in rows.members.items()},
        )
        loss = loss + score(scoring, preparation.prepare(one).arrays).loss.total.detach()
    torch.testing.assert_close(together.loss.total.detach(), loss, rtol=1e-5, atol=1e-5)
    assert int(together.loss.targets) == len(rows.starts)


def test_loss_and_gradients_are_those_of_transformers(tmp_path):
    """Theirs seeks an answer in the question, too: those of its logits are left out here."""
    shape = {"layers": 4, "width": 48, "heads": 4, "ffn_width": 96, "token_types": 2}
    section = EncoderConfig.model_validate({"family": "encoder", "token_classes": 2} | shape)
    sizes = Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=LENGTH)
    model = build_model(section, sizes).eval()
    draw_weights(model)
    theirs, rules = open_theirs(
        *(tmp_path, model, ARCHITECTURES["bert"], section, sizes),
        head="answers",
        pad_token_id=PAD,
    )
    read = read_section(theirs.config.to_dict(), "it")[1]
    assert read.token_classes == 2
    lengths_B, parts_B = torch.tensor([LENGTH, 17, 9]), torch.tensor([6, 3, 4])
    first_B, last_B = torch.tensor([7, 0, 4]), torch.tensor([12, 0, 4])  # in the row
    ids_BT = torch.randint(3, VOCAB, (3, LENGTH))
    column_T = torch.arange(LENGTH)
    seen_BT = column_T < lengths_B[:, None]
    ids_BT[~seen_BT] = PAD
    types_BT = ((column_T >= parts_B[:, None]) & seen_BT).long()
    output = theirs(input_ids=ids_BT, attention_mask=seen_BT.long(), token_type_ids=types_BT)
    is_place_BT = (column_T >= parts_B[:, None]) & (column_T < lengths_B[:, None] - 1)
    is_place_BT |= column_T == 0
    losses = [
        F.cross_entropy(logits.masked_fill(~is_place_BT, -torch.inf), wanted)
        for logits, wanted in ((output.start_logits, first_B), (output.end_logits, last_B))
    ]
    wanted = sum(losses) / 2
    wanted.backward()
    starts = torch.arange(3) * LENGTH
    within = [torch.where(each > 0, each - parts_B + 1, 0) for each in (first_B, last_B)]
    scores = build_answers_scoring(model, longest=30)(
        **{"ids": ids_BT.to(torch.uint32), "starts": starts, "lengths": lengths_B},
        **{"types": types_BT.to(torch.uint8), "documents": starts, "contexts": starts + parts_B},
        **{"context_lengths": lengths_B - parts_B - 1, "first": within[0], "last": within[1]},
    )
    loss = scores.loss.total / scores.loss.targets
    loss.backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    # What all places have alike cancels in a softmax: the gradient of it is rounding alone.
    alike = ("blocks.3.feed_forward_norm.bias", "token_classifier.bias")
    compare_gradients(model, theirs, [rule for rule in rules if rule.name not in alike])
    for name in alike:
        gradient = model.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() < 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 12))
def test_the_best_span_is_the_best_of_all_that_there_are(seed, places, longest):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (2, 2, 1 + places), generator=generator).float()
    logits[:, 1, places // 2 + 1 :] = -torch.inf  # a shorter context
    log_p = logits.log_softmax(-1)
    found = find_best_spans(log_p, longest)
    for document in range(2):
        begins, ends = log_p[:, document].tolist()
        spans = [
            (begins[a] + ends[b], a, b)
            for a in range(1, places + 1)
            for b in range(a, min(a + longest, places + 1))
        ]
        best = max(span[0] for span in spans)
        none, first, last = (
            begins[0] + ends[0],
            int(found.first[document]),
            int(found.last[document]),
        )
        if first == 0:
            assert (last, none) == (0, pytest.approx(max(none, best)))
        else:
            assert 1 <= first <= last < first + longest
            assert begins[first] + ends[last] == pytest.approx(best) and best > none - 1e-6
        assert float(found.score[document]) == pytest.approx(max(none, best), abs=1e-5)


@given(*[st.integers(0, 6)] * 4)
def test_the_overlap_of_tokens_is_that_of_sets(a, more, b, others):
    one, other = ({0} if x == 0 else set(range(x, x + y + 1)) for x, y in ((a, more), (b, others)))
    spans = [torch.tensor([edge(each)]) for each in (one, other) for edge in (min, max)]
    wanted = 2 * len(one & other) / (len(one) + len(other))
    assert float(score_overlap(*spans)) == pytest.approx(wanted)


def test_what_an_objective_of_answers_lacks_is_told_before_a_step(labelled):
    with pytest.raises(DataError, match="the objective reads spans, but .* have no labels"):
        open_for(config_of(labelled, source="pairs"))
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "run: {name: a}\n"
            "model: {family: encoder, token_classes: 3, pooler: true}\n"
            "objective: {name: answers, names: [a]}\n"
        )
    assert "names" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "run: {name: a}\n"
            "model: {family: encoder, token_classes: 3, pooler: true, token_types: 1}\n"
            "objective: {name: answers}\n"
        )
    for told in (
        "has 2 outputs and trains no others: give model token_classes: 2 alone",
        "objective.name = 'answers' needs a kind of tokens for each text: model.token_types: 2",
        "would never train the pooler",
        "set stream.packing: best_fit",
    ):
        assert told in str(caught.value)


def test_an_encoder_without_types_of_tokens_reads_questions_too():
    text = "run: {name: a}\nstream: {packing: best_fit}\nobjective: {name: answers}\n"
    config = parse_config(text + "model: {family: encoder, token_classes: 2}\n")
    assert config.model.token_types == 0
