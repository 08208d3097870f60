"""Output that nobody reads, or that cannot be written."""

import errno
import io
import os
import sys

import pytest

from sb3_sparse.common.interrupts import ClosedOutput, is_unread, told_when_unread, watched_output


@pytest.fixture(params=["buffered", "unbuffered"])
def piped(request, monkeypatch):
    """Makes standard output a pipe, and returns the end that is read."""
    outputs = []

    def begin():
        ends, writes = os.pipe()
        file = os.fdopen(writes, "wb", buffering=0 if request.param == "unbuffered" else -1)
        outputs.append(io.TextIOWrapper(file, encoding="utf-8", write_through=request.param == "unbuffered"))
        # Not in the fixture: pytest puts its own there between.
        monkeypatch.setattr(sys, "stdout", outputs[-1])
        return ends

    yield begin
    for output in outputs:
        output.close()


def test_what_is_read_is_as_without(piped):
    pipe = piped()
    print("before", end=" ")
    with watched_output(goes_on=True):
        print("in it", end=" ")
        assert (sys.stdout.isatty(), sys.stdout.encoding.lower()) == (False, "utf-8")
        with watched_output(goes_on=False):
            print("\u2713", end=" ")
    print("after", end="", flush=True)
    assert os.read(pipe, 100).decode() == "before in it \u2713 after"
    os.close(pipe)


def test_work_goes_on_and_knows(piped):
    pipe = piped()
    told = []
    with watched_output(goes_on=True):
        with told_when_unread(lambda: told.append("early")):
            print("read", flush=True)
            assert not is_unread()
        os.close(pipe)
        with told_when_unread(lambda: told.append("in time")):
            print("unread", flush=True)
            assert (is_unread(), told) == (True, ["in time"])
            print("and more", flush=True)
        with told_when_unread(lambda: told.append("late")):
            pass
        assert told[-1] == "late"
    assert not is_unread()
    print("nor does this fail", flush=True)


def test_what_only_prints_ends(piped):
    pipe = piped()
    os.close(pipe)
    seen = []
    with pytest.raises(ClosedOutput), watched_output(goes_on=False):
        seen.extend([print("unread", flush=True), "went on"])
    assert seen == []


def test_at_the_latest_at_the_end(piped):
    pipe = piped()
    os.close(pipe)
    with pytest.raises(ClosedOutput), watched_output(goes_on=False):
        print("unread")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("goes_on", [False, True])
def test_a_full_disk_is_said_after_the_work(goes_on, monkeypatch):
    done = []
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space") as raised, watched_output(goes_on):
            done.extend([print("lost", flush=True), is_unread()])
    assert raised.value.errno == errno.ENOSPC
    assert done == [None, False] * goes_on


@pytest.mark.parametrize("stream", [None, io.StringIO(), io.TextIOWrapper(io.BytesIO())])
def test_streams_that_are_no_files_stay(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    with watched_output(goes_on=True):
        assert sys.stdout is stream
        print("as ever")
    assert sys.stdout is stream


def test_outside_nothing_is_told():
    with told_when_unread(lambda: pytest.fail("told")):
        assert not is_unread()
