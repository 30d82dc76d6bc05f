"""Documents → datasets: tars of token blocks and a manifest that binds them. Loads no torch.

::

    documents ──→ slices (build.py) ──→ a tar of token blocks (writer.py) ──→ Manifest (manifest.py)
                                                                                 │
    stream ←── MappedShard: blocks without a copy (reader.py) ←──────────────────┘

The first call to read is ``build_shards``; a slice is tokenised by ``build.SliceTask.do``.
``verify_dataset`` reads every byte of a dataset. Layout on disk: docs/formats.md, Shards.
"""
