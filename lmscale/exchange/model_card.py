"""README.md of an export: which model it is, what it has read, how it was verified."""

from __future__ import annotations

from lmscale.exchange.exported import Exported

CARD = "README.md"


def render_card(exported: Exported) -> str:
    """The model card."""
    found = exported.found
    return f"# {found.config.run.name}\n"
