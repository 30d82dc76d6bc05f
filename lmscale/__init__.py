"""lmscale: distributed pretraining of language models.

The way of the data, which is also the order of the folders (``lmscale/layers.py``)::

    corpus → tokenizer → shards → stream ─┐
                                          ├→ objective → engine → checkpoint → train → evaluation
                                  model ──┘

``config`` and ``runtime`` serve them all; ``cli`` drives them; ``launcher`` starts the ranks.
Importing this package loads nothing heavy.
"""

__version__ = "0.1.0"
