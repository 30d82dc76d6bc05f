"""A job → the text of its batch script, by the templates in ``slurm/``. Pure but for reading them.

The script's sections are numbered, and listed in its head (``add_map``).

Three filters keep values from becoming anything else: ``sh`` quotes for the shell, ``directive``
for an #SBATCH line, which is no shell, ``comment`` for a comment.
"""

from __future__ import annotations

import re
import shlex

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launcher.job import JobKind, SlurmJob
from lmscale.config.assets import find_assets
from lmscale.config.sbatch_options import find_unsafe_text
from lmscale.errors import ClusterError
from lmscale.files.redact import redact

TEMPLATES: dict[JobKind, str] = {
    "train": "train.sbatch.j2",
    "evaluate": "evaluate.sbatch.j2",
    "corpus": "data.sbatch.j2",
    "tokenizer": "data.sbatch.j2",
    "shards": "data.sbatch.j2",
    "preflight": "preflight.sbatch.j2",
}
_MAP_MARK = "# In this order:\n"
_SECTION = re.compile(r"^# ---- (.+?) -{4,}$", re.MULTILINE)
# What sbatch reads as one word without quotes.
_PLAIN = re.compile(r"[A-Za-z0-9@%_+=:,./\[\]&|*!-]+")


def render(job: SlurmJob) -> str:
    """The batch script. Raises ``ClusterError`` for values that no quoting makes harmless."""
    environment = Environment(
        loader=FileSystemLoader(find_assets("slurm")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell, not HTML: see the filters
    )
    environment.filters.update(sh=quote_for_shell, directive=quote_directive, comment=clean_comment)
    return add_map(environment.get_template(TEMPLATES[job.kind]).render(job=job))


def add_map(script: str) -> str:
    """``script`` with its sections (``# ---- NAME ----``) numbered, and a list of them at its head.

    The list stands where the head has a line ``# In this order:``.
    """
    head, mark, body = script.partition(_MAP_MARK)
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        names.append(match[1])
        return f"# ---- {len(names)}. {match[1]} ----"

    body = _SECTION.sub(number, body)
    lines = [f"#   {index}. {name}\n" for index, name in enumerate(names, start=1)]
    return "".join([head, mark, *lines, body])


def quote_for_shell(value: object) -> str:
    """One word of shell that means exactly ``value``, on one line for the script's readers."""
    text = str(value)
    if not text.isprintable():
        raise ClusterError(
            f"{text!r} holds a line break or another control character, which no batch script of "
            "lmscale may; change this name or value."
        )
    return shlex.quote(text)


def quote_directive(directive: str) -> str:
    """``--name=value`` as sbatch reads it from a script: in double quotes where it is not plain.

    sbatch has an escape of its own, but not for every character in every version.
    """
    name, separator, value = directive.partition("=")
    why = find_unsafe_text(directive)
    if why:
        raise ClusterError(f"#SBATCH {name}: {value!r}: {why}; change this name or value.")
    if not separator or _PLAIN.fullmatch(value):
        return directive
    return f'{name}="{value}"'


def clean_comment(value: object) -> str:
    """``value`` on one line, so that the whole value stays a comment."""
    return "".join(c if c.isprintable() else "?" for c in redact(str(value)))
