"""Train a tokenizer on an even, deterministic sample of the corpus."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lmscale.config.data import MIN_VOCABULARY, TokenizerConfig
from lmscale.corpus.documents import load_corpus_manifest, read_documents
from lmscale.errors import ConfigError, DataError, LmscaleError
from lmscale.files.atomic import writing
from lmscale.files.meter import metered
from lmscale.files.progress import BYTES, progress
from lmscale.files.tokenizer_files import find_meta
from lmscale.tokenizer.base import SPACE_MARK, Tokenizer
from lmscale.tokenizer.byte_bpe import train_byte_bpe
from lmscale.tokenizer.codec import (
    load_tokenizer,
    refuse_certain_strangers,
    refuse_strangers,
    save_tokenizer,
)
from lmscale.tokenizer.own import OwnTokenizer

PASSAGE_BYTES = 4096  # what SentencePiece is given at a time; its own default limit is 4,192
# Fixed, because unigram training sums floats per thread and the machine must not matter.
TRAINER_THREADS = 16
SPECIAL_IDS: dict[str, Any] = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": 3}  # of new models
_UNKNOWN_MARK = "\u2585"  # SentencePiece leaves out every passage that holds it


def train_tokenizer(
    config: TokenizerConfig, corpus: str | Path, sources: Sequence[str], *, force: bool = False
) -> Tokenizer:
    """Train on the sources' train parts and write its model and ``meta.json``.

    The same corpus and settings give the same bytes on any machine. A tokenizer trained before
    from the same is loaded instead; one made from others is a ``DataError`` unless ``force``.
    """
    if not sources:
        raise ConfigError("corpus.sources: names no source; a tokenizer needs text to train on.")
    folder = Path(config.folder)
    made_by = _made_by(config, Path(corpus), sources)
    with writing("the tokenizer", folder):
        old = None if force else _existing(folder, made_by)
        if old is not None:
            return old
        if not force:
            _refuse_strangers_of(config)
        folder.mkdir(parents=True, exist_ok=True)  # where it cannot be is told before the work
    folders = [Path(corpus) / source for source in sources]
    total = sum(load_corpus_manifest(each).text_bytes("train") for each in folders)
    texts = (text for each in folders for text in read_documents(each / "train"))
    passages = sample_passages(texts, total_bytes=total, max_bytes=config.max_sample_bytes)
    with ExitStack() as shown:
        passages = _show_reading(passages, folders, shown)
        tokenizer: Tokenizer
        if config.kind == "byte_bpe":
            tokenizer = train_byte_bpe(passages, config, made_by)
        else:
            tokenizer = OwnTokenizer(train_model(passages, config), made_by)
    with writing("the tokenizer", folder):
        if not force:
            refuse_strangers(tokenizer, folder)
        save_tokenizer(tokenizer, folder)
    return tokenizer


def find_trained(
    config: TokenizerConfig, corpus: str | Path, sources: Sequence[str], *, has_corpus: bool
) -> Tokenizer | None:
    """What ``train_tokenizer`` would keep, or an imported tokenizer; None where one is to be made.

    Without a corpus yet it is not known whether a trained one is of the same text: None. One with
    other settings is a ``DataError``.
    """
    folder = Path(config.folder)
    if find_meta(folder) is None:
        _refuse_strangers_of(config)
        return None
    old = load_tokenizer(folder)
    if "imported_from" in old.made_by:
        return old
    if has_corpus:
        return _existing(folder, _made_by(config, Path(corpus), sources))
    _existing(folder, {**_settings(config, sources), "corpus": old.made_by.get("corpus")})
    return None


def _refuse_strangers_of(config: TokenizerConfig) -> None:
    """Before it is trained, which takes long."""
    refuse_certain_strangers(
        Path(config.folder), is_bpe=config.kind == "byte_bpe", vocab_size=config.vocab_size
    )


def _show_reading(
    passages: Iterator[str], folders: Sequence[Path], shown: ExitStack
) -> Iterator[str]:
    """The same, with a bar; once they have all been taken, how long ``shown`` is open."""
    files = (file for each in folders for file in load_corpus_manifest(each).splits["train"])
    total = sum(file.bytes for file in files)
    with progress("reading the corpus", total, BYTES) as advance, metered(total, advance):
        yield from passages
    shown.enter_context(progress("training the tokenizer"))


def sample_passages(texts: Iterable[str], *, total_bytes: int, max_bytes: int) -> Iterator[str]:
    """Passages of whole lines, taken evenly over the texts until they make ``max_bytes`` of UTF-8.

    Passage i is taken where floor((i + 1) r) > floor(i r), r the part that fits: as even as can be.
    """
    rate = min(1.0, max_bytes / max(total_bytes, 1))
    taken_bytes = 0
    number = 0
    for text in texts:
        for passage in _passages(text):
            number += 1
            if int(number * rate) == int((number - 1) * rate):
                continue
            taken_bytes += len(passage.encode())
            if taken_bytes > max_bytes:
                return
            yield passage


def _passages(text: str) -> Iterator[str]:
    """Cut a text after lines, or where a line is too long for one passage, anywhere."""
    lines: list[str] = []
    passage_bytes = 0
    chars = PASSAGE_BYTES // 4  # of at most 4 bytes
    for line in text.split("\n"):
        pieces = [line[at : at + chars] for at in range(0, len(line), chars)]
        for number, piece in enumerate(pieces or [""]):
            size = len(piece.encode()) + 1
            if lines and (passage_bytes + size > PASSAGE_BYTES or number):
                yield "\n".join(lines)
                lines, passage_bytes = [], 0
            lines.append(piece)
            passage_bytes += size
    if any(lines):
        yield "\n".join(lines)


def train_model(passages: Iterable[str], config: TokenizerConfig) -> bytes:
    """A SentencePiece model. Raises ``DataError`` saying which vocabulary size would fit."""
    import sentencepiece

    model = io.BytesIO()
    failures: list[LmscaleError] = []  # SentencePiece makes a RuntimeError of every error

    def clean() -> Iterator[str]:
        """Without U+2581, which would be learned as a space; codec.py writes it as bytes."""
        try:
            for passage in passages:
                yield passage.replace(SPACE_MARK, "").replace(_UNKNOWN_MARK, "")
        except LmscaleError as error:
            failures.append(error)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=clean(),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            character_coverage=config.character_coverage,
            required_chars=SPACE_MARK,  # else of text without a space U+2581 itself becomes bytes
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=config.split_digits,
            max_sentence_length=2 * PASSAGE_BYTES,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            num_threads=TRAINER_THREADS,
            minloglevel=3,
            control_symbols=list(config.all_special_tokens),  # of which it learns none as text
            **SPECIAL_IDS,
        )
    except RuntimeError as error:
        raise (failures or [_explained(str(error), config)])[0] from None
    return model.getvalue()


def _explained(message: str, config: TokenizerConfig) -> DataError:
    """SentencePiece's C++ check failures, in the words of the configuration."""
    setting = f"tokenizer.vocab_size = {config.vocab_size:,}"
    if match := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        fits = int(match[1])
        smaller = f"Set tokenizer.vocab_size to {fits:,} or less, or train"
        what_to_do = smaller if fits >= MIN_VOCABULARY else "Train"
        return DataError(
            f"{setting} is more than the corpus can fill: at most {fits:,} pieces fit. "
            f"{what_to_do} on more text."
        )
    if match := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        least = int(match[1])
        return DataError(
            f"{setting} is too small: the corpus's characters, 256 bytes and special ids alone "
            f"need {least:,}. Set tokenizer.vocab_size to more than {least:,}, or lower "
            f"tokenizer.character_coverage = {config.character_coverage}."
        )
    if "!sentences_.empty()" in message:
        return DataError("The corpus holds no text to train a tokenizer on.")
    return DataError(f"SentencePiece could not train the tokenizer: {message}.")


def _made_by(config: TokenizerConfig, corpus: Path, sources: Sequence[str]) -> dict[str, Any]:
    """Settings and a hash of the text, which together decide the tokenizer."""
    content = hashlib.sha256()
    for source in sources:
        manifest = load_corpus_manifest(corpus / source)
        files = [[file.bytes, file.xxh128] for file in manifest.splits["train"]]
        content.update(json.dumps([source, files]).encode())
    return {**_settings(config, sources), "corpus": content.hexdigest()}


def _settings(config: TokenizerConfig, sources: Sequence[str]) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude={"folder", "ids"})
    for key in ("special_tokens", "reserved_tokens"):
        if not settings[key]:  # as in the tokenizers that were trained before there were any
            del settings[key]
    return {**settings, "sources": list(sources)}


def _existing(folder: Path, made_by: dict[str, Any]) -> Tokenizer | None:
    if find_meta(folder) is None:
        return None
    old = load_tokenizer(folder)
    if old.made_by == made_by:
        return old
    if "imported_from" in old.made_by:
        raise DataError(
            f"{folder} holds an imported tokenizer ({old.made_by['imported_from']}). Shards and "
            "models made with it need it: name another tokenizer.folder, or replace it by --force."
        )
    keys = {*made_by, *old.made_by}
    changed = sorted(key for key in keys if old.made_by.get(key) != made_by.get(key))
    raise DataError(
        f"{folder} holds a tokenizer trained otherwise (other {', '.join(changed)}). Shards and "
        "models made with it need it: name another tokenizer.folder, or replace it with --force."
    )
