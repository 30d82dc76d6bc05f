"""Held-out classes and tags are counted document by document, alike on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_ranks import one_group, run_starts
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import confusion_matrix, f1_score

from lmscale.config.labels import LabelSet
from lmscale.config.supervised import MOST_COUNTED, ClassesConfig, TagsConfig
from lmscale.config.training import direction_of
from lmscale.objective.labelled import LabelledPreparation
from lmscale.stream.batches import Rows
from lmscale.stream.dataset import Dataset

KINDS = {
    "classes": ("bad", "so-so", "good", "好"),
    "tags": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
}
WIDTH, NUM_WINDOWS, NUM_CLASSES = 24, 11, 5
PAD = 1


def guess(label: int, token: int) -> int:
    """What the model of these tests takes for the label of a place."""
    return label if token % 3 else token % 7 % 4


def chance_of(token: int) -> float:
    """What it gives to that. By the four digits that are shown most are equal, by more they are
    not, and in another order than that of their places.
    """
    return 0.5 + min(token % 4, 1) / 4 + token % 13 / 1e6


class Windows(Dataset):
    """Windows of whole documents in memory, each token of which is a number of its own."""

    def __init__(self, kind: str) -> None:
        self.kind, self.documents = kind, []
        chance = np.random.default_rng(5)
        for window in range(NUM_WINDOWS):
            lengths = chance.choice([1, 2, 5, 7], size=3)
            lengths[-1] = WIDTH - 3 - lengths[:-1].sum() if window % 2 else lengths[-1]
            self.documents.append([chance.integers(2, 60_000, size) for size in lengths])

    @property
    def num_windows(self) -> int:
        return len(self.documents)

    def labels_of(self, document: np.ndarray) -> np.ndarray:
        """Of a document its class; of its tokens the tags, -1 where no word begins."""
        if self.kind == "classes":
            return document[:1] % len(KINDS["classes"])
        return np.where(document % 5 == 0, -1, document % NUM_CLASSES)

    def read(self, indices: Sequence[int], *, partners: bool = False) -> Rows:
        tokens = np.full((len(indices), WIDTH), PAD, dtype=np.uint16)
        tags = np.full((len(indices), WIDTH), -1, dtype=np.int16)
        starts, labels = [], []
        for row, index in enumerate(indices):
            at = 0
            for document in self.documents[index]:
                found = self.labels_of(document)
                tokens[row, at : at + len(document)] = document
                starts.append(row * WIDTH + at)
                labels.append(found[0])
                if self.kind == "tags":
                    tags[row, at : at + len(document)] = found
                at += len(document)
        members = {"tags": tags} if self.kind == "tags" else {"labels": np.array(labels)}
        return Rows(
            numbers=np.array(indices),
            tokens=tokens,
            lengths=np.array([sum(map(len, self.documents[i])) for i in indices], dtype=np.int32),
            starts=np.array(starts, dtype=np.int32),
            digests=np.zeros(len(indices), dtype=np.uint64),
            members=members,
        )


def start(folder: Path, number: int) -> None:
    """What each rank of a start does."""
    import torch

    from lmscale.evaluation.labelled import LabelPlan
    from lmscale.evaluation.perplexity import EvaluationPlan, evaluate_set
    from lmscale.objective.scores import Choices, LossSum, Scores
    from lmscale.ranks.mesh import plan_mesh

    class Guessing(torch.nn.Module):
        def forward(self, ids, positions, labels, **others) -> Scores:
            tokens = ids.flatten().long()[positions.long()].tolist()
            pairs = list(zip(labels.tolist(), tokens, strict=True))
            predicted = torch.tensor([guess(*pair) for pair in pairs], dtype=torch.int64)
            probability = torch.tensor([chance_of(token) for _, token in pairs])
            loss = LossSum(torch.tensor(float(len(pairs))), torch.tensor(len(pairs)))
            return Scores(loss, {"loss": loss}, choices=Choices(predicted, probability))

    scores = {}
    with one_group() as ranks:
        for kind, names in KINDS.items():
            plan = EvaluationPlan(
                micro_windows=2,
                preparation=LabelledPreparation(
                    member="tags" if kind == "tags" else "labels", label_dtype="int32"
                ),
                token_bytes=np.zeros(60_000),
                is_text=np.ones(60_000, dtype=bool),
                labels=LabelPlan(
                    labels=LabelSet(kind=kind, names=names),
                    figures=(),
                    decode=lambda ids: " ".join(map(str, ids)),
                    max_mistakes=4,
                ),
            )
            score = evaluate_set(
                Guessing(),
                Windows(kind),
                plan,
                data=plan_mesh(ranks).data,
                device=torch.device("cpu"),
            )
            scores[kind] = score.to_dict()
    if ranks.is_first:
        (folder / f"scores-{number}.json").write_text(json.dumps(scores))


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> list[dict[str, Any]]:
    """Of 1, 2 and 4 ranks."""
    folder = tmp_path_factory.mktemp("labelled")
    run_starts(Path(__file__), folder, (1, 2, 4))
    return [json.loads((folder / f"scores-{number}.json").read_text()) for number in range(3)]


@pytest.mark.ranks
def test_counts_figures_and_mistakes_are_the_same_on_1_2_and_4_ranks(scores):
    assert scores[0] == scores[1] == scores[2]
    assert all(len(of_kind["mistakes"]) == 4 for of_kind in scores[0].values())


@pytest.mark.ranks
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_scikit_learn_and_seqeval_over_all_documents(scores, kind):
    names, dataset, score = KINDS[kind], Windows(kind), scores[0][kind]
    true: list[list[int]] = []
    predicted: list[list[int]] = []
    for document in (document for window in dataset.documents for document in window):
        pairs = zip(dataset.labels_of(document).tolist(), document.tolist(), strict=False)
        pairs = [pair for pair in pairs if pair[0] >= 0]
        true.append([label for label, _ in pairs])
        predicted.append([guess(*pair) for pair in pairs])
    flat = [sum(each, []) for each in (true, predicted)]
    expected = confusion_matrix(*flat, labels=range(len(names)))
    assert score["confusion"] == expected.tolist()
    for mean in ("macro", "micro", "weighted"):
        assert score[f"f1_{mean}"] == pytest.approx(f1_score(*flat, average=mean), rel=1e-15)
    if kind == "tags":
        named = [[[names[tag] for tag in document] for document in e] for e in (true, predicted)]
        assert score["f1_entities"] == pytest.approx(entity_f1(*named), rel=1e-14)
        joined = [[sum(each, [])] for each in named]
        assert entity_f1(*joined) != entity_f1(*named)  # the border between documents matters


@pytest.mark.ranks
@pytest.mark.parametrize("kind", KINDS)
def test_the_mistakes_are_the_surest_of_all_windows_and_of_equal_ones_the_first(scores, kind):
    dataset, errors = Windows(kind), []
    for window, documents in enumerate(dataset.documents):
        place = 0
        for document in documents:
            labels = dataset.labels_of(document).tolist()
            errors += [
                (-round(chance_of(token), 4), window, place + number)
                for number, (label, token) in enumerate(
                    zip(labels, document.tolist(), strict=False)
                )
                if label not in (-1, guess(label, token))
            ]
            place += len(document)
    found = [(-m["probability"], m["window"], m["place"]) for m in scores[0][kind]["mistakes"]]
    assert found == sorted(errors)[:4] and len(errors) > 4


@pytest.mark.ranks
def test_a_mistake_shows_its_own_document_and_word(scores):
    for kind, score in scores[0].items():
        dataset = Windows(kind)
        for mistake in score["mistakes"]:
            row = dataset.read([mistake["window"]])
            token = int(row.tokens[0, mistake["place"]])
            (document,) = (d for d in dataset.documents[mistake["window"]] if token in d)
            assert mistake["text"] == " ".join(map(str, document))
            label = int(dataset.labels_of(document)[document.tolist().index(token)])
            names = KINDS[kind]
            assert mistake["true"] == names[label]
            assert mistake["predicted"] == names[guess(label, token)]
            if kind == "tags":  # up to where the next word begins
                assert mistake["word"].split()[0] == str(token)
                assert all(int(more) % 5 == 0 for more in mistake["word"].split()[1:])
            else:
                assert mistake["word"] is None and mistake["second"] is None


def test_figures_are_named_by_the_classes_and_are_better_the_higher():
    of_classes = ClassesConfig(name="classes", names=("a", "B-x"))
    assert of_classes.held_out == ("accuracy", "f1_macro", "f1_micro", "f1_weighted")
    of_tags = TagsConfig(name="tags", names=("O", "B-x"))
    assert of_tags.held_out == (*of_classes.held_out, "f1_entities")
    assert TagsConfig(name="tags", names=("noun", "verb")).held_out == of_classes.held_out
    assert {direction_of(f"evaluation/a/{name}") for name in of_tags.held_out} == {"max"}
    many = ClassesConfig(name="classes", names=tuple(map(str, range(MOST_COUNTED + 1))))
    assert many.held_out == ("accuracy",)
