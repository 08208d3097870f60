"""
Replay of stacked RGB images, 9 x 84 x 84: memory, adding a step, drawing 256 transitions of 3 steps.

    OMP_NUM_THREADS=1 python benchmarks/replay.py [--steps 20000] [--folder .]

Each buffer is filled in a process of its own, with episodes of 500 steps that begin with one frame three times. Times are of
the processor, since a machine with other work has other ones by the clock; those of flushes are by the clock, most of them
is waiting for the disk.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import alternate, machine, print_table
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer

from sb3_sparse import FrameReplayBuffer

SPACE, ACTIONS = spaces.Box(0, 255, (9, 84, 84), np.uint8), spaces.Box(-1, 1, (12,))
KINDS = {
    "sb3": "SB3's `NStepReplayBuffer`",
    "frames": "`FrameReplayBuffer`",
    "file": "`FrameReplayBuffer`, `storage_path=`",
}


def make(kind: str, size: int, folder: str) -> Any:
    common = dict(device="cpu", n_steps=3, gamma=0.99)
    if kind == "sb3":
        return NStepReplayBuffer(size, SPACE, ACTIONS, **common)
    return FrameReplayBuffer(size, SPACE, ACTIONS, n_stack=3, storage_path=folder if kind == "file" else None, **common)


def steps(n: int) -> Iterator[tuple[Any, ...]]:
    generator = np.random.default_rng(0)
    pool = generator.integers(0, 256, (997, 3, 84, 84), dtype=np.uint8)
    for step in range(n):
        if step % 500 == 0:
            obs = np.concatenate([pool[step % 997]] * 3)
        following, done = np.concatenate([obs[3:], pool[(step + 1) % 997]]), (step + 1) % 500 == 0
        infos = [{"TimeLimit.truncated": done}]
        yield obs[None], following[None], generator.random((1, 12)), np.ones(1), np.array([done]), infos
        obs = following


def resident() -> dict[str, float]:
    """MB of this process, of its own and of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Rss")}


def measure(kind: str, n: int, folder: str) -> None:
    """In a child process: fill a buffer, draw from it, print what that took."""
    buffer, all_steps = make(kind, n, folder), steps(n)
    buffer.add(*next(all_steps))
    before, adding = resident(), []
    waiting = time.perf_counter()
    for step in all_steps:
        start = time.process_time()
        buffer.add(*step)
        adding.append(time.process_time() - start)
    waiting = time.perf_counter() - waiting
    after = resident()
    images = np.zeros((256, 9, 84, 84), np.uint8)
    contenders = {"draw": lambda: buffer.sample(256), "copy": lambda: (images.copy(), images.copy())}
    times = alternate(contenders, rounds=60, clock=time.process_time)
    flush = None
    if kind == "file":
        for step in steps(1000):
            buffer.add(*step)
        # The one that was just due has nothing left to do.
        for step in steps(900):
            buffer.add(*step)
        flush = time.perf_counter()
        buffer.flush()
        flush = time.perf_counter() - flush
    found = dict(add=float(np.median(adding)), own=after["RssAnon"] - before["RssAnon"])
    found |= dict(files=after["RssFile"] - before["RssFile"], flush=flush, **times)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--folder", default=".", help="on the disk that is to be measured")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind:
        measure(arguments.kind, arguments.steps, arguments.folder)
        return
    rows = []
    for kind, name in KINDS.items():
        with TemporaryDirectory(dir=arguments.folder) as folder:
            command = [sys.executable, __file__, "--kind", kind, "--steps", str(arguments.steps), "--folder", folder]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        per_step = [f"{max(0.0, found[what]) * 1000 / arguments.steps:.1f}" for what in ("own", "files")]
        times = [f"{found['add'] * 1e6:.0f}", f"{found['draw'] * 1e3:.1f}", f"{found['copy'] * 1e3:.1f}"]
        rows.append([name, *per_step, *times, "" if found["flush"] is None else f"{found['flush']:.2f}"])
    head = [
        "",
        "kB a step, memory",
        "kB a step, pages of a file",
        "add, µs",
        "draw 256, ms",
        "copy as much, ms",
        "flush 900 steps, s",
    ]
    print(machine())
    print_table(f"{arguments.steps} steps of 9 × 84 × 84", head, rows)


if __name__ == "__main__":
    main()
