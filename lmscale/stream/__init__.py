"""Shards → the global order of samples → micro-batches: exact, elastic, resumable in O(1).

Pure arithmetic: ``order`` (a source's windows), ``mixture`` (sources into one stream), ``packing``
(documents into windows). Reading: ``dataset``, ``stream``, ``loader``. Proof: ``ledger``,
``audit``. Knows no model and loads no torch.
"""
