"""Ctrl-C and SIGTERM, put off while something is done that must not stop halfway."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

# What asks a program to stop; by handlers that may raise an exception.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
        for number in _SIGNALS:
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
