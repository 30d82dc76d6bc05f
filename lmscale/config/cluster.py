"""A Slurm cluster as a YAML profile: the settings that all jobs on the cluster share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lmscale.config.assets import find_assets
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.config.load import ConfigLoader, find_lines, parse_yaml, read_text, validate_tree
from lmscale.config.origin import Origin
from lmscale.errors import ConfigError


class _Loader(ConfigLoader):
    """The runs' YAML, without its reading of 12:00:00 as a number of base 60, or of 010 as 8."""


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in ConfigLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBERS[0], re.compile(r"^-?(0|[1-9]\d*)$"), list("-0123456789"))
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(r"^-?\d+(\.\d*([eE][-+]?\d+)?|[eE][-+]?\d+)$"),
    list("-0123456789"),
)


def load_cluster(name_or_path: str | Path) -> ClusterConfig:
    """A profile by its name, or any YAML file by its path. Raises ``ConfigError``."""
    path = find_profile(name_or_path)
    return parse_cluster(read_text(path), name=str(path))


def parse_cluster(text: str, *, name: str = "profile") -> ClusterConfig:
    """A profile from its YAML text; ``name`` stands in the messages."""
    origin = Origin(name, lines=cache(lambda: find_lines(text, _Loader)))
    return validate_tree(ClusterConfig, parse_yaml(text, name, _Loader), name=name, origin=origin)


def change_cluster(
    cluster: ClusterConfig, changes: Mapping[str, Any], *, name: str
) -> ClusterConfig:
    """``cluster`` with some keys changed, and checked again; ``name`` stands in the messages."""
    return validate_tree(ClusterConfig, {**cluster.model_dump(mode="json"), **changes}, name=name)


def find_profile(name_or_path: str | Path) -> Path:
    """Path of a profile. A missing profile's error lists the known ones."""
    text = str(name_or_path)
    if "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(text).expanduser()
        if path.is_file():
            return path
        raise ConfigError(f"{path}: there is no such cluster profile.")
    profiles = known_profiles()
    if text in profiles:
        return profiles[text]
    near = difflib.get_close_matches(text, profiles, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise ConfigError(
        f"--cluster {text}: there is no such profile. {hint}Known: {', '.join(profiles)}. "
        "A profile may also be given by its path; slurm/README.md says how to write one."
    )


def known_profiles() -> dict[str, Path]:
    """Name → file, by name."""
    folder = find_assets("slurm") / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
