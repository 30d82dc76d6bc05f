"""``DISK``: saves of one rank to a node's disk that takes the first, but neither of the next two.

Prints what each has ended with, and what is on the disk then, before anybody has waited for it.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from handmade_checkpoints import manifest_of, parts_of_rank

from lmscale.checkpoint.manifest import MASTER
from lmscale.checkpoint.places.local_tier import LocalTier, NodePlace
from lmscale.checkpoint.snapshot import Copy
from lmscale.checkpoint.write_file import Part
from lmscale.checkpoint.writer import CheckpointWriter
from lmscale.errors import LmscaleError
from lmscale.ranks.mailbox import open_mailbox
from lmscale.ranks.ranks import Ranks
from lmscale.runs.lease import NO_LEASE

disk = Path(sys.argv[1])
place, ranks = NodePlace(disk / "run"), Ranks()
tier = LocalTier(place, ranks, every_minutes=1.0)
writer = CheckpointWriter(ranks, open_mailbox(ranks), lease=NO_LEASE, retries=0)
large = Part(parameter="w", kind=MASTER, offset=0, tensor=torch.zeros(250_000))
saw = []
for step, parts, more in (
    (2, parts_of_rank(2, 0, 1), {}),
    (4, [large], {}),
    (6, parts_of_rank(6, 0, 1), {"state": {"long": "x" * 1_000_000}}),  # the manifest
):
    draft = manifest_of(step, [], **more)
    copy = Copy(parts=parts, ready=lambda: None)
    job = writer.start(step=step, tier=tier, copy=copy, draft=draft)
    assert job.done.wait(60)
    folders = sorted(path.name for path in place.root.iterdir())
    free = shutil.disk_usage(disk).free
    try:
        ended = writer.wait(job).step
    except LmscaleError as error:
        ended = [type(error).__name__, *error.problems]
    saw.append({"ended": ended, "folders": folders, "free": free})
writer.close()
print(json.dumps(saw))
