"""
What a study costs beside the training itself: many short runs on reused processes, one at a time.

    python benchmarks/sweeps.py --runs 100 --backends processes ray

The training itself is ``learn`` of the same agents, one after the other in one process, without any study. What is left of the
wall time of the command is divided by the number of runs: the start of the command and of its processes, building and saving
agents, files, the final evaluation of one episode. On a machine that does other work the time of the processor says more than
that of the clock; of Ray's processes nobody counts it.
"""

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
import yaml
from common import machine, print_table
from stable_baselines3 import DQN

STEPS = 300
HYPERPARAMS: dict[str, Any] = {
    "policy": "MlpPolicy",
    "policy_kwargs": {"net_arch": [16]},
    **{"learning_starts": 50, "buffer_size": 1_000, "batch_size": 16, "train_freq": 4, "gradient_steps": 1},
    **{"target_update_interval": 10, "exploration_fraction": 0.2, "exploration_final_eps": 0.1, "gamma": 0.99},
}


def plan(n_runs: int, checkpoints: int) -> dict[str, Any]:
    """A study of so many runs, with so many checkpoints of each."""
    return {
        "study": "overhead",
        "algo": "dqn",
        "env": "CartPole-v1",
        "n_timesteps": STEPS,
        "device": "cpu",
        "checkpoint_every": STEPS // checkpoints if checkpoints else 10 * STEPS,
        "evaluation": {"every": 0, "final_episodes": 1},
        "hyperparams": HYPERPARAMS,
        "axes": {"seed": n_runs},
    }


def training(n_runs: int) -> tuple[float, float]:
    """Seconds of all runs together, without what comes before and after: by the clock, and of the processor."""
    th.set_num_threads(1)
    seconds = processor = 0.0
    for seed in range(n_runs):
        model = DQN(env=gym.make("CartPole-v1"), seed=seed, device="cpu", **HYPERPARAMS)
        begin, begin_processor = time.perf_counter(), time.process_time()
        model.learn(STEPS)
        seconds += time.perf_counter() - begin
        processor += time.process_time() - begin_processor
    return seconds, processor


def study(backend: str, n_runs: int, checkpoints: int) -> tuple[float, float]:
    """Seconds of the command from its start to its end: by the clock, and of the processor."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.yml"
        path.write_text(yaml.safe_dump(plan(n_runs, checkpoints)))
        arguments = ["sweep", str(path), "--folder", folder, "--backend", backend, "--jobs", "1", "--no-estimate"]
        begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "sb3_sparse.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        n_done = len(list(Path(folder).glob("overhead/runs/*/done.json")))
        assert n_done == n_runs, n_done
        return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    has_ray = importlib.util.find_spec("ray") is not None
    parser.add_argument("--backends", nargs="+", default=["processes", *(["ray"] if has_ray else [])])
    parser.add_argument("--checkpoints", type=int, nargs="+", default=[0, 10], help="of each run")
    options = parser.parse_args()
    rows = []
    for backend in options.backends:
        for checkpoints in options.checkpoints:
            # Beside each study, so that what else the machine does hits both alike.
            alone, alone_processor = training(options.runs)
            wall, processor = study(backend, options.runs, checkpoints)
            each = f"{(wall - alone) / options.runs:.2f}"
            of_processor = "" if backend == "ray" else f"{(processor - alone_processor) / options.runs:.2f}"
            rows.append([backend, str(checkpoints), f"{wall:.1f}", f"{alone:.1f}", each, of_processor])
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{machine()}, load {load}")
    print_table(
        f"{options.runs} runs of {STEPS} steps, one at a time",
        ["backend", "checkpoints", "command, s", "training, s", "beside it, s a run", "of the processor"],
        rows,
    )


if __name__ == "__main__":
    main()
