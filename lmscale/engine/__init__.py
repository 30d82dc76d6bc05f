"""DeepSpeed ZeRO 0 to 3 behind a small surface. One file spells its keys: deepspeed_config.py."""

from lmscale.engine.build import build_engine, check_precision, gathered, parameter_context
from lmscale.engine.deepspeed_config import render_deepspeed_config
from lmscale.engine.engine import Engine, Update
from lmscale.engine.schedule import learning_rate

__all__ = [
    "Engine",
    "Update",
    "build_engine",
    "check_precision",
    "gathered",
    "learning_rate",
    "parameter_context",
    "render_deepspeed_config",
]
