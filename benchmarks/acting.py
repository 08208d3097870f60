"""
Acting: ``model.predict`` of one observation, by the compiled pass and by torch's, beside SB3's own MlpPolicy.

    python benchmarks/acting.py [--threads 1] [--rounds 21] [--width 1 5] [--sparsity 0 0.8 0.9 0.95] [--sample]
    python benchmarks/acting.py --fastest --rounds 600 --threads 2   # on a machine with other work

SAC, humanoid sizes (67 observations, 21 actions), one critic. Contenders take turns. Ratios are to two of them:

- before: the dense SimBa by torch's pass, with SB3's switch of all modules to evaluation mode in front of every action, which
  is how these policies acted before there was a compiled pass.
- MlpPolicy: what SB3 gives who asks for nothing, two layers of 256.

With ``--fastest`` they take turns after each single action, and the fastest one counts, by the clock: it had the processors
for itself, but found in the caches what the others had left there.
"""

import argparse
import sys
import time
from functools import partial

import numpy as np
import torch as th
from common import Humanoid, alternate, machine, print_table
from stable_baselines3 import SAC

from sb3_sparse import SimBaPolicy

N_OBSERVATIONS, N_ACTIONS, ACTIONS_PER_TURN = 67, 21, 20


def make(policy, **policy_kwargs):
    """An agent that has seen some observations; its critic is small, since it does not act."""
    env = Humanoid(N_OBSERVATIONS, N_ACTIONS)
    return SAC(policy, env, buffer_size=600, learning_starts=500, seed=0, device="cpu", policy_kwargs=policy_kwargs).learn(510)


def as_before(policy):
    """Let a policy switch all modules before each action, as SB3's do."""

    def set_training_mode(mode):
        super(SimBaPolicy, policy).set_training_mode(mode)
        policy.obs_norm.training_mode_set(mode, sys._getframe(1))

    policy.set_training_mode = set_training_mode


def acting(model, deterministic, n_actions):
    """A function that acts some times."""
    observation = np.random.default_rng(0).standard_normal(N_OBSERVATIONS).astype(np.float32)
    return lambda: [model.predict(observation, deterministic=deterministic) for _ in range(n_actions)]


def median_action(models, rounds, clock, deterministic):
    """Median seconds of an action, by contender."""
    contenders = {name: acting(model, deterministic, ACTIONS_PER_TURN) for name, model in models.items()}
    return {name: value / ACTIONS_PER_TURN for name, value in alternate(contenders, rounds, clock=clock).items()}


def fastest_action(models, rounds, clock, deterministic):
    """Seconds of the fastest action, by contender."""
    contenders = {name: acting(model, deterministic, 1) for name, model in models.items()}
    turns = [alternate(contenders, 1, warmups=0, clock=clock) for _ in range(rounds)]
    return {name: min(turn[name] for turn in turns) for name in contenders}


def compare(width, sparsities, measure):
    """The table of one width."""
    sizes = {"width_scale": {"pi": width, "qf": 0.1}, "n_critics": 1}
    models = {
        "before": make("SparseSimBaPolicy", sparsity=0.0, compiled_acting=False, **sizes),
        "MlpPolicy": make("MlpPolicy"),
    }
    as_before(models["before"].policy)
    for sparsity in sparsities:
        for name, compiled in (("torch", False), ("compiled", True)):
            models[f"{name} {sparsity}"] = make("SparseSimBaPolicy", sparsity=sparsity, compiled_acting=compiled, **sizes)
    seconds = measure(models)

    def row(title, name):
        value = seconds[name]
        return [title, f"{1e6 * value:.0f}", f"{seconds['before'] / value:.2f}", f"{seconds['MlpPolicy'] / value:.2f}"]

    rows = [row("dense, before", "before"), row("MlpPolicy", "MlpPolicy")]
    for sparsity in sparsities:
        network = f"S = {sparsity}" if sparsity else "dense"
        rows += [row(f"{network}, torch's pass", f"torch {sparsity}"), row(f"{network}, compiled", f"compiled {sparsity}")]
    print_table(f"predict, W{width}", ["contender", "µs", "times dense before", "times MlpPolicy"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.0, 0.8, 0.9, 0.95])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sample", action="store_true", help="draw actions, as in training, instead of the most likely ones")
    parser.add_argument(
        "--clock", choices=("processor", "wall"), help="default: the processor's for one thread, else the wall's"
    )
    parser.add_argument("--fastest", action="store_true", help="the fastest of single actions instead of medians")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    print(machine())
    by_processor = args.clock == "processor" if args.clock else args.threads == 1 and not args.fastest
    clock = time.process_time if by_processor else time.perf_counter
    way = fastest_action if args.fastest else median_action
    for width in args.width:
        compare(width, args.sparsity, partial(way, rounds=args.rounds, clock=clock, deterministic=not args.sample))
