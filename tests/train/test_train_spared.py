"""What retention keeps beside its rule: the same for the run itself and for who looks at it."""

import pytest

from lmscale.config import RunConfig
from lmscale.train.history import History
from lmscale.train.rewinds import Rewind
from lmscale.train.spared import plan_spared, plan_spared_of

STEPS = (1200, 1150, 1100, 1050, 900, 100)


def config_of(**sections) -> RunConfig:
    tree = {
        "run": {"name": "test"},
        "train": {"steps": 5000},
        "engine": {"zero_stage": 0},
        "guard": {"compare_every_steps": 500, "jump_steps": 16},
    }
    return RunConfig.model_validate({**tree, **sections})


def started(first_step, *, world_size=2, time=1.0):
    return {"event": "start", "first_step": first_step, "world_size": world_size, "time": time}


def rewound(to_step, *, time) -> Rewind:
    values = {"number": 1, "at_step": 1170, "to_step": to_step, "to_n": 0, "jump_from_n": 0}
    return Rewind(**values, jump_samples=1, why="a test", time=time)


def test_a_rewinds_target_and_its_successor_are_spared_and_one_from_before_the_comparison():
    spare = plan_spared(config_of(), world_size=2, first_step=0)
    assert spare(STEPS, 1200) == {"rewind": (1050, 1100), "untainted": (900,)}


def test_one_rank_alone_compares_nothing_and_a_guard_that_stops_goes_back_to_nothing():
    spare = plan_spared(config_of(guard={"on_divergence": "stop"}), world_size=1, first_step=0)
    assert spare(STEPS, 1200) == {"rewind": (), "untainted": ()}


def test_nothing_is_spared_for_a_rewind_that_the_guard_may_not_make_any_more():
    config = config_of(guard={"max_rewinds": 2})
    for num_rewinds, is_spared in ((0, True), (1, True), (2, False), (3, False)):
        spare = plan_spared(config, world_size=1, first_step=0, num_rewinds=num_rewinds)
        assert bool(spare(STEPS, 1200)["rewind"]) == is_spared
        history = History(rewinds=(rewound(1050, time=0.5),) * num_rewinds)
        assert bool(plan_spared_of(config, history)(STEPS, 1200)["rewind"]) == is_spared


@pytest.mark.parametrize(("newest", "is_spared"), [(4999, True), (5000, False), (5001, False)])
def test_once_all_steps_are_done_nothing_is_spared(newest, is_spared):
    spare = plan_spared(config_of(), world_size=2, first_step=0)
    assert any(spare(STEPS, newest).values()) == is_spared


def test_who_looks_from_outside_takes_what_the_last_attempt_had():
    def untainted(**history):
        return plan_spared_of(config_of(), History(**history))(STEPS, 1200)["untainted"]

    assert untainted() == ()  # as of one rank: nobody knows of any attempt
    assert untainted(starts=(started(0),)) == (900,)
    assert untainted(starts=(started(0), started(1100))) == (1100,)
    # Rewound since, to before where it began; or before that.
    assert untainted(starts=(started(1100),), rewinds=(rewound(1050, time=2.0),)) == (1050,)
    assert untainted(starts=(started(1100),), rewinds=(rewound(1050, time=0.5),)) == (1100,)
    assert untainted(starts=(started(0), started(0, world_size=1))) == ()
