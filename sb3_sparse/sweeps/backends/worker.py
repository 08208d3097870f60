"""
A process that makes runs, one after the other: ``python -m sb3_sparse.sweeps.backends.worker``.

The first line of its input is what it works on. It takes whatever run no other process has, and says on its output, in lines
of JSON, what it begins and how that ends. When its input ends, so has the process that began it: it stops with a checkpoint.
"""

import functools
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sb3_sparse.resume.signals import Request, check_request, install
from sb3_sparse.sweeps.runs.execute import DONE, FAILED, STOPPED, TAKEN, How, Outcome, execute
from sb3_sparse.sweeps.runs.run_folder import RunFolder
from sb3_sparse.zoo import registered


def work(
    runs: Path, names: Sequence[str], how: How, tell: Callable[[dict[str, Any]], None], at_most: float = float("inf")
) -> Outcome | None:
    """
    Make those of some runs that are not done, not failed, and that no other process has.

    Runs that others have are looked at again at the end: they may be gone.

    :param runs: The folder of all runs.
    :param names: Of the runs, in the order in which they are tried.
    :param how: How they are made.
    :param tell: Is told what begins and how it ends.
    :param at_most: How many runs to make.
    :raises KeyboardInterrupt: If the end was asked for between two runs.
    :return: The outcome because of which it ended before the last of them: stopped on request, or by the disk.
    """
    left, made = list(names), 0
    for is_last_look in (False, True):
        taken = []
        for name in left:
            check_request()
            folder = RunFolder(runs / name)
            if folder.state() in (DONE, FAILED) or made >= at_most:
                continue
            if not is_last_look and folder.is_claimed():
                taken.append(name)
                continue
            begun: list[str] = []

            def begins(name: str = name, begun: list[str] = begun) -> None:
                begun.append(name)
                tell({"begins": name})

            outcome = execute(folder, how, begins=begins)
            if begun or outcome.kind == FAILED:
                tell({"ends": name, "kind": outcome.kind, "error": outcome.error, "is_of_disk": outcome.is_of_disk})
            made += outcome.kind != TAKEN
            if outcome.kind == STOPPED or outcome.is_of_disk:
                return outcome
            if outcome.kind == TAKEN:
                taken.append(name)
        left = taken
    return None


def main() -> None:
    """See the file."""
    given = json.loads(sys.stdin.readline())
    # What runs print goes to their logs; this stays for the one who began the process.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(event: dict[str, Any]) -> None:
        output.write(json.dumps(event) + "\n")

    # Between two runs there is nothing to be saved.
    with suppress(KeyboardInterrupt), interruptible():
        threading.Thread(target=_ends_with_input, daemon=True).start()
        prepare_process()
        work(Path(given["runs"]), given["names"], How.from_json(given["how"]), tell)


@functools.cache
def prepare_process() -> None:
    """Load what every run needs, once, and let the search for garbage after each run leave all of that alone."""
    with registered():
        pass
    gc.collect()
    gc.freeze()


@contextmanager
def interruptible() -> Iterator[None]:
    """
    Inside, what asks for the end raises ``KeyboardInterrupt``, as Ctrl-C does; while a run is trained, it ends with a
    checkpoint instead.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python handles signals in the main thread alone.
        yield
        return
    request = Request()
    before = install(request)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ends_with_input() -> None:
    while sys.stdin.readline():
        pass
    # As if somebody had asked for the end: a checkpoint, if a run is on its way.
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
