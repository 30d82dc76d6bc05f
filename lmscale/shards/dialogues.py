"""Dialogues of the corpus → token ids, by the chat template that a dataset keeps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.config.chat_templates import NAMED, load_template
from lmscale.config.data import TokenizerConfig
from lmscale.errors import ConfigError, DataError
from lmscale.shards.manifest import Manifest
from lmscale.shards.members import REPLIES
from lmscale.shards.writer import TokenizedDocument
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.chat_template import ChatTemplate, Encoded, Messages, with_bos
from lmscale.tokenizer.kept_template import find_template


def load_chat_template(config: TokenizerConfig, tokenizer: Tokenizer, *, bos: bool) -> ChatTemplate:
    """That of ``tokenizer.chat_template``, else of the tokenizer's folder, with bos in front where
    documents have it. Raises ``ConfigError`` where there is none, or one that does not fit.
    """
    name, folder = config.chat_template, Path(config.folder)
    if name:
        text = load_template(name, setting="tokenizer.chat_template")
    elif not (text := find_template(folder)):
        raise ConfigError(
            "corpus.sources has dialogues, and how they are written is not said: "
            f"set tokenizer.chat_template to {', '.join(NAMED)} or a file."
        )
    template = ChatTemplate(text, tokenizer)
    if bos:
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
            ids, is_reply = encode_dialogue(messages, template)
        except DataError as error:
            raise DataError(f"{document.get('id')}: {error.problems[0]}") from None
        yield TokenizedDocument(
            ids=ids,
            text_bytes=len(text.encode()),
            offset=offset,
            members={REPLIES: is_reply},
        )


def encode_dialogue(messages: Messages, template: ChatTemplate) -> Encoded:
    """A dialogue as shards hold it. Raises ``DataError`` where the template refuses it, or writes
    no answer.
    """
    ids, is_reply = template.encode(messages)
    if not is_reply.any():
        raise DataError(
            "The chat template writes no answer of this dialogue: nothing stands between its "
            "{% generation %} and {% endgeneration %}."
        )
    if ids[-1] == template.tokenizer.eos_id:
        return Encoded(ids, is_reply)
    eos = np.array([template.tokenizer.eos_id], dtype=ids.dtype)
    return Encoded(np.concatenate([ids, eos]), np.append(is_reply, [False]))
