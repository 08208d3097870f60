"""
Does Rainbow learn better than SB3's DQN, also with four fifths of its weights gone, and which of its parts matter?

    python examples/rainbow_study.py tune --jobs 2      # learning rates, of both algorithms, over the same trials
    python examples/rainbow_study.py compare --jobs 2   # DQN and Rainbow, with the learning rates found
    python examples/rainbow_study.py ablate --jobs 2    # one part of Rainbow switched off at a time
    python scripts/tables.py record rainbow_study examples/rainbow_study.py plot

The last draws docs/images/rainbow_*.png with their numbers as .csv, and keeps its tables for the docs. Finished runs are
skipped, so each command can be resumed. All arms of a task have the same trunk, number of steps, warm-up, batch size and
number of updates. A run writes one CSV: the episodes of training as the environment pays them, and 30 episodes of the
finished agent, without random actions and without noise.
"""

import argparse
import csv
import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from study_runs import HEADER, EpisodeRecorder, print_table, run_all, window_means, write_csv

from sb3_sparse.common.figures import new_figure, save_figure
from sb3_sparse.results.aggregates import estimate, iqm

EVALUATION_EPISODES = 30
# Without a limit, a greedy agent could play for ever.
MINATAR_LIMIT = 5_000
RATES = (1e-4, 3e-4, 1e-3)
# Apart from those that are compared.
TUNING_SEEDS = (100, 101)
SEEDS = (0, 1, 2, 3, 4)


class Task(NamedTuple):
    """What is trained on, for how long, and how often an update is made; the same for all arms."""

    env_id: str
    n_steps: int
    tuning_steps: int
    """Of a trial of a learning rate."""
    trunk: dict[str, Any]
    returns: tuple[float, float]
    """The smallest and the largest return of Rainbow's distributions, with a discount factor of 0.99."""
    train_freq: int
    batch_size: int
    target_update_interval: int


VECTORS: dict[str, Any] = {"net_arch": [128, 128]}
GRIDS: dict[str, Any] = {"encoder": "grid", "net_arch": [128]}
TASKS = {
    "CartPole": Task("CartPole-v1", 30_000, 30_000, VECTORS, (0.0, 100.0), 2, 64, 500),
    "LunarLander": Task("LunarLander-v3", 100_000, 100_000, VECTORS, (-200.0, 200.0), 4, 64, 1_000),
    "Breakout": Task("MinAtar/Breakout-v1", 300_000, 100_000, GRIDS, (-10.0, 10.0), 4, 32, 1_000),
    "Freeway": Task("MinAtar/Freeway-v1", 300_000, 100_000, GRIDS, (-10.0, 10.0), 4, 32, 1_000),
}
# Keywords of each arm; "sparsity" is one of its policy.
ARMS: dict[str, dict[str, Any]] = {
    "DQN": {},
    "Rainbow": {},
    "Rainbow S=0.8": {"sparsity": 0.8},
    "no distributions": {"distributional": False},
    "no dueling": {"dueling": False},
    "no double": {"double": False},
    "no noise": {"noisy": False},
    "no priorities": {"prioritized": False},
    "one step": {"n_steps": 1},
}
COMPARED = ("DQN", "Rainbow", "Rainbow S=0.8")
ABLATED = tuple(ARMS)[3:]
ABLATION_TASK, ABLATION_SEEDS = "Breakout", (0, 1, 2)
COLOURS = {"DQN": "#d62728", "Rainbow": "#1f77b4", "Rainbow S=0.8": "#2ca02c"}
N_WINDOWS = 20


def make_env(task: Task) -> gym.Env:
    """The environment, and a limit where it has none."""
    if not task.env_id.startswith("MinAtar/"):
        return gym.make(task.env_id)
    import minatar.gym

    if task.env_id not in gym.registry:
        minatar.gym.register_envs()
    return gym.make(task.env_id, max_episode_steps=MINATAR_LIMIT)


def make_model(name: str, arm: str, rate: float, seed: int, n_steps: int) -> Any:
    """The untrained agent of an arm."""
    from stable_baselines3 import DQN

    from sb3_sparse.rainbow import ImageEncoder, Rainbow

    task = TASKS[name]
    shared: dict[str, Any] = dict(
        learning_rate=rate,
        buffer_size=n_steps,
        learning_starts=1_000,
        batch_size=task.batch_size,
        train_freq=task.train_freq,
        target_update_interval=task.target_update_interval,
        gamma=0.99,
        seed=seed,
        device="cpu",
    )
    trunk = dict(task.trunk)
    if arm == "DQN":
        if "encoder" in trunk:
            trunk["features_extractor_class"] = ImageEncoder
            trunk["features_extractor_kwargs"] = {"encoder": trunk.pop("encoder")}
        return DQN("MlpPolicy", make_env(task), policy_kwargs=trunk, **shared)
    settings = dict(ARMS[arm])
    trunk["sparsity"] = settings.pop("sparsity", 0.0)
    v_min, v_max = task.returns
    return Rainbow("MlpPolicy", make_env(task), policy_kwargs=trunk, v_min=v_min, v_max=v_max, **settings, **shared)


def train(name: str, arm: str, rate: float, seed: int, n_steps: int) -> list[tuple[int, float, str]]:
    """Step at its end, return and phase of every episode."""
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    task = TASKS[name]
    model, recorder = make_model(name, arm, rate, seed, n_steps), EpisodeRecorder()
    model.learn(n_steps, callback=recorder)
    env = Monitor(make_env(task))
    env.reset(seed=10_000 + seed)
    returns, _ = evaluate_policy(model, env, EVALUATION_EPISODES, return_episode_rewards=True)
    rows = [(step, value, "train") for step, value in recorder.episodes]
    return rows + [(n_steps, float(value), "evaluate") for value in returns]


def run_path(folder: Path, name: str, arm: str, rate: float, seed: int, n_steps: int) -> Path:
    """The file of one run."""
    return folder / f"{name}-{arm.replace(' ', '_')}-{rate:g}-{n_steps}-{seed}.csv"


def read(path: Path, phase: str) -> list[tuple[int, float]]:
    """The episodes of one phase of a finished run."""
    with path.open(newline="") as file:
        return [(int(row["step"]), float(row["return"])) for row in csv.DictReader(file) if row["phase"] == phase]


def trial(folder: Path, name: str, arm: str, rate: float, seed: int) -> float:
    """How good a trial of a learning rate was: the mean return over the last quarter of its training."""
    n_steps = TASKS[name].tuning_steps
    path = run_path(folder, name, arm, rate, seed, n_steps)
    if not path.exists():
        raise SystemExit(f"{path} is missing: run tune first")
    return float(np.mean([value for step, value in read(path, "train") if step > 0.75 * n_steps]))


def best_rate(folder: Path, name: str, arm: str) -> float:
    """The rate whose trials were best, over both seeds."""
    return max(RATES, key=lambda rate: sum(trial(folder, name, arm, rate, seed) for seed in TUNING_SEEDS))


def rate_of(folder: Path, name: str, arm: str) -> float:
    """What an arm was tuned to; variants of Rainbow take Rainbow's."""
    return best_rate(folder, name, "DQN" if arm == "DQN" else "Rainbow")


def runs_of(command: str, folder: Path, names: list[str]) -> list[tuple[str, str, float, int, int]]:
    """Task, arm, learning rate, seed and steps of every run of a command."""
    if command == "tune":
        return [
            (name, arm, rate, seed, TASKS[name].tuning_steps)
            for seed in TUNING_SEEDS
            for name in names
            for arm in ("DQN", "Rainbow")
            for rate in RATES
        ]
    arms, seeds = (COMPARED, SEEDS) if command == "compare" else (ABLATED, ABLATION_SEEDS)
    names = names if command == "compare" else [ABLATION_TASK]
    rates = {(name, arm): rate_of(folder, name, arm) for name in names for arm in arms}
    return [(name, arm, rates[name, arm], seed, TASKS[name].n_steps) for seed in seeds for name in names for arm in arms]


def final_return(path: Path) -> float:
    """Mean return of the finished agent."""
    return float(np.mean([value for _, value in read(path, "evaluate")]))


def finished(folder: Path, name: str, arm: str, seeds: tuple[int, ...]) -> dict[int, Path]:
    """The runs of an arm that are there."""
    rate = rate_of(folder, name, arm)
    paths = {seed: run_path(folder, name, arm, rate, seed, TASKS[name].n_steps) for seed in seeds}
    return {seed: path for seed, path in paths.items() if path.exists()}


def line(label: str, rate: float, values: list[float]) -> list[str]:
    """A row of a table: each seed, then the interquartile mean and its interval."""
    found = estimate(iqm, np.array(values)[:, None])
    interval = "" if found.low is None else f"{found.low:.1f} to {found.high:.1f}"
    return [label, f"{rate:g}", ", ".join(f"{value:.1f}" for value in values), f"{found.value:.1f}", interval]


def plot(folder: Path, names: list[str], output: Path) -> None:
    """Curves of all tasks, the table of final returns, the ablation, and the numbers behind them."""
    names = [name for name in names if any(finished(folder, name, arm, SEEDS) for arm in COMPARED)]
    figure = new_figure((3.6 * len(names), 3.4))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    rows: list[list] = []
    table: list[list[str]] = []
    for axes, name in zip(panels, names, strict=True):
        n_steps = TASKS[name].n_steps
        x = (np.arange(N_WINDOWS) + 0.5) * n_steps / N_WINDOWS / 1000
        for arm in COMPARED:
            paths, rate = finished(folder, name, arm, SEEDS), rate_of(folder, name, arm)
            curves = [window_means(read(path, "train"), n_steps, N_WINDOWS) for path in paths.values()]
            if not curves:
                continue
            draw_curves(axes, x, np.array(curves), arm)
            table.append(line(f"{name}, {arm}", rate, [final_return(path) for path in paths.values()]))
            rows += [
                [name, arm, f"{rate:g}", seed, f"{final_return(path):.2f}", *(f"{value:.2f}" for value in curve)]
                for (seed, path), curve in zip(paths.items(), curves, strict=True)
            ]
        axes.set(title=name, xlabel="thousand steps")
        axes.grid(alpha=0.3)
    print_table("Final returns", ["task, arm", "learning rate", "seeds 0 to 4", "IQM", "95 % interval"], table)
    panels[0].set_ylabel("return of an episode of training")
    panels[0].legend(fontsize=8)
    save_figure(figure, output / "rainbow_learning.png", dpi=80)
    windows = [f"return_window_{i + 1}" for i in range(N_WINDOWS)]
    write_csv(output / "rainbow_learning.csv", ["task", "arm", "learning_rate", "seed", "final_return", *windows], rows)
    scores = [
        [name, arm, f"{rate:g}", seed, f"{trial(folder, name, arm, rate, seed):.2f}"]
        for name, arm, rate, seed in itertools.product(names, ("DQN", "Rainbow"), RATES, TUNING_SEEDS)
    ]
    write_csv(output / "rainbow_tuning.csv", ["task", "arm", "learning_rate", "seed", "return_of_last_quarter"], scores)
    plot_ablation(folder, output)


def draw_curves(axes: Any, x: np.ndarray, curves: np.ndarray, arm: str) -> None:
    """The interquartile mean over seeds with its interval, and every seed, thinly."""
    axes.plot(x, curves.T, color=COLOURS[arm], alpha=0.25, linewidth=0.7)
    found = [estimate(iqm, curves[:, i : i + 1]) for i in range(curves.shape[1])]
    axes.plot(x, [point.value for point in found], color=COLOURS[arm], linewidth=2, label=f"{arm}, n = {len(curves)}")
    if len(curves) > 1:
        axes.fill_between(x, [p.low for p in found], [p.high for p in found], color=COLOURS[arm], alpha=0.15, linewidth=0)


def plot_ablation(folder: Path, output: Path) -> None:
    """The table of the parts that were switched off, and its numbers."""
    rows, table = [], []
    for arm in ("Rainbow", *ABLATED):
        paths, rate = finished(folder, ABLATION_TASK, arm, ABLATION_SEEDS), rate_of(folder, ABLATION_TASK, arm)
        values = [final_return(path) for path in paths.values()]
        if values:
            table.append(line(arm, rate, values))
            rows += [[arm, f"{rate:g}", seed, f"{value:.2f}"] for seed, value in zip(paths, values, strict=True)]
    print_table("Ablation", [ABLATION_TASK, "learning rate", "seeds 0 to 2", "IQM", "95 % interval"], table)
    write_csv(output / "rainbow_ablation.csv", ["arm", "learning_rate", "seed", "final_return"], rows)


def main() -> None:
    """Run, or draw what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["tune", "compare", "ablate", "plot"])
    parser.add_argument("--folder", type=Path, default=Path("logs/rainbow_study"), help="of the CSV files")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, one thread each")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="folder of pictures and tables")
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.command == "plot":
        plot(args.folder, args.tasks, args.output)
        return
    runs, labels = {}, {}
    for name, arm, rate, seed, n_steps in runs_of(args.command, args.folder, args.tasks):
        path = run_path(args.folder, name, arm, rate, seed, n_steps)
        runs[path] = partial(train, name, arm, rate, seed, n_steps)
        labels[path] = ["dqn" if arm == "DQN" else "rainbow", TASKS[name].env_id, arm, seed]
    run_all(runs, labels, args.jobs, [*HEADER, "phase"])


if __name__ == "__main__":
    main()
