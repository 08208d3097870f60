"""What stops a program halfway: Ctrl-C and SIGTERM, which can be put off, and output that nobody reads any more."""

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

# What asks a program to stop, by handlers that may raise an exception: what schedulers send before they kill, and Ctrl-C.
# Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class ClosedOutput(Exception):
    """Nobody reads what is printed any more, and the work has ended of it: what has come of it."""


class _Lost:
    """What became of standard output, while it is watched."""

    def __init__(self, goes_on: bool) -> None:
        self.goes_on = goes_on
        self.error: OSError | None = None
        self.told: list[Callable[[], None]] = []

    @property
    def is_unread(self) -> bool:
        return self.error is not None and self.error.errno == errno.EPIPE

    def __call__(self, error: OSError) -> None:
        self.error = self.error or error
        if not self.goes_on:
            if error.errno in _NOBODY:
                raise ClosedOutput from error
            raise error
        if self.is_unread:
            for tell in self.told:
                tell()


class _File(io.FileIO):
    """A file that is printed to. What cannot be written is left out, and told."""

    def __init__(self, number: int, lost: Callable[[OSError], None]):
        super().__init__(number, "w", closefd=False)
        self._lost = lost

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno in _NOBODY:
                # Whatever else writes there, such as C or another process, is not told of it.
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            self._lost(error)
            return memoryview(data).nbytes


# A pipe whose reader has gone, as after ``| head`` or where Ctrl-C ended ``tee`` as well; a terminal that has gone.
_NOBODY = (errno.EPIPE, errno.EIO)
# One inside another, where a command calls a command: the first has the file.
_watches: list[_Lost] = []


@contextmanager
def watched_output(goes_on: bool) -> Iterator[None]:
    """
    Inside, what is printed to standard output or standard error, and cannot be written, does not end what is at work halfway.

    Streams that are no files, as in notebooks, stay what they are.

    :param goes_on: Whether work goes on then, and asks :func:`is_unread` where it can end.
    :raises ClosedOutput: If it does not, and nobody reads standard output any more.
    :raises OSError: After the work, or if it does not go on, if standard output could not be written for another reason.
    """
    lost = _Lost(goes_on)
    given = sys.stdout, sys.stderr
    ours = _watched(sys.stdout, lost), _watched(sys.stderr, lambda error: None)
    sys.stdout, sys.stderr = ours
    _watches.append(lost)
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
        if lost.error is not None and lost.error.errno not in _NOBODY:
            raise lost.error
    finally:
        _watches.pop()
        sys.stdout, sys.stderr = given
        # Whoever has them still, such as a log, goes on with them.
        lost.goes_on = True
        for stream in set(ours) - set(given):
            stream.flush()


def _watched(stream: Any, lost: Callable[[OSError], None]) -> Any:
    """The same stream, to the same file, of which what cannot be written is told."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    # A console of Windows is another kind of file.
    if type(stream) is not io.TextIOWrapper or type(raw) is not io.FileIO:
        return stream
    stream.flush()
    file = _File(raw.fileno(), lost)
    return io.TextIOWrapper(
        # Unbuffered streams have no buffer between.
        cast(BinaryIO, file if buffer is raw else io.BufferedWriter(file)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def is_unread() -> bool:
    """Whether nobody reads :func:`watched_output` any more, so that work should end: a pipe without a reader."""
    # Where a terminal has gone and the process has not, it was told to stay.
    return bool(_watches) and _watches[0].is_unread


@contextmanager
def told_when_unread(tell: Callable[[], None]) -> Iterator[None]:
    """
    Inside, be told when :func:`is_unread` becomes true, or that it is.

    :param tell: Called while something is being printed, perhaps more than once.
    """
    told = _watches[0].told if _watches else []
    told.append(tell)
    try:
        if is_unread():
            tell()
        yield
    finally:
        told.remove(tell)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """
    Inside, Ctrl-C waits; it comes right after.

    Python handles signals in the main thread alone, so that other threads have nothing to wait for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with ExitStack() as stack:
        for number in SIGNALS:
            stack.enter_context(_deferred(number))
        yield


@contextmanager
def _deferred(number: int) -> Iterator[None]:
    handler: Any = signal.getsignal(number)
    if not callable(handler):
        # It raises nothing, or was not installed from Python, which could not put it back.
        yield
        return
    waiting: list[tuple[int, Any]] = []
    try:
        signal.signal(number, lambda *arrived: waiting.append(arrived))
        yield
    finally:
        signal.signal(number, handler)
        for arrived in waiting:
            handler(*arrived)
