"""The chat template beside a tokenizer: in its own folder, in a run's, and in other programs'."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lmscale.config import RunConfig
from lmscale.config.chat_templates import read_template
from lmscale.errors import DataError
from lmscale.files.atomic import write_bytes
from lmscale.files.jsonl import read_object
from lmscale.files.tokenizer_files import KEPT_FOLDER, TEMPLATE_NAME


def find_template(folder: Path) -> str:
    """That of a tokenizer's folder, also of another program's; "": it has none."""
    if (folder / TEMPLATE_NAME).is_file():
        return read_template(folder / TEMPLATE_NAME)
    found = read_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(found, list):  # several by name, as of tools; the one that counts is the default
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else ""


def save_template(text: str, folder: Path) -> None:
    """Write it into a tokenizer's folder that exists; "": there is none."""
    if text:
        write_bytes(folder / TEMPLATE_NAME, text.encode())


def load_kept_template(run_folder: Path) -> str:
    """The one that a run's dialogues were written by, or that came with an import; "": none."""
    return find_template(run_folder / KEPT_FOLDER)


def choose_run_template(config: RunConfig, templates: Mapping[str, str]) -> str:
    """The one that a run keeps: of all its dialogues, else the one beside its tokenizer.

    ``templates``: by its sources' names. Raises ``DataError`` where they are not all the same, or
    not that of what the run has read before.
    """
    kept = load_kept_template(config.folder)
    if not config.window.has_turns:
        return kept or find_template(Path(config.tokenizer.folder))
    whose, expected = ("what the run has read so far", kept)
    if not kept:
        name, expected = next(iter(templates.items()))
        whose = f"those of {name}"
    problems = [
        f"stream.sources.{name}: its dialogues were written by another chat template than {whose}. "
        f"Build its shards again with the same tokenizer.chat_template."
        for name, text in templates.items()
        if text != expected
    ]
    if problems:
        raise DataError(problems)
    return expected
