"""Documents, or another program's model → a tokenizer. Loads no torch.

::

    documents ──→ passages, evenly over the texts ─┬→ SentencePiece (train.py) ──→ OwnTokenizer
                                                   └→ tokenizers (byte_bpe.py) ─┐
    tokenizer.json, vocab.txt, … ──→ importing.py ──────────────────────────┴→ HuggingFaceTokenizer
    another program's .model ──→ importing.py ──────────────────────────────→ SentencePieceTokenizer

    text ──→ Tokenizer.encode ──→ ids ──→ Tokenizer.decode ──→ the same text, where it is exact

``base.py`` says what all of them are, and ``codec.py`` writes and reads their folders: the first
call to read is ``load_tokenizer``. The fingerprint covers everything that decides an id; shards
and checkpoints carry it. On disk: docs/formats.md, Tokenizer.
"""
