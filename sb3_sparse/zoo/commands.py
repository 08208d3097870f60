"""rl-zoo3's own commands, as if they had been called with certain arguments."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from sb3_sparse.zoo.environments import register_domain
from sb3_sparse.zoo.exact_runs import ExactRun
from sb3_sparse.zoo.patches import registered
from sb3_sparse.zoo.rl_zoo import part, replaced


def prepare_command(
    command: str,
    args: list[str],
    env_id: str,
    exact: ExactRun | None = None,
    parser: Callable[[], argparse.ArgumentParser] | None = None,
) -> Callable[[], None]:
    """
    A command of rl-zoo3 with what this package adds to it. When it ends, rl-zoo3 and ``sys.argv`` are as before.

    :param command: ``"train"`` or ``"enjoy"``.
    :param args: Its arguments.
    :param env_id: The environment that they name.
    :param exact: Of ``train``: how the run is written down to go on from, or which one goes on.
    :param parser: Makes what rl-zoo3 fills with its options, and reads the arguments with; None: its own.
    :return: Runs it. Raises ``SystemExit`` if an argument is wrong, as argparse does, and :class:`WrongSettingError` if a
        file or a hyperparameter is.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks something that is needed.
    """
    called = part(f"{command}.{command}")

    def run() -> None:
        argv = sys.argv
        with registered(loads_only=command == "enjoy", exact=exact), _parsing(command, parser):
            register_domain(env_id)
            try:
                # rl-zoo3's commands read no other arguments than those of the process.
                sys.argv = [f"sb3-sparse {command}", *args]
                called()
            finally:
                sys.argv = argv

    return run


def options_of(command: str, parser: argparse.ArgumentParser) -> None:
    """
    Fill a parser with the options of a command of rl-zoo3, which does nothing else.

    :param command: ``"train"`` or ``"enjoy"``.
    :param parser: An empty one.
    :raises ImportError: If rl-zoo3 is missing, or a version that lacks something that is needed.
    """

    def parse_args(*args: Any, **kwargs: Any) -> argparse.Namespace:
        raise _Filled

    parser.parse_args = parse_args  # type: ignore[method-assign, assignment]
    try:
        prepare_command(command, [], "", parser=lambda: parser)()
    except _Filled:
        del parser.parse_args


class _Filled(Exception):
    """All options are there."""


@contextmanager
def _parsing(command: str, parser: Callable[[], argparse.ArgumentParser] | None) -> Iterator[None]:
    """Inside, a command of rl-zoo3 parses its arguments with this parser."""
    if parser is None:
        yield
        return
    module = vars(part(command))
    part(f"{command}.argparse")
    with replaced(module, {"argparse": SimpleNamespace(**{**vars(argparse), "ArgumentParser": parser})}):
        yield
