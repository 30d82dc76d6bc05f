"""Where files lie that come with lmscale: configs, Slurm templates, examples."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import lmscale
from lmscale.errors import ConfigError

# What makes a folder of that name ours; beside an installed package there may be another's.
_OURS = {"configs": "demo.yaml", "slurm": "train.sbatch.j2", "examples": "pydocs.py"}
_ENDINGS = (".yaml", ".yml")


def find_assets(name: str) -> Path:
    """The folder ``configs``, ``slurm`` or ``examples``: the checkout's, else the package's."""
    package = Path(lmscale.__file__).parent
    for folder in (package.parent / name, package / "assets" / name):
        if (folder / _OURS[name]).is_file():
            return folder
    raise ConfigError(f"{name}/ is neither in {package.parent} nor in the installed package.")


def list_configs() -> dict[str, Path]:
    """Name → path of the configurations that come with lmscale."""
    return {path.stem: path for path in sorted(find_assets("configs").glob("*.yaml"))}


def find_config(place: Path) -> Path:
    """A YAML file by its path or, where there is no such file, one that comes with lmscale by its
    name. Raises ``ConfigError`` for a word that is neither.
    """
    if _is_there(place) or len(place.parts) != 1 or place.name.endswith(_ENDINGS):
        return place  # reading it says what is wrong with it
    known = list_configs()
    if place.name in known:
        return known[place.name]
    near = difflib.get_close_matches(place.name, known, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"{place}: there is neither such a file nor a configuration of this name. {hint}Known: "
        f"{', '.join(known)} (lmscale config list)."
    )


def _is_there(place: Path) -> bool:
    """Whether a file is; a folder, as of a run of this name, is none."""
    try:
        return place.exists() and not place.is_dir()
    except OSError:  # a name that is too long for one
        return False


def describe_config(path: Path) -> str:
    """What a configuration that comes with lmscale is: the first sentence of its first comment."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    # Behind the dot of "et al." no sentence begins.
    return re.split(r"\.(?:\s+(?=[A-Z])|$)", " ".join(comment).strip(), maxsplit=1)[0]
