"""What the GPU checks leave behind: one JSON line a check, and a table of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

ROWS = "checks.jsonl"
TABLE = "gpu-checks.md"

# running: written before a check begins, so that one that takes its process down is known.
Status = Literal["running", "passed", "failed", "not run"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One check of one part."""

    part: str
    check: str
    status: Status
    seconds: float = 0.0
    detail: str = ""


def append_row(folder: Path, row: Row) -> None:
    with open(folder / ROWS, "a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def read_rows(folder: Path) -> list[Row]:
    """The newest row of every check, in the order in which the checks began."""
    path = folder / ROWS
    if not path.exists():
        return []
    newest: dict[tuple[str, str], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = Row(**json.loads(line))
        newest[row.part, row.check] = row
    return list(newest.values())


def is_good(rows: Sequence[Row]) -> bool:
    return all(row.status in ("passed", "not run") for row in rows)


def render_markdown(rows: Sequence[Row], *, title: str, facts: Sequence[str]) -> str:
    """The table as a page of its own."""
    counts = {
        status: sum(row.status == status for row in rows)
        for status in ("passed", "failed", "not run")
    }
    summary = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [f"## {title}", "", *(f"{fact}  " for fact in facts), f"{summary}.", ""]
    lines += ["| part | check | result | s | what was seen |", "|---|---|---|---:|---|"]
    for row in rows:
        detail = row.detail.replace("|", "\\|").replace("\n", "<br>")
        status = row.status if row.status != "failed" else "**failed**"
        lines.append(f"| {row.part} | {row.check} | {status} | {row.seconds:.1f} | {detail} |")
    return "\n".join([*lines, ""])


def render_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    width = max((len(row.check) for row in rows), default=0)
    lines = []
    part = ""
    for row in rows:
        if row.part != part:
            part = row.part
            lines.append(f"-- {part}")
        first, *others = row.detail.splitlines() or [""]
        lines.append(f"{row.status:8} {row.check:{width}} {row.seconds:6.1f} s  {first}")
        lines += [f"{'':{8 + width + 12}}{other}" for other in others]
    return "\n".join(lines)
