"""Raw files → cleaned documents: read, normalised, split. Only reading a tar loads torch.

::

    raw files ──→ runs (build.py) ──→ readers.py ──→ clean.py ──→ a part (parts.py)
                                                                                │
    documents-00000.jsonl …, manifest.json ←── duplicates.py, build.py ←────────┘

The first call to read is ``build_corpus``; one part is cleaned by ``parts.Part.do``. Every
dropped document is counted with its reason. Layout on disk: docs/formats.md, Documents.
"""
