"""The command ``sb3-sparse``: rl-zoo3's commands with our policies and hyperparameters, and some of our own."""

import importlib
import os
import platform
import signal
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import sb3_sparse
from sb3_sparse.common.interrupts import ClosedOutput, watched_output

USAGE = """\
usage: sb3-sparse COMMAND [options]
       sb3-sparse COMMAND --help
       sb3-sparse --version

commands:
  train      train an agent:      sb3-sparse train --algo sac --env dm_control/cartpole-swingup-v0
  enjoy      watch a saved one:   sb3-sparse enjoy --algo sac --env dm_control/cartpole-swingup-v0 -f logs
  tune       search hyperparameters (rl-zoo3's -optimize)
  evaluate   how good saved agents are: sb3-sparse evaluate logs/sac/Pendulum-v1_1 --episodes 20 --json returns.json
  describe   print the layers that an agent would have, without training; --plot draws where their weights are
  export     write an agent as another kind of file: sb3-sparse export --algo sac --env Pendulum-v1 --to onnx
  sweep      make all runs of a study: sb3-sparse sweep plan.yml; sb3-sparse sweep status plan.yml
  plot       draw return and plasticity of runs: sb3-sparse plot logs/sac/Pendulum-v1_1 logs/sac/Pendulum-v1_2
  report     put the runs of a study together, as a page with plots, pictures and tables: sb3-sparse report logs/sweeps/width
  completion print what lets a shell complete all this: sb3-sparse completion bash

Options of train, enjoy and tune are those of rl-zoo3 (sb3-sparse COMMAND --help). Hyperparameters come from the packaged file
of the algorithm unless -conf names another.
"""

# The function of each command, and the file in this folder that it is in.
COMMANDS = {
    "train": "train_tune_enjoy",
    "enjoy": "train_tune_enjoy",
    "tune": "train_tune_enjoy",
    "evaluate": "evaluate",
    "describe": "describe",
    "export": "export",
    "sweep": "sweep",
    "plot": "plot",
    "report": "report",
    "completion": "completion",
}
# Those that do more than print: where nobody reads it any more, they end with what they have.
WORK = ("train", "tune", "evaluate", "export", "sweep", "plot", "report")
# Exit status where nobody reads the output any more: 128 + SIGPIPE, which Windows does not know.
UNREAD = 141


def main(argv: list[str] | None = None) -> None:
    """
    Entry point of the console script.

    :param argv: Name of a command, and its options; None: those of the process.
    :raises SystemExit: If something is wrong, with one sentence for the user; or as argparse does.
    :raises KeyboardInterrupt: Of Ctrl-C, if the options are those of the process: a shell then ends its loop as well.
    """
    if argv is None:
        _occupy_standard_numbers()
    args = list(sys.argv[1:] if argv is None else argv)
    name = f"sb3-sparse {args[0]}" if args else "sb3-sparse"
    is_work = bool(args) and args[0] in WORK
    try:
        with watched_output(goes_on=is_work):
            _run(args)
    except KeyboardInterrupt:
        # Training and studies end by themselves then, with what they have.
        _tell(f"{name}: interrupted")
        if argv is None:
            # Without its traceback. Python ends itself by the signal, as whoever called expects it.
            sys.excepthook = _silent(sys.excepthook)
            raise
        sys.exit(128 + signal.SIGINT)
    except ClosedOutput as closed:
        # `sb3-sparse describe ... | head` has seen enough: nothing is wrong. Work that ended of it says so.
        if str(closed):
            _tell(f"{name}: nobody reads the output any more: {closed}")
        sys.exit(UNREAD)
    except Exception as error:
        # Late: it knows libraries that an answer such as the version does without.
        from sb3_sparse.zoo.mistakes.words import in_words

        said = in_words(error)
        if said is None:
            # In training it may be in anybody's environment or callback, which only a traceback shows.
            raise
        sys.exit(f"{name}: {said}")


def _occupy_standard_numbers() -> None:
    """Where a stream was closed (``2>&-``), the first file that is opened would get its number, and what C prints to it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest that is free, so this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _tell(text: str) -> None:
    """On standard error, if anybody reads that."""
    with watched_output(goes_on=True):
        print(text, file=sys.stderr)


def _silent(hook: Callable[..., Any]) -> Callable[..., None]:
    """What Python calls with an error that nobody caught, without Ctrl-C."""

    def called(kind: type[BaseException], *error: Any) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            hook(kind, *error)

    return called


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if args[0] in ("-V", "--version"):
        print(_version())
        return
    command = args[0]
    if command not in COMMANDS:
        sys.exit(f"sb3-sparse: unknown command {command!r}, expected one of {', '.join(COMMANDS)}. See sb3-sparse --help.")
    # Each imports what it needs and no more: drawing needs no rl-zoo3.
    prepare = getattr(importlib.import_module(f"sb3_sparse.cli.{COMMANDS[command]}"), command)
    go_on = prepare(args[1:])
    if go_on is not None:
        go_on()


def _version() -> str:
    """In one line, what a report about an error begins with."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "stable-baselines3"))
    return f"sb3-sparse {sb3_sparse.__version__} ({libraries}, Python {platform.python_version()})"
