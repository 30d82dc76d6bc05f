"""Dialogues of the corpus → token ids, by the chat template that a dataset keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.chat_templates import NAMED, load_template
from lmscale.errors import ConfigError, DataError
from lmscale.shards.manifest import Manifest
from lmscale.shards.members import REPLIES
from lmscale.shards.writer import TokenizedDocument
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.chat_template import ChatTemplate, with_bos
from lmscale.tokenizer.kept_template import find_template


def load_chat_template(config: RunConfig, tokenizer: Tokenizer) -> ChatTemplate:
    """That of ``tokenizer.chat_template``, else of the tokenizer's folder, with bos in front where
    documents have it. Raises ``ConfigError`` where there is none, or one that does not fit.
    """
    name, folder = config.tokenizer.chat_template, Path(config.tokenizer.folder)
    if name:
        text = load_template(name, setting="tokenizer.chat_template")
    elif not (text := find_template(folder)):
        raise ConfigError(
            "corpus.sources has dialogues (messages_field), and how they are written is not said: "
            f"set tokenizer.chat_template to {', '.join(NAMED)} or a file."
        )
    template = ChatTemplate(text, tokenizer)
    if config.shards.bos:
        return with_bos(template)
    if template.begins_with_bos:
        raise ConfigError(
            "shards.bos = false, but the chat template begins with bos_token. Set shards.bos to "
            "true, or take bos_token out of the template."
        )
    return template


def tokenize_dialogues(
    documents: Iterable[tuple[int, dict[str, Any]]], dataset: Manifest, tokenizer: Tokenizer
) -> Iterator[TokenizedDocument]:
    """Dialogues as the chat template writes them, ended by eos where it does not do so itself."""
    template = ChatTemplate(dataset.chat_template, tokenizer)
    for offset, document in documents:
        text, messages, begin = document["text"], [], 0
        for role, num_chars in zip(document["roles"], document["parts"], strict=True):
            messages.append({"role": role, "content": text[begin : begin + num_chars]})
            begin += num_chars
        try:
            ids, is_reply = template.encode(messages)
        except DataError as error:
            raise DataError(f"{document.get('id')}: {error.problems[0]}") from None
        ends = [] if ids[-1] == dataset.eos_id else [dataset.eos_id]
        yield TokenizedDocument(
            ids=np.concatenate([ids, np.array(ends, dtype=dataset.dtype)]),
            text_bytes=len(text.encode()),
            offset=offset,
            members={REPLIES: np.append(is_reply, [False] * len(ends))},
        )
