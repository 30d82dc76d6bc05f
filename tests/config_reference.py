"""The tables of docs/configuration.md, rendered from the configuration's own declarations, and that
of docs/beginnings.md, from the rules of what a run may begin with.

    python tests/config_reference.py     rewrites them in place

``tests/test_docs.py`` fails when they are not what the code says.
"""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import lmscale
from lmscale.config import RunConfig
from lmscale.config.kinds import Kinds
from lmscale.runs.continuation import CHANGES
from lmscale.runs.taken_over import RULES

PAGE = Path(lmscale.__file__).parents[1] / "docs" / "configuration.md"
RULES_PAGE = PAGE.with_name("beginnings.md")
RULES_BEGIN = "<!-- The table is written by tests/config_reference.py. -->"
RULES_END = "<!-- The table ends here. -->"
BEGIN = "<!-- The rest of this page is written by tests/config_reference.py. -->"


def render_reference() -> str:
    """One table a section, in the order of the YAML."""
    return "\n".join(_render_section(name, field) for name, field in RunConfig.model_fields.items())


def replace_reference(page: str) -> str:
    """``page`` with its tables rendered anew."""
    return f"{page.partition(BEGIN)[0]}{BEGIN}\n\n{render_reference()}"


def _render_section(name: str, field: FieldInfo) -> str:
    kinds = next((found for found in field.metadata if isinstance(found, Kinds)), None)
    sections = kinds.own.values() if kinds else [_section_in(field.annotation)]
    lines = [f"## {name}", ""]
    for section in sections:
        assert section is not None, f"{name} is not a section"
        lines += [_one_line(section.__doc__), ""]
        lines += ["| key | default | on resume | |", "|---|---|---|---|"]
        lines += [*_render_rows(section, f"{name}."), ""]
    return "\n".join(lines)


def _render_rows(section: type[BaseModel], prefix: str) -> list[str]:
    rows: list[str] = []
    for name, field in section.model_fields.items():
        inner = _section_in(field.annotation)
        if inner is not None:
            is_mapping = typing.get_origin(field.annotation) is dict
            rows += _render_rows(inner, f"{prefix}{name}.{'NAME.' if is_mapping else ''}")
            continue
        meaning = " ".join(filter(None, [_render_choices(field.annotation), field.description]))
        change = CHANGES[f"{prefix}{name}"].value
        cells = (f"`{prefix}{name}`", _render_default(field), change, _one_line(meaning))
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) is dict:
        return _section_in(typing.get_args(annotation)[-1])
    return None


def _render_choices(annotation: Any) -> str:
    if typing.get_origin(annotation) is not typing.Literal:
        return ""
    return (
        ", ".join(
            f"`{choice}`" if choice != "" else '`""`' for choice in typing.get_args(annotation)
        )
        + "."
    )


def _render_default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined and field.default_factory is None:
        return "required"
    default = field.get_default(call_default_factory=True)
    if default == "":
        return ""
    text = json.dumps(default, ensure_ascii=False)
    if isinstance(default, int) and not isinstance(default, bool) and default >= 10_000:
        text = f"{default:_}"  # YAML reads 10_000 as a number, so it may be copied as it is
    return f"`{text}`" if not isinstance(default, str) else f"`{default}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("``", "`")


def replace_rules(page: str) -> str:
    """``page`` with the table of what may differ rendered anew."""
    before, _, rest = page.partition(RULES_BEGIN)
    rows = [
        f"| {', '.join(f'`{key}`' for key in rule.keys)} | {rule.taking.value} | {rule.how} |"
        for rule in RULES
    ]
    table = "\n".join(["| key | | |", "|---|---|---|", *rows])
    return f"{before}{RULES_BEGIN}\n\n{table}\n\n{RULES_END}{rest.partition(RULES_END)[2]}"


if __name__ == "__main__":
    RULES_PAGE.write_text(replace_rules(RULES_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    PAGE.write_text(replace_reference(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
