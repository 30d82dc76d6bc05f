"""What TensorBoard shows of held-out classes: a confusion matrix, a table, examples of errors."""

from __future__ import annotations

from collections.abc import Mapping

from lmscale.evaluation.confusion_picture import draw_confusion
from lmscale.evaluation.labelled import render_classes, render_mistakes
from lmscale.evaluation.perplexity import SetScore
from lmscale.runs.trackers import Trackers


def show_labelled(trackers: Trackers, kind: str, step: int, scores: Mapping[str, SetScore]) -> None:
    """On the pages of images and of text, beside the figures' names: ``KIND/SET/confusion``,
    ``/classes`` and ``/errors``. Of other objectives nothing.
    """
    texts, pictures = {}, {}
    for set_name, score in scores.items():
        if (labelled := score.labelled) is None:
            continue
        name = f"{kind}/{set_name}"
        texts[f"{name}/classes"] = render_classes(labelled)
        if labelled.mistakes:
            texts[f"{name}/errors"] = render_mistakes(labelled.mistakes)
        pictures[f"{name}/confusion"] = draw_confusion(labelled.confusion, labelled.names)
    if texts:
        trackers.log_pages(step, texts=texts, pictures=pictures)
