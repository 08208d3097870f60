"""``sb3-sparse enjoy -i FILE.safetensors``: a stranger's agent, of which nothing is executed."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv

from sb3_sparse.cli.options.parsers import Parser, ReadDict
from sb3_sparse.export.loading import without_buffer
from sb3_sparse.resume.safe.agents import read_safe
from sb3_sparse.zoo import algorithms, check_display, import_packages, make_known

# Of the command, also without a safe file.
DOES = """
Watch a saved agent: what `train` left in the log folder, or a file without pickle (-i FILE.safetensors), of which nothing is
executed.
"""
EXAMPLES = [
    ("enjoy --algo sac --env Pendulum-v1", "the last agent that train left in logs"),
    ("enjoy --algo sac --env Pendulum-v1 -f logs --load-best", "the best one of its run"),
    ("enjoy -i agent.safetensors --env Pendulum-v1", "somebody else's"),
]


def enjoy_safe(args: list[str]) -> Callable[[], None]:
    """
    Look at the options, load the agent into its environment; what is returned lets it play.

    Neither rl-zoo3's own files beside the agent are read, nor its wrappers put around the environment: those of
    ``VecNormalize`` are in the file.
    """
    options = _options(args)
    import_packages(options.gym_packages)
    make_known(options.env)
    kind = None if options.algo is None else algorithms()[options.algo]
    agent = read_safe(options.trained_agent, algorithm=kind)
    set_random_seed(options.seed)
    kwargs = dict(options.env_kwargs or {})
    if not options.no_render:
        kwargs["render_mode"] = "human"
    env = make_vec_env(options.env, options.n_envs, seed=options.seed, env_kwargs=kwargs)
    check_display(env, options.env)
    try:
        model = agent.build(env, options.device, seed=options.seed, **without_buffer(agent.algorithm))
    except BaseException:
        env.close()
        raise
    playing = model.get_env()
    assert playing is not None
    if (normalizer := model.get_vec_normalize_env()) is not None:
        normalizer.training = False
        normalizer.norm_reward = options.norm_reward
    return lambda: _play(model, playing, options)


def _play(model: BaseAlgorithm, env: VecEnv, options: argparse.Namespace) -> None:
    returns: list[float] = []
    lengths: list[int] = []
    try:
        observations, states = env.reset(), None
        starts = np.ones(env.num_envs, dtype=bool)
        for _ in range(options.n_timesteps):
            actions, states = model.predict(observations, states, starts, deterministic=not options.stochastic)  # type: ignore[arg-type]
            observations, _, starts, infos = env.step(actions)
            # Written by Monitor, before anything was normalised.
            for episode in [info["episode"] for info in infos if "episode" in info]:
                returns.append(float(episode["r"]))
                lengths.append(int(episode["l"]))
                print(f"Episode Reward: {returns[-1]:.2f}\nEpisode Length {lengths[-1]}")
    except KeyboardInterrupt:
        pass
    finally:
        env.close()
    if returns:
        print(f"{len(returns)} Episodes\nMean reward: {np.mean(returns):.2f} +/- {np.std(returns):.2f}")
        print(f"Mean episode length: {np.mean(lengths):.2f} +/- {np.std(lengths):.2f}")
    else:
        print(f"no episode ended within {options.n_timesteps} steps: -n takes more.", file=sys.stderr)


def options_parser() -> Parser:
    """The options with a safe file. Without one they are those of rl-zoo3."""
    parser = Parser("enjoy", DOES, EXAMPLES)
    parser._optionals.title = "options with -i FILE.safetensors"
    parser.add_argument("-i", "--trained-agent", type=Path, metavar="FILE", required=True, help="the .safetensors file")
    parser.add_argument("--env", required=True, help="environment ID")
    parser.add_argument("--algo", choices=sorted(algorithms()), help="refuse an agent of another algorithm")
    parser.add_argument("-n", "--n-timesteps", type=int, default=1000, help="steps of each environment (default: 1000)")
    parser.add_argument("--n-envs", type=int, default=1, help="environments side by side (default: 1)")
    parser.add_argument("--no-render", action="store_true", help="show nothing")
    parser.add_argument("--stochastic", action="store_true", help="sample actions, as in training")
    parser.add_argument("--deterministic", action="store_true", help="what the agent thinks best, which is the default")
    parser.add_argument("--norm-reward", action="store_true", help="normalise rewards, if they were in training")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument("--device", default="auto", help="of the networks (default: auto)")
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="packages to import, which register environments"
    )
    parser.add_argument("--env-kwargs", nargs="+", action=ReadDict, metavar="NAME:VALUE", help="arguments of the environment")
    return parser


def _options(args: list[str]) -> argparse.Namespace:
    parser = options_parser()
    options = parser.parse_args(args)
    for name in ("n_timesteps", "n_envs"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)}: expected at least 1.")
    return options
