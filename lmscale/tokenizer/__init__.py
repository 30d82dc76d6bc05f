"""Documents → a SentencePiece tokenizer whose round trip is exact. Loads no torch.

::

    documents ──→ passages, evenly over the texts ──→ SentencePiece (train.py) ──→ the model
    text ──→ Tokenizer.encode ──→ ids ──→ Tokenizer.decode ──→ the same text (codec.py)

The first call to read is ``train_tokenizer``, the second ``load_tokenizer``. The fingerprint covers
everything that decides an id; shards and checkpoints carry it. On disk: docs/formats.md, Tokenizer.
"""
