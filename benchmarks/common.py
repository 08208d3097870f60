"""What the benchmarks share: alternating measurements, tables, the machine in a line, an environment of a size."""

import os
import platform
import statistics
import time
from collections.abc import Callable

import gymnasium as gym
import llvmlite.binding as llvm
import numpy as np
import torch as th
from gymnasium import spaces


def machine() -> str:
    """Processor, threads and versions, for the heading of a table."""
    device = f", {th.cuda.get_device_name()}" if th.cuda.is_available() else ""
    # Set by best_dense.py.
    library = ", MKL with AVX-512, memory kept" if "SB3_SPARSE_BEST_DENSE" in os.environ else ""
    return (
        f"{platform.machine()} {llvm.get_host_cpu_name()}, {os.cpu_count()} cores, {th.get_num_threads()} threads{device}, "
        f"torch {th.__version__.partition('+')[0]}{library}, Python {platform.python_version()}"
    )


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if th.cuda.is_available():
        th.cuda.synchronize()


def alternate(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    warmups: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """
    Median seconds of each contender; they take turns, so that a slow moment of the machine hits all alike.

    :param contenders: Functions by name.
    :param rounds: How often each is timed.
    :param warmups: How often each runs before.
    :param clock: What is read before and after; ``time.process_time`` for one thread on a machine with other work.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmups + rounds):
        for name, run in contenders.items():
            synchronize()
            start = clock()
            run()
            synchronize()
            if turn >= warmups:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table, which ``scripts/tables.py`` can read."""
    print(f"\n### {title}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "|".join("---" if i == 0 else "---:" for i in range(len(header))) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def milliseconds(seconds: float) -> str:
    """For a table."""
    return f"{1e3 * seconds:.1f}" if seconds < 1 else f"{1e3 * seconds:.0f}"


class Humanoid(gym.Env):
    """The sizes of the task, with nothing to simulate."""

    def __init__(self, n_observations=67, n_actions=21):
        self.observation_space = spaces.Box(-np.inf, np.inf, (n_observations,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (n_actions,), np.float32)

    def _observation(self):
        return self.np_random.standard_normal(self.observation_space.shape).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        observation = self._observation()
        return observation, float(observation[0]), False, False, {}


def in_bfloat16(update):
    """The same under autocast, which is the fastest that a dense network has where the processor can."""

    def run():
        with th.autocast("cpu", th.bfloat16):
            update()

    return run
