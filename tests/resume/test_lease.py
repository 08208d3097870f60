"""One process at a time writes into a folder."""

import os
import signal
import time

import pytest

from sb3_sparse.resume.files.lease import LOCK, FolderInUse, Lease


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
