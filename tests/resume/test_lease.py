"""One process at a time writes into a folder."""

import errno
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from sb3_sparse.common import files
from sb3_sparse.common.files import this_process
from sb3_sparse.resume.files.lease import LOCK, FolderInUse, Lease, holder_of


def in_child(function) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = function() or 0
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_folder_in_use_is_refused_and_free_again_when_released(tmp_path):
    lease = Lease(tmp_path, 0.4)

    def other():
        with pytest.raises(FolderInUse, match=f"{tmp_path} is in use by process {os.getppid()} on"):
            Lease(tmp_path, 0.4)

    assert status_of(in_child(other)) == 0
    lease.check()
    lease.release()
    assert not list(tmp_path.iterdir())
    Lease(tmp_path, 0.4).release()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path):
    def holder():
        Lease(tmp_path, 60)
        os.kill(os.getpid(), signal.SIGKILL)

    assert status_of(in_child(holder)) == -signal.SIGKILL
    assert (tmp_path / LOCK).exists()
    begin = time.monotonic()
    Lease(tmp_path, 60).release()
    assert time.monotonic() - begin < 5


def test_the_lock_of_a_killed_process_that_nobody_has_waited_for_is_taken_over_at_once(tmp_path):
    def holder():
        Lease(tmp_path, 60)
        os.kill(os.getpid(), signal.SIGKILL)

    child = in_child(holder)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    # A zombie, as those of a container are whose first process waits for nobody.
    begin = time.monotonic()
    Lease(tmp_path, 60).release()
    assert time.monotonic() - begin < 5
    assert status_of(child) == -signal.SIGKILL


def test_a_process_of_another_machine_of_the_same_name_lives_whatever_numbers_there_are_here(tmp_path):
    lease = Lease(tmp_path, 0.4)
    lease.release()
    # A number that no process of this machine has.
    other = {**this_process(), "machine": "0123456789ab", "pid": 2**22 + 1}
    (tmp_path / LOCK).write_text(json.dumps({"host": socket.gethostname(), "token": "theirs", "seconds": 0.5, **other}))
    assert holder_of(tmp_path)["pid"] == other["pid"]
    begin = time.monotonic()
    Lease(tmp_path, 0.5).release()
    # It gave no sign of life.
    assert 0.5 <= time.monotonic() - begin < 5


def test_who_gave_no_sign_of_life_has_lost_the_folder_and_notices(tmp_path):
    def stopped():
        lease = Lease(tmp_path, 0.5)
        os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(FolderInUse, match="was taken over by process"):
            lease.check()
        lease.release()

    child = in_child(stopped)
    os.waitpid(child, os.WUNTRACED)
    lease = Lease(tmp_path, 0.5)
    os.kill(child, signal.SIGCONT)
    assert status_of(child) == 0
    lease.check()
    lease.release()


def test_of_several_who_want_a_dead_ones_folder_one_gets_it(tmp_path, request):
    for trial in range(50 if request.config.getoption("--full") else 5):
        folder = tmp_path / str(trial)

        def dead(folder=folder):
            Lease(folder, 60)
            os.kill(os.getpid(), signal.SIGKILL)

        def wants(folder=folder):
            try:
                lease = Lease(folder, 0.3)
            except FolderInUse:
                return 7
            time.sleep(1)
            lease.check()
            return 0

        status_of(in_child(dead))
        children = [in_child(wants) for _ in range(3)]
        assert sorted(map(status_of, children)) == [0, 7, 7]


@pytest.fixture
def unreadable(monkeypatch):
    """A function that makes so many of the next reads of a lock fail, as those of a file system on a network do."""
    left, read = [0], Path.read_text

    def read_text(path, *args, **kwargs):
        if path.name == LOCK and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(files, "_PAUSES", (0, 0))

    def fail(times):
        left[0] = times
        return left

    return fail


def test_a_lock_that_cannot_be_read_for_a_moment_is_kept(tmp_path, unreadable):
    """Mistake of ours: it was taken over, the process was told."""
    lease = Lease(tmp_path, 60)
    unreadable(2)
    lease.check()
    # What cannot be known is nothing that another process has done.
    unreadable(3)
    with pytest.raises(OSError, match="Stale"):
        lease.check()
    lease.check()
    unreadable(3)
    assert holder_of(tmp_path) == {}
    lease.release()
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_could_not_be_read_once_is_renewed_again(tmp_path, unreadable):
    """Mistake of ours: the thread ended, and others took the folder over from a process that lived."""
    lease = Lease(tmp_path, 0.2)
    left = unreadable(7)
    end = time.monotonic() + 60

    def sign():
        with (tmp_path / LOCK).open() as file:
            return json.load(file)["sign"]

    while left[0] and time.monotonic() < end:
        time.sleep(0.01)
    before = sign()
    while sign() == before and time.monotonic() < end:
        time.sleep(0.01)
    assert sign() != before
    lease.check()
    lease.release()
