"""What editors and type checkers see: the names come when they are asked for (__init__.py)."""

from lmscale.api import *  # noqa: F403

__version__: str
