"""DeepSpeed ZeRO 0 to 3 behind a small surface: accumulate a step's gradient, then update.

::

    objective(model) ──build_engine──→ Engine ──accumulate(losses, targets=…)──→ gradient
                                          └─────update(learning_rate=…)──→ gradient's norm

``deepspeed_config.py`` spells DeepSpeed's keys; ``masters.py`` alone knows where each ZeRO stage
keeps fp32 weights; ``optimizer.py`` says which optimizer updates which parameter; ``muon.py`` is
Muon over every stage; ``schedule.py`` the learning rate as a function of the step. The first call
to read is ``Engine.accumulate``. Outside of this folder and
``checkpoint/`` nothing knows DeepSpeed.
"""

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
