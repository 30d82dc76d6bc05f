"""Raw files → cleaned documents: read, normalised, split into train and heldout. Loads no torch."""

from lmscale.corpus.build import (
    CorpusSummary,
    SourceSummary,
    build_corpus,
    build_corpus_task,
    corpus_progress,
)
from lmscale.corpus.documents import CorpusManifest, Document, load_corpus_manifest, read_documents

__all__ = [
    "CorpusManifest",
    "CorpusSummary",
    "Document",
    "SourceSummary",
    "build_corpus",
    "build_corpus_task",
    "corpus_progress",
    "load_corpus_manifest",
    "read_documents",
]
