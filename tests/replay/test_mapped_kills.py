"""kill -9 while steps are written: every flushed step is there, bit by bit, and nothing else."""

import os
import random
import shutil
import signal
import time

import pytest

from sb3_sparse.replay.mapped.file import ArraysFile
from tests.replay.mapped_twins import Steps, add, assert_same, cut, make, reopened

SIZE, N_ENVS = 30, 2
OPTIONS = dict(flush_every=14, rewind=40)


def source(number):
    return Steps(number, N_ENVS, how=("repeats", "anything", "zeros")[number % 3])


def write_until_killed(path, number, report, prepare):
    """In a child: open the store, add steps, and say of how many a flush has ended."""
    child = os.fork()
    if child:
        return child
    try:
        buffer, steps = reopened(SIZE, N_ENVS, path, **OPTIONS), source(number)
        os.write(report, f"{buffer.store.count}\n".encode())
        kills = prepare()
        before = buffer.store.count
        for _ in range(10**6):
            buffer.add(*steps())
            if buffer.store.count != before:
                before = buffer.store.count
                os.write(report, f"{before}\n".encode())
                if kills is not None and kills.has_ended():
                    os._exit(0)
    finally:
        os._exit(1)


def killed(path, number, prepare=lambda: None, after=None):
    """
    :param after: So many flushed steps and seconds later it is killed from outside.
    :return: How many steps were flushed for certain when the child had opened the store, and when it was killed; its status.
    """
    read, write = os.pipe()
    child = write_until_killed(path, number, write, prepare)
    os.close(write)
    with os.fdopen(read) as lines:
        counts = [int(lines.readline())]
        if after is not None:
            while counts[-1] < counts[0] + after[0]:
                counts.append(int(lines.readline()))
            time.sleep(after[1])
            os.kill(child, signal.SIGKILL)
        counts += map(int, lines)
    return counts[0], counts[-1], os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Twin:
    """What has to be there."""

    def __init__(self):
        self.buffer, self.count = make(SIZE, N_ENVS), 0

    def follow(self, number, path):
        """The steps of a child, as many as the store holds; opened anew."""
        ours, steps = reopened(SIZE, N_ENVS, path, **OPTIONS), source(number)
        for _ in range(ours.store.count - self.count):
            add([self.buffer], steps())
        self.count = ours.store.count
        cut(self.buffer)
        assert_same(ours, self.buffer)
        ours.close()


def test_killed_twenty_times_at_any_moment(tmp_path):
    path, twin, generator = tmp_path / "store", Twin(), random.Random(0)
    for number in range(20):
        first, flushed, status = killed(path, number, after=(generator.randrange(40), generator.uniform(0.0, 0.01)))
        assert first == twin.count
        assert status == -signal.SIGKILL
        twin.follow(number, path)
        assert twin.count >= flushed
    # It has wrapped, again and again.
    assert twin.count > 3 * SIZE


class Kills:
    """Kills this process at the n-th call by which a flush gets to the disk, before or after the call is made."""

    def __init__(self, call):
        self.left, self.is_after = divmod(call, 2)
        self.n_flushes = 0
        for name in ("fsync", "write", "replace", "open", "unlink"):
            setattr(os, name, self.counted(getattr(os, name)))
        ArraysFile.sync = self.counted(ArraysFile.sync)

    def counted(self, function):
        def wrapper(*args, **kwargs):
            self.left -= 1
            if self.left == -1 and not self.is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            if self.left == -1:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapper

    def has_ended(self):
        """After two flushes."""
        self.n_flushes += 1
        return self.n_flushes == 2


@pytest.mark.parametrize("n_before", [100, pytest.param(0, marks=pytest.mark.full)])
def test_killed_at_each_call_of_a_flush(n_before, tmp_path):
    path, twin = tmp_path / "store", Twin()
    if n_before:
        buffer, steps = make(SIZE, N_ENVS, path, **OPTIONS), source(10**6)
        for _ in range(n_before):
            add([buffer], steps())
        buffer.close()
        twin.follow(10**6, path)
    for call in range(1000):
        # Each of them goes on where the one before was killed.
        _, flushed, status = killed(path, call, prepare=lambda call=call: Kills(call))
        twin.follow(call, path)
        assert twin.count >= flushed
        if status == 0:
            break
        assert status == -signal.SIGKILL
    # Of one flush: the arrays, a file beside and its name, the record.
    assert call > 2 * 2 * 5


def test_killed_at_each_call_while_it_is_made(tmp_path):
    path = tmp_path / "store"
    for call in range(1000):
        child = os.fork()
        if child == 0:
            Kills(call)
            make(SIZE, N_ENVS, path, **OPTIONS)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        ours = make(SIZE, N_ENVS, path, **OPTIONS)
        assert ours.store.count == 0
        ours.close()
        assert sorted(each.name for each in path.iterdir()) == ["lock", "room", "steps.bin"]
        shutil.rmtree(path)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert call > 10
