"""A run that tells classes apart shows which: in its figures, in TensorBoard and by a command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from labelled_data import labelled_recipe
from PIL import Image
from tiny_run import launch, run_lmscale, tiny_config, write_tiny_config

from lmscale.errors import ConfigError
from lmscale.evaluation.confusion_picture import MOST_WRITTEN, draw_confusion, shorten_count
from lmscale.evaluation.labelled import Mistake, render_mistakes
from lmscale.files.printing import say

FIGURES = ("accuracy", "f1_macro", "f1_micro", "f1_weighted")


def overrides(labelled) -> dict:
    return labelled_recipe("tags", labelled) | {
        "evaluation.sets": {"held": f"{labelled.shards.folder}/tags/heldout"},
        "evaluation.every_steps": 2,
        "evaluation.max_windows": 3,
        "evaluation.stop": {"metric": "evaluation/held/f1_macro", "patience": 9},
        "checkpoint.keep_best": {"metric": "evaluation/held/f1_weighted"},
        "train.steps": 4,
    }


@pytest.fixture(scope="module")
def run(labelled, tiny_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled-run")
    config = write_tiny_config(folder / "c.yaml", tiny_data, folder / "run", overrides(labelled))
    ended = launch(config, 1)
    assert ended.code == 0, ended.output
    return folder / "run"


def events_of(run: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Of texts and images: tag → step and content."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, bytes]]] = {}
    for path in sorted((run / "events").glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tensor.string_val:
                    content = value.tensor.string_val[-1]
                    found.setdefault(value.tag, []).append((event.step, content))
    return found


@pytest.mark.ranks
def test_figures_pictures_tables_and_the_command_tell_the_same(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figures: dict = {}
    for row in rows:
        figures |= row
    for kind in ("evaluation", "final"):
        assert {f"{kind}/held/{name}" for name in FIGURES} <= figures.keys()
    shown = events_of(run)
    for kind, steps in (("evaluation", {2, 4}), ("final", {4})):
        pictures = dict(shown[f"{kind}/held/confusion"])
        assert pictures.keys() == steps
        image = Image.open(io.BytesIO(pictures[4]))
        assert image.size[1] == 3 * 48 + 36  # three classes of 48 pixels, and the head
        (table,) = (text for step, text in shown[f"{kind}/held/classes/text_summary"] if step == 4)
        assert all(name in table.decode() for name in ("adjective", "animal", "thing", "(macro)"))
    ended = run_lmscale("evaluate", run, "--json", "--errors", "2")
    assert ended.code == 0, ended.output
    told = json.loads(ended.output[ended.output.index("{") :])["held"]
    for name in ("loss", *FIGURES):
        assert told[name] == figures[f"final/held/{name}"]
    assert np.array(told["confusion"]).sum() == told["targets"]
    assert [row["true"] for row in told["classes"].values()] == [*map(sum, told["confusion"])]
    assert len(told["mistakes"]) == 2
    assert all(mistake["word"] in mistake["text"] for mistake in told["mistakes"])
    ended = run_lmscale("evaluate", run, "--errors", "1")
    for said in ("predicted  class", "2 thing", "(weighted)", "held, errors"):
        assert said in ended.output


def test_a_run_may_not_end_by_a_figure_that_its_tags_cannot_have(labelled, tiny_data, tmp_path):
    with pytest.raises((ConfigError, ValueError), match="f1_entities' is never measured"):
        settings = overrides(labelled)
        settings["evaluation.stop"] = {"metric": "evaluation/held/f1_entities"}
        tiny_config(tiny_data, tmp_path / "run", settings)


def test_what_a_document_says_never_steers_the_terminal(capsys):
    mistake = Mistake(
        window=0, place=0, text="red\x1b[2J\nbig", second="a\x07", word="\x1b]0;x",
        true="a", predicted="b", probability=0.5,
    )  # fmt: skip
    say(render_mistakes([mistake]))
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out
    assert "red\\x1b[2J ⏎ big" in out and "a → b (50.00 %)" in out


def test_a_picture_is_darker_where_more_of_a_row_is_and_shows_no_letters_that_its_font_lacks():
    confusion = np.array([[90, 10], [0, 0]])
    picture = draw_confusion(confusion, ["体育", "财经"])
    assert (picture == draw_confusion(confusion, ["新闻", "科技"])).all()  # by number alone
    assert (picture != draw_confusion(confusion, ["a", "b"])[:, : picture.shape[1]]).any()
    top, left = 36, picture.shape[1] - 2 * 48
    corner = picture[top::48, left::48].astype(int).sum(-1)  # of each cell, beside the figures
    assert corner[0, 0] < corner[0, 1]
    assert (picture[top + 48, left] == 240).all()  # of a row without examples
    many = draw_confusion(np.eye(MOST_WRITTEN + 1, dtype=int), ["x"] * (MOST_WRITTEN + 1))
    assert many.dtype == np.uint8 and many.shape[0] == many.shape[1] <= 1000


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0"), (999, "999"), (1234, "1.2k"), (9960, "10k"), (999_499, "999k"), (999_500, "1M")],
)
def test_a_count_has_at_most_four_characters(count, shown):
    assert shorten_count(count) == shown
