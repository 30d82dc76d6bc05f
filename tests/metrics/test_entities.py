"""Entities are those of seqeval, which are conlleval's, however the tags contradict each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score
from seqeval.metrics.sequence_labeling import get_entities

from lmscale.config.labels import split_tags
from lmscale.metrics.entities import count_entities, plan_entities, tally_entities

NAMES = ("B-LOC", "I-LOC", "O", "B-PER-X", "I-PER-X", "E-LOC", "S-PER-X", "E-PER-X")
WORD = st.tuples(*[st.sampled_from(range(len(NAMES)))] * 2)
DOCUMENTS = st.lists(st.lists(WORD, min_size=1, max_size=8), min_size=1, max_size=5)


def count(documents):
    words = [pair for document in documents for pair in document]
    true_N, predicted_N = np.array(words).reshape(-1, 2).T
    of_document_N = np.repeat(np.arange(len(documents)), [len(each) for each in documents])
    tags = plan_entities(NAMES)
    assert tags is not None
    return tags, count_entities(true_N, predicted_N, of_document_N, tags)


def named(documents, which: int) -> list[list[str]]:
    return [[NAMES[pair[which]] for pair in document] for document in documents]


@settings(deadline=None)  # their first call loads much
@given(DOCUMENTS)
def test_entities_of_every_type_are_those_of_seqeval(documents):
    tags, counts_E3 = count(documents)
    true, predicted = (
        {
            (number, *entity)
            for number, tags in enumerate(named(documents, which))
            for entity in get_entities(tags)
        }
        for which in (0, 1)
    )
    for kind, counts in zip(tags.types, counts_E3.tolist(), strict=True):
        of_kind = [{each for each in found if each[1] == kind} for found in (true, predicted)]
        assert counts == [len(of_kind[0] & of_kind[1]), len(of_kind[1]), len(of_kind[0])]
    tally = tally_entities(counts_E3)
    theirs = f1_score(named(documents, 0), named(documents, 1), zero_division=0)
    # Theirs is 2pr / (p + r), rounded three times more than 2 hits / (predicted + true).
    assert tally.mean("micro").f1 == pytest.approx(theirs, rel=1e-14)
    if true:
        report = classification_report(
            named(documents, 0), named(documents, 1), output_dict=True, zero_division=0
        )
        for kind, precision, recall, f1, support in zip(
            tags.types, tally.precision, tally.recall, tally.f1, tally.true, strict=True
        ):
            if kind in report:
                row = report[kind]
                assert (precision, recall) == (row["precision"], row["recall"])
                assert f1 == pytest.approx(row["f1-score"], rel=1e-14)
                assert support == row["support"]


@settings(deadline=None)  # their first call loads much
@given(DOCUMENTS, st.integers(0, 4))
def test_counts_of_some_documents_add_up_to_those_of_all(documents, cut):
    parts = [count(part)[1] for part in (documents[:cut], documents[cut:]) if part]
    np.testing.assert_array_equal(sum(parts), count(documents)[1])


def test_no_entity_reaches_into_the_next_document():
    goes_on = [[(0, 0)], [(1, 1)]]  # B-LOC, and I-LOC in another document
    assert count(goes_on)[1].tolist() == [[2, 2, 2], [0, 0, 0]]
    assert count([sum(goes_on, [])])[1].tolist() == [[1, 1, 1], [0, 0, 0]]


def test_only_tags_with_prefixes_name_entities():
    assert split_tags(["O", "B-PER", "I-PER"]) == [("O", "_"), ("B", "PER"), ("I", "PER")]
    assert split_tags(["B", "I", "O"]) == [("B", "_"), ("I", "_"), ("O", "_")]
    assert split_tags(["noun", "verb", "O"]) is None
    assert split_tags(["O", "S"]) is None  # two letters, and no word begins an entity
    assert plan_entities(["B-PER", "verb"]) is None
