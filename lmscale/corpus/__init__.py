"""Raw files → cleaned documents: read, normalised, split.

::

    raw files (inputs.py) ──→ runs (build.py) ──→ text_files.py, readers.py ──→ clean.py
                                                                                     │
    documents-00000.jsonl …, manifest.json ←── duplicates.py, build.py ←── a part (parts.py)

The first call to read is ``build_corpus``; one part is cleaned by ``parts.Part.do``. All that is
read comes out or is counted with its reason. Layout on disk: docs/formats.md, Documents.
"""
