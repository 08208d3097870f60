"""What stops a program halfway: Ctrl-C and SIGTERM, which can be put off, and output that nobody reads any more."""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

# What asks a program to stop, by handlers that may raise an exception: what schedulers send before they kill, and Ctrl-C.
# Windows has no SIGUSR1.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class ClosedOutput(Exception):
    """Nobody reads what is printed any more, and the work has ended of it: what has come of it."""


def output_is_closed() -> bool:
    """Whether standard output is a pipe whose reader has gone, as after ``| head``, or where Ctrl-C ended ``tee`` as well."""
    number = _output()
    # Without poll, as on Windows, nothing is known.
    if number is None or not hasattr(select, "poll"):
        return False
    output = select.poll()
    output.register(number, 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in output.poll(0))


def let_go_of_closed_output() -> None:
    """What is printed from now on goes nowhere, if nobody reads it: printing does not fail, nor does Python's end."""
    number = _output()
    if number is not None and output_is_closed():
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _output() -> int | None:
    """Of standard output; None if there is none, or it is no file."""
    try:
        return sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return None


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
