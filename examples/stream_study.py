"""
Do streaming agents of this package learn as well as a plain loop of the same algorithm? Same seeds, paired.

    python examples/stream_study.py --jobs 2            # all runs; finished ones are skipped, so it can be resumed
    python examples/stream_study.py --arms ours --tasks Hopper-v5
    python examples/stream_study.py --plot              # docs/images/stream_learning.png and .csv, and the summary table

``ours`` is ``sb3_sparse.streaming``, ``plain`` is ``benchmarks/stream_plain.py``. Each run writes one CSV with the step at
which each episode ended and its return as the environment pays it.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from study_runs import EpisodeRecorder, last_mean, make_env, print_table, read_episodes, run_all, window_means, write_csv

from sb3_sparse.common.figures import new_figure, save_figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

N_WINDOWS = 25


class Task(NamedTuple):
    """What is trained, on what, for how long."""

    algo: str
    env_id: str
    n_steps: int
    width: int
    max_episode_steps: int | None = None


TASKS = {
    "InvertedPendulum-v5": Task("stream_ac", "InvertedPendulum-v5", 50_000, 128),
    "CartPole-v1 AC": Task("stream_ac", "CartPole-v1", 50_000, 32, 10_000),
    "CartPole-v1 Q": Task("stream_q", "CartPole-v1", 50_000, 32, 10_000),
    "Hopper-v5": Task("stream_ac", "Hopper-v5", 200_000, 128),
    "Walker2d-v5": Task("stream_ac", "Walker2d-v5", 200_000, 128),
}
ARMS = ("plain", "ours")
EXPLORATION_FRACTION = 0.05


def train_plain(task: Task, seed: int) -> list[tuple[int, float]]:
    """Episodes of the plain loop."""
    import stream_plain

    env = make_env(task.env_id, task.max_episode_steps)
    if task.algo == "stream_ac":
        agent = stream_plain.StreamAC(env, seed, task.width)
    else:
        agent = stream_plain.StreamQ(env, seed, task.width, exploration_steps=EXPLORATION_FRACTION * task.n_steps)
    agent.run(task.n_steps)
    return agent.episodes


def train_ours(task: Task, seed: int) -> list[tuple[int, float]]:
    """Episodes of this package."""
    from sb3_sparse import StreamAC, StreamQ

    policy_kwargs = {"net_arch": [task.width, task.width], "initialization": "sparse_init"}
    kwargs = {} if task.algo == "stream_ac" else {"exploration_fraction": EXPLORATION_FRACTION}
    algorithm = {"stream_ac": StreamAC, "stream_q": StreamQ}[task.algo]
    env = make_env(task.env_id, task.max_episode_steps)
    model = algorithm("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **kwargs)
    recorder = EpisodeRecorder()
    model.learn(task.n_steps, callback=recorder)
    return recorder.episodes


def run_path(folder: Path, name: str, arm: str, seed: int) -> Path:
    """The file of one run."""
    return folder / f"{name.replace(' ', '_')}-{arm}-{seed}.csv"


def plot(folder: Path, seeds: list[int], output: Path) -> None:
    """Draw every seed, write the windows beside the picture, print the table."""
    colours = {"plain": "#d62728", "ours": "#1f77b4"}
    tasks = {n: t for n, t in TASKS.items() if any(run_path(folder, n, a, s).exists() for a in ARMS for s in seeds)}
    if not tasks:
        raise SystemExit(f"there is no finished run in {folder}: run without --plot first")
    figure = new_figure((3.4 * len(tasks), 3.4))
    panels = figure.subplots(1, len(tasks), squeeze=False)
    rows, table = [], []
    for axes, (name, task) in zip(panels[0], tasks.items(), strict=True):
        x = (np.arange(N_WINDOWS) + 0.5) * task.n_steps / N_WINDOWS / 1000
        for arm in ARMS:
            finished = {s: read_episodes(p) for s in seeds if (p := run_path(folder, name, arm, s)).exists()}
            curves = [window_means(episodes, task.n_steps, N_WINDOWS) for episodes in finished.values()]
            lasts = [last_mean(episodes) for episodes in finished.values()]
            for curve in curves:
                axes.plot(x, curve, color=colours[arm], alpha=0.35, linewidth=0.9)
            if curves:
                axes.plot(x, np.mean(curves, axis=0), color=colours[arm], linewidth=2.2, label=f"{arm}, n = {len(curves)}")
                table.append([name, arm, *(f"{v:.0f}" for v in lasts), *[""] * (len(seeds) - len(lasts))])
                table[-1] += [f"{np.mean(lasts):.0f}", f"{np.median(lasts):.0f}"]
            for (seed, episodes), curve in zip(finished.items(), curves, strict=True):
                row = [task.algo, name, arm, seed, len(episodes), f"{last_mean(episodes):.1f}"]
                rows.append([*row, *(f"{v:.1f}" for v in curve)])
        axes.set(title=name, xlabel="thousand steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0, 0].set_ylabel("return of an episode")
    save_figure(figure, output, dpi=80)
    ends = [f"return_window_{i + 1}" for i in range(N_WINDOWS)]
    write_csv(output.with_suffix(".csv"), ["algo", "task", "arm", "seed", "episodes", "mean_return_of_last_10", *ends], rows)
    print_table("Last episodes", ["task", "arm", *(f"seed {s}" for s in seeds), "mean", "median"], table)


def main() -> None:
    """Run, or draw what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("logs/stream_study"), help="of the CSV files")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, one thread each")
    parser.add_argument("--plot", action="store_true", help="draw what is finished, run nothing")
    parser.add_argument("--output", type=Path, default=Path("docs/images/stream_learning.png"))
    args = parser.parse_args()
    if args.plot:
        plot(args.folder, args.seeds, args.output)
        return
    train = {"plain": train_plain, "ours": train_ours}
    runs, labels = {}, {}
    for name in args.tasks:
        for arm in args.arms:
            for seed in args.seeds:
                path = run_path(args.folder, name, arm, seed)
                runs[path] = partial(train[arm], TASKS[name], seed)
                labels[path] = [TASKS[name].algo, TASKS[name].env_id, arm, seed]
    run_all(runs, labels, args.jobs)


if __name__ == "__main__":
    main()
