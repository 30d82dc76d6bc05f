"""What a run keeps of every element beside the optimizer's states is in its checkpoints.

The average of the weights that an evaluation may want, say: large, and dealt out as the masters
are.
"""

from pathlib import Path

import pytest
import torch
from forked_ranks import run_on_ranks
from plain_save import save_checkpoint
from toy_engine import Setup, build, content_of, take_step

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.load import load_checkpoint
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.engine.masters import master_groups
from lmscale.errors import CheckpointError

pytestmark = pytest.mark.ranks


def averaging(engine):
    """An average of the weights over the steps; the function takes a step's into it."""
    average = {master: master.detach().clone() for master, _ in master_groups(engine)}
    engine.kept_elements["average"] = average

    @torch.no_grad()
    def update():
        for master, mean in average.items():
            mean.lerp_(master, 0.25)

    return update


def save_on_two(ranks):
    engine = build(Setup(world_size=2, stage=1), seed=1)
    update = averaging(engine)
    for step in (1, 2):
        take_step(engine, step)
        update()
    save_checkpoint(LocalPlace(Path("checkpoints")), engine, step=2, identity={}, ranks=ranks)
    return content_of(engine)


def load_on_one(ranks):
    place = LocalPlace(Path("checkpoints"))
    manifest = load_manifest(place, 2)
    engine = build(Setup(world_size=1, stage=3), seed=2)
    averaging(engine)
    load_checkpoint(place, manifest, engine)
    loaded = content_of(engine)
    without = build(Setup(world_size=1, stage=3), seed=2)
    load_checkpoint(place, manifest, without)  # which keeps none, and needs none
    other = build(Setup(world_size=1, stage=3), seed=2)
    averaging(other)
    other.kept_elements["variance"] = other.kept_elements["average"]
    try:
        load_checkpoint(place, manifest, other)
    except CheckpointError as error:
        refused = str(error)
    other.kept_elements["master"] = other.kept_elements.pop("average")
    with pytest.raises(AssertionError, match="master is stored already"):
        load_checkpoint(place, manifest, other)
    return {"loaded": loaded, "without": content_of(without), "refused": refused}


def test_an_average_of_the_weights_goes_on_at_another_stage_and_world_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved, of_the_other = run_on_ranks(save_on_two, 2, tmp_path)
    (one,) = run_on_ranks(load_on_one, 1, tmp_path)
    assert saved == of_the_other == one["loaded"]
    assert saved["average"] not in (saved["master"], 0)
    assert one["without"] == {k: v for k, v in saved.items() if k != "average"}
    assert "has no variance of" in one["refused"]
    assert "a folder of its own" in one["refused"]
    assert "engine.optimizer" not in one["refused"]
