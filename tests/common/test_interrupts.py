"""Output that nobody reads, or that cannot be written."""

import contextlib
import errno
import io
import os
import socket
import sys
import threading
import time

import cloudpickle
import pytest

from sb3_sparse.common import interrupts
from sb3_sparse.common.interrupts import ClosedOutput, is_unread, watched_output


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
        with contextlib.suppress(BrokenPipeError):
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
    seen = []
    with contextlib.suppress(ClosedOutput), watched_output(goes_on=True):
        print("read", flush=True)
        seen.append(is_unread())
        os.close(pipe)
        print("unread", flush=True)
        seen.append(is_unread())
        print("and more", flush=True)
        seen.append("to the end")
    assert seen == [False, True, "to the end"]
    assert not is_unread()


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_said_where_a_program_ends_itself(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(OSError, match="No space"), watched_output(goes_on=True):
            sys.exit(print("lost"))
        with pytest.raises(SystemExit, match="its own"), watched_output(goes_on=True):
            sys.exit(print("lost") or "its own")


def test_a_pipe_without_a_reader_is_known_before_anything_is_printed(piped):
    pipe = piped()
    seen = []
    with pytest.raises(ClosedOutput), watched_output(goes_on=True):
        seen.extend([is_unread(), os.close(pipe), is_unread()])
    assert seen == [False, None, True]


def test_work_that_printed_little_ends_as_unread_too(piped):
    """Mistake of ours: of what waited in the buffer, nobody had been asked."""
    pipe = piped()
    os.close(pipe)
    with pytest.raises(ClosedOutput), watched_output(goes_on=True):
        print("unread")


@pytest.mark.parametrize("stream", [None, io.StringIO(), io.TextIOWrapper(io.BytesIO())])
def test_streams_that_are_no_files(stream, monkeypatch):
    monkeypatch.setattr(sys, "stdout", stream)
    with watched_output(goes_on=True):
        print("as ever")
        assert not is_unread()
    assert sys.stdout is stream
    if stream is not None:
        stream.seek(0)
        assert stream.read() == "as ever\n"


def test_output_and_errors_in_one_stream_stay_in_order(tmp_path, monkeypatch):
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stdout", log)
        monkeypatch.setattr(sys, "stderr", log)
        with watched_output(goes_on=True):
            for i in range(2):
                print(i)
                print("error", i, file=sys.stderr)
    assert (tmp_path / "log").read_text().splitlines() == ["0", "error 0", "1", "error 1"]


def test_a_stream_that_is_kept_writes_into_no_other_file(tmp_path, monkeypatch):
    """Mistake of ours: it wrote to the number that its file had had."""
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(sys, "stdout", log)
        with watched_output(goes_on=True):
            kept = sys.stdout
    with (tmp_path / "agent").open("w") as agent, pytest.raises(ValueError, match="closed file"):
        kept.write(str(agent.write("precious")))
    assert (tmp_path / "agent").read_text() == "precious"


def test_streams_are_the_objects_that_they_are(tmp_path, monkeypatch):
    """Mistake of ours: they were others, which could not be pickled by their names, nor told from ours."""
    with (tmp_path / "log").open("w") as log:
        log.write = print  # Somebody's own.
        before = dict(vars(log))
        monkeypatch.setattr(sys, "stdout", log)
        for _ in range(2):
            with watched_output(goes_on=True):
                assert sys.stdout is log
                assert cloudpickle.loads(cloudpickle.dumps(log)) is log
                log.mine = 3
        assert vars(log) == {**before, "mine": 3}


def test_a_stream_that_hands_everything_on_to_another_one(piped, monkeypatch):
    class Front:
        """As tqdm has it."""

        def __init__(self, stream):
            object.__setattr__(self, "stream", stream)

        def __getattr__(self, name):
            return getattr(self.stream, name)

        def __setattr__(self, name, value):
            setattr(self.stream, name, value)

    pipe = piped()
    monkeypatch.setattr(sys, "stdout", Front(sys.stdout))
    with watched_output(goes_on=True):
        print("in it", flush=True)
    assert os.read(pipe, 100) == b"in it\n"
    os.close(pipe)
    with pytest.raises(BrokenPipeError):
        print("as ever", flush=True)


class Tee:
    """Somebody's stream, in which nothing can be replaced."""

    __slots__ = ("said",)

    def __init__(self):
        self.said = ""

    def write(self, text):
        self.said += text


def test_a_stream_that_lets_nothing_be_replaced_is_left_alone(monkeypatch):
    tee = Tee()
    monkeypatch.setattr(sys, "stdout", tee)
    with contextlib.suppress(AttributeError), watched_output(goes_on=True):
        print("as ever")
    assert tee.said == "as ever\n"


def test_one_inside_another_and_beside_it_counts_as_the_first(piped):
    """Mistake of ours: of several threads, one put back what another one had put there."""
    pipe = piped()
    given, seen = (sys.stdout, sys.stderr), []

    def beside():
        with watched_output(goes_on=False):
            seen.append(is_unread())

    def several():
        os.close(pipe)
        threads = [threading.Thread(target=beside) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    with pytest.raises(ClosedOutput), watched_output(goes_on=True):
        several()
    assert seen == [True] * 8
    assert (sys.stdout, sys.stderr) == given
    assert "write" not in vars(sys.stdout)


@pytest.mark.skipif(not hasattr(socket, "socketpair"), reason="no socketpair")
@pytest.mark.parametrize("prints", [False, True])
def test_a_socket_whose_reader_has_gone_is_unread(prints, monkeypatch):
    """Mistake of ours: training went on to its end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    output = ours.makefile("w")
    monkeypatch.setattr(sys, "stdout", output)

    def says():
        print("read", flush=True)
        assert not is_unread()
        # With something unread, so that the next write is told of a reset.
        theirs.close()
        time.sleep(0.1)
        if prints:
            print("unread", flush=True)
            print("and more", flush=True)
        assert is_unread()

    with pytest.raises(ClosedOutput), watched_output(goes_on=True):
        says()
    ours.close()
    with contextlib.suppress(OSError):
        output.close()


def test_what_is_lost_for_another_reason_first_is_unread_all_the_same(piped, monkeypatch):
    pipe = piped()

    def says():
        interrupts._watch.lost(OSError(errno.ENOSPC, "full"))
        os.close(pipe)
        print("unread", flush=True)
        assert is_unread()

    with pytest.raises(ClosedOutput), watched_output(goes_on=True):
        says()


@pytest.mark.parametrize("missing", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_streams_that_were_closed_before_the_program_began(missing, monkeypatch):
    """Mistake of ours: what looks at a stream before it prints ended with an AttributeError."""
    for name in missing:
        monkeypatch.setattr(sys, name, None)
    with watched_output(goes_on=True):
        for name in missing:
            assert (getattr(sys, name).isatty(), getattr(sys, name).write("nowhere")) == (False, 7)
    assert [getattr(sys, name) for name in missing] == [None] * len(missing)


def test_a_stream_that_somebody_replaces_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(tmp_path / "log", "w")))
    with watched_output(goes_on=True):
        sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding="utf-8")
        print("theirs")
    print("still", flush=True)
    sys.stdout.close()
    assert (tmp_path / "log").read_text().split() == ["theirs", "still"]
