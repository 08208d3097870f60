"""SIGTERM, SIGUSR1, SIGHUP and Ctrl-C during training: a checkpoint at the next exact point, and the end."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from sb3_sparse.common.interrupts import SIGNALS
from sb3_sparse.resume.checkpoint import ExactCheckpoint, StoppedOnRequest
from sb3_sparse.resume.environments.vec_env import vec_layers
from sb3_sparse.resume.environments.worker import in_workers

#: Exit status of a command that ended with a checkpoint to go on from: EX_TEMPFAIL, "try again".
EXIT_STATUS = 75
#: Seconds in which the same signal is the same request: schedulers send one to each process of a job, and programs pass it on.
AT_ONCE = 1.0
# For environments in processes of their own to end the step that they are in.
_SECONDS_TO_CLOSE = 3.0


# What a terminal sends that closes, and what comes with SIGTERM where a session is ended. Windows has none.
_HANGS_UP = getattr(signal, "SIGHUP", None)


def _is_same_request(number: int, before: int | None, seconds: float) -> bool:
    """Whether a signal asks for what an earlier one has: the same at once, and SIGHUP with any other one."""
    return number == _HANGS_UP or (before in (number, _HANGS_UP) and seconds < AT_ONCE)


class Request:
    """
    A handler of these signals: raises ``KeyboardInterrupt``, as Ctrl-C does. The same signal twice at once is one request, and
    SIGHUP is never a second one.

    It is remembered: Python ignores an exception that is raised while it frees an object.
    """

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def __call__(self, number: int, frame: Any) -> None:
        """What Python calls."""
        now = time.monotonic()
        if not any(_is_same_request(number, before, now - when) for before, when in self._last.items()):
            self._last[number] = now
            raise KeyboardInterrupt

    def remember(self, number: int) -> None:
        """One that somebody else was told of."""
        self._last[number] = time.monotonic()

    @property
    def was_made(self) -> bool:
        """Whether a signal came."""
        return bool(self._last)


def check_request() -> None:
    """:raises KeyboardInterrupt: If the end was asked for by a :class:`Request` that is installed, and work went on."""
    if any(isinstance(handler, Request) and handler.was_made for handler in map(signal.getsignal, SIGNALS)):
        raise KeyboardInterrupt


def install(handler: Callable[[int, Any], None]) -> dict[int, Any]:
    """
    Handle these signals, and return what did before. A SIGHUP that is ignored, as after ``nohup``, is left so.

    :param handler: What Python is to call.
    """
    numbers = [number for number in SIGNALS if number != _HANGS_UP or signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in numbers}


def shield_workers(envs: Iterable[VecEnv]) -> None:
    """Processes of environments, where there are some, leave all of these signals but SIGTERM to this one from now on."""
    for env in envs:
        base = vec_layers(env)[-1]
        if isinstance(base, SubprocVecEnv):
            in_workers(base, "shield")
            # They do not end by themselves now.
            base.close = partial(_close, base)  # type: ignore[method-assign]


def _close(base: SubprocVecEnv) -> None:
    """
    Close environments, also where a step of them was interrupted: SB3 would wait for answers of which some were read
    already, and of others that may never come.
    """
    if base.closed or not base.waiting:
        type(base).close(base)
        return
    for remote in base.remotes:
        with suppress(OSError):
            remote.send(("close", None))
    end = time.monotonic() + _SECONDS_TO_CLOSE
    while any(process.is_alive() for process in base.processes) and time.monotonic() < end:
        for remote in base.remotes:
            # Whoever has something to say closes only after that was heard.
            with suppress(OSError, EOFError):
                while remote.poll():
                    remote.recv()
        time.sleep(0.01)
    for process in base.processes:
        if process.is_alive():
            process.terminate()
        process.join()
    base.waiting, base.closed = False, True


@contextmanager
def ends_with_checkpoint(checkpoint: ExactCheckpoint, patience: float, envs: Iterable[VecEnv] = ()) -> Iterator[None]:
    """
    Inside, one of these signals asks for a checkpoint and the end; training then raises :class:`StoppedOnRequest`.

    A second one, another signal or the same a second later, but no SIGHUP, ends the process at once, as if nobody had
    asked for anything.

    :param checkpoint: Of the run that is trained inside.
    :param envs: Those of training and evaluation: their processes, if they have some, leave all but SIGTERM to this one.
    :param patience: Seconds after which the run ends without another checkpoint, where no exact point comes.
    :raises KeyboardInterrupt: If the end was asked for before.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python handles signals in the main thread alone.
        yield
        return
    check_request()
    shield_workers(envs)
    waiting = _Waiting(checkpoint, patience)
    before = install(waiting.asked)
    try:
        yield
    finally:
        waiting.over()
        for number, handler in before.items():
            signal.signal(number, handler)
            # Training may have come to its end first. What comes next has not been asked for.
            if number == waiting.first and isinstance(handler, Request):
                handler.remember(number)


class _Waiting:
    def __init__(self, checkpoint: ExactCheckpoint, patience: float):
        self._checkpoint, self._patience = checkpoint, patience
        self._timer: threading.Timer | None = None
        self._when = 0.0
        #: The signal that came first, if one came.
        self.first: int | None = None
        self._has_waited = False

    def asked(self, number: int, frame: Any) -> None:
        """The handler of all these signals."""
        if self._has_waited:
            # The timer's own. What is being written is finished first, which is an exact point.
            if not self._checkpoint.is_saving:
                raise StoppedOnRequest(f"no point for a checkpoint came in {self._patience:g} seconds. {self._newest()}")
            return
        if self._timer is not None:
            if _is_same_request(number, self.first, time.monotonic() - self._when):
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.first, self._when = number, time.monotonic()
        self._checkpoint.stop_requested = True
        self._timer = threading.Timer(self._patience, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def over(self) -> None:
        """Nothing is waited for any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _give_up(self) -> None:
        self._has_waited = True
        main = threading.main_thread().ident
        if main is not None and hasattr(signal, "pthread_kill"):
            # To the thread that may be waiting for something: raised here, it would go on waiting.
            signal.pthread_kill(main, SIGNALS[0])
        else:
            signal.raise_signal(SIGNALS[0])

    def _newest(self) -> str:
        return f"The newest checkpoint in {self._checkpoint.path} is an earlier one."
