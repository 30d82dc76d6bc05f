"""A run's chat template in the hands of other programs: the same text, and so the same ids."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lmscale.errors import DataError
from lmscale.evaluation.found import FoundRun
from lmscale.exchange.tokenizer_check import load_theirs
from lmscale.tokenizer.chat_template import PROBE, ChatTemplate
from lmscale.tokenizer.kept_template import load_kept_template

_TURNS = (*PROBE, {"role": "user", "content": "c, 你好\n"}, {"role": "assistant", "content": "d."})


def load_run_template(found: FoundRun) -> ChatTemplate | None:
    """The one that a run keeps. None: none, or one that came in and fails in lmscale, which
    ``load_kept_template`` still has for others.
    """
    text = load_kept_template(found.folder)
    if not text:
        return None
    if found.config.window.has_turns:
        return ChatTemplate(text, found.tokenizer)
    with suppress(DataError):
        return ChatTemplate(text, found.tokenizer)
    return None


def verify_template(template: ChatTemplate, folder: Path) -> None:
    """Raise ``DataError`` where what transformers makes of a dialogue by the files in ``folder`` is
    not what the run was trained on.
    """
    theirs = load_theirs(folder)
    for messages, adds_prompt in ((_TURNS, False), (_TURNS[:-1], True)):
        ours = template.encode_prompt(messages) if adds_prompt else template.encode(messages).ids
        given = theirs.apply_chat_template(
            list(messages), add_generation_prompt=adds_prompt, tokenize=True
        )["input_ids"]
        if given != ours.tolist():
            raise DataError(
                f"By the exported chat template transformers makes {given} of a dialogue, and the "
                f"run was trained on {ours.tolist()}. Let the template put white space around "
                "messages by special tokens, not by text (tokenizer.chat_template)."
            )
