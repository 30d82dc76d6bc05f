"""Which checkpoint a start takes or refuses, and what it does with the errors of a file system."""

import errno
import shutil
from pathlib import Path

import pytest
from damaged_files import FILES, STEPS, cut, damage, remove, three_checkpoints
from handmade_checkpoints import IDENTITY, first, manifest_of, save, search, step_taken, write_part

from lmscale.checkpoint import find
from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.layout import step_folder
from lmscale.checkpoint.load import check_same_model, load_weights, open_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.errors import CheckpointError, ClusterError, LmscaleError, TransientError
from lmscale.files.jsonl import read_rows
from lmscale.files.run_files import RESUMES_FILE
from lmscale.history.history import record_resume


@pytest.fixture
def place(tmp_path):
    """Checkpoints of steps 2, 4 and 6, to be damaged."""
    return three_checkpoints(tmp_path / "checkpoints")


@pytest.fixture
def held_open(monkeypatch):
    """As on NFS, where a file that somebody has open stays under another name."""
    original = shutil.rmtree

    def all_but_one(folder, ignore_errors=False):
        for path in sorted(Path(folder).glob("*"))[1:]:
            path.unlink()
        assert ignore_errors, "OSError: the folder is not empty"

    monkeypatch.setattr("lmscale.checkpoint.places.place.shutil.rmtree", all_but_one)
    yield
    monkeypatch.setattr("lmscale.checkpoint.places.place.shutil.rmtree", original)


def test_a_step_is_saved_again_although_a_file_of_it_is_still_held_open(place, held_open):
    for _ in range(2):
        save(place, 6)
        assert {path.name for path in step_folder(place.root, 6).iterdir()} == set(FILES)
    assert step_taken(place) == 6


def test_a_torn_save_is_cleared_away_although_a_file_of_it_is_still_held_open(place, held_open):
    for _ in range(2):
        place.begin(8)
        write_part(place, 8, 0, 2)
        place.discard_uncommitted()
        assert place.list_steps(committed=False) == [] and step_taken(place) == 6


def test_a_kill_while_room_is_made_for_the_same_step_leaves_no_manifest(place, monkeypatch):
    def killed(folder, ignore_errors=False):
        raise KeyboardInterrupt

    monkeypatch.setattr("lmscale.checkpoint.places.place.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        place.begin(6)
    assert place.list_steps() == [4, 2]


def test_a_run_that_never_saved_starts_from_scratch(tmp_path):
    place = LocalPlace(tmp_path / "checkpoints")
    assert first(place) is None
    place.begin(1)  # a torn first save
    assert first(place) is None


def test_one_that_loads_wrong_is_passed_over_for_the_next(place):
    looking = search(place)
    found = next(looking)
    looking.reject(found, ["its loss is another"])
    assert next(looking).manifest.step == 4
    assert looking.passed_over[0].why == ("its loss is another",)
    looking = search(place)
    with pytest.raises(CheckpointError, match="(?s)of step 6.*of step 2.*None of the 3"):
        for found in looking:
            looking.reject(found, [f"the loss of step {found.manifest.step} is another"])


def test_checkpoints_of_another_run_are_passed_over_and_named(place):
    other = {**IDENTITY, "model": {"width": 64}}
    save(place, 8, identity=other)
    looking = search(place)
    assert next(looking).manifest.step == 6
    why = f"{place.name_of(8)}: model.width was 64 when it was written and is 32 now."
    assert looking.passed_over[0].why == (why,)


def test_when_all_are_of_another_run_it_is_told_what_differs(place):
    now = {"run": "tiny", "tokenizer": "u", "model": {"width": 32, "layers": 2}}
    with pytest.raises(CheckpointError) as caught:
        first(place, identity=now)
    newest = place.name_of(6)
    assert caught.value.problems == (
        f"{newest}: model.layers was None when it was written and is 2 now.",
        f"{newest}: tokenizer was 't' when it was written and is 'u' now.",
        "Give this run a folder of its own (run.folder), or set these back.",
    )


def test_what_was_undone_is_passed_over_and_leaves_a_run_at_its_beginning(place):
    def undone(manifest):
        return "a rewind has undone it" if manifest.step > limit else None

    limit = 4
    looking = search(place, undone=undone)
    assert next(looking).manifest.step == 4
    assert looking.passed_over[0].why == (f"{place.name_of(6)}: a rewind has undone it",)
    limit = 0
    assert first(place, undone=undone) is None
    damage(place, 2, FILES[1], cut)
    with pytest.raises(CheckpointError, match="bytes instead of"):
        first(place, undone=lambda manifest: "undone" if manifest.step > 2 else None)


# What a file system may say when it is asked for a file of the newest checkpoint.
ABSENT = {"ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG"}
REFUSED = {"EACCES", "EPERM"}
BAD_DISK = {"EIO", "EUCLEAN", "EBADMSG"}


class FailingPlace(LocalPlace):
    """The manifest or the files of some steps fail, so many times, when they are read."""

    def __init__(self, root, number, *, of_manifest=False, steps=(6,), times=10**6):
        super().__init__(root)
        self.number, self.of_manifest, self.steps, self.left = number, of_manifest, steps, times

    def fail(self, step, *, of_manifest):
        if step in self.steps and of_manifest == self.of_manifest and self.left:
            self.left -= 1
            raise OSError(self.number, "so it says")

    def read_manifest(self, step):
        self.fail(step, of_manifest=True)
        return super().read_manifest(step)

    def describe_damage(self, step, entry):
        self.fail(step, of_manifest=False)
        return super().describe_damage(step, entry)


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr(find, "WAITS_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def saved_root(tmp_path_factory):
    return three_checkpoints(tmp_path_factory.mktemp("saved") / "checkpoints").root


@pytest.mark.parametrize("of_manifest", [True, False])
@pytest.mark.parametrize("name", sorted(errno.errorcode.values()))
def test_the_newest_is_passed_over_only_for_what_shows_that_it_is_no_good(
    saved_root, no_waits, name, of_manifest
):
    place = FailingPlace(saved_root, getattr(errno, name), of_manifest=of_manifest)
    looking = search(place)
    if name in ABSENT | BAD_DISK:
        assert next(looking).manifest.step == 4
        (passed,) = looking.passed_over
        what = "cannot be read .tried 4 times.*so it says" if name in BAD_DISK else "missing|has no"
        with pytest.raises(CheckpointError, match=what):
            raise CheckpointError(passed.why)
        return
    with pytest.raises(
        LmscaleError, match="step-000000006/.* cannot be read.*so it says"
    ) as caught:
        next(looking)
    assert isinstance(caught.value, CheckpointError if name in REFUSED else TransientError)
    assert caught.value.exit_code == (2 if name in REFUSED else 1)
    assert looking.passed_over == []


@pytest.mark.parametrize("of_manifest", [True, False])
@pytest.mark.parametrize("name", ["EIO", "EMFILE", "ENOMEM", "EINTR", "ESTALE"])
def test_what_can_be_read_at_another_attempt_is_taken(saved_root, no_waits, name, of_manifest):
    place = FailingPlace(saved_root, getattr(errno, name), of_manifest=of_manifest, times=3)
    assert step_taken(place) == 6


@pytest.mark.parametrize("of_manifest", [True, False])
def test_a_file_system_that_fails_altogether_stops_the_start_until_it_is_back(
    saved_root, no_waits, of_manifest
):
    place = FailingPlace(saved_root, errno.EIO, of_manifest=of_manifest, steps=STEPS)
    with pytest.raises(TransientError, match="(?s)cannot be read.*None of the 3"):
        first(place)


def test_a_place_that_cannot_be_listed_for_now_stops_the_start(place, no_waits, monkeypatch):
    kinds = {errno.EMFILE: TransientError, errno.EIO: TransientError, errno.EACCES: CheckpointError}
    for number, kind in kinds.items():

        def failing(number=number, **_):
            raise OSError(number, "so it says")

        monkeypatch.setattr(place, "list_steps", failing)
        with pytest.raises(kind, match="cannot be listed.*so it says"):
            first(place)


def test_a_store_that_refuses_to_give_a_manifest_stops_the_start(place, monkeypatch):
    def refusing(step):
        raise CheckpointError("access is refused, says the test")

    monkeypatch.setattr(place, "read_manifest", refusing)
    looking = search(place)
    with pytest.raises(CheckpointError, match="access is refused, says the test") as caught:
        next(looking)
    assert caught.value.exit_code == 2 and looking.passed_over == []


def test_of_two_places_the_newest_checkpoint_of_either_is_taken(place, tmp_path):
    other = LocalPlace(tmp_path / "other")
    save(other, 5)
    save(other, 6)
    looking = search(other, place)
    taken = [(found.place, found.manifest.step) for found in looking]
    assert taken == [(other, 6), (place, 6), (other, 5), (place, 4), (place, 2)]


def test_what_a_start_passed_over_is_on_record(place, tmp_path):
    record_resume(tmp_path, None, [])
    assert not (tmp_path / RESUMES_FILE).exists()
    path = damage(place, 6, FILES[1], remove)
    looking = search(place)
    record_resume(tmp_path, next(looking), looking.passed_over)
    (row,) = read_rows(tmp_path / RESUMES_FILE)
    assert row.pop("time") > 0
    assert row == {
        "step": 4,
        "checkpoint": place.name_of(4),
        "passed_over": [{"step": 6, "checkpoint": place.name_of(6), "why": [f"{path} is missing"]}],
    }
    with (tmp_path / RESUMES_FILE).open("a") as file:
        file.write('{"time": 1')  # a kill
    record_resume(tmp_path, None, looking.passed_over)
    assert [row["checkpoint"] for row in read_rows(tmp_path / RESUMES_FILE)] == [
        place.name_of(4),
        None,
    ]


def test_what_is_no_checkpoints_folder_is_not_looked_at(place):
    root = place.root
    shutil.copytree(root / "step-000000006", root / "step-000000009.old")
    shutil.copytree(root / "step-000000006", root / "copy of step-000000009")
    (root / "step-000000010").touch()
    assert LocalPlace(root).list_steps() == [6, 4, 2]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ENOENT", CheckpointError), ("EACCES", ClusterError)]
    + [(name, TransientError) for name in ("EMFILE", "ENOMEM", "EIO", "ENFILE")],
)
def test_a_file_that_cannot_be_opened_to_be_loaded_is_no_bug(place, monkeypatch, name, kind):
    def failing(path, mode):
        raise OSError(getattr(errno, name), "so it says", str(path))

    monkeypatch.setattr("lmscale.checkpoint.load.open", failing, raising=False)
    with pytest.raises(LmscaleError, match=f"step-000000006/{FILES[1]}") as caught:
        with open_weights(place, load_manifest(place, 6)) as read:
            read("w")
    assert type(caught.value) is kind  # after any but CheckpointError no older one is tried


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(place):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5. There are: 6, 4, 2\."):
        load_weights(place, step=5)
    shutil.rmtree(place.root)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_weights(place)


def test_models_that_differ_are_told_apart_parameter_by_parameter():
    shapes = {"gone": (2, 3), "wider": (4,), "same": (5,)}
    manifest = manifest_of(6, [], parameters=shapes)
    check_same_model("here", manifest, shapes, replicated={})
    with pytest.raises(CheckpointError) as caught:
        check_same_model(
            "here", manifest, {"new": (2, 3), "wider": (4, 7), "same": (5,)}, replicated={}
        )
    assert caught.value.problems[:4] == (
        "here is a checkpoint of another model:",
        "  new is not in the checkpoint",
        "  gone is only in the checkpoint",
        "  wider is (4,) in the checkpoint and (4, 7) in this model",
    )


def test_of_many_differences_the_first_are_told():
    manifest = manifest_of(6, [], parameters={f"layer{n}": (2,) for n in range(11)})
    with pytest.raises(CheckpointError, match="and 3 more"):
        check_same_model("here", manifest, {}, replicated={})
