"""``sb3-sparse completion``."""

import argparse
import importlib

from sb3_sparse.cli import COMMANDS
from sb3_sparse.cli.options.parsers import Parser
from sb3_sparse.cli.train_tune_enjoy import filled_parser

SHELLS = ("bash", "zsh", "tcsh")
# What a value is by the word that stands for it in the help, and of rl-zoo3's options, which have none, by their names.
KINDS = {
    **dict.fromkeys(("FILE", "CSV", "PLAN", "AGENT", "RUN", "config", "conf_file", "trained_agent", "storage"), "file"),
    **dict.fromkeys(("FOLDER", "folder", "log_folder", "tensorboard_log", "reward_log", "optimization_log_path"), "directory"),
}


def completion(args: list[str]) -> None:
    """Print a script by which a shell completes commands, their options, algorithms and other choices, files and folders."""
    shell = options_parser().parse_args(args).shell
    try:
        import shtab
    except ImportError as error:
        raise ImportError('completion needs shtab: pip install "sb3-sparse[completion]".') from error
    print(shtab.complete(all_commands(), shell))


def options_parser() -> Parser:
    """The options of ``completion``."""
    parser = Parser(
        "completion",
        completion.__doc__,
        [
            ("completion bash > ~/.local/share/bash-completion/completions/sb3-sparse", "bash, from the next one on"),
            ("completion zsh > ~/.zfunc/_sb3-sparse", "zsh, with ~/.zfunc in fpath"),
            ("completion tcsh > ~/.sb3-sparse.tcsh", "tcsh, with `source ~/.sb3-sparse.tcsh` in ~/.tcshrc"),
        ],
        operands="SHELL",
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")
    return parser


def all_commands() -> argparse.ArgumentParser:
    """
    All commands in one parser.

    :raises ImportError: If rl-zoo3 is missing, which knows the options of some.
    """
    whole = argparse.ArgumentParser("sb3-sparse")
    whole.add_argument("-V", "--version", action="store_true", help="versions of this package and what it stands on")
    commands = whole.add_subparsers()
    for command, file in COMMANDS.items():
        own = filled_parser(command) if file == "train_tune_enjoy" else _parser_of_ours(file)
        parser = commands.add_parser(command, add_help=False, help=own.does)
        # Not as parents: what two of them have in common would be a conflict.
        for action in (action for each in (own, *own.first) for action in each._actions):
            if not parser._option_string_actions.keys() & set(action.option_strings):
                kind = KINDS.get(action.metavar if isinstance(action.metavar, str) else action.dest)
                if kind is not None:
                    # shtab looks for it there.
                    action.complete = kind  # type: ignore[attr-defined]
                parser._add_action(action)
    return whole


def _parser_of_ours(file: str) -> Parser:
    return importlib.import_module(f"sb3_sparse.cli.{file}").options_parser()
