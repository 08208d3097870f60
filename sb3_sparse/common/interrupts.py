"""What stops a program halfway: Ctrl-C and SIGTERM, which can be put off, and output that nobody reads any more."""

import errno
import os
import select
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

# What asks a program to stop, by handlers that may raise an exception: what schedulers send before they kill, a terminal that
# closes, and Ctrl-C. Windows has neither SIGUSR1 nor SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT") if hasattr(signal, name))
# Of a pipe or a socket whose other end was closed.
_UNREAD = (errno.EPIPE, errno.ECONNRESET)


class ClosedOutput(Exception):
    """Nobody reads what is printed any more, and the work has ended of it: what has come of it."""


class _Watch:
    """What became of standard output, while it is watched."""

    def __init__(self, output: Any, goes_on: bool) -> None:
        self.output, self.goes_on = output, goes_on
        self.error: OSError | None = None

    def lost(self, error: OSError) -> None:
        """Something could not be printed."""
        if self.error is None or error.errno in _UNREAD:
            self.error = error
        if not self.goes_on:
            self.check()

    @property
    def is_unread(self) -> bool:
        return self.error is not None and self.error.errno in _UNREAD

    def check(self) -> None:
        if self.is_unread:
            raise ClosedOutput from self.error
        if self.error is not None:
            raise self.error


# The one watch that there is: held as long as something is watched.
_is_watched = threading.Lock()
_watch: _Watch | None = None


@contextmanager
def watched_output(goes_on: bool) -> Iterator[None]:
    """
    Inside, what is printed to standard output or standard error, and cannot be written, does not end what is at work halfway.

    Where a terminal has gone, or a stream was closed before the program began, nothing is said. Inside another one, or beside
    it in another thread, the first one counts.

    :param goes_on: Whether work goes on then, and asks :func:`is_unread` where it can end.
    :raises ClosedOutput: If nobody reads standard output any more: at once, or after the work if that goes on.
    :raises OSError: If it could not be written for another reason, such as a full disk; likewise.
    """
    global _watch
    if not _is_watched.acquire(blocking=False):
        yield
        return
    try:
        with _never_none():
            watch = _watch = _Watch(sys.stdout, goes_on)
            with _goes_on(sys.stdout, watch.lost), _goes_on(sys.stderr, lambda error: None):
                try:
                    yield
                    _end(watch)
                except SystemExit as ended:
                    if not ended.code:
                        _end(watch)
                    raise
                finally:
                    # What is written out now comes too late for anybody.
                    watch.goes_on = True
    finally:
        _watch = None
        _is_watched.release()


def _end(watch: _Watch) -> None:
    sys.stdout.flush()
    watch.check()


@contextmanager
def _never_none() -> Iterator[None]:
    """What prints looks at a stream first, for which Python has None where it was closed before the program began."""
    missing = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        for name in missing:
            setattr(sys, name, nowhere)
        try:
            yield
        finally:
            for name in missing:
                # Somebody may have put something else there.
                if getattr(sys, name) is nowhere:
                    setattr(sys, name, None)


@contextmanager
def _goes_on(stream: Any, lost: Callable[[OSError], None]) -> Iterator[None]:
    """
    Inside, what cannot be written to a stream is left out, and told.

    It stays the object that it is, so that whoever has it, or compares it, sees no other one.
    """
    originals = {name: getattr(stream, name) for name in ("write", "writelines", "flush") if hasattr(stream, name)}

    def tried(name: str) -> Callable[..., Any]:
        def run(*args: Any, **keywords: Any) -> Any:
            try:
                return originals[name](*args, **keywords)
            except OSError as error:
                _forget(stream, originals.get("flush", bool))
                if not _is_terminal(stream, error):
                    lost(error)
                return sum(map(len, (*args, *keywords.values()))) if name == "write" else None

        return run

    ours = {name: tried(name) for name in originals}
    own = [name for name in ours if name in getattr(stream, "__dict__", {})]
    # Of somebody's own stream, they may not be replaceable.
    with suppress(AttributeError, TypeError):
        for name, method in ours.items():
            setattr(stream, name, method)
    try:
        yield
    finally:
        # Or have taken it apart.
        with suppress(ValueError):
            stream.flush()
        for name, method in ours.items():
            if getattr(stream, name, None) is method:
                with suppress(AttributeError):
                    delattr(stream, name)
                # Where it was somebody's own, or the stream hands on to another one what it is given.
                if name in own or getattr(stream, name) is method:
                    setattr(stream, name, originals[name])


def _forget(stream: Any, flush: Callable[[], Any]) -> None:
    """What waits to be written: Python would try it again at its end, and end with another status."""
    with suppress(OSError, ValueError, AttributeError):
        number = stream.fileno()
        file, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, number)
            flush()
        finally:
            os.dup2(file, number)
            os.close(file)
            os.close(nowhere)


def _is_terminal(stream: Any, error: OSError) -> bool:
    """Whether what cannot be written was for a terminal that has gone: a process that has not was told to stay."""
    with suppress(OSError, ValueError, AttributeError):
        return error.errno == errno.EIO and stat.S_ISCHR(os.fstat(stream.fileno()).st_mode)
    return False


def is_unread() -> bool:
    """Whether nobody reads :func:`watched_output` any more, so that work should end: its other end was closed."""
    watch = _watch
    if watch is None:
        return False
    if not watch.is_unread and _has_no_reader(watch.output):
        watch.error = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    return watch.is_unread


def _has_no_reader(output: Any) -> bool:
    """Whether the system says so before anything is printed. Without poll, as on Windows, nothing is known."""
    with suppress(OSError, ValueError, AttributeError):
        number = output.fileno()
        mode = os.fstat(number).st_mode
        # Of a terminal that has gone it says the same.
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            return False
        asked = select.poll()
        asked.register(number, 0)
        return any(state & (select.POLLERR | select.POLLHUP) for _, state in asked.poll(0))
    return False


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
