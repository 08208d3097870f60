"""Parsers of command lines, all in one style: what a command does, examples, options; and an error is one line."""

import argparse
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch as th

from sb3_sparse.common.literals import parse_literal
from sb3_sparse.zoo import literal_names
from sb3_sparse.zoo.mistakes.words import one_line


class Parser(argparse.ArgumentParser):
    """
    The parser of one of our commands.

    :param command: Its name, such as ``"describe"``.
    :param does: What it does, in one sentence or some.
    :param examples: Command lines without ``sb3-sparse``, each with what it is for.
    :param operands: What is given without the name of an option, for the first line of the help.
    :param first: Parsers whose options are shown before its own: those that somebody else takes out of the command line.
    """

    def __init__(
        self,
        command: str,
        does: str | None,
        examples: Sequence[tuple[str, str]],
        operands: str = "",
        first: Sequence[argparse.ArgumentParser] = (),
        **kwargs: Any,
    ):
        kwargs = {"formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs}
        super().__init__(prog=f"sb3-sparse {command}", **kwargs)
        self.usage = " ".join(filter(None, ["%(prog)s", operands, "[options]"]))
        self.does, self.examples, self.first = " ".join((does or "").replace("``", "`").split()), examples, first

    def format_help(self) -> str:
        """The examples come before the options, of which rl-zoo3 has several screens."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        # Wrapped by hand: the formatter leaves lines as they are, for the examples.
        formatter.add_text(self._wrapped(self.does))
        lines = [f"  # {what}\n  sb3-sparse {line}" for line, what in self.examples]
        formatter.add_text("\n".join(["examples:", *lines]))
        for parser in (*self.first, self):
            for group in parser._action_groups:
                formatter.start_section(group.title)
                formatter.add_text(None if group.description is None else self._wrapped(group.description))
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        return formatter.format_help()

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As argparse's, with errors about devices that PyTorch does not have."""
        options = super().parse_args(*args, **kwargs)
        device = getattr(options, "device", "auto")
        try:
            # What SB3 makes "cuda" where there is one, and else "cpu".
            th.device("cpu" if device == "auto" else device)
        except RuntimeError:
            self.error(f"--device {device}: expected auto, cpu, cuda, cuda:0 or another device of PyTorch")
        return options

    def error(self, message: str) -> NoReturn:
        """One line, where argparse would print the names of all options before it."""
        self.exit(2, f"{self.prog}: {one_line(message).rstrip('.')}. See {self.prog} --help.{os.linesep}")

    @staticmethod
    def _wrapped(text: str) -> str:
        lines = [""]
        for word in text.split():
            if len(lines[-1]) + len(word) > 100:
                lines.append("")
            lines[-1] += f" {word}" if lines[-1] else word
        return "\n".join(lines)


class ReadDict(argparse.Action):
    """``name:value`` options as rl-zoo3 has them, of which nothing is run."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        read = {}
        for option in values:
            name, colon, text = option.partition(":")
            if not (name and colon):
                parser.error(f"{option_string} {option}: expected NAME:VALUE, such as name:0.5")
            try:
                read[name] = parse_literal(name, text, literal_names())
            except ValueError as error:
                parser.error(f"{option_string} {error}")
        _add(namespace, self.dest, read)


def evaluating(action: type[argparse.Action]) -> type[argparse.Action]:
    """
    rl-zoo3's action for ``name:value`` options, which evaluates each value as Python, with errors about the value.

    :param action: Its class.
    """

    class Evaluating(action):  # type: ignore[valid-type, misc]
        """See :func:`evaluating`."""

        def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
            read: dict[str, Any] = {}
            for option in values:
                name, colon, text = option.partition(":")
                if not (name and colon):
                    parser.error(f"{option_string} {option}: expected NAME:VALUE, such as name:0.5")
                alone = argparse.Namespace()
                try:
                    super().__call__(parser, alone, [option], option_string)
                # Whatever an expression does that somebody has typed.
                except Exception as error:
                    parser.error(
                        f"{option_string} {option}: {text!r} is no value of Python ({type(error).__name__}: {error}). "
                        "Expected a number, True, None, a list, dict(...), or text in two pairs of quotes, as in "
                        f"{option_string} \"{name}:'text'\""
                    )
                read |= getattr(alone, self.dest)
            _add(namespace, self.dest, read)

    return Evaluating


def _add(namespace: Any, name: str, read: dict[str, Any]) -> None:
    """To what the same option has given before: argparse would leave the last one alone."""
    setattr(namespace, name, {**(getattr(namespace, name, None) or {}), **read})


class ZooParser(Parser):
    """
    The parser of one of rl-zoo3's commands, which it fills itself.

    :param evaluates: Whether it evaluates ``name:value`` options as Python; otherwise they stay text.
    """

    def __init__(self, *args: Any, evaluates: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.evaluates = evaluates
        self._optionals.title = "options of rl-zoo3"

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """As argparse's; what evaluates values says which one is wrong."""
        if isinstance(action := kwargs.get("action"), type) and action.__name__ == "StoreDict":
            kwargs = {**kwargs, "action": evaluating(action) if self.evaluates else "extend"}
        return super().add_argument(*args, **kwargs)

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """As above, with errors about numbers and folders that rl-zoo3 takes and cannot do anything with."""
        options = super().parse_args(*args, **kwargs)
        for name in _AT_LEAST_ONE:
            if (number := getattr(options, name, None)) is not None and number < 1:
                self.error(f"--{name.replace('_', '-')} {number}: expected at least 1")
        if getattr(options, "log_interval", None) == 0:
            self.error("--log-interval 0: expected at least 1, -1 for that of the algorithm, or -2 for none")
        for name in _FOLDERS:
            if folder := getattr(options, name, None):
                place = _place_of(folder)
                if not place.is_dir():
                    self.error(f"--{name.replace('_', '-')} {folder}: {str(place)!r} is a file, expected a folder")
                _check_writable(place)
        return options


# Numbers of environments, episodes and runs.
_AT_LEAST_ONE = ("n_envs", "n_eval_envs", "eval_episodes", "n_trials", "n_evaluations")
# Where it writes.
_FOLDERS = ("log_folder", "tensorboard_log", "reward_log", "optimization_log_path")


def _place_of(folder: str) -> Path:
    """A folder, or the first place above it that is there."""
    path = Path(folder).absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _check_writable(folder: Path) -> None:
    """Better said before an agent learns than when its first line is written."""
    if not os.access(folder, os.W_OK | os.X_OK):
        is_read_only = hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
        number = errno.EROFS if is_read_only else errno.EACCES
        raise OSError(number, os.strerror(number), str(folder))
