from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lmscale.config.training import WatchConfig
from lmscale.watch.heartbeat import Beat
from lmscale.watch.standstill import (
    Member,
    Pace,
    Sighting,
    find_stragglers,
    judge_heartbeats,
    judge_pace,
    limits,
)

WATCH = WatchConfig()  # told after 60 s, ended after 600 s
INTERVAL = 5.0
NOW = 10_000.0


def sighting(
    rank=0, *, host="n1", phase="agree", step=812, place=7, ticks=0, still=61.0, silent=0.0, **more
):
    """A rank that last moved ``still`` seconds before it was last heard, ``silent`` seconds ago."""
    beat = Beat(
        rank=rank,
        world_size=4,
        host=host,
        pid=100 + rank,
        attempt="local",
        beat=9,
        step=step,
        phase=phase,
        place=place,
        ticks=ticks,
        phase_seconds=still,
        still_seconds=still,
        is_starting=more.pop("is_starting", False),
        forward_seconds=None,
        time=more.pop("time", 0.0),
    )
    member = Member(rank=rank, host=host, pid=100 + rank, is_first_on_node=rank % 2 == 0)
    return Sighting(member=member, beat=beat, changed_at=NOW - silent)


def unseen(rank, *, host="n1", seconds):
    member = Member(rank=rank, host=host, pid=100 + rank, is_first_on_node=False)
    return Sighting(member=member, beat=None, changed_at=NOW - seconds)


def judge(*sightings, watch=WATCH):
    return judge_heartbeats(sightings, watch, now=NOW, interval=INTERVAL)


def test_the_rank_that_is_behind_is_named_with_its_host_its_phase_and_where_the_others_wait():
    late = sighting(3, host="n2", phase="data", place=6, still=61.2)
    hang = judge(sighting(0), sighting(1), sighting(2, host="n2", still=60.5), late)
    assert hang.text == "rank 3 on n2 in data for 61 s, the others wait in agree of step 812"
    assert (hang.ranks, hang.silent, hang.phase, hang.step) == ((3,), (), "data", 812)
    assert hang.seconds == 60.5
    assert not hang.is_over_limit


def test_a_silent_rank_is_to_blame_wherever_it_was():
    stopped = sighting(1, phase="evaluate", place=9, still=0.4, silent=75)
    hang = judge(sighting(0), stopped, sighting(2, phase="data", place=6, still=70))
    assert hang.text == (
        "rank 1 on n1 silent for 75 s, last in evaluate, the others wait in agree of step 812 (1) "
        "and data of step 812 (1)"
    )
    assert hang.silent == hang.ranks == (1,)


def test_ranks_that_all_stand_at_the_same_place_are_named_together():
    hang = judge(*(sighting(rank, phase="step", place=5, still=70) for rank in range(4)))
    assert hang.text == "all 4 ranks in step of step 812 for 70 s"
    assert hang.ranks == (0, 1, 2, 3)


def test_a_rank_alone_is_named_with_its_step():
    assert judge(sighting(phase="data")).text == "rank 0 on n1 in data of step 812 for 61 s"


def test_a_rank_that_is_a_step_behind_says_which():
    hang = judge(sighting(0, phase="save", step=811, place=8), sighting(1), sighting(2))
    assert hang.text == (
        "rank 0 on n1 in save of step 811 for 61 s, the others wait in agree of step 812"
    )


def test_several_ranks_behind_are_named_together():
    late = [sighting(rank, host=f"n{rank}", phase="data", place=6) for rank in (1, 2, 3)]
    hang = judge(sighting(0), *late)
    assert hang.text.startswith("ranks 1-3 on n1, n2, n3 in data for 61 s, the others wait")


def test_within_a_phase_the_ticks_tell_who_is_behind():
    batches = [sighting(rank, phase="evaluate", ticks=ticks) for rank, ticks in enumerate((8, 5))]
    assert judge(*batches).ranks == (1,)


def test_a_rank_without_a_heartbeat_is_named_once_a_start_takes_too_long():
    up = sighting(0, phase="start", step=0, place=0, still=400, is_starting=True)
    assert judge(up, unseen(1, host="n2", seconds=350)) is None
    hang = judge(up, unseen(1, host="n2", seconds=365))
    assert hang.text == "rank 1 on n2 silent for 365 s, last in start, the others wait in start"


def test_a_rank_that_has_ended_holds_nobody_up_and_is_not_silent():
    ended = sighting(1, phase="end", place=9, silent=500)
    assert judge(sighting(0, phase="save"), ended).ranks == (0,)
    assert judge(ended) is None


def test_a_start_may_take_longer_and_its_report_comes_later_in_proportion():
    assert limits(WATCH, is_starting=False, interval=5) == (60, 600)
    assert limits(WATCH, is_starting=True, interval=5) == (360, 3600)
    starting = [sighting(rank, phase="start", step=0, is_starting=rank == 1) for rank in range(2)]
    assert judge(*(replace(s, beat=replace(s.beat, still_seconds=359)) for s in starting)) is None
    assert judge(*(replace(s, beat=replace(s.beat, still_seconds=361)) for s in starting))


def test_zero_switches_report_limit_and_start_off():
    still = [sighting(rank, still=1e6) for rank in range(2)]
    no_report = WatchConfig(report_seconds=0)
    assert judge(sighting(still=599), watch=no_report) is None
    assert judge(*still, watch=no_report).is_over_limit
    assert not judge(*still, watch=WatchConfig(limit_seconds=0)).is_over_limit
    assert judge(*still, watch=WatchConfig(report_seconds=0, limit_seconds=0)) is None
    starting = [sighting(still=1e6, is_starting=True)]
    assert judge(*starting, watch=WatchConfig(start_limit_seconds=0)) is None
    endless = limits(WatchConfig(limit_seconds=0), is_starting=True, interval=5)
    assert endless == (60, float("inf"))


def test_beats_that_come_rarely_because_the_run_is_large_are_waited_for():
    assert limits(WATCH, is_starting=False, interval=40) == (120, 600)


ranks = st.lists(
    st.builds(
        dict,
        step=st.integers(1, 3),
        place=st.integers(0, 3),
        ticks=st.integers(0, 2),
        phase=st.sampled_from(["data", "forward", "backward", "step", "agree", "save", "evaluate"]),
        still=st.floats(60, 700),
        time=st.floats(-1e9, 1e9),
    ),
    min_size=1,
    max_size=6,
)


def sightings_of(rows):
    return [sighting(rank, **row) for rank, row in enumerate(rows)]


@given(ranks, st.data())
def test_one_rank_that_moves_is_enough_for_the_run_to_move(rows, data):
    mover = data.draw(st.integers(0, len(rows) - 1))
    rows[mover]["still"] = data.draw(st.floats(0, 59.9))
    assert judge(*sightings_of(rows)) is None


@given(ranks)
def test_the_ranks_behind_all_others_are_to_blame_and_nobody_else(rows):
    hang = judge(*sightings_of(rows))
    places = [(row["step"], row["place"], row["ticks"]) for row in rows]
    assert hang.ranks == tuple(r for r, place in enumerate(places) if place == min(places))
    assert hang.is_over_limit == (min(row["still"] for row in rows) >= 600)


@given(ranks, st.data())
def test_silent_ranks_are_to_blame_whatever_the_others_do_and_whatever_their_clocks_say(rows, data):
    silent = data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))
    seen = sightings_of([row | {"silent": 70.0 * (r in silent)} for r, row in enumerate(rows)])
    hang = judge(*seen)
    assert hang.ranks == hang.silent == tuple(sorted(silent))
    other_clocks = [replace(s, beat=replace(s.beat, time=s.member.rank * 1e6)) for s in seen]
    assert judge(*other_clocks) == hang


@given(ranks, st.data())
def test_the_order_in_which_the_ranks_are_read_does_not_matter(rows, data):
    seen = sightings_of(rows)
    shuffled = judge(*data.draw(st.permutations(seen)))
    assert set(shuffled.ranks) == set(judge(*seen).ranks)
    assert shuffled.seconds == judge(*seen).seconds


def test_the_slowest_rank_is_compared_with_the_median_one():
    paces = judge_pace({0: 0.2, 1: 0.21, 2: 0.4, 3: 0.2})
    assert paces[0] == Pace(rank=2, seconds=0.4, median_seconds=0.2)
    assert paces[0].ratio == 2.0
    assert judge_pace({0: 0.125, 1: 0.375})[0].ratio == 3.0  # of two, the other one
    assert judge_pace({0: 0.3}) == []


def test_a_straggler_is_named_until_it_has_come_half_way_back():
    for seconds, before, after in (
        (0.29, set(), set()),
        (0.31, set(), {1}),
        (0.26, {1}, {1}),
        (0.24, {1}, set()),
    ):
        paces = judge_pace({0: 0.2, 1: seconds, 2: 0.2})
        assert find_stragglers(paces, before, 1.5) == after


def test_milliseconds_make_no_straggler():
    assert find_stragglers(judge_pace({0: 0.002, 1: 0.010, 2: 0.002}), set(), 1.5) == set()


@given(st.dictionaries(st.integers(0, 9), st.floats(1e-3, 10), min_size=2), st.floats(1.01, 4))
def test_half_of_the_ranks_at_most_are_stragglers_and_a_steady_pace_names_nobody_anew(own, ratio):
    paces = judge_pace(own)
    slow = find_stragglers(paces, set(), ratio)
    assert len(slow) <= len(own) / 2
    assert slow <= find_stragglers(paces, slow, ratio)
