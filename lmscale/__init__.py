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
data among processes. ``launcher``, outside of this package, starts the ranks. Importing lmscale
loads nothing heavy. docs/where.md: which line answers which question.
"""

__version__ = "0.1.0"
