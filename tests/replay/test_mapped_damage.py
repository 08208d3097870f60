"""Files that are damaged, of another buffer, in use, or without room: an error that says so, and no step is lost."""

import errno
import json
import os
import resource
import signal
import time
from types import SimpleNamespace

import pytest
from gymnasium import spaces

from sb3_sparse.replay import FrameReplayBuffer
from sb3_sparse.replay.mapped import file as file_module
from sb3_sparse.replay.mapped.file import DamagedStore
from sb3_sparse.replay.mapped.lock import StoreInUse
from tests.replay.mapped_twins import Steps, add, assert_same, cut, make, reopened, space
from tests.resume.test_lease import in_child, status_of

OPTIONS = dict(flush_every=5, rewind=10)


def filled(path, n=23):
    """A store that was closed, and its twin."""
    ours, twin, steps = make(10, path=path, **OPTIONS), make(10), Steps(0, how="anything")
    for _ in range(n):
        add([ours, twin], steps())
    ours.close()
    return twin


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def beside(path, number):
    return sorted(path.glob("beside-*"))[number]


DAMAGES = {
    "cut off": (lambda path: os.truncate(path / "steps.bin", 80000), "steps.bin has 80000 bytes: expected [0-9]+, as were"),
    "longer": (lambda path: os.truncate(path / "steps.bin", 10**6), "steps.bin has 1000000 bytes: expected"),
    "empty": (lambda path: os.truncate(path / "steps.bin", 0), "steps.bin is damaged: expected the description"),
    "no description": (lambda path: flip(path / "steps.bin", 40), "steps.bin is damaged: expected the description"),
    "no record": (
        lambda path: [flip(path / "steps.bin", place) for place in (65536 + 30, 69632 + 30)],
        "steps.bin is damaged: neither of its two records is whole",
    ),
    "no steps": (lambda path: (path / "steps.bin").unlink(), "steps.bin is missing: the folder holds other parts"),
    "part missing": (lambda path: beside(path, -2).unlink(), "the file of the steps 1[05] to 20, beside-..., is missing"),
    "last part missing": (lambda path: beside(path, -1).unlink(), "the file of the steps 20 to 23, beside-..., is missing"),
    "part flipped": (lambda path: flip(beside(path, -1), 200), "beside-.* is damaged: its checksum is not"),
    "part cut off": (lambda path: os.truncate(beside(path, -1), 100), "beside-.* is damaged: its checksum is not"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(name, tmp_path):
    path = tmp_path / "store"
    filled(path)
    damage, expected = DAMAGES[name]
    damage(path)
    before = {each.name: each.read_bytes() for each in path.iterdir() if each.name != "lock"}
    with pytest.raises(DamagedStore, match=expected):
        reopened(10, path=path, **OPTIONS)
    # Nothing is made worse by looking, and nobody holds it.
    assert {each.name: each.read_bytes() for each in path.iterdir() if each.name != "lock"} == before
    with pytest.raises(DamagedStore):
        reopened(10, path=path, **OPTIONS)


def test_of_a_record_that_is_not_whole_the_one_before_counts(tmp_path):
    path = tmp_path / "store"
    filled(path)
    # The last flushes were after 20 and 23 steps.
    flip(path / "steps.bin", 65536 + 30)
    with pytest.warns(UserWarning, match="one of its two records is not whole"):
        ours = reopened(10, path=path, **OPTIONS)
    twin = filled(tmp_path / "other", 20)
    cut(twin)
    assert_same(ours, twin)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (12, {}, "buffer_size 10, expected 12"),
        (10, dict(n_envs=2), "n_envs 1, expected 2"),
        (10, dict(n_stack=1 + 8, channels=3), "n_stack 3, expected 9"),
        (10, dict(channels=2), r"observation_space Box\(0, 255, \(3, 12, 12\), uint8\), expected Box\(0, 255, \(6, 12, 12\)"),
        (10, dict(handle_timeout_termination=False), "handle_timeout_termination True, expected False"),
        (10, dict(rewind=11), "rewind 10, expected 11"),
        (10, dict(flush_every=4), "flush_every 5, expected 4"),
    ],
)
def test_another_buffer_is_named(size, options, expected, tmp_path):
    twin = filled(tmp_path)
    with pytest.raises(ValueError, match=f"steps.bin holds another replay buffer: .*{expected}"):
        reopened(size, path=tmp_path, **{**OPTIONS, **options})
    cut(twin)
    assert_same(reopened(10, path=tmp_path, **OPTIONS), twin)


def test_other_actions_are_named_and_other_windows_are_no_other_buffer(tmp_path):
    filled(tmp_path)
    with pytest.raises(ValueError, match=r"action_space Box.*, expected Discrete\(3\)"):
        FrameReplayBuffer(10, space(), spaces.Discrete(3), n_stack=3, storage_path=tmp_path, **OPTIONS)
    # It holds single steps, from which windows of any length are made.
    assert reopened(10, path=tmp_path, n_steps=1, gamma=0.5, **OPTIONS).size() == 10


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(file_module, "FORMAT", 2)
    filled(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"steps\.bin has format 2: expected 1, of this version"):
        make(10, path=tmp_path, **OPTIONS)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("42")
    with pytest.raises(ValueError, match=r"holds 'thesis\.tex' and more: expected a folder of its own"):
        make(10, path=tmp_path)
    with pytest.raises(NotADirectoryError, match="is a file: expected a folder"):
        make(10, path=tmp_path / "thesis.tex")
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_buffer_at_a_time(tmp_path):
    ours = make(10, path=tmp_path, **OPTIONS)
    ours.add(*Steps(0)())

    def other():
        # Neither the copy of the buffer that a fork has, nor another one.
        with pytest.raises(StoreInUse, match="is in use by process"):
            make(10, path=tmp_path, **OPTIONS)
        with pytest.raises(StoreInUse, match="was closed"):
            ours.add(*Steps(0)())
        with pytest.raises(StoreInUse, match="was closed"):
            ours.sample(1)

    assert status_of(in_child(other)) == 0
    with pytest.raises(StoreInUse, match=f"{tmp_path} is in use by another buffer of this process"):
        make(10, path=tmp_path, **OPTIONS)
    ours.add(*Steps(0)())
    ours.close()
    ours.close()
    with pytest.raises(StoreInUse, match="was closed"):
        ours.flush()
    assert reopened(10, path=tmp_path, **OPTIONS).size() == 2


def test_one_that_was_killed_holds_nothing(tmp_path):
    read, write = os.pipe()

    def holder():
        buffer = make(10, path=tmp_path, **OPTIONS)
        # A process that it has started lives on.
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
        buffer.add(*Steps(0)())
        os.write(write, b"!")
        time.sleep(60)

    child = in_child(holder)
    assert os.read(read, 1) == b"!"
    with pytest.raises(StoreInUse, match=f"process {child} on"):
        make(10, path=tmp_path, **OPTIONS)
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL
    make(10, path=tmp_path, **OPTIONS)


def test_without_room_it_is_an_error_at_once_and_nothing_is_left(tmp_path):
    def poor():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
        with pytest.raises(OSError, match=r"cannot reserve [0-9.]+ GB for .* \(File too large\): make room"):
            make(100_000, path=tmp_path / "store", **OPTIONS)

    assert status_of(in_child(poor)) == 0
    assert [each.name for each in (tmp_path / "store").iterdir()] == ["lock"]
    make(10, path=tmp_path / "store", **OPTIONS)


@pytest.mark.parametrize("call", ["posix_fallocate", "fstat"])
def test_a_full_disk_and_one_that_only_pretends_to_reserve(call, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sparse(number, fstat=os.fstat):
        return SimpleNamespace(st_blocks=8, st_size=fstat(number).st_size)

    monkeypatch.setattr(os, call, full if call == "posix_fallocate" else sparse)
    expected = "No space left on device" if call == "posix_fallocate" else "has reserved 4096 of [0-9]+ bytes"
    with pytest.raises(OSError, match=expected) as caught:
        make(10, path=tmp_path, **OPTIONS)
    assert caught.value.errno == errno.ENOSPC


def test_without_a_way_to_reserve_it_is_written_in_full(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    make(10, path=tmp_path, **OPTIONS)
    facts = (tmp_path / "steps.bin").stat()
    assert facts.st_blocks * 512 >= facts.st_size


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
def test_a_flush_that_fails_loses_no_flushed_step_and_can_be_made_again(call, tmp_path, monkeypatch):
    ours, twin, steps = make(10, path=tmp_path, **OPTIONS), make(10), Steps(0, how="anything")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for _ in range(24):
        add([ours, twin], steps())
    monkeypatch.setattr(os, call, full)
    last = steps()
    with pytest.raises(OSError, match="No space left"):
        ours.add(*last)
    # It was added all the same; what comes now would need room that is not certain.
    twin.add(*last)
    assert_same(ours, twin)
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            ours.add(*steps())
        assert_same(ours, twin)
    monkeypatch.undo()
    for _ in range(4):
        add([ours, twin], steps())
    ours.close()
    cut(twin)
    assert_same(reopened(10, path=tmp_path, **OPTIONS), twin)


def test_where_other_things_fill_the_disk_what_is_kept_beside_has_its_room(tmp_path, monkeypatch):
    room = tmp_path / "room"
    options = dict(path=tmp_path, flush_every=20, rewind=60)
    ours, twin, steps = make(100, **options), make(100), Steps(0)
    assert room.stat().st_blocks * 512 >= room.stat().st_size > 0
    size = room.stat().st_size
    written = {"n": 0}

    def replace(half, name, function=os.replace):
        # A disk that has as much as is given back, and no more.
        if "beside-" in str(name):
            if written["n"] + os.stat(half).st_size > size - room.stat().st_size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written["n"] += os.stat(half).st_size
        function(half, name)

    monkeypatch.setattr(os, "replace", replace)
    for _ in range(100):
        add([ours, twin], steps(p_done=0.01, p_jump=0.0))
    assert_same(ours, twin)
    assert 0 < room.stat().st_size < size

    def go_on():
        for _ in range(10**4):
            ours.add(*steps(p_done=0.5, p_jump=0.0))

    with pytest.raises(OSError, match="No space left"):
        go_on()
    monkeypatch.undo()
    assert room.stat().st_size == 0


def test_the_description_can_be_read(tmp_path):
    filled(tmp_path)
    text = (tmp_path / "steps.bin").read_bytes()[24:65536].rstrip(b"\0")
    assert json.loads(text)["observation_space"] == "Box(0, 255, (3, 12, 12), uint8)"
