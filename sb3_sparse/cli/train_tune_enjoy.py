"""
``sb3-sparse train``, ``tune`` and ``enjoy``: rl-zoo3's commands, with a few options of our own in front.

Each function looks at the options, says what is wrong with them, and returns what is to be run.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from sb3_sparse.cli.enjoy_safe import enjoy_safe, options_parser
from sb3_sparse.common.files import DISK_ERRORS
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.files.checksum import DamagedCheckpoint
from sb3_sparse.resume.files.lease import FolderInUse
from sb3_sparse.resume.safe.agents import is_safe_file
from sb3_sparse.resume.signals import EXIT_STATUS
from sb3_sparse.zoo import (
    ExactRun,
    WrongSettingError,
    algorithms,
    hyperparams_file,
    import_packages,
    make_known,
    prepare_command,
    recorded_run,
    registered,
)


def train(args: list[str]) -> Callable[[], None]:
    """rl-zoo3's train: packaged hyperparameters, a progress bar on a terminal, and runs that can go on."""
    ours, args = _exact_parser().parse_known_args(args)
    if ours.resume is not None:
        if args or ours.freq is not None:
            raise ValueError(f"--resume {ours.resume} repeats the options of the run: leave out {args or 'the others'}.")
        exact = recorded_run(ours.resume)
        return _prepared("train", exact.args, _known_options(exact.args), exact)
    known = _known_options(args)
    if known.help:
        print(_exact_parser().format_help())
    if sys.stdout.isatty() and not known.optimize and not known.progress:
        args = [*args, "--progress"]
    args = _with_packaged_hyperparams(args, known)
    return _prepared("train", args, known, ExactRun(args, ours.freq, ours.keep, ours.patience))


def tune(args: list[str]) -> Callable[[], None]:
    """rl-zoo3's hyperparameter search."""
    known = _known_options(args)
    if not known.optimize:
        args = [*args, "--optimize-hyperparameters"]
    return _prepared("train", _with_packaged_hyperparams(args, known), known)


def enjoy(args: list[str]) -> Callable[[], None]:
    """rl-zoo3's enjoy, for agents in ``logs`` unless ``-f`` names another folder; our own for a safe file, ``-i FILE``."""
    known = _known_options(args)
    if is_safe_file(known.trained_agent):
        return enjoy_safe(args)
    if known.help:
        print(f"{options_parser().format_help()}\nwithout -i, rl-zoo3's:\n")
    return _prepared("enjoy", args if known.folder else ["-f", "logs", *args], known)


def _exact_parser() -> argparse.ArgumentParser:
    """The options of exact checkpoints, which rl-zoo3 does not know."""
    parser = argparse.ArgumentParser(prog="sb3-sparse train", add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    group = parser.add_argument_group("runs that can go on exactly (docs/resume.md); all other options are those of rl-zoo3")
    group.add_argument("--exact-checkpoint-freq", dest="freq", type=int, metavar="N", help="a checkpoint every N steps")
    group.add_argument(
        *("--exact-checkpoint-keep",), dest="keep", type=int, metavar="K", default=ExactRun.keep, help="so many stay"
    )
    group.add_argument(
        *("--exact-checkpoint-patience",),
        dest="patience",
        type=float,
        metavar="SECONDS",
        default=ExactRun.patience,
        help="after SIGTERM, SIGUSR1 or Ctrl-C, wait so long for a point where a checkpoint is exact",
    )
    group.add_argument("--resume", type=Path, metavar="FOLDER", help="go on with the run in FOLDER; no other option with it")
    return parser


def _known_options(args: list[str]) -> argparse.Namespace:
    """The few options that decide what is added to the command line; rl-zoo3 parses them all."""
    parser = argparse.ArgumentParser(prog="sb3-sparse", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env", default="CartPole-v1")
    # rl-zoo3 knows abbreviations too. Here, of one option they matter: it may be what registers the environment.
    abbreviated = ["--gym-packages"[:length] for length in range(len("--g"), len("--gym-packages"))]
    parser.add_argument("--gym-packages", *abbreviated, nargs="+", default=[])
    parser.add_argument("-i", "--trained-agent", default="")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-f", "--folder", "--log-folder")
    parser.add_argument("-P", "--progress", action="store_true")
    parser.add_argument("-optimize", "--optimize-hyperparameters", dest="optimize", action="store_true")
    return parser.parse_known_args(args)[0]


# Options are added in front: where the user names one, also by an abbreviation that only rl-zoo3 knows, the later one wins.
def _with_packaged_hyperparams(args: list[str], known: argparse.Namespace) -> list[str]:
    path = hyperparams_file(known.algo)
    if known.conf_file:
        return args
    if path is not None:
        return ["-conf", str(path), *args]
    # Of an algorithm that there is not, rl-zoo3 will say so.
    if known.algo in algorithms() and not known.help:
        print(f"sb3-sparse has no hyperparameters for {known.algo}: rl-zoo3's own are used, with the policy that they name.")
    return args


def _prepared(command: str, args: list[str], known: argparse.Namespace, exact: ExactRun | None = None) -> Callable[[], None]:
    if not known.help and known.algo in algorithms():
        import_packages(known.gym_packages)
        with registered():
            make_known(known.env)
        agent = known.trained_agent
        if agent and not (agent.endswith(".zip") and Path(agent).is_file()):
            raise ValueError(f"--trained-agent {agent}: there is no such .zip file.")
    run = prepare_command(command, args, known.env, exact)

    def go_on() -> None:
        try:
            run()
        except (WrongSettingError, FolderInUse, DamagedCheckpoint) as error:
            sys.exit(f"sb3-sparse {command}: {error}")
        except OSError as error:
            # Of the disk, a traceback says no more.
            if error.errno not in DISK_ERRORS:
                raise
            sys.exit(f"sb3-sparse {command}: {error}")
        except StoppedOnRequest as stopped:
            print(f"sb3-sparse {command}: ended on request, {stopped}")
            sys.exit(EXIT_STATUS)

    return go_on
