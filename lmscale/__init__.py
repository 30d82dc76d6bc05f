"""lmscale: distributed pretraining of language models.

The way of the data, which is also the order of the folders (``lmscale/layers.py``)::

    raw files → corpus → tokenizer → shards → stream ─┐
                                                      ├→ objective → engine ⇄ checkpoint
                                              model ──┘                │
                                                                       ▼
    cli → train: the loop, and what follows a step ←── guard ←── a step's figures
              └→ history, evaluation

``config`` is the YAML, ``files`` bytes and paths, ``ranks`` who talks to whom, ``watch`` what finds
a hang, ``runs`` the run's folder; all folders may import these. ``tasks`` shares the building of
data among processes. ``launcher``, outside of this package, starts the ranks. docs/where.md: which
line answers which question.

For programs of one's own, ``lmscale.load_run`` and the other names of ``lmscale.api`` are there at
once (docs/python.md). Importing lmscale loads nothing heavy: they come when they are asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The names of ``lmscale.api``, imported when the first one is asked for (PEP 562)."""
    if not name.startswith("_"):
        api = importlib.import_module("lmscale.api")
        if name in api.__all__:
            return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("lmscale.api").__all__})
