# Shape letters: C classes.
"""A confusion matrix as a picture: how the examples of each class were taken, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_WRITTEN = 40  # classes whose cells are large enough for their counts
MAX_SIDE = 1000  # pixels of a matrix with more
_FULL, _NONE, _LINE = (8, 69, 148), (240, 240, 240), (215, 215, 215)
_FONT, _MAX_NAME = 12, 18


def draw_confusion(confusion_CC: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """uint8 [height, width, 3] of counts, a row for each true class, a column for each predicted
    one.

    A cell is the darker the more of its row is in it, and a row without examples is grey. Of up to
    ``MOST_WRITTEN`` classes it says the counts, and the classes by number, rows by name as well
    where that is ASCII: the font has no other letters, and a table beside it has all names.
    """
    from PIL import Image, ImageDraw, ImageFont

    num_classes = len(confusion_CC)
    cell = _plan_cell(num_classes)
    matrix = _paint(confusion_CC).repeat(cell, axis=0).repeat(cell, axis=1)
    if num_classes > MOST_WRITTEN:
        return matrix
    matrix[cell - 1 :: cell] = matrix[:, cell - 1 :: cell] = _LINE
    font = ImageFont.load_default(_FONT)
    labels = [_label(number, name) for number, name in enumerate(names)]
    left = max(int(max(map(font.getlength, labels))) + 12, 60)
    top = 3 * _FONT
    image = Image.new("RGB", (left + len(matrix), top + len(matrix)), "white")
    image.paste(Image.fromarray(matrix), (left, top))
    draw = ImageDraw.Draw(image)
    draw.text((left + 2, 2), "predicted", fill="black", font=font)
    draw.text((6, top - _FONT - 4), "true", fill="black", font=font)
    sums_C = confusion_CC.sum(axis=1)
    for row, label in enumerate(labels):
        middle = row * cell + cell // 2
        draw.text((left - 6, top + middle), label, fill="black", font=font, anchor="rm")
        draw.text((left + middle, top - 8), str(row), fill="black", font=font, anchor="mm")
        for column in np.flatnonzero(confusion_CC[row]).tolist():
            count = int(confusion_CC[row, column])
            draw.text(
                (left + column * cell + cell // 2, top + middle),
                shorten_count(count),
                fill="white" if 2 * count > sums_C[row] else "black",
                font=font,
                anchor="mm",
            )
    return np.asarray(image)


def shorten_count(count: int) -> str:
    """At most four characters up to 10^12: ``973``, ``1.2k``, ``15k``, ``3M``."""
    size, units = float(count), iter("kMG")
    if count < 1000:
        return str(count)
    unit = ""
    while size >= 999.5:
        size, unit = size / 1000, next(units, "T")
    return f"{size:.1f}{unit}" if size < 9.95 and unit == "k" else f"{size:.0f}{unit}"


def _plan_cell(num_classes: int) -> int:
    """Pixels of a cell's side."""
    if num_classes > MOST_WRITTEN:
        return max(1, MAX_SIDE // num_classes)
    return 48 if num_classes <= 10 else 32


def _paint(confusion_CC: np.ndarray) -> np.ndarray:
    """uint8 [C, C, 3]: from white to blue by the share of the row."""
    sums_C1 = confusion_CC.sum(axis=1, keepdims=True)
    shares = (confusion_CC / np.maximum(sums_C1, 1))[..., None]
    colours = np.rint(255 + shares * (np.array(_FULL) - 255))
    return np.where(sums_C1[..., None] > 0, colours, _NONE).astype(np.uint8)


def _label(number: int, name: str) -> str:
    if not name.isascii():
        return str(number)
    return f"{name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 2] + '..'}  {number}"
