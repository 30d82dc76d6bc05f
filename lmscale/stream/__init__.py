"""Shards → the global order of samples → micro-batches: exact, elastic, resumable in O(1).

    Dataset ─▶ Stream.read_rows(n, count) ─▶ Rows ─Preparation─▶ Batch(arrays by name) ─▶ StepBatch
    (shards)   (order, mixture)              (in a loader's worker, through shared memory)

Start with ``stream.open_stream`` and ``loader.open_loader``. The preparation is the objective's:
of it ``stream/`` knows the protocol alone (``batches``).

Pure arithmetic: ``order`` (a source's windows), ``mixture`` (sources into one stream), ``packing``
(documents into windows). Reading: ``dataset``, ``stream``, ``loader``. Proof: ``ledger``,
``audit``. Knows no model and loads no torch.
"""
