"""``sb3-sparse describe``."""

import argparse
from pathlib import Path

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.cli.options.parsers import Parser, ReadDict
from sb3_sparse.common.figures import new_figure, save_figure
from sb3_sparse.common.model_report import describe_model, trained_networks
from sb3_sparse.export.loading import load_agent
from sb3_sparse.results.weights import draw_weights
from sb3_sparse.resume.safe.agents import is_safe_file
from sb3_sparse.zoo import algorithms, import_packages, make_known, registered, untrained_agent


def describe(args: list[str]) -> None:
    """Build the agent that ``train`` would build with these options, or load one, and print the table of its layers."""
    parser = options_parser()
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
        model = _untrained(options)
    print(describe_model(model))
    if options.plot is not None:
        save_figure(draw_weights(trained_networks(model)), options.plot)
        print(f"\n{options.plot}")


def options_parser() -> Parser:
    """The options of ``describe``."""
    parser = Parser(
        "describe",
        describe.__doc__,
        [
            ("describe --env Pendulum-v1", "what train --algo sac would build"),
            ('describe --env Humanoid-v5 -params "policy_kwargs:dict(sparsity=0.9)"', "with another setting"),
            ("describe --env Pendulum-v1 --plot weights.png", "with a picture of the living weights"),
            ("describe --model agent.safetensors", "a saved agent, of which nothing is executed"),
        ],
    )
    parser.add_argument("--algo", default="sac", choices=list(algorithms()), help="algorithm (default: sac)")
    parser.add_argument("--env", help="environment ID")
    parser.add_argument(
        "--model", metavar="FILE", help="instead of --env: a saved agent, a .safetensors, of which nothing is executed"
    )
    parser.add_argument(
        "-params", "--hyperparams", nargs="+", action=ReadDict, metavar="NAME:VALUE", help="overwrite hyperparameters"
    )
    parser.add_argument("-conf", "--conf-file", metavar="FILE", help="YAML file of rl-zoo3; default: the packaged one")
    parser.add_argument("--env-kwargs", nargs="+", action=ReadDict, metavar="NAME:VALUE", help="arguments of the environment")
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="packages to import, which register environments"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--device", default="cpu", help="of the networks (default: cpu)")
    parser.add_argument(
        "--plot",
        nargs="?",
        const="describe.png",
        metavar="FILE",
        help="draw where the living weights are (default: describe.png)",
    )
    return parser


def _untrained(options: argparse.Namespace) -> BaseAlgorithm:
    import_packages(options.gym_packages)
    with registered():
        make_known(options.env)
        return untrained_agent(
            options.algo,
            options.env,
            config=options.conf_file,
            hyperparams=options.hyperparams,
            env_kwargs=options.env_kwargs,
            seed=options.seed,
            device=options.device,
        )
