"""``sb3-sparse describe``: what the networks of an agent would look like."""

import argparse
import contextlib
import difflib
import importlib
import io
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_sparse.common.literals import parse_literal
from sb3_sparse.common.model_report import describe_model, trained_networks
from sb3_sparse.plot.draw import new_figure, to_png, write
from sb3_sparse.plot.weights import draw_weights


class ReadDict(argparse.Action):
    """``name:value`` options as rl-zoo3 has them, of which nothing is run."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        from sb3_sparse.zoo import literal_names

        read = {}
        for option in values:
            name, _, text = option.partition(":")
            try:
                read[name] = parse_literal(name, text, literal_names())
            except ValueError as error:
                parser.error(f"{option_string} {error}")
        setattr(namespace, self.dest, read)


def main(args: list[str]) -> None:
    """Build the agent that ``train`` with the same options would build, and print its tables."""
    from sb3_sparse.zoo import registered

    with registered():
        _describe(args)


def _describe(args: list[str]) -> None:
    from rl_zoo3 import ALGOS

    from sb3_sparse.dmc import register_dmc
    from sb3_sparse.zoo import experiment_manager, hyperparams_file

    parser = argparse.ArgumentParser(prog="sb3-sparse describe", description=describe_model.__doc__)
    parser.add_argument("--algo", default="sac", choices=list(ALGOS))
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("-params", "--hyperparams", nargs="+", action=ReadDict, help="overwrite hyperparameters")
    parser.add_argument("-conf", "--conf-file", help="YAML file of rl-zoo3; default: the packaged one")
    parser.add_argument("--env-kwargs", nargs="+", action=ReadDict, help="arguments of the environment")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="packages to import, which register environments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--plot",
        nargs="?",
        const="describe.png",
        metavar="FILE",
        help="draw where the living weights are (default: describe.png)",
    )
    options = parser.parse_args(args)
    if options.plot is not None:
        if Path(options.plot).suffix != ".png":
            parser.error(f"--plot {options.plot}: expected the name of a .png file.")
        # Before the agent is built: what is missing is better said at once.
        new_figure()

    if options.env.startswith("dm_control/"):
        register_dmc()
    for package in options.gym_packages:
        importlib.import_module(package)
    if options.env not in gym.registry:
        close = difflib.get_close_matches(options.env, gym.registry, n=1)
        parser.error(f"unknown environment {options.env!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
    config = options.conf_file or hyperparams_file(options.algo)
    hyperparams = dict(options.hyperparams or {})
    if issubclass(ALGOS[options.algo], OffPolicyAlgorithm):
        # A replay buffer is of no use here, and may be larger than the machine.
        hyperparams["buffer_size"] = 1
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        manager = experiment_manager(reads_only=True)(
            options,
            options.algo,
            options.env,
            log_folder=folder,
            eval_freq=-1,
            env_kwargs=options.env_kwargs,
            hyperparams=hyperparams,
            config=None if config is None else str(config),
            seed=options.seed,
            device=options.device,
            verbose=0,
        )
        model, _ = manager.setup_experiment() or (None, None)
        assert model is not None
        assert model.env is not None
        model.env.close()
    print(describe_model(model))
    if options.plot is not None:
        write(Path(options.plot), to_png(draw_weights(trained_networks(model))))
        print(f"\n{options.plot}")
