"""transformers, which the extra ``hf`` brings, kept quiet and away from the network."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType

from lmscale.errors import ConfigError
from lmscale.files.extras import install_extra


def import_transformers() -> ModuleType:
    """The library. Raises ``ConfigError`` where it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise _lacking(str(error)) from None


def check_transformers() -> None:
    """Raise the error of ``import_transformers`` where it is not there, without loading it."""
    if find_spec("transformers") is None:
        raise _lacking("No module named 'transformers'")


def _lacking(why: str) -> ConfigError:
    return ConfigError(
        f"Models of Hugging Face need the package transformers, which cannot be loaded ({why}). "
        f"Install it: {install_extra('hf')}"
    )


@contextmanager
def quiet(transformers: ModuleType) -> Iterator[None]:
    """Without its bars and advice: what matters of it is told by lmscale."""
    logs = transformers.utils.logging
    level, had_bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if had_bars:
            logs.enable_progress_bar()
