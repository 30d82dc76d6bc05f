"""The loop and what surrounds it: assembling a run, the step reports, the hooks, the guard."""

from lmscale.engine.step_report import StepReport
from lmscale.guard.guard import Guard
from lmscale.train.assemble import Run, build_run_engine, open_run
from lmscale.train.folder import claim_folder
from lmscale.train.loop import train_steps
from lmscale.train.progress import Progress

__all__ = [
    "Guard",
    "Progress",
    "Run",
    "StepReport",
    "build_run_engine",
    "claim_folder",
    "open_run",
    "train_steps",
]
