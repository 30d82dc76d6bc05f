"""What follows a step does so in one order, whatever hooks a rank has."""

import pytest

from lmscale.train.after_step import ORDER, in_order


def test_a_step_is_recorded_and_judged_before_it_is_saved_and_scored_last():
    calls = []
    hooks = {name: lambda report, name=name: calls.append(name) for name in reversed(ORDER)}
    for hook in in_order(hooks):
        hook(None)
    assert calls == ["count", "record", "show", "progress", "judge", "compare", "save", "score"]


def test_a_rank_without_rank_0s_hooks_keeps_the_order_of_the_others():
    hooks = {name: name for name in ("score", "count", "save", "judge")}
    assert in_order(hooks) == ("count", "judge", "save", "score")


def test_a_hook_without_a_place_in_the_order_is_refused():
    with pytest.raises(AssertionError, match="without a place in ORDER: dance"):
        in_order({"count": print, "dance": print})
