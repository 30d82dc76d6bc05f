"""How a word that is no command is answered."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from typer.core import TyperGroup


class HintingGroup(TyperGroup):
    """Answers a word that is no command of its own with commands of that name in other groups."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word = args[0]
        if not (word.startswith("-") or get_close_matches(word, self.commands)):
            paths = list(_list_commands(ctx.find_root().command, "lmscale"))
            names = {path.rpartition(" ")[2] for path in paths}
            near = get_close_matches(word, names, cutoff=0.8)
            if meant := [repr(path) for path in paths if path.rpartition(" ")[2] in near[:1]]:
                ctx.fail(f"No such command {word!r}. Did you mean {' or '.join(meant)}?")
        return super().resolve_command(ctx, args)


def _list_commands(group: Any, path: str) -> Iterator[str]:
    """The words of every command below, those of groups as well."""
    for name, command in getattr(group, "commands", {}).items():
        yield f"{path} {name}"
        yield from _list_commands(command, f"{path} {name}")
