"""``sb3-sparse describe``."""

import argparse
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.common.figures import new_figure, save_figure
from sb3_sparse.common.literals import parse_literal
from sb3_sparse.common.model_report import describe_model, trained_networks
from sb3_sparse.export.loading import load_agent
from sb3_sparse.results.weights import draw_weights
from sb3_sparse.resume.safe.agents import is_safe_file
from sb3_sparse.zoo import algorithms, import_packages, literal_names, make_known, registered, untrained_agent


class ReadDict(argparse.Action):
    """``name:value`` options as rl-zoo3 has them, of which nothing is run."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        read = {}
        for option in values:
            name, _, text = option.partition(":")
            try:
                read[name] = parse_literal(name, text, literal_names())
            except ValueError as error:
                parser.error(f"{option_string} {error}")
        setattr(namespace, self.dest, read)


def describe(args: list[str]) -> None:
    """Build the agent that ``train`` would build with these options, or load one, and print the table of its layers."""
    parser = argparse.ArgumentParser(prog="sb3-sparse describe", description=describe.__doc__)
    parser.add_argument("--algo", default="sac", choices=list(algorithms()))
    parser.add_argument("--env", help="environment ID")
    parser.add_argument(
        "--model", metavar="FILE", help="instead of --env: a saved agent, a .safetensors, of which nothing is executed"
    )
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
    if (options.model is None) == (options.env is None):
        parser.error("expected --env ID, or --model FILE, and not both.")
    if options.model is not None and not is_safe_file(options.model):
        parser.error(f"--model {options.model}: expected a .safetensors, as `sb3-sparse export --to safetensors` writes it.")
    if options.plot is not None:
        if Path(options.plot).suffix != ".png":
            parser.error(f"--plot {options.plot}: expected the name of a .png file.")
        # Before the agent is built: what is missing is better said at once.
        new_figure()
    if options.model is not None:
        # Which algorithm it is, the file says.
        model = load_agent(BaseAlgorithm, Path(options.model), options.device)  # type: ignore[type-abstract]
    else:
        model = _untrained(options, parser)
    print(describe_model(model))
    if options.plot is not None:
        save_figure(draw_weights(trained_networks(model)), options.plot)
        print(f"\n{options.plot}")


def _untrained(options: argparse.Namespace, parser: argparse.ArgumentParser) -> BaseAlgorithm:
    import_packages(options.gym_packages)
    with registered():
        try:
            make_known(options.env)
        except ValueError as error:
            parser.error(str(error))
        return untrained_agent(
            options.algo,
            options.env,
            config=options.conf_file,
            hyperparams=options.hyperparams,
            env_kwargs=options.env_kwargs,
            seed=options.seed,
            device=options.device,
        )
