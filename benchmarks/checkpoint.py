"""
What an exact checkpoint costs: the first, and one more with some new transitions.

    python benchmarks/checkpoint.py --transitions 1000000 --new 10000

SAC with a policy of width 5 and sparsity 0.9 on Humanoid-v5. "As many bytes alone" is what the disk needs for them.
"""

import argparse
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, print_table
from stable_baselines3 import SAC

from sb3_sparse import ExactCheckpoint, SparseSimBaPolicy
from sb3_sparse.resume.checkpoint import StoppedOnRequest


class Timed(ExactCheckpoint):
    """Saves twice and says how long it took and how large it was."""

    def __init__(self, path: Path, transitions: int, new: int):
        super().__init__(path, every=1)
        self.transitions, self.new = transitions, new
        self.rows: list[list[str]] = []

    def _on_rollout_start(self) -> None:
        model: Any = self.model
        self.fill(model.replay_buffer, self.transitions)
        # The moments of the optimisers, which an agent has that was trained.
        model.train(1, 256)
        assert all(optimizer.state for optimizer in (model.actor.optimizer, model.critic.optimizer, model.ent_coef_optimizer))
        self.timed("first")
        self.fill(model.replay_buffer, self.new)
        model.num_timesteps += self.new
        self.timed(f"with {self.new:,} new transitions")
        raise StoppedOnRequest

    def fill(self, buffer: Any, n: int) -> None:
        """Random transitions, as many as are wanted."""
        for first in range(0, n, 10_000):
            count = min(10_000, n - first)
            places = (buffer.pos + np.arange(count)) % buffer.buffer_size
            for array in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
                array[places] = np.random.random((count, *array.shape[1:]))
            buffer.full |= buffer.pos + count >= buffer.buffer_size
            buffer.pos = (buffer.pos + count) % buffer.buffer_size

    def timed(self, what: str) -> None:
        """One checkpoint; and the time that the disk needs for as many bytes."""
        before = {path for path in self.path.rglob("*") if path.is_file()}
        begin = time.perf_counter()
        self.save()
        seconds = time.perf_counter() - begin
        size = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file() and path not in before)
        block = np.random.bytes(1 << 20)
        begin = time.perf_counter()
        with (self.path / "plain").open("wb") as file:
            for _ in range(size >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        disk = time.perf_counter() - begin
        (self.path / "plain").unlink()
        self.rows.append([what, f"{size / 1e6:.0f}", f"{seconds:.1f}", f"{disk:.1f}"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--new", type=int, default=10_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    model = SAC(
        SparseSimBaPolicy,
        "Humanoid-v5",
        policy_kwargs=dict(width_scale=5, sparsity=0.9),
        buffer_size=options.transitions + options.new,
    )
    try:
        timed = Timed(folder / "run", options.transitions, options.new)
        with suppress(StoppedOnRequest):
            model.learn(1, callback=timed)
        print(machine())
        header = ["checkpoint", "MB", "time (s)", "as many bytes alone (s)"]
        print_table("Exact checkpoints", header, timed.rows)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
