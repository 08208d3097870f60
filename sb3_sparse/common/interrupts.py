"""What stops a program halfway: Ctrl-C and SIGTERM, which can be put off, and output that nobody reads any more."""

import errno
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO, cast

# What asks a program to stop, by handlers that may raise an exception: what schedulers send before they kill, and Ctrl-C.
# Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class ClosedOutput(Exception):
    """Nobody reads what is printed any more, and the work has ended of it: what has come of it."""


class _Watch:
    """What became of standard output, while it is watched."""

    def __init__(self, goes_on: bool) -> None:
        self.goes_on = goes_on
        self.error: OSError | None = None
        self.told: list[Callable[[], None]] = []

    def lost(self, error: OSError) -> None:
        """Something could not be printed."""
        self.error = self.error or error
        if not self.goes_on:
            self.check()
        if self.is_unread:
            for tell in self.told:
                tell()

    @property
    def is_unread(self) -> bool:
        return self.error is not None and self.error.errno == errno.EPIPE

    def check(self) -> None:
        if self.is_unread:
            raise ClosedOutput from self.error
        if self.error is not None:
            raise self.error


class _Stream:
    """A stream to print to. What cannot be printed is left out, and told."""

    def __init__(self, stream: Any, lost: Callable[[OSError], None]):
        self.stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        return self._try(lambda: self.stream.write(text), len(text))

    def writelines(self, lines: Iterable[str]) -> None:
        self._try(lambda: self.stream.writelines(lines), None)

    def flush(self) -> None:
        self._try(self.stream.flush, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot copy or pickle {self.stream!r}, as any file")

    def _try(self, action: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return action()
        except OSError as error:
            self._forget()
            if not _is_terminal(self.stream, error):
                self._lost(error)
            return otherwise

    def _forget(self) -> None:
        """What waits to be written: Python would try it again at its end, and end with another status."""
        with suppress(OSError, ValueError, AttributeError):
            number = self.stream.fileno()
            file, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, number)
                self.stream.flush()
            finally:
                os.dup2(file, number)
                os.close(file)
                os.close(nowhere)


def _is_terminal(stream: Any, error: OSError) -> bool:
    """Whether what cannot be written was for a terminal that has gone: a process that has not was told to stay."""
    with suppress(OSError, ValueError, AttributeError):
        return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    return False


# One inside another, where a command calls a command: the first has the file.
_watches: list[_Watch] = []


@contextmanager
def watched_output(goes_on: bool) -> Iterator[None]:
    """
    Inside, what is printed to standard output or standard error, and cannot be written, does not end what is at work halfway.

    Where a terminal has gone, nothing is said.

    :param goes_on: Whether work goes on then, and asks :func:`is_unread` where it can end.
    :raises ClosedOutput: If nobody reads standard output any more: at once, or after the work if that goes on.
    :raises OSError: If it could not be written for another reason, such as a full disk; likewise.
    """
    watch, given = _Watch(goes_on), (sys.stdout, sys.stderr)
    output = None if sys.stdout is None else _Stream(sys.stdout, watch.lost)
    errors = None if sys.stderr is None else _Stream(sys.stderr, lambda error: None)
    sys.stdout, sys.stderr = cast(TextIO, output), cast(TextIO, errors)
    _watches.append(watch)
    try:
        yield
        _end(watch)
    except SystemExit as ended:
        if not ended.code:
            _end(watch)
        raise
    finally:
        _watches.pop()
        # Whoever has them still, such as a log, goes on with them.
        watch.goes_on = True
        # Somebody may have put something else there.
        if sys.stdout is output:
            sys.stdout = given[0]
        if sys.stderr is errors:
            sys.stderr = given[1]
        for stream in filter(None, (output, errors)):
            # Or have taken them apart.
            with suppress(ValueError):
                stream.flush()


def _end(watch: _Watch) -> None:
    if sys.stdout is not None:
        sys.stdout.flush()
    watch.check()


def is_unread() -> bool:
    """Whether nobody reads :func:`watched_output` any more, so that work should end: a pipe without a reader."""
    if not _watches:
        return False
    watch = _watches[0]
    if watch.error is None and _has_no_reader():
        watch.error = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return watch.is_unread


def _has_no_reader() -> bool:
    """Whether the system says so before anything is printed. Without poll, as on Windows, nothing is known."""
    with suppress(OSError, ValueError, AttributeError):
        number = sys.stdout.fileno()
        # Of a terminal that has gone it says the same.
        if not stat.S_ISFIFO(os.fstat(number).st_mode):
            return False
        output = select.poll()
        output.register(number, 0)
        return any(state & select.POLLERR for _, state in output.poll(0))
    return False


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
