"""The nodes' own disks as a second tier: taken only where every rank finds what it needs there."""

import json
import shutil
from pathlib import Path

import pytest
from forked_ranks import run_starts
from handmade_checkpoints import first, manifest_of, render, save, search, step_taken, write_part
from tiny_run import tiny_config

from lmscale.checkpoint.layout import step_folder
from lmscale.checkpoint.manifest import Manifest, parse_manifest
from lmscale.checkpoint.places.local_tier import LocalTier, NodePlace, open_node_place
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.errors import CheckpointError, ConfigError
from lmscale.history.history import attempt_of, describe_superseded, read_starts
from lmscale.ranks.ranks import Ranks
from lmscale.runs.attempts import AttemptLog

TOPOLOGY = dict(world_size=2, zero_stage=1, precision="fp32")


@pytest.fixture
def node(tmp_path):
    return NodePlace(tmp_path / "node")


def start_attempt(folder, first_step):
    folder.mkdir(exist_ok=True)
    with AttemptLog(folder, first_step=first_step, world_size=2, zero_stage=1):
        pass
    return attempt_of(folder)


def written(step, by) -> Manifest:
    return manifest_of(step, [], written_by=by)


def test_the_newest_of_either_tier_is_taken_and_of_equal_ones_the_nearer(node, tmp_path):
    shared = LocalPlace(tmp_path / "shared")
    save(shared, 4)
    save(node, 6)
    assert first(node, shared).place is node
    save(shared, 8)
    assert first(node, shared).place is shared
    save(node, 8)
    assert first(node, shared).place is node


def test_the_newest_and_the_one_before_are_kept_until_that_is_committed(node):
    for step in (2, 4, 6):
        node.begin(step)
        files = [write_part(node, step, 0, 1)]
        assert node.list_steps() == [old for old in (step - 2,) if old]
        node.commit(step, render(manifest_of(step, files)))
    assert node.list_steps() == [6, 4]
    assert step_taken(node) == 6


def test_a_save_begins_without_harm_to_what_other_ranks_write_already(node):
    save(node, 2)
    save(node, 4)
    entry = write_part(node, 6, 1, 2)
    node.begin(6)
    assert node.list_steps() == [4]
    assert node.describe_damage(6, entry) is None


def test_what_was_undone_goes_first_when_the_same_steps_come_again(node):
    for step in (6, 8, 10):
        save(node, step)
    save(node, 5)  # the guard went back to step 4
    assert node.list_steps() == [5]
    save(node, 6)
    assert node.list_steps() == [6, 5]
    before = node.read_manifest(6)
    save(node, 6, rewinds=1)
    assert node.read_manifest(6) != before
    assert step_taken(node) == 6


def test_torn_saves_are_cleared_away_by_the_next(node):
    save(node, 2)
    node.begin(4)
    write_part(node, 4, 0, 2)
    save(node, 6)
    assert node.list_steps(committed=False) == [] and node.list_steps() == [6, 2]


def test_the_first_rank_of_a_node_commits_for_all_of_it(tmp_path):
    content = render(manifest_of(2, []))
    for local_rank, steps in ((1, []), (0, [2])):
        ranks = Ranks(rank=2, world_size=4, local_rank=local_rank, local_world_size=2)
        tier = LocalTier(NodePlace(tmp_path / "node"), ranks, every_minutes=5.0)
        tier.begin_here(2)
        tier.commit_here(2, content)
        assert tier.place.list_steps() == steps


def test_it_is_due_by_the_clock_since_the_last_save(node, tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("lmscale.checkpoint.places.local_tier.time.monotonic", lambda: now)
    tier = LocalTier(node, Ranks(), every_minutes=2.0)
    now = 119.0
    assert not tier.is_due()
    now = 120.0
    assert tier.is_due()
    tier.restart_clock()
    now = 239.0
    assert not tier.is_due()


def test_a_disk_that_refuses_is_told_by_the_key_that_names_it(tmp_path):
    (tmp_path / "node").touch()
    tier = LocalTier(NodePlace(tmp_path / "node"), Ranks(), every_minutes=1.0)
    with pytest.raises(CheckpointError, match=r"checkpoint.local.folder"):
        tier.commit_here(2, b"{}")


def test_every_run_has_a_folder_of_its_own_on_a_node(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("JOB_DISK", str(tmp_path / "disk"))
    local = {"checkpoint.local.folder": "$JOB_DISK/x"}
    assert open_node_place(tiny_config(tiny_data, tmp_path / "run")) is None
    roots = [
        open_node_place(tiny_config(tiny_data, tmp_path / name, {**local, **more})).root
        for name, more in (("a", {}), ("b", {}), ("a", {"run.name": "other"}), ("a", {}))
    ]
    assert roots[0] == roots[3] and len(set(roots)) == 3
    assert all(root.parent == tmp_path / "disk" / "x" for root in roots)
    assert roots[0].name.startswith("lmscale-tiny-")


@pytest.mark.parametrize("folder", ["$NO_SUCH_DISK", "/mnt/${NO_SUCH_DISK}/x", "$"])
def test_a_variable_that_is_not_set_is_told_and_makes_no_folder_of_that_name(
    tiny_data, tmp_path, monkeypatch, folder
):
    monkeypatch.delenv("NO_SUCH_DISK", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = tiny_config(tiny_data, tmp_path / "run", {"checkpoint.local.folder": folder})
    with pytest.raises(ConfigError, match=r"checkpoint.local.folder: .*\$.* that is not set"):
        open_node_place(config)
    assert list((tmp_path / "here").iterdir()) == []


# Which history a checkpoint belongs to.


def test_a_checkpoint_counts_until_a_later_attempt_goes_on_from_before_it(tmp_path):
    by = {"tier": "local", **start_attempt(tmp_path, 0)}
    for first_step in (12, 10):
        start_attempt(tmp_path, first_step)
    starts = read_starts(tmp_path)
    assert describe_superseded(written(10, by), starts) is None
    assert describe_superseded(written(11, by), starts) == (
        "was written by attempt 1, but attempt 3 has gone on from step 10 since"
    )
    assert describe_superseded(written(13, by), starts) == (
        "was written by attempt 1, but attempt 2 has gone on from step 12 since"
    )


def test_an_attempt_undoes_nothing_of_its_own_and_nothing_of_later_ones(tmp_path):
    start_attempt(tmp_path, 0)
    by = {"tier": "local", **start_attempt(tmp_path, 4)}
    assert describe_superseded(written(99, by), read_starts(tmp_path)) is None


def test_what_an_earlier_run_in_the_same_folder_left_on_a_node_is_not_taken(tmp_path):
    old = {"tier": "local", **start_attempt(tmp_path / "run", 0)}
    shutil.rmtree(tmp_path / "run")
    assert describe_superseded(written(8, old), []) is not None
    start_attempt(tmp_path / "run", 0)  # has the number 1 as well
    why = describe_superseded(written(8, old), read_starts(tmp_path / "run"))
    assert why == "was written by attempt 1, which attempts.jsonl does not know"


def test_the_shared_tier_counts_although_its_attempts_are_not_known(tmp_path):
    by = start_attempt(tmp_path, 0)
    assert describe_superseded(written(8, by), []) is None
    assert describe_superseded(written(8, {}), read_starts(tmp_path)) is None
    start_attempt(tmp_path, 4)
    assert describe_superseded(written(8, by), read_starts(tmp_path)) is not None


def test_an_undone_checkpoint_on_a_node_is_passed_over_for_an_older_one(node, tmp_path):
    shared = LocalPlace(tmp_path / "shared")
    save(shared, 4)
    by = {"tier": "local", **start_attempt(tmp_path / "run", 0)}
    save(node, 6, written_by={"world_size": 2, **by})
    starts = read_starts(tmp_path / "run")
    assert step_taken(node, shared, undone=lambda m: describe_superseded(m, starts)) == 6
    start_attempt(tmp_path / "run", 4)  # on other nodes, where step 6 was not
    starts = read_starts(tmp_path / "run")
    looking = search(node, shared, undone=lambda m: describe_superseded(m, starts))
    assert next(looking).manifest.step == 4
    assert "attempt 2 has gone on from step 4 since" in looking.passed_over[0].why[0]


# Two nodes, each with a folder of its own: what two real ranks make of it.


def start(folder: Path, number: int) -> None:
    """What each rank of a start does: see ``test_ranks_of_two_nodes…``."""
    from forked_ranks import one_group

    from lmscale.ranks.collectives import barrier, gather_json

    with one_group() as ranks:
        saw = {}
        for name, one in CASES.items():
            root = folder / name / f"node{ranks.rank}"
            place, shared = NodePlace(root), LocalPlace(folder / name / "shared")
            if ranks.is_first:
                save(shared, 2)
            files = gather_json(vars(write_part(place, 4, ranks.rank, 2)))
            place.commit(4, render(manifest_of(4, _entries(files))))
            barrier()
            on_two_nodes = Ranks(rank=ranks.rank, world_size=2, local_rank=0)
            settings = one(place, folder / name, ranks.rank) or {}
            barrier()
            looking = search_as(on_two_nodes, place, shared, **settings)
            found = next(looking)
            saw[name] = [found.manifest.step, [list(p.why) for p in looking.passed_over]]
        everyone = gather_json(saw)
    if ranks.is_first:
        (folder / "saw.json").write_text(json.dumps(everyone))


def search_as(ranks, *places, topology=TOPOLOGY):
    from handmade_checkpoints import IDENTITY

    from lmscale.checkpoint.find import Search

    return Search(places, ranks, identity=IDENTITY, topology=topology)


def _entries(rows):
    from lmscale.checkpoint.manifest import FileEntry

    return [FileEntry(**row) for row in rows]


def own_file(place, rank):
    return step_folder(place.root, 4) / f"rank-{rank:05d}.safetensors"


def as_saved(place, folder, rank):
    """Every rank's own file on its own node."""


def other_stage(place, folder, rank):
    return {"topology": dict(world_size=2, zero_stage=3, precision="fp32")}


def other_stage_but_all_files(place, folder, rank):
    other = NodePlace(folder / f"node{1 - rank}")
    shutil.copy(own_file(other, 1 - rank), own_file(place, 1 - rank))
    return {"topology": dict(world_size=2, zero_stage=3, precision="fp32")}


def nodes_exchanged(place, folder, rank):
    place.root = folder / f"node{1 - rank}"


def manifest_on_one_node(place, folder, rank):
    if rank == 1:
        (step_folder(place.root, 4) / "manifest.json").unlink()


def nothing_on_one_node(place, folder, rank):
    if rank == 0:
        shutil.rmtree(place.root)


def another_manifest_on_one_node(place, folder, rank):
    if rank == 1:
        path = step_folder(place.root, 4) / "manifest.json"
        files = parse_manifest(path.read_text(), path).files
        manifest = manifest_of(4, [*files], rewinds=1)
        path.write_bytes(render(manifest))


def damaged_on_one_node(place, folder, rank):
    if rank == 1:
        path = own_file(place, 1)
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


CASES = {
    case.__name__: case
    for case in (
        as_saved,
        other_stage,
        other_stage_but_all_files,
        nodes_exchanged,
        manifest_on_one_node,
        nothing_on_one_node,
        another_manifest_on_one_node,
        damaged_on_one_node,
    )
}
IN_PARTS = "its files are on several nodes' own disks, and not every rank finds what it needs"
TAKEN = {
    "as_saved": (4, None),
    "other_stage": (2, IN_PARTS),
    "other_stage_but_all_files": (4, None),
    "nodes_exchanged": (2, IN_PARTS),
    "manifest_on_one_node": (2, "has no checkpoint of step 4"),
    "nothing_on_one_node": (2, "has no checkpoint of step 4"),
    "another_manifest_on_one_node": (2, "does not look the same to all ranks"),
    "damaged_on_one_node": (2, "does not have the hash"),
}


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    run_starts(Path(__file__), folder, (2,))
    return json.loads((folder / "saw.json").read_text())


@pytest.mark.ranks
@pytest.mark.parametrize("name", CASES)
def test_ranks_of_two_nodes_take_a_checkpoint_only_if_each_finds_what_it_needs(two_nodes, name):
    first_saw, second_saw = (saw[name] for saw in two_nodes)
    assert first_saw[0] == second_saw[0], "the ranks do not agree"
    step, why = TAKEN[name]
    assert first_saw[0] == step
    reasons = [reason for reasons in first_saw[1] for reason in reasons]
    assert [why in reason for reason in reasons] == ([True] if why else [])


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory):
    """What the starts of one run saw (tier_ranks.py)."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "data.txt").write_text(str(tiny_data))
    run_starts(Path(__file__).with_name("tier_ranks.py"), folder, [2] * 6)
    return [json.loads((folder / f"saw-{n}.json").read_text()) for n in range(6)]


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_on_two_nodes_goes_on_from_their_own_disks(trained):
    first, second = trained[:2]
    newest = first["on the nodes"][0][0][0]
    assert newest >= 1  # which of them were not busy is a matter of speed
    assert all(steps[0] == newest and files == len(steps) for steps, files in first["on the nodes"])
    assert first["began at"] == 0 and second["began at"] == newest
    for step in first["losses"].keys() & second["losses"].keys():
        assert first["losses"][step] == second["losses"][step]


@pytest.mark.ranks
@pytest.mark.slow
def test_a_run_that_comes_to_other_nodes_does_not_go_on_from_there(trained):
    elsewhere, back = trained[2:4]
    assert elsewhere["began at"] == 0
    assert elsewhere["losses"]["1"] == trained[0]["losses"]["1"]
    # Back on its first nodes, where all is as it was: but it is undone since.
    assert back["on the nodes"][0][0] == trained[1]["on the nodes"][0][0] != []
    assert back["began at"] == 0


@pytest.mark.ranks
@pytest.mark.slow
def test_ranks_that_need_what_lies_on_the_other_node_go_on_from_the_shared_place(trained):
    before, after = trained[4:]
    assert [steps[0] for steps, _ in before["on the nodes"]] == [5, 5]
    assert after["began at"] == 4


@pytest.mark.parametrize("damaged", [1, 2], ids=["writer", "successor"])
def test_a_checkpoint_that_was_undone_stays_so_though_the_row_of_a_start_is_damaged(
    tmp_path, damaged
):
    by = [start_attempt(tmp_path, first_step) for first_step in (0, 10, 4)]
    path = tmp_path / "attempts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if '"event": "start"' in line]
    lines[starts[damaged]] = lines[starts[damaged]].replace("time", "tima")
    path.write_text("".join(lines))
    why = "was written by attempt 2, but attempt 3 has gone on from step 4 since"
    assert describe_superseded(written(12, by[1]), read_starts(tmp_path)) == why
    assert describe_superseded(written(4, by[1]), read_starts(tmp_path)) is None
