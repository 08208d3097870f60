"""
``sb3-sparse train``, ``tune`` and ``enjoy``: rl-zoo3's commands, with a few options of our own in front.

Each function looks at the options, says what is wrong with them, and returns what is to be run.
"""

import argparse
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from sb3_sparse.cli.enjoy_safe import DOES, EXAMPLES, enjoy_safe
from sb3_sparse.cli.enjoy_safe import options_parser as safe_options
from sb3_sparse.cli.options.parsers import Parser, ZooParser
from sb3_sparse.common.files import DISK_ERRORS
from sb3_sparse.common.interrupts import is_unread
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.files.checksum import DamagedCheckpoint
from sb3_sparse.resume.files.lease import FolderInUse
from sb3_sparse.resume.safe.agents import is_safe_file
from sb3_sparse.resume.signals import EXIT_STATUS
from sb3_sparse.zoo import (
    ExactRun,
    WrongSettingError,
    hyperparams_file,
    import_packages,
    make_known,
    options_of,
    prepare_command,
    recorded_run,
    registered,
)
from sb3_sparse.zoo.mistakes.words import one_line

_TRAIN_EXAMPLES = [
    ("train --algo sac --env Pendulum-v1", "the packaged hyperparameters, into logs"),
    ('train --algo sac --env Humanoid-v5 -params "policy_kwargs:dict(sparsity=0.9)"', "with another setting"),
    ("train --algo ppo --env CartPole-v1 -conf my.yml -n 50000 --seed 1", "with a file of your own"),
    ("train --algo sac --env Hopper-v5 --exact-checkpoint-freq 10000", "a run that can be stopped"),
    ("train --resume logs/sac/Hopper-v5_1", "and goes on"),
]
_TUNE_EXAMPLES = [
    ("tune --algo sac --env Pendulum-v1 -n 5000 --n-trials 20", "20 short runs"),
    ("tune --algo sac --env Pendulum-v1 --storage study.log --study-name mine", "kept in a file, to go on with"),
    ("train --algo sac --env Pendulum-v1 --storage study.log --study-name mine --trial-id 7", "train one of them"),
]


def train(args: list[str]) -> Callable[[], None]:
    """rl-zoo3's train: packaged hyperparameters, a progress bar on a terminal, and runs that can go on."""
    ours, args = _exact_parser().parse_known_args(args)
    if ours.resume is not None:
        if args or any(value is not None for value in (ours.freq, ours.keep, ours.patience)):
            raise ValueError(f"--resume {ours.resume} repeats the options of the run: leave out {args or 'the others'}.")
        exact = recorded_run(ours.resume)
        return _prepared("train", exact.args, _known_options("train", exact.args), exact)
    known = _known_options("train", args)
    if sys.stdout.isatty() and not known.optimize_hyperparameters and not known.progress:
        args = [*args, "--progress"]
    args = _with_packaged_hyperparams(args, known)
    given = {name: value for name in ("keep", "patience") if (value := getattr(ours, name)) is not None}
    return _prepared("train", args, known, ExactRun(args, ours.freq, **given))


def tune(args: list[str]) -> Callable[[], None]:
    """rl-zoo3's hyperparameter search."""
    known = _known_options("tune", args)
    if not known.optimize_hyperparameters:
        args = [*args, "--optimize-hyperparameters"]
    return _prepared("tune", _with_packaged_hyperparams(args, known), known)


def enjoy(args: list[str]) -> Callable[[], None]:
    """rl-zoo3's enjoy, for agents in ``logs`` unless ``-f`` names another folder; our own for a safe file, ``-i FILE``."""
    known = _known_options("enjoy", args)
    if is_safe_file(known.trained_agent):
        return enjoy_safe(args)
    if known.trained_agent:
        raise ValueError(
            f"-i {known.trained_agent}: expected a .safetensors. Of what train left, -f names the log folder, --exp-id the "
            "run; any other .zip is played by sb3-sparse evaluate."
        )
    return _prepared("enjoy", ["-f", "logs", *args], known)


def _exact_parser() -> argparse.ArgumentParser:
    """The options of exact checkpoints, which rl-zoo3 does not know."""
    parser = Parser("train", None, [], add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("runs that can go on exactly (docs/resume.md)")
    group.add_argument("--exact-checkpoint-freq", dest="freq", type=int, metavar="N", help="a checkpoint every N steps")
    group.add_argument(
        *("--exact-checkpoint-keep",), dest="keep", type=int, metavar="K", help=f"so many stay (default: {ExactRun.keep})"
    )
    group.add_argument(
        *("--exact-checkpoint-patience",),
        dest="patience",
        type=float,
        metavar="SECONDS",
        help=f"after a signal, wait so long for a point where a checkpoint is exact (default: {ExactRun.patience:g})",
    )
    group.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in FOLDER; no other option with it")
    return parser


def _zoo_parser(command: str, evaluates: bool = True) -> ZooParser:
    """What rl-zoo3 fills with its options, under the name of the command."""
    if command == "enjoy":
        return ZooParser(command, DOES, EXAMPLES, first=[safe_options()], evaluates=evaluates)
    if command == "tune":
        does = """
            Search hyperparameters: rl-zoo3's -optimize, which begins with those of the packaged file of the algorithm. With
            our policies it searches sparsity and width instead of the sizes of an MLP.
        """
        return ZooParser(command, does, _TUNE_EXAMPLES, evaluates=evaluates)
    does = """
        Train an agent with the packaged hyperparameters of its algorithm, unless -conf names a file, and save it in the log
        folder.
    """
    return ZooParser(command, does, _TRAIN_EXAMPLES, first=[_exact_parser()], evaluates=evaluates)


def filled_parser(command: str) -> ZooParser:
    """
    The parser of a command with rl-zoo3's options in it, for looking at them.

    :param command: ``"train"``, ``"tune"`` or ``"enjoy"``.
    :raises ImportError: If rl-zoo3 is missing.
    """
    parser = _zoo_parser(command, evaluates=False)
    options_of("enjoy" if command == "enjoy" else "train", parser)
    return parser


def _known_options(command: str, args: list[str]) -> argparse.Namespace:
    """What is given, also by an abbreviation, as rl-zoo3 will read it: some of it decides what is added."""
    parser = filled_parser(command)
    if command == "enjoy":
        parser.add_argument("-i", "--trained-agent", default="", help=argparse.SUPPRESS)
    known = parser.parse_known_args(args)[0]
    # A type of rl-zoo3's, for names of folders.
    known.env = getattr(known.env, "gym_id", known.env)
    return known


# Options are added in front: where the user names one, the later one wins.
def _with_packaged_hyperparams(args: list[str], known: argparse.Namespace) -> list[str]:
    path = hyperparams_file(known.algo)
    if known.conf_file:
        return args
    if path is not None:
        return ["-conf", str(path), *args]
    print(f"sb3-sparse has no hyperparameters for {known.algo}: rl-zoo3's own are used, with the policy that they name.")
    return args


def _prepared(command: str, args: list[str], known: argparse.Namespace, exact: ExactRun | None = None) -> Callable[[], None]:
    import_packages(known.gym_packages)
    with registered():
        make_known(known.env)
    agent = known.trained_agent
    if agent and not (agent.endswith(".zip") and Path(agent).is_file()):
        raise ValueError(f"--trained-agent {agent}: there is no such .zip file.")
    if agent and not zipfile.is_zipfile(agent):
        raise ValueError(f"--trained-agent {agent} is no .zip of an agent, or not all of it.")
    run = prepare_command(
        "enjoy" if command == "enjoy" else "train", args, known.env, exact, parser=lambda: _zoo_parser(command)
    )

    def go_on() -> None:
        try:
            run()
        except (WrongSettingError, FolderInUse, DamagedCheckpoint) as error:
            sys.exit(f"sb3-sparse {command}: {one_line(error)}")
        except OSError as error:
            # Of the disk, a traceback says no more.
            if error.errno not in DISK_ERRORS:
                raise
            sys.exit(f"sb3-sparse {command}: {one_line(error)}")
        except StoppedOnRequest as stopped:
            print(f"sb3-sparse {command}: ended on request, {stopped}", file=sys.stderr if is_unread() else sys.stdout)
            sys.exit(EXIT_STATUS)

    return go_on
