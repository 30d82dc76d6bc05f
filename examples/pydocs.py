"""Write the documentation of the running Python as raw documents: real text on every machine.

    python examples/pydocs.py --out data/demo/raw

The demo trains on it, and it shows what raw text for lmscale looks like: files of JSON lines with
the key "text". The topics of help() (pydoc_data.topics), and from the standard library's source:
signatures, docstrings, comment blocks, and the modules themselves. Nothing is imported or run but
the topics' table; the source is parsed. The same Python gives the same files on every machine.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

# Not documentation, absent from many distributions, or not importable.
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib2to3"}
)
SKIPPED_MODULES = frozenset({"pydoc_data.topics"})
MIN_CHARS = 80  # shorter documents are a bare name and signature
MIN_COMMENT_CHARS = 40  # shorter ones are labels, not sentences
DOCUMENT_CHARS = 6_000  # functions of a module are gathered into documents of about this size

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


Documents = list[tuple[str, str]]  # (name, text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write Python's documentation as JSON lines.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSONL files")
    folder = parser.parse_args().out
    try:
        parts = gather_documentation()
        write_parts(folder, parts)
    except (LookupError, OSError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    texts = [text for documents in parts.values() for _, text in documents]
    names = ", ".join(f"{part}.jsonl" for part in parts)
    print(f"{folder}: {len(texts):,} documents, {sum(map(len, texts)):,} characters in {names}")


def gather_documentation() -> dict[str, Documents]:
    """The documents of each file: topics, docstrings, comments, modules.

    The first three are English, about 4 MB; modules are the documented modules' whole source.
    Raises ``LookupError`` when this Python has neither topics nor source.
    """
    docstrings, comments, modules = [], [], []
    for name, source, tree in _library_modules():
        described = [(name, text) for text in _docstring_documents(name, tree)]
        docstrings += described
        comments += [(name, text) for text in _comment_documents(name, source, tree)]
        modules += [(name, source)] if described else []
    parts = {
        "topics": _topics(),
        "docstrings": docstrings,
        "comments": comments,
        "modules": modules,
    }
    if not any(parts.values()):
        raise LookupError(
            f"This Python ({sysconfig.get_paths()['stdlib']}) has no documentation: neither "
            "pydoc_data nor the source of its library. Install it in full, or give corpus.sources "
            "files of your own."
        )
    return parts


def write_parts(folder: Path, parts: dict[str, Documents]) -> None:
    """Write ``<part>.jsonl``, ``{"text", "name"}`` a line.

    A file that would not change is left alone, so that a corpus built from it stays valid.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part, documents in parts.items():
        rows = ({"text": text, "name": name} for name, text in documents)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        content = "".join(lines).encode()
        path = folder / f"{part}.jsonl"
        if not path.exists() or path.read_bytes() != content:
            temporary = folder / f".{part}.tmp"
            temporary.write_bytes(content)
            os.replace(temporary, path)  # whole or not at all


def _topics() -> Documents:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # Debian's python3-minimal leaves it out
        return []
    return [(name, topics[name].strip("\n") + "\n") for name in sorted(topics)]


def _library_modules() -> Iterator[tuple[str, str, ast.Module]]:
    """(module name, source, syntax tree) of the standard library's modules, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [
        path
        for path in root.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
    ]
    for path in sorted(paths, key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name in SKIPPED_MODULES or not all(part.isidentifier() for part in parts):
            continue
        try:
            with tokenize.open(path) as file:
                source = file.read()
            with warnings.catch_warnings():  # invalid escapes in somebody else's code
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (OSError, SyntaxError, ValueError):  # a template, or broken on purpose
            continue
        yield name, source, tree


def _docstring_documents(module: str, tree: ast.Module) -> Iterator[str]:
    """Documents of the module's own docstring, of each class, and of groups of functions."""
    head = f"Python module {module}\n\n"
    text = ast.get_docstring(tree)
    if text and len(text) >= MIN_CHARS:
        yield f"{head}{text}\n"
    group: list[str] = []
    for node in tree.body:
        if not isinstance(node, _Definition):
            continue
        text = _describe(node, "")
        if isinstance(node, ast.ClassDef):
            if _has_documentation(node) and len(text) >= MIN_CHARS:
                yield head + text
        elif _has_documentation(node):
            group.append(text)
            if sum(map(len, group)) >= DOCUMENT_CHARS:
                yield head + "\n".join(group)
                group = []
    if sum(map(len, group)) >= MIN_CHARS:
        yield head + "\n".join(group)


def _describe(node: _Definition, indent: str) -> str:
    """A definition as ``help()`` shows it: signature, docstring, documented members."""
    lines = [f"{indent}{_signature(node)}\n"]
    inner = indent + "    "
    text = ast.get_docstring(node)
    if text:
        lines += [(f"{inner}{line}".rstrip() + "\n") for line in text.split("\n")]
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            if isinstance(member, _Definition) and _has_documentation(member):
                lines += ["\n", _describe(member, inner)]
    return "".join(lines)


def _signature(node: _Definition) -> str:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return f"class {node.name}({bases})" if bases else f"class {node.name}"
    kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{kind} {node.name}({ast.unparse(node.args)})"


def _has_documentation(node: _Definition) -> bool:
    members = node.body if isinstance(node, ast.ClassDef) else []
    return bool(ast.get_docstring(node)) or any(
        _has_documentation(member) for member in members if isinstance(member, _Definition)
    )


def _comment_documents(module: str, source: str, tree: ast.Module) -> Iterator[str]:
    """A module's comment blocks, in documents of about ``DOCUMENT_CHARS``."""
    head = f"Comments in Python module {module}\n\n"
    blocks: list[str] = []
    for block in _comment_blocks(source, tree):
        blocks.append(block)
        if sum(map(len, blocks)) >= DOCUMENT_CHARS:
            yield head + "\n".join(blocks)
            blocks = []
    if sum(map(len, blocks)) >= MIN_CHARS:
        yield head + "\n".join(blocks)


def _comment_blocks(source: str, tree: ast.Module) -> Iterator[str]:
    """Runs of whole-line comments, without their marks; editor lines and rulers left out."""
    in_strings: set[int] = set()  # rows where a "#" is text
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
            in_strings.update(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))
    run: list[str] = []
    for row, line in enumerate(source.split("\n"), start=1):
        comment = line.strip()
        if comment.startswith("#") and row not in in_strings:
            run.append(re.sub(r"^#+!? ?", "", comment))
            continue
        yield from _block(run)
        run = []
    yield from _block(run)


def _block(lines: list[str]) -> Iterator[str]:
    text = [line for line in lines if not re.fullmatch(r"[-=*#~ ]*|.*-\*-.*", line)]
    if sum(map(len, text)) >= MIN_COMMENT_CHARS:
        yield "\n".join(lines).strip("\n") + "\n"


if __name__ == "__main__":
    main()
