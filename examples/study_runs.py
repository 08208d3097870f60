"""What the learning studies share: runs that can be resumed, one CSV of episodes each, and curves of equal windows."""

import csv
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_sparse.common.files import written_beside

HEADER = ["algo", "env", "arm", "seed", "step", "return"]


class EpisodeRecorder(BaseCallback):
    """Collects (number of steps at its end, raw return) of every finished episode."""

    def __init__(self):
        super().__init__()
        self.episodes: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.episodes.append((self.num_timesteps, float(info["episode"]["r"])))
        return True


def make_env(env_id: str, max_episode_steps: int | None = None) -> gym.Env:
    """An environment, with another time limit if one is given."""
    return gym.make(env_id) if max_episode_steps is None else gym.make(env_id, max_episode_steps=max_episode_steps)


def run_all(
    runs: dict[Path, Callable[[], list[tuple]]],
    labels: dict[Path, list],
    jobs: int,
    header: list[str] = HEADER,
    finished: Callable[[Path], object] = lambda _: None,
) -> None:
    """
    Do the runs whose file does not exist yet, in the order given.

    :param runs: For each file, a picklable function that trains and returns the episodes: step, return, and whatever else
        the header names.
    :param labels: For each file, its first four columns.
    :param jobs: Processes at a time, one thread each.
    :param header: Names of all columns.
    :param finished: Called with each file that is there.
    """
    for path in runs:
        if path.exists():
            finished(path)
    todo = [(path, run, labels[path], header) for path, run in runs.items() if not path.exists()]
    print(f"{len(runs) - len(todo)} runs are finished, {len(todo)} to do", flush=True)
    if not todo:
        return
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        for (path, *_), message in zip(todo, pool.imap(_run_one, todo), strict=True):
            finished(path)
            print(message, flush=True)


def _run_one(task: tuple[Path, Callable[[], list[tuple]], list, list[str]]) -> str:
    path, run, label, header = task
    th.set_num_threads(1)
    start = time.perf_counter()
    episodes = run()
    write_csv(path, header, ([*label, step, f"{value:.6g}", *others] for step, value, *others in episodes))
    return f"{path.stem}: last 10 {last_mean(episodes):.1f}, {time.perf_counter() - start:.0f} s"


def write_csv(path: Path, header: list[str], rows: Iterable[list]) -> None:
    """A table that is whole at any time."""
    with written_beside(path) as beside, beside.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_episodes(path: Path) -> list[tuple[int, float]]:
    """The episodes of a finished run."""
    with path.open(newline="") as file:
        return [(int(row["step"]), float(row["return"])) for row in csv.DictReader(file)]


def last_mean(episodes: list[tuple], n: int = 10) -> float:
    """Mean return of the last episodes."""
    return float(np.mean([episode[1] for episode in episodes[-n:]])) if episodes else float("nan")


def window_means(episodes: list[tuple[int, float]], n_steps: int, n_windows: int) -> np.ndarray:
    """
    Mean return of the episodes that ended in each of ``n_windows`` equal parts of the run.

    A part in which no episode ended takes the return of the next one that ended: the one that was under way.
    """
    steps, values = np.array(episodes).reshape(-1, 2).T
    edges = np.linspace(0, n_steps, n_windows + 1)
    means = np.full(n_windows, np.nan)
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = values[(steps > low) & (steps <= high)]
        later = values[steps > high]
        if len(inside):
            means[i] = inside.mean()
        elif len(later):
            means[i] = later[0]
    return means


def print_table(title: str, header: list[str], rows: Iterable[list[str]]) -> None:
    """A Markdown table, which ``scripts/tables.py`` can read."""
    print(f"\n### {title}\n")
    for line in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(line) + " |")
    print(flush=True)
