"""
Steps per second of streaming agents: ours beside a plain PyTorch loop of the same algorithm.

    python benchmarks/stream.py [--rounds 7] [--widths 128 256 512 1024] [--seconds 2]
    python benchmarks/stream.py --discrete           # StreamAC, StreamQ, StreamSARSA on CartPole-v1, h = 32

Walker2d-v5, StreamAC, both hidden layers of the actor and the critic of width h, everything that a training step takes
(acting, environment, normalisers, update), one thread. Seconds are those of the processor, which are the clock's on an
idle machine and leave out what other processes take on a busy one. The contenders:

- environment: random actions, nothing learned: what no agent can beat.
- plain: ``benchmarks/stream_plain.py``, dense.
- dense, SparseInit, S=0.9: ours from a dense start, from trainable zeros, with a static sparse topology.
"""

import argparse
import time
from functools import partial

import gymnasium as gym
import stream_plain
import torch as th
from common import alternate, machine, print_table

from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA

ENV, WIDTH_OF_DISCRETE = "Walker2d-v5", 32
OURS = {
    "dense": {"initialization": "lecun_uniform"},
    "SparseInit": {"initialization": "sparse_init"},
    "S=0.9": {"sparsity": 0.9},
}
# Guesses of the plain loop's steps per second, for the length of a segment.
GUESS = {32: 800, 128: 700, 256: 500, 512: 250, 1024: 70}


class Steps:
    """An environment that is stepped at random, with the interface of the plain agents."""

    def __init__(self, env):
        self.env = env
        env.reset(seed=0)

    def run(self, n_steps):
        for _ in range(n_steps):
            _, _, terminated, truncated, _ = self.env.step(self.env.action_space.sample())
            if terminated or truncated:
                self.env.reset()


def ours(algorithm, env_id, n_steps, width, **policy_kwargs):
    """A function that trains ours for some more steps."""
    policy_kwargs["net_arch"] = [width, width]
    model = algorithm("MlpPolicy", gym.make(env_id), policy_kwargs=policy_kwargs, seed=0, device="cpu")
    return partial(model.learn, n_steps, reset_num_timesteps=False)


def segment(width, seconds):
    """Steps that take the plain loop about that long."""
    nearest = min(GUESS, key=lambda known: abs(known - width))
    return max(20, int(seconds * GUESS[nearest]))


def walker(widths, rounds, seconds):
    """The table of StreamAC."""
    speeds, ratios = [], []
    for width in widths:
        n_steps = segment(width, seconds)
        contenders = {
            "environment": partial(Steps(gym.make(ENV)).run, n_steps),
            "plain": partial(stream_plain.StreamAC(gym.make(ENV), 0, width, zeros=0.0).run, n_steps),
        }
        contenders |= {name: ours(StreamAC, ENV, n_steps, width, **kwargs) for name, kwargs in OURS.items()}
        times = alternate(contenders, rounds, clock=time.process_time)
        speeds.append([f"{width}", *(f"{n_steps / value:.0f}" for value in times.values())])
        row = [f"{times['plain'] / times[name]:.2f}" for name in OURS]
        ratios.append([f"{width}", *row, f"{times['dense'] / times['S=0.9']:.2f}"])
    print_table(f"Steps per second, StreamAC, {ENV}", ["h", "environment", "plain", *OURS], speeds)
    print_table("Ratios", ["h", *(f"{name} / plain" for name in OURS), "S=0.9 / dense"], ratios)


def cartpole(rounds, seconds):
    """The table of the agents for discrete actions."""
    rows, width = [], WIDTH_OF_DISCRETE
    n_steps = segment(width, seconds)
    for algorithm in (StreamAC, StreamQ, StreamSARSA):
        name = algorithm.__name__
        kwargs = {} if algorithm is StreamAC else {"exploration_steps": n_steps}
        plain = getattr(stream_plain, name)(gym.make("CartPole-v1"), 0, width, **kwargs)
        contenders = {
            "environment": partial(Steps(gym.make("CartPole-v1")).run, n_steps),
            "plain": partial(plain.run, n_steps),
            "ours": ours(algorithm, "CartPole-v1", n_steps, width, initialization="sparse_init"),
        }
        times = alternate(contenders, rounds, clock=time.process_time)
        speeds = [f"{n_steps / value:.0f}" for value in times.values()]
        rows.append([name, *speeds, f"{times['plain'] / times['ours']:.2f}"])
    print_table("Steps per second, CartPole-v1", ["", "environment", "plain", "ours", "ours / plain"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[128, 256, 512, 1024])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="that a segment takes the plain loop, about")
    parser.add_argument("--discrete", action="store_true", help="CartPole-v1 instead of Walker2d-v5")
    args = parser.parse_args()
    th.set_num_threads(1)
    print(machine())
    if args.discrete:
        cartpole(args.rounds, args.seconds)
    else:
        walker(args.widths, args.rounds, args.seconds)
