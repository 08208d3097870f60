"""Files are whole or absent, whatever comes between."""

import errno
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from sb3_sparse.common import files
from sb3_sparse.common.files import check_writable, written_beside


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new/folder/results.csv"
    with written_beside(path) as beside:
        beside.write_text("half")
        assert not path.exists()
        assert beside.parent == path.parent
        assert (beside.suffix, beside.name[0]) == (".csv", ".")
        beside.write_text("whole")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["results.csv"]


def test_libraries_that_look_at_the_ending_add_none(tmp_path):
    with written_beside(tmp_path / "numbers.npz") as beside:
        np.savez(beside, x=np.arange(3))
    assert names(tmp_path) == ["numbers.npz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("has_begun", [False, True])
def test_what_was_there_stays_if_writing_fails(error, has_begun, tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("older")

    def write(beside):
        if has_begun:
            beside.write_text("half")
        raise error

    with pytest.raises(error), written_beside(path) as beside:
        write(beside)
    assert path.read_text() == "older"
    assert names(tmp_path) == ["results.csv"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("older")
    with pytest.raises(FileNotFoundError, match=r"nothing was written for .*results.csv"), written_beside(path):
        pass
    assert path.read_text() == "older"


def must_not_run():
    raise AssertionError("the work was done first")


def test_a_place_that_cannot_be_written_is_named_before_the_work(tmp_path):
    (tmp_path / "afile").write_text("")
    expected = r"cannot write '.*afile/x.csv' \(its folder is a file\): name another file."
    with pytest.raises(NotADirectoryError, match=expected), written_beside(tmp_path / "afile/x.csv"):
        must_not_run()
    with (
        pytest.raises(NotADirectoryError, match=r"afile/sub/x.csv' \(Not a directory\)"),
        written_beside(tmp_path / "afile/sub/x.csv"),
    ):
        must_not_run()
    with pytest.raises(IsADirectoryError, match=r"cannot write .* \(it is a folder\)"), written_beside(tmp_path):
        must_not_run()
    assert names(tmp_path) == ["afile"]
    with pytest.raises(NotADirectoryError, match=expected):
        check_writable(tmp_path / "afile/x.csv")


def test_a_look_whether_a_file_can_be_written_changes_none(tmp_path):
    path = tmp_path / "new/x.csv"
    check_writable(path)
    assert names(path.parent) == []
    path.write_text("there")
    check_writable(path)
    assert path.read_text() == "there"
    assert names(path.parent) == ["x.csv"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that root cannot write to")
def test_a_folder_that_nobody_can_write_to():
    expected = r"cannot write '/proc/self/x.csv' \(.*\): name another file."
    with pytest.raises(OSError, match=expected) as caught, written_beside("/proc/self/x.csv"):
        must_not_run()
    assert caught.value.errno


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"x.csv' \(Permission denied\)"), written_beside(tmp_path / "x.csv"):
        must_not_run()


def killed_writer(path):
    """The name under which a killed process was writing a file."""
    child = os.fork()
    if child == 0:
        try:
            with written_beside(path) as beside:
                beside.write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    (left,) = path.parent.glob(f".{path.stem}.*")
    return left


@pytest.mark.skipif(not Path("/proc/self/ns/pid").is_symlink(), reason="no /proc, by which a process is known to be gone")
def test_what_a_killed_writer_left_goes_with_the_next_file_and_what_lives_stays(tmp_path):
    path = tmp_path / "results.csv"
    left = killed_writer(path)
    other = killed_writer(tmp_path / "other.csv")
    with written_beside(path) as mine:
        assert not left.exists()
        # Of this process, in another thread; of a process that lives, of which this one has the number, from another start.
        machine, pid, started, thread = mine.name.split(".")[2].split("-")
        names = [f"{machine}-{pid}-{started}-1", f"{machine}-1-{files._started(1)}-{thread}", f"{machine}-{pid}-7-{thread}"]
        # From elsewhere, of an earlier version, and what only looks like one.
        names += [f"{'a' * 12}-{2**22}-1-1", f"{2**22}-1", "mine"]
        beside = [tmp_path / f".results.{name}.tmp.csv" for name in names]
        for each in beside:
            each.write_text("half")
        mine.write_text("whole")
        with written_beside(tmp_path / "results.csv") as second:
            assert second == mine
            assert [each.exists() for each in beside] == [True, True, False, True, True, True]
            second.write_text("whole")
        mine.write_text("whole")
    for each in beside[3:]:
        os.utime(each, (time.time() - 25 * 3600,) * 2)
    files.remove_left_over(tmp_path, path)
    assert [each.exists() for each in beside[3:]] == [False, False, True]
    assert other.exists()
    files.remove_left_over(tmp_path)
    assert not other.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_an_error_of_the_disk_names_the_file_also_inside_of_another_error(number, tmp_path):
    def write():
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise RuntimeError("no idea") from error

    expected = rf"cannot write '.*results.csv' \({os.strerror(number)}\): .*name another file"
    with pytest.raises(OSError, match=expected) as caught, written_beside(tmp_path / "results.csv"):
        write()
    assert caught.value.errno == number
    assert not names(tmp_path)
