"""
What a frame of DeepMind Control costs, and how far cheaper pictures are from DrQ-v2's.

    python benchmarks/rendering.py [--frames 10] [--rounds 5] [--size 84] [--picture frames.png]

For each rendering that PixelObservations has: CPU time of one frame (of all threads, so that other programs hardly matter; the
median of rounds in which all take turns, with one thread of the software renderer), and the mean absolute difference of its
pixels, from 0 to 255, to those of "exact", over as many frames as an episode of random actions has here.
"""

import argparse
import os
import time

# Before there is OpenGL.
os.environ.setdefault("LP_NUM_THREADS", "1")

import numpy as np
from common import alternate, machine, print_table

from sb3_sparse.pixels import RENDERINGS, make_dmc_pixels

TASKS = (("cartpole", "swingup"), ("walker", "walk"), ("quadruped", "run"))


def drawings(task, size, frames):
    """Of each rendering, a function that draws the scene as it is now, and all frames of an episode."""
    functions, seen, envs = {}, {}, []
    for name in RENDERINGS:
        env = make_dmc_pixels(*task, size=size, n_stack=1, rendering=name)
        env.action_space.seed(0)
        obs, _ = env.reset(seed=0)
        seen[name] = [obs, *(env.step(env.action_space.sample())[0] for _ in range(frames - 1))]
        functions[name] = env._frames.frame
        envs.append(env)
    return functions, {name: np.stack(each) for name, each in seen.items()}, envs


def save_picture(path, shown):
    """The last frames as one picture: a row for each task, a column for each rendering."""
    from PIL import Image

    rows = [np.concatenate([frames[-1].transpose(1, 2, 0) for frames in row.values()], axis=1) for row in shown]
    Image.fromarray(np.concatenate(rows)).save(path, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=10, help="of the episode that is compared")
    parser.add_argument("--rounds", type=int, default=5, help="of the measurement")
    parser.add_argument("--size", type=int, default=84, help="pixels on a side")
    parser.add_argument("--picture", help="a PNG to write the last frames to")
    options = parser.parse_args()

    costs, changes, shown = {}, {}, []
    for task in TASKS:
        functions, seen, envs = drawings(task, options.size, options.frames)
        costs[task] = alternate(functions, options.rounds, clock=time.process_time)
        exact = seen["exact"].astype(int)
        changes[task] = {name: np.abs(frames - exact).mean() for name, frames in seen.items()}
        shown.append(seen)
        for env in envs:
            env.close()
    rows = [[name, *(f"{costs[task][name] * 1e3:.1f} / {changes[task][name]:.2f}" for task in TASKS)] for name in RENDERINGS]
    title = f"ms / difference, {options.size} x {options.size} by {os.environ['MUJOCO_GL']}"
    print(machine())
    print_table(title, ["rendering", *("-".join(task) for task in TASKS)], rows)
    if options.picture:
        save_picture(options.picture, shown)


if __name__ == "__main__":
    main()
