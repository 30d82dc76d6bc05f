"""Chat templates that have a name, and where any other one is found: in a file."""

from __future__ import annotations

import difflib
from pathlib import Path

from lmscale.errors import ConfigError
from lmscale.files.reading import read_plain, reading

MAX_CHARS = 2**16  # of a template; the longest of those that are published have a quarter of it

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_PLAIN = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
NAMED = {"chatml": _CHATML, "llama3": _LLAMA3, "plain": _PLAIN}
"""``chatml``: OpenAI's, as Qwen has it; ``llama3``: as Llama 3 has it, without a date; ``plain``
needs no special token but eos.
"""


def load_template(wanted: str, *, setting: str) -> str:
    """The text of a named template, or of a file; ``setting`` is where that was asked for.

    Raises ``ConfigError`` for a word that is neither, and ``DataError`` for an unreadable file.
    """
    if wanted in NAMED:
        return NAMED[wanted]
    path = Path(wanted)
    if not path.is_file():
        near = difflib.get_close_matches(wanted, NAMED, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"{setting} = {wanted}: there is neither such a file nor a chat template of this "
            f"name.{hint} Known: {', '.join(NAMED)}."
        )
    return read_template(path)


def read_template(path: Path) -> str:
    """That of a file. Raises ``DataError`` where it cannot be read, or is none."""
    with reading(path, "Restore it, or name another chat template."):
        text = read_plain(path).decode("utf-8")
        if not text.strip():
            raise ValueError("it is empty")
        if len(text) > MAX_CHARS:
            raise ValueError(
                f"it has {len(text):,} characters; a template has {MAX_CHARS:,} at most"
            )
    return text
