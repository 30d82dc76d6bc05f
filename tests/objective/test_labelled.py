"""Encoders learn what is said of documents and words, as transformers' classifiers score it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelled_data import ENCODERS
from test_pairs import open_for, run_config, score, scoring_of, train
from theirs import compare_gradients, draw_weights, open_theirs

from lmscale.config import parse_config
from lmscale.config.hf.choose import ARCHITECTURES, read_section
from lmscale.config.model import DecoderConfig, EncoderConfig, Sizes
from lmscale.errors import ConfigError, DataError
from lmscale.exchange.rules import find_left_out
from lmscale.model.family import account_model, build_model
from lmscale.objective.labelled_scoring import build_labelled_scoring
from lmscale.objective.objective import build_preparation
from lmscale.tokenizer.codec import load_tokenizer


def config_of(labelled, kind, *, source=None, **objective):
    settings = ENCODERS[kind]
    named, model = settings["objective"] | objective, settings["model"] | {"dropout": 0.1}
    return run_config(labelled, named, source=source or kind, model=model)


@pytest.mark.parametrize("kind", ENCODERS)
def test_what_is_said_of_real_words_is_learned(labelled, kind):
    config = config_of(labelled, kind)
    losses = train(config, steps=100 if kind == "answers" else 40)
    assert losses[-1] < 0.1 < losses[0], losses
    scoring, preparation = scoring_of(config), build_preparation(config)
    with open_for(config) as stream:
        rows = stream.read_rows(0, 3)
    prepared = preparation.prepare(rows)
    parameters = sum(parameter.numel() for parameter in scoring.parameters())
    assert account_model(config.model, config.sizes).total == parameters
    assert prepared.targets == len(
        rows.starts if kind != "tags" else np.flatnonzero(rows.members["tags"] >= 0)
    )
    assert len(preparation.target_ids(prepared.arrays)) == 0
    if config.window.has_pairs:
        second = rows.lengths.sum() - rows.members["parts"].sum()
        assert prepared.arrays["types"].sum() == second
        firsts = rows.starts + rows.members["parts"]
        assert (np.diff(prepared.arrays["types"].ravel().astype(int))[firsts - 1] == 1).all()
    rows.lengths[:] = 0
    nothing = preparation.prepare(rows)
    loss = score(scoring, nothing.arrays).loss
    assert (nothing.targets, int(loss.targets), float(loss.total.detach())) == (0, 0, 0)
    loss.total.backward()


CLASSES = {"classes": ("texts", 3), "numbers": ("texts", 1), "tags": ("tags", 5)}
VOCAB, LENGTH, PAD = 101, 24, 1


@pytest.mark.parametrize("kind", CLASSES)
def test_loss_and_gradients_are_those_of_transformers(kind, tmp_path):
    head, count = CLASSES[kind]
    outputs = (
        {"token_classes": count} if kind == "tags" else {"pooler": True, "text_classes": count}
    )
    shape = {"layers": 4, "width": 48, "heads": 4, "ffn_width": 96, "token_types": 2}
    section = EncoderConfig.model_validate({"family": "encoder"} | shape | outputs)
    sizes = Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=LENGTH)
    model = build_model(section, sizes).eval()
    draw_weights(model)
    bert = ARCHITECTURES["bert"]
    assert {name.partition(".")[0] for name in find_left_out(bert, model, head)} == {"head"}
    settings = {"id2label": {number: f"label {number}" for number in range(count)}}
    theirs, rules = open_theirs(
        tmp_path, model, bert, section, sizes, head=head, pad_token_id=PAD, **settings
    )
    read = read_section(theirs.config.to_dict(), "it")[1]
    assert {key: getattr(read, key) for key in outputs} == outputs
    scoring = build_labelled_scoring(model, kind)

    ids_BT = torch.randint(3, VOCAB, (3, LENGTH))
    lengths_B = torch.tensor([LENGTH, 17, 5], dtype=torch.int32)
    seen_BT = torch.arange(LENGTH) < lengths_B[:, None]
    ids_BT[~seen_BT] = PAD
    starts = torch.arange(3, dtype=torch.int32) * LENGTH
    if kind == "tags":
        is_word_BT = seen_BT & (torch.rand(3, LENGTH) < 0.5)
        given = torch.where(is_word_BT, torch.randint(0, count, (3, LENGTH)), -100)
        positions, wanted = is_word_BT.flatten().nonzero()[:, 0].int(), given[is_word_BT].int()
    else:
        given = torch.randn(3) if kind == "numbers" else torch.randint(0, count, (3,))
        positions, wanted = starts, given
    output = theirs(input_ids=ids_BT, attention_mask=seen_BT.long(), labels=given)
    output.loss.backward()
    scores = scoring(
        ids=ids_BT.to(torch.uint32),
        starts=starts,
        lengths=lengths_B,
        positions=positions,
        labels=wanted,
    )
    loss = scores.loss.total / scores.loss.targets
    loss.backward()
    torch.testing.assert_close(loss, output.loss, rtol=1e-5, atol=1e-6)
    compare_gradients(model, theirs, rules)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_a_decoder_s_loss_and_gradients_are_those_of_transformers(kind, model_type, tmp_path):
    head, count = CLASSES[kind]
    shape = {"layers": 3, "width": 48, "heads": 4, "ffn_width": 96, "text_classes": count}
    if model_type == "gpt2":
        shape |= {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}
        shape |= {"tied_embeddings": True}
    section = DecoderConfig.model_validate(shape)
    sizes = Sizes(vocab_size=VOCAB, max_positions=64, sequence_length=LENGTH)
    model = build_model(section, sizes).eval()
    draw_weights(model)
    assert account_model(section, sizes).total == sum(p.numel() for p in model.parameters())
    architecture = ARCHITECTURES[model_type]
    tied = section.tied_embeddings
    assert find_left_out(architecture, model, head) == ([] if tied else ["head.weight"])
    settings = {"id2label": {number: f"label {number}" for number in range(count)}}
    theirs, rules = open_theirs(
        tmp_path, model, architecture, section, sizes, head=head, pad_token_id=PAD, **settings
    )
    assert read_section(theirs.config.to_dict(), "it")[1].text_classes == count
    scoring = build_labelled_scoring(model, kind)
    # Theirs has a document a row; ours has the same packed into one, each of which sees itself.
    ids_BT = torch.randint(3, VOCAB, (3, LENGTH))
    lengths_B = torch.tensor([9, 8, 5])
    seen_BT = torch.arange(LENGTH) < lengths_B[:, None]
    given = torch.randn(3) if kind == "numbers" else torch.randint(0, count, (3,))
    output = theirs(
        input_ids=ids_BT.masked_fill(~seen_BT, PAD), attention_mask=seen_BT.long(), labels=given
    )
    output.loss.backward()
    packed_1T = torch.full((1, LENGTH), PAD)
    packed_1T[0, : int(lengths_B.sum())] = ids_BT[seen_BT]
    ends = lengths_B.cumsum(0)
    scores = scoring(
        ids=packed_1T.to(torch.uint32),
        starts=(ends - lengths_B).int(),
        lengths=ends[-1:].int(),
        positions=(ends - 1).int(),
        labels=given,
    )
    loss = scores.loss.total / scores.loss.targets
    loss.backward()
    torch.testing.assert_close(loss, output.loss, rtol=1e-5, atol=1e-6)
    compare_gradients(model, theirs, rules)


def test_a_decoder_learns_classes_by_the_last_token_of_each_document(labelled):
    model = {"layers": 1, "width": 32, "heads": 4, "text_classes": 2}
    config = run_config(labelled, ENCODERS["classes"]["objective"], source="classes", model=model)
    losses = train(config, steps=40)
    assert losses[-1] < 0.1 < losses[0], losses
    with open_for(config) as stream:
        rows = stream.read_rows(0, 3)
    prepared = build_preparation(config).prepare(rows)
    eos = load_tokenizer(config.tokenizer.folder).eos_id
    assert (rows.tokens.ravel()[prepared.arrays["positions"]] == eos).all()
    assert prepared.targets == len(rows.starts) > 3


def test_labels_of_another_kind_or_order_and_outputs_of_another_number_are_told(labelled):
    with pytest.raises(
        DataError, match=r"reads classes \(thing, animal\), but .* classes \(animal,"
    ):
        open_for(config_of(labelled, "classes", names=["thing", "animal"]))
    with pytest.raises(
        DataError, match="the objective reads numbers, but its documents have no lab"
    ):
        open_for(config_of(labelled, "numbers", source="pairs"))
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "run: {name: a}\n"
            "model: {family: encoder, pooler: true, text_classes: 2}\n"
            "objective: {name: tags, names: [a, b]}\n"
        )
    for told in (
        "has 2 outputs and trains no others: give model token_classes: 2 alone",
        "would never train the pooler",
        "set stream.packing: best_fit",
    ):
        assert told in str(caught.value)
