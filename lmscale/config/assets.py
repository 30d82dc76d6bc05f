"""Where files lie that come with lmscale: configs, Slurm templates, examples."""

from __future__ import annotations

from pathlib import Path

import lmscale
from lmscale.errors import ConfigError

# What makes a folder of that name ours; beside an installed package there may be another's.
_OURS = {"configs": "demo.yaml", "slurm": "train.sbatch.j2", "examples": "pydocs.py"}


def find_assets(name: str) -> Path:
    """The folder ``configs``, ``slurm`` or ``examples``: the checkout's, else the package's."""
    package = Path(lmscale.__file__).parent
    for folder in (package.parent / name, package / "assets" / name):
        if (folder / _OURS[name]).is_file():
            return folder
    raise ConfigError(f"{name}/ is neither in {package.parent} nor in the installed package.")
