"""
Two checkouts of this package against each other: is today's as fast as that of an earlier commit?

    git worktree add ../before COMMIT
    python benchmarks/versions.py ../before [--pairs 15] [--case sac_w1 stream_ac]

Each checkout has a process of its own, with one thread, and measures its backends by itself. They take turns: both do a
portion of each case, in alternating order, and the ratio of each pair counts. Seconds are those of the processor.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def worker():
    """Does portions of the cases that are asked for on the standard input, and says how long each took."""
    import gymnasium as gym
    import numpy as np
    import torch as th
    from sac_step import act, make_model, step

    from sb3_sparse import SparseLinear
    from sb3_sparse.streaming import StreamAC, StreamQ

    th.set_num_threads(1)

    def layer(out_features, in_features, sparsity, batch, gradients=True):
        th.manual_seed(0)
        net = SparseLinear(in_features, out_features, density=1 - sparsity, seed=0)
        x = th.randn(batch, in_features, requires_grad=gradients)
        grad = th.randn_like(net(x)).detach()

        def run():
            with th.set_grad_enabled(gradients):
                y = net(x)
            if gradients:
                x.grad = None
                net.zero_grad()
                y.backward(grad)

        return run

    def stream(algorithm, env, sparsity, width):
        model = algorithm("MlpPolicy", gym.make(env), seed=0, policy_kwargs={"sparsity": sparsity, "net_arch": [width, width]})
        return lambda: model.learn(200, reset_num_timesteps=False)

    def predict(model):
        model.policy.set_training_mode(False)
        return act(model)

    # By name: what makes a function, and how often a portion calls it.
    cases = {
        "sac_w1_s80": (lambda: step(make_model(1, 0.8)), 8),
        "sac_w1_s90": (lambda: step(make_model(1, 0.9)), 8),
        "sac_w1_s95": (lambda: step(make_model(1, 0.95)), 8),
        "sac_w5_s90": (lambda: step(make_model(5, 0.9)), 1),
        "predict_w1_s90": (lambda: predict(make_model(1, 0.9)), 20),
        "layer_10240x2560_s90_batch256": (lambda: layer(10240, 2560, 0.9, 256), 2),
        "layer_2560x10240_s90_batch256": (lambda: layer(2560, 10240, 0.9, 256), 2),
        "layer_2048x512_s80_batch256": (lambda: layer(2048, 512, 0.8, 256), 15),
        "layer_2048x512_s80_batch100": (lambda: layer(2048, 512, 0.8, 100), 30),
        "layer_2048x512_s80_batch1": (lambda: layer(2048, 512, 0.8, 1), 400),
        "layer_2048x512_s80_batch1_forward": (lambda: layer(2048, 512, 0.8, 1, False), 1000),
        "stream_ac_walker_128": (lambda: stream(StreamAC, "Walker2d-v5", 0.9, 128), 1),
        "stream_ac_walker_1024": (lambda: stream(StreamAC, "Walker2d-v5", 0.9, 1024), 1),
        "stream_q_cartpole_32": (lambda: stream(StreamQ, "CartPole-v1", 0.0, 32), 2),
    }
    made = {}
    print(" ".join(cases), flush=True)
    for line in sys.stdin:
        name = line.strip()
        make, repeats = cases[name]
        if name not in made:
            made.clear()
            made[name] = make()
            for _ in range(max(2, repeats // 4)):
                made[name]()
        np.random.seed(0)
        start = time.process_time()
        for _ in range(repeats):
            made[name]()
        print(time.process_time() - start, flush=True)


class Worker:
    """A checkout's process."""

    def __init__(self, checkout, cache):
        path = os.pathsep.join([str(checkout), str(HERE)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "SB3_SPARSE_CACHE": cache}
        command = [sys.executable, str(Path(__file__).resolve()), "--worker"]
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.cases = self.process.stdout.readline().split()

    def seconds(self, case):
        """Of a portion of a case."""
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", nargs="?", type=Path, help="the earlier checkout")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--case", nargs="+", help="beginnings of names; default: all")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker()
    if args.before is None or not (args.before / "sb3_sparse").is_dir():
        parser.error(f"{args.before}: expected a checkout of this package.")
    with tempfile.TemporaryDirectory() as old_cache, tempfile.TemporaryDirectory() as new_cache:
        old, new = Worker(args.before.resolve(), old_cache), Worker(HERE.parent, new_cache)
        print("| case | ms before | ms now | now / before, median | quartiles |\n|---|---|---|---|---|")
        for case in new.cases:
            if args.case and not case.startswith(tuple(args.case)):
                continue
            for one in (old, new):
                one.seconds(case)
            pairs = []
            for _ in range(args.pairs):
                order = [old, new] if random.random() < 0.5 else [new, old]
                seconds = {one: one.seconds(case) for one in order}
                pairs.append((seconds[old], seconds[new]))
            ratios = sorted(b / a for a, b in pairs)
            low, _, high = statistics.quantiles(ratios, n=4)
            before, now = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
            row = f"| {case} | {before:.1f} | {now:.1f} | {statistics.median(ratios):.3f} | {low:.3f}-{high:.3f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
