"""Three checkpoints, and ways to damage one of their files."""

from pathlib import Path

from handmade_checkpoints import save

from lmscale.checkpoint.layout import step_folder
from lmscale.checkpoint.places.place import LocalPlace

STEPS = (2, 4, 6)
FILES = ("manifest.json", "rank-00000.safetensors", "rank-00001.safetensors")


def three_checkpoints(root: Path) -> LocalPlace:
    """Of the steps 2, 4 and 6."""
    place = LocalPlace(root)
    for step in STEPS:
        save(place, step)
    return place


def flip_first(content):
    return bytes([content[0] ^ 1]) + content[1:]


def flip_middle(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def cut(content):
    return content[:-1]


def halve(content):
    return content[: len(content) // 2]


def empty(content):
    return b""


def grow(content):
    return content + b"\0"


def scramble(content):
    return b"\xff" * len(content)


def remove(content):
    return None


def damage(place, step, name, change):
    path = step_folder(place.root, step) / name
    content = change(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    return path
