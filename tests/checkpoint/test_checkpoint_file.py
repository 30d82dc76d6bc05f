"""One rank's file: written in pieces from memory, and read back by the safetensors library."""

import errno
import hashlib
import math
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lmscale.checkpoint import snapshot as snapshot_module
from lmscale.checkpoint import write_file as module
from lmscale.checkpoint.fragments import Fragment
from lmscale.checkpoint.layout import step_folder, tensor_name
from lmscale.checkpoint.manifest import MASTER
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.snapshot import Snapshot, parts_of
from lmscale.checkpoint.write_file import (
    NUM_MARKS,
    GivenUpError,
    Part,
    arrange,
    cut_pieces,
    inspect,
    write_file,
)
from lmscale.errors import TransientError
from lmscale.files import remote
from lmscale.ranks.fingerprint import add_fingerprints, fingerprint

NAME = "rank-00000.safetensors"
DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64),
)


def make(parameter, numel, *, kind=MASTER, offset=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(numel)
    values = torch.randint(0, 100, (numel,), generator=generator)
    return Part(parameter=parameter, kind=kind, offset=offset, tensor=values.to(dtype))


@st.composite
def contents(draw):
    """Parts of any dtypes and sizes, and how large the pieces are."""
    count = draw(st.integers(1, 8))
    parts = [
        make(f"p{number}", draw(st.integers(0, 70)), dtype=draw(st.sampled_from(DTYPES)))
        for number in range(count)
    ]
    return parts, draw(st.integers(8, 200))


@settings(max_examples=80, deadline=None)
@given(contents())
def test_any_tensors_are_read_back_by_the_library_and_their_size_and_hash_are_told(content):
    parts, piece_bytes = content
    with TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece_bytes)
        place = LocalPlace(Path(temporary))
        place.begin(7)
        arranged = arrange(parts)
        assert all(len(piece) <= piece_bytes for piece in cut_pieces(arranged))
        entry = write_file(place, 7, NAME, arranged, retries=0)
        path = step_folder(place.root, 7) / NAME
        written = path.read_bytes()
        assert entry.bytes == len(written)
        assert entry.sha256 == hashlib.sha256(written).hexdigest()
        assert place.describe_damage(7, entry) is None
        with safe_open(str(path), framework="pt") as file:
            assert set(file.keys()) == {tensor_name(p.parameter, p.kind, p.offset) for p in parts}
            for part in parts:
                found = file.get_tensor(tensor_name(part.parameter, part.kind, part.offset))
                assert found.dtype == part.tensor.dtype
                assert torch.equal(found, part.tensor)


def test_a_run_of_elements_is_told_once_whatever_number_of_kinds_is_stored(tmp_path):
    place = LocalPlace(tmp_path)
    place.begin(1)
    parts = [
        make("a", 4, offset=8),
        make("a", 4, kind="exp_avg", offset=8),
        make("b", 3, kind="buffer", dtype=torch.bool),
    ]
    entry = write_file(place, 1, NAME, arrange(parts), retries=0)
    assert entry.fragments == (("a", 8, 4), ("b", 0, 3))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_one_number_that_is_not_finite_is_found(bad, dtype, place, monkeypatch):
    monkeypatch.setattr(module, "_LOOK_ELEMENTS", 4)
    values = torch.arange(10.0)
    values[place] = bad
    part = Part(parameter="p", kind="exp_avg", offset=0, tensor=values.to(dtype))
    assert not inspect([make("q", 5), part]).is_finite
    assert inspect([make("q", 5), make("i", 3, dtype=torch.int64)]).is_finite


def test_the_weights_fingerprint_is_that_of_the_masters_and_of_nothing_else(monkeypatch):
    monkeypatch.setattr(module, "_LOOK_ELEMENTS", 4)
    a, b = make("a", 10, offset=30), make("b", 7)
    found = inspect([a, b, make("a", 10, kind="exp_avg", offset=30)])
    assert found.weights == add_fingerprints(
        [fingerprint(a.tensor, name="a", offset=30), fingerprint(b.tensor, name="b")]
    )


class Failing(LocalPlace):
    """Fails in the middle of a file, ``errors`` one after the other."""

    def __init__(self, root, *errors):
        super().__init__(root)
        self.errors = list(errors)

    def write_file(self, step, name, pieces):
        if not self.errors:
            return super().write_file(step, name, pieces)

        def cut_off():
            yield next(iter(pieces))
            raise self.errors.pop(0)

        super().write_file(step, name, cut_off())


def test_what_may_pass_is_tried_again_with_the_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.0)
    parts = arrange([make("a", 1000)])
    place = Failing(tmp_path, OSError(errno.EIO, "x"), TransientError("y"))
    place.begin(1)
    entry = write_file(place, 1, NAME, parts, retries=2)
    assert place.describe_damage(1, entry) is None


@pytest.mark.parametrize(
    ("error", "retries"), [(errno.EIO, 1), (errno.ENOSPC, 9), (errno.EACCES, 9)]
)
def test_what_will_not_pass_is_raised(tmp_path, error, retries, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_DELAY_SECONDS", 0.0)
    place = Failing(tmp_path, *[OSError(error, "x")] * (retries + 1))
    place.begin(1)
    with pytest.raises(OSError) as caught:
        write_file(place, 1, NAME, arrange([make("a", 10)]), retries=retries)
    assert caught.value.errno == error
    assert len(place.errors) == (0 if error == errno.EIO else retries)


def test_progress_is_told_in_sixteenths_and_a_save_that_nobody_waits_for_ends(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "PIECE_BYTES", 1 << 10)
    place = LocalPlace(tmp_path)
    place.begin(1)
    parts, marks, given_up = [make("a", 16 << 10)], [], threading.Event()
    write_file(place, 1, NAME, parts, retries=0, moved=marks.append)
    assert marks == sorted(marks) and set(marks) >= set(range(1, NUM_MARKS + 1))

    def stop_at_half(mark):
        if mark == NUM_MARKS // 2:
            given_up.set()

    with pytest.raises(GivenUpError):
        write_file(place, 1, NAME, parts, retries=3, moved=stop_at_half, given_up=given_up)


def fragments():
    """As of a model with a frozen parameter and buffers, in several dtypes."""
    yield Fragment(
        parameter="w",
        offset=3,
        tensors={MASTER: torch.rand(7), "exp_avg": torch.rand(7)},
        is_shared=False,
    )
    yield Fragment(
        parameter="mask", offset=0, tensors={"buffer": torch.rand(5) > 0.5}, is_shared=True
    )
    half = torch.rand(3).to(torch.bfloat16)
    yield Fragment(parameter="f", offset=0, tensors={"frozen": half}, is_shared=True)


def test_a_copy_holds_what_was_when_it_was_taken_and_its_memory_is_used_again():
    parts = parts_of(fragments())
    snapshot = Snapshot(parts, torch.device("cpu"))
    assert snapshot._buffer.numel() == sum(part.bytes for part in parts)
    expected = [part.tensor.clone() for part in parts]
    before_update = []
    copy = snapshot.take(parts, before_update)
    copy.ready()
    assert before_update == []  # on a CPU the copy is there
    where = [part.tensor.data_ptr() for part in copy.parts]
    for part in parts:
        part.tensor.zero_()
    assert all(
        torch.equal(part.tensor, tensor) for part, tensor in zip(copy.parts, expected, strict=True)
    )
    again = snapshot.take(parts, before_update)
    assert [part.tensor.data_ptr() for part in again.parts] == where
    assert not any(part.tensor.any() for part in again.parts)


def test_a_copy_of_another_shape_gets_memory_of_its_own(caplog):
    parts = parts_of(fragments())
    snapshot = Snapshot(parts, torch.device("cpu"))
    more = arrange([*parts, make("new", 9)])
    copy = snapshot.take(more, [])
    assert "another shape than before" in caplog.text
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(copy.parts, more, strict=True))


class Recorder:
    """Stands for CUDA: takes note of what is called, in order."""

    def __init__(self, error=0):
        self.calls, self.error = [], error

    def synchronize(self):
        self.calls.append("wait")

    def set_device(self, device):
        self.calls.append(f"set {device}")

    def cudaHostRegister(self, *_):  # noqa: N802
        return self.error

    def cudaHostUnregister(self, *_):  # noqa: N802
        self.calls.append("unregister")


def test_the_memory_of_a_copy_is_not_given_back_before_the_copy_has_arrived(monkeypatch):
    cuda = Recorder()
    monkeypatch.setattr(snapshot_module, "_cudart", lambda: cuda)
    snapshot = Snapshot(parts_of(fragments()), torch.device("cpu"))
    snapshot._stream, snapshot._is_pinned = cuda, True
    snapshot.close()
    assert cuda.calls == ["wait", "unregister"]


def test_whoever_waits_for_a_copy_waits_on_the_gpu_that_it_comes_from(monkeypatch):
    cuda = Recorder()
    parts = parts_of(fragments())
    snapshot = Snapshot(parts, torch.device("cpu"))
    snapshot._stream, snapshot._device = cuda, torch.device("cuda", 3)
    monkeypatch.setattr(snapshot, "_copy_beside", lambda *_: cuda)
    monkeypatch.setattr(torch.cuda, "set_device", cuda.set_device)
    copy = snapshot.take(parts, [])
    assert cuda.calls == []
    copy.ready()
    assert cuda.calls == ["set cuda:3", "wait"]


def test_memory_that_cannot_be_pinned_leaves_no_error_for_the_next_kernel(monkeypatch, caplog):
    told = []

    def kernel(*_, device):
        told.append(device)
        raise RuntimeError("CUDA error: of cudaHostRegister, says the test")

    monkeypatch.setattr(snapshot_module, "_cudart", lambda: Recorder(error=2))
    monkeypatch.setattr(torch, "ones", kernel)
    assert not snapshot_module._pin(torch.zeros(8, dtype=torch.uint8), torch.device("cuda", 3))
    assert told == [torch.device("cuda", 3)]
    assert "could not be pinned (CUDA error 2" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_memory_that_cannot_be_pinned_leaves_no_error_for_the_next_kernel():
    device = torch.device("cuda", 0)
    buffer = torch.zeros(1 << 20, dtype=torch.uint8)
    assert snapshot_module._pin(buffer, device)
    assert not snapshot_module._pin(buffer, device)  # it is already
    assert torch.ones(1, device=device).add_(1).item() == 2
    torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_copy_is_pinned_and_only_the_next_update_waits_for_it():
    device = torch.device("cuda")
    part = Part(parameter="w", kind=MASTER, offset=0, tensor=torch.ones(1 << 24, device=device))
    snapshot = Snapshot([part], device)
    before_update = []
    torch.cuda._sleep(10**8)  # the copy cannot have been done when it has been ordered
    copy = snapshot.take([part], before_update)
    assert len(before_update) == 1
    before_update.pop()()
    part.tensor.zero_()  # comes after the copy
    copy.ready()
    assert bool((copy.parts[0].tensor == 1).all())
    assert not part.tensor.any()
    snapshot.close()
