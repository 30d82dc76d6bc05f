"""Python's documentation comes out the same every time, in documents worth training on."""

import json

from lmscale.corpus import pydocs
from lmscale.corpus.pydocs import write_python_documentation


def test_the_documentation_is_large_and_stays_as_it_is_when_written_again(tmp_path, monkeypatch):
    modules = list(pydocs._library_modules())  # parsing takes most of the time, so it is done once
    monkeypatch.setattr(pydocs, "_library_modules", lambda: iter(modules))
    summary = write_python_documentation(tmp_path)
    assert [path.name for path in summary.files] == [
        "topics.jsonl", "docstrings.jsonl", "comments.jsonl", "modules.jsonl",
    ]  # fmt: skip
    written = [(path.read_bytes(), path.stat().st_mtime_ns) for path in summary.files]
    english = sum(len(content) for content, _ in written[:3])
    assert english > 2_000_000
    texts = [json.loads(line)["text"] for content, _ in written for line in content.splitlines()]
    assert len(texts) == summary.documents
    assert min(map(len, texts)) >= 80
    assert any("class JSONDecoder" in text and "def raw_decode(self" in text for text in texts)
    assert write_python_documentation(tmp_path) == summary
    assert [(p.read_bytes(), p.stat().st_mtime_ns) for p in summary.files] == written
