"""The command ``sb3-sparse``: rl-zoo3's commands with our policies and hyperparameters, ``describe``, ``export``, ``plot``."""

import argparse
import sys
from collections.abc import Callable

USAGE = """\
usage: sb3-sparse COMMAND [options]

commands:
  train      train an agent:      sb3-sparse train --algo sac --env dm_control/cartpole-swingup-v0
  enjoy      watch a saved one:   sb3-sparse enjoy --algo sac --env dm_control/cartpole-swingup-v0 -f logs
  tune       search hyperparameters (rl-zoo3's -optimize)
  describe   print the layers that an agent would have, without training; --plot draws where their weights are
  export     write an agent as ONNX, torch.export or SB3 file: sb3-sparse export --algo sac --env Pendulum-v1 --to onnx
  plot       draw return and plasticity of runs: sb3-sparse plot logs/sac/Pendulum-v1_1 logs/sac/Pendulum-v1_2

Options of the first three are those of rl-zoo3 (sb3-sparse COMMAND --help). Hyperparameters come from the packaged file of the
algorithm unless -conf names another.
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": train,
        "enjoy": enjoy,
        "tune": tune,
        "describe": describe,
        "export": export,
        "plot": plot,
    }
    if not args or args[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if args[0] not in commands:
        sys.exit(f"sb3-sparse: unknown command {args[0]!r}, expected one of {', '.join(commands)}.\n\n{USAGE}")
    commands[args[0]](args[1:])


def train(args: list[str]) -> None:
    """rl-zoo3's train: packaged hyperparameters, and a progress bar on a terminal."""
    known = _known_options(args)
    if sys.stdout.isatty() and not known.optimize and not known.progress:
        args = [*args, "--progress"]
    _run_zoo("train", _with_packaged_hyperparams(args, known))


def tune(args: list[str]) -> None:
    """rl-zoo3's hyperparameter search."""
    known = _known_options(args)
    if not known.optimize:
        args = [*args, "--optimize-hyperparameters"]
    _run_zoo("train", _with_packaged_hyperparams(args, known))


def enjoy(args: list[str]) -> None:
    """rl-zoo3's enjoy, for agents in ``logs`` unless ``-f`` names another folder."""
    if _known_options(args).folder is None:
        args = ["-f", "logs", *args]
    _run_zoo("enjoy", args)


def describe(args: list[str]) -> None:
    """Print shape, density, parameters, memory and backend of every layer, before any training."""
    from sb3_sparse.describe import main as describe_main

    _check_zoo()
    describe_main(args)


def export(args: list[str]) -> None:
    """Write a saved agent as a file that runs without this package."""
    from sb3_sparse.export.command import main as export_main

    export_main(args)


def plot(args: list[str]) -> None:
    """Draw return and plasticity of runs into a picture and a page."""
    from sb3_sparse.plot.command import main as plot_main

    plot_main(args)


def _known_options(args: list[str]) -> argparse.Namespace:
    """The few options that decide what is added to the command line; rl-zoo3 parses them all."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("-conf", "--conf-file")
    parser.add_argument("-f", "--folder", "--log-folder")
    parser.add_argument("-P", "--progress", action="store_true")
    parser.add_argument("-optimize", "--optimize-hyperparameters", dest="optimize", action="store_true")
    return parser.parse_known_args(args)[0]


# Options are added in front: where the user names one, also by an abbreviation that only rl-zoo3 knows, the later one wins.
def _with_packaged_hyperparams(args: list[str], known: argparse.Namespace) -> list[str]:
    from sb3_sparse.zoo import hyperparams_file

    path = hyperparams_file(known.algo)
    if not known.conf_file and path is None:
        print(f"sb3-sparse has no hyperparameters for {known.algo}: rl-zoo3's own are used, with the policy that they name.")
    return args if known.conf_file or path is None else ["-conf", str(path), *args]


def _check_zoo() -> None:
    try:
        import rl_zoo3  # noqa: F401
    except ImportError:
        sys.exit('sb3-sparse: this command needs rl-zoo3: pip install "sb3-sparse[zoo]"')


def _run_zoo(command: str, args: list[str]) -> None:
    """Run a command of rl-zoo3 as if it had been called with these arguments."""
    import importlib

    _check_zoo()
    from sb3_sparse.zoo import registered

    env_id = _known_options(args).env
    if env_id.startswith("dm_control/"):
        from sb3_sparse.dmc import register_dmc

        register_dmc()
    run = getattr(importlib.import_module(f"rl_zoo3.{command}"), command)
    argv = sys.argv
    try:
        # rl-zoo3's commands read no other arguments than those of the process.
        sys.argv = [f"sb3-sparse {command}", *args]
        with registered(loads_only=command == "enjoy"):
            run()
    finally:
        sys.argv = argv


if __name__ == "__main__":
    main()
