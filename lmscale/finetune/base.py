"""The model that a fine-tuning begins with, as its folder says: settings, tokenizer, ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.config.chat_templates import NAMED
from lmscale.config.data import TokenizerConfig
from lmscale.config.finetune import FinetuneConfig
from lmscale.config.model_base import ModelConfig
from lmscale.errors import ConfigError
from lmscale.files.locations import find_checkpoint
from lmscale.files.reading import sha256_file
from lmscale.files.run_files import CONFIG_FILE, IMPORT_FILE
from lmscale.files.tokenizer_files import KEPT_FOLDER
from lmscale.finetune.trees import look_up
from lmscale.runs.commits import read_commits
from lmscale.runs.continuation import objective_identity
from lmscale.runs.given_weights import read_import
from lmscale.runs.run_folder import load_run_config
from lmscale.runs.taken_over import read_alone
from lmscale.shards.dialogues import load_chat_template
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.chat_template import ChatTemplate
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.kept_template import find_template

HF_CONFIG = "config.json"  # of a folder of Hugging Face's
SMALL = (".json", ".model", ".txt")  # suffixes of files that are read in no time


@dataclass(frozen=True, kw_only=True)
class Base:
    """What is known of it before anything is loaded."""

    init_from: str
    """As ``run.init_from`` names it."""
    model: ModelConfig
    """With all sizes."""
    tokenizer: TokenizerConfig
    has_bos: bool
    """Whether its texts began with bos."""
    step: int | None = None
    """Of the checkpoint; None: there is none yet."""
    learned: Mapping[str, Any] | None = None
    """The objective that it was trained for, as its checkpoints have it; None: not known."""


def find_hf_folder(config: FinetuneConfig) -> Path | None:
    """The folder of Hugging Face's that ``base`` names; None: it names something of lmscale's."""
    folder = Path(config.base)
    is_hf = (folder / HF_CONFIG).is_file() and not (folder / CONFIG_FILE).is_file()
    return folder if is_hf else None


def import_place(config: FinetuneConfig, folder: Path) -> Path:
    """Where a folder of Hugging Face's is imported to: beside the run."""
    return config.run_folder.parent / f"{folder.resolve().name}-imported"


def is_imported(place: Path, folder: Path) -> bool:
    """Whether ``place`` holds the import of ``folder`` as it is. Large files are read again only
    where they were written after it. Raises ``ConfigError`` where something else is there.
    """
    if not place.exists():
        return False
    imported = read_import(place)
    files = {} if imported is None else imported.files
    since = (place / IMPORT_FILE).stat().st_mtime_ns if files else 0
    same = all(
        (file := folder / name).is_file()
        and (_is_old_weight(file, since) or sha256_file(file) == sha256)
        for name, sha256 in files.items()
    )
    if imported is None or not same:
        raise ConfigError(
            f"{place} is there already, and is no import of {folder} as it is now. Move it away, "
            f"or import that folder elsewhere (lmscale import hf {folder} --out RUN) and name "
            "base: RUN."
        )
    return True


def _is_old_weight(file: Path, since: int) -> bool:
    """Whether it is a large file that was written before a time in nanoseconds."""
    return file.suffix not in SMALL and file.stat().st_mtime_ns < since


def read_base(config: FinetuneConfig, *, imported: Path | None = None) -> Base:
    """Raises ``ConfigError`` where ``base`` names nothing that a run can begin with. ``imported``:
    where it was imported to.
    """
    word = str(imported or config.base)
    place = find_checkpoint(word, beside=config.run_folder.parent)
    if not place.folder.is_dir():
        raise ConfigError(
            f"base: {word}: there is no such run, checkpoint or folder of Hugging Face's. Name the "
            f"folder of one, or a run in {config.run_folder.parent} by its name."
        )
    init_from = word if place.is_alone or Path(word).is_dir() or "@" in word else str(place.folder)
    if place.is_alone:
        return _read_alone(config, word)
    run = load_run_config(place.folder)
    sizes = {"vocab_size": run.vocab_size, "max_positions": run.max_positions}
    kept = place.folder / KEPT_FOLDER
    tokenizer = run.tokenizer
    if kept.is_dir():
        tokenizer = tokenizer.model_copy(update={"folder": str(kept)})
    found = read_import(place.folder)
    steps = [commit.step for commit in read_commits(place.folder)]
    return Base(
        init_from=init_from,
        model=run.model.model_copy(update=sizes),
        tokenizer=tokenizer,
        has_bos=run.shards.bos if found is None else found.bos is not None,
        step=max(steps, default=None) if place.step is None else place.step,
        learned=objective_identity(run),
    )


def read_template(config: FinetuneConfig, base: Base, tokenizer: Tokenizer) -> ChatTemplate | None:
    """By which the shards will write dialogues; None: the task has none. Raises ``ConfigError``
    where it is not known, or does not fit the base.
    """
    if config.task != "dialogue":
        return None
    word = look_up(config.settings, "tokenizer.chat_template")
    named = {"chat_template": word} if isinstance(word, str) and word else {}
    settings = base.tokenizer.model_copy(update=named)
    if not settings.chat_template and not find_template(Path(settings.folder)):
        raise ConfigError(
            f"task: dialogue: the base {config.base} has no chat template, so how dialogues are "
            "written is not known. Name one: settings: {tokenizer.chat_template: plain}, or "
            f"{', '.join(name for name in NAMED if name != 'plain')} where the tokenizer has their "
            "special tokens, or a file."
        )
    return load_chat_template(settings, tokenizer, bos=base.has_bos)


def _read_alone(config: FinetuneConfig, word: str) -> Base:
    """Of a checkpoint that was copied away from its run: the tokenizer has to be named."""
    place = find_checkpoint(word, beside=config.run_folder.parent)
    source = read_alone(place)
    if isinstance(source, str):
        raise ConfigError(f"base: {word}: {source}")
    folder = look_up(config.settings, "tokenizer.folder")
    if not folder:
        raise ConfigError(
            f"base: {word} is a checkpoint without its run, which has the tokenizer. Name that: "
            "settings: {tokenizer.folder: DIR}."
        )
    tokenizer = load_tokenizer(str(folder))
    return Base(
        init_from=word,
        model=source.model,
        tokenizer=TokenizerConfig(folder=str(folder), vocab_size=tokenizer.vocab_size),
        has_bos=tokenizer.bos_id is not None,
        step=place.step,
        learned=source.objective,
    )
