"""
Does DrQ-v2 learn from pixels with a critic of four times the width, and with four fifths of its weights gone?

    python examples/drqv2_study.py run --jobs 2   # all runs; again after an interruption, which goes on where they were
    python examples/drqv2_study.py plot           # docs/images/drqv2_learning.png and .csv, and the table
    python examples/drqv2_study.py speed          # decisions per second of each arm, and the hours of the study
    python examples/drqv2_study.py frames         # docs/images/drqv2_frames.png: what a trained agent sees

Finished runs are skipped; one that was killed goes on from its last checkpoint, exactly. A run writes the agent, and one CSV:
the episodes of training, with noise, and ten episodes of the finished agent, without. Solved means 80 % of the return of SAC
that sees the state, after as many decisions.

The study is for one core and hours (``speed`` says how many), not for the sizes of the paper:

- Tasks: two of the suite that SAC learns from the state within some ten thousand decisions. Balancing pays a third of the
  most for doing nothing useful; catching pays nothing until the ball is in the cup, which chance finds now and then.
- Actions are held for four steps, so that an episode has 250 decisions and pictures, and there is one update for each
  decision: per frame of the task as many as DrQ-v2 has, with two steps and one update for two decisions.
- Pictures of 48 x 48 pixels, in which pole, cart, ball, string and cup are to be seen (``frames``). Shadows and reflections
  are left out; edges stay smooth, which costs little beside an update.
- 16 channels and batches of 128 instead of 32 and 256, which with the smaller pictures is a twentieth of the time.
- Hidden layers of 256 at width 1, 1024 at width 4, for tasks of one and two actions.
- A learning rate of 3e-4, for some ten thousand updates where the paper's 1e-4 has hundreds of thousands, and
  noise that has shrunk after half of the run, as in the paper.
"""

import argparse
import csv
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from study_runs import HEADER, EpisodeRecorder, print_table, run_all, window_means, write_csv

from sb3_sparse import ExactCheckpoint, make_dmc, make_dmc_pixels, resume_exact
from sb3_sparse.common.figures import new_figure, save_figure
from sb3_sparse.drqv2 import DrQv2
from sb3_sparse.resume.files.folder import checkpoints

SIZE, ACTION_REPEAT, RENDERING = 48, 4, "no_shadows_no_reflections"
EVALUATION_EPISODES = 10
# Of a run.
N_CHECKPOINTS = 10
SEEDS = (0, 1, 2)
# Of SAC's return.
SOLVED = 0.8


class Task(NamedTuple):
    """What is trained on, and for how many decisions."""

    domain: str
    task: str
    n_steps: int


TASKS = {
    "cartpole-balance": Task("cartpole", "balance", 12_500),
    "ball_in_cup-catch": Task("ball_in_cup", "catch", 20_000),
}
# Of the critic alone. SAC sees the state.
ARMS: dict[str, dict[str, float]] = {
    "dense": {},
    "critic 4x dense": {"critic_width_scale": 4.0},
    "critic 4x S=0.8": {"critic_width_scale": 4.0, "sparsity": 0.8},
    "sac": {},
}
PIXEL_ARMS = tuple(ARMS)[:3]
COLOURS = {"dense": "#1f77b4", "critic 4x dense": "#d62728", "critic 4x S=0.8": "#2ca02c", "sac": "#7f7f7f"}
N_WINDOWS = 25
# Pictures of an episode, and how many decisions lie between two.
N_FRAMES, FRAME_EVERY = 8, 8


def make_env(name: str, arm: str) -> gym.Env:
    """A task as an arm sees it."""
    task = TASKS[name]
    if arm == "sac":
        return make_dmc(task.domain, task.task, ACTION_REPEAT)
    return make_dmc_pixels(task.domain, task.task, SIZE, action_repeat=ACTION_REPEAT, rendering=RENDERING)


def make_model(name: str, arm: str, seed: int, n_steps: int) -> Any:
    """The untrained agent of an arm."""
    shared: dict[str, Any] = dict(
        learning_rate=3e-4, buffer_size=n_steps, learning_starts=1_000, train_freq=1, gradient_steps=1, seed=seed, device="cpu"
    )
    if arm == "sac":
        from stable_baselines3 import SAC

        return SAC("MlpPolicy", make_env(name, arm), **shared)
    return DrQv2(
        "CnnPolicy",
        make_env(name, arm),
        batch_size=128,
        n_steps=3,
        exploration_steps=n_steps // 2,
        policy_kwargs={"net_arch": [256, 256], "features_extractor_kwargs": {"channels": 16}, **ARMS[arm]},
        **shared,
    )


def train(name: str, arm: str, seed: int, n_steps: int, checkpoint: Path) -> list[tuple[int, float, str]]:
    """
    Step at its end, return and phase of every episode.

    :param checkpoint: A folder. If there are checkpoints in it, the run goes on from the newest.
    """
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor

    recorder = EpisodeRecorder()
    if checkpoints(checkpoint):
        model = resume_exact(checkpoint, callback=[recorder])
    else:
        model = make_model(name, arm, seed, n_steps)
        model.learn(n_steps, callback=[ExactCheckpoint(checkpoint, max(n_steps // N_CHECKPOINTS, 1), keep=1), recorder])
    env = Monitor(make_env(name, arm))
    env.reset(seed=10_000 + seed)
    returns, _ = evaluate_policy(model, env, EVALUATION_EPISODES, return_episode_rewards=True)
    env.close()
    model.save(agent_of(checkpoint))
    rows = [(step, value, "train") for step, value in recorder.episodes]
    return rows + [(n_steps, float(value), "evaluate") for value in returns]  # type: ignore[union-attr]


def run_path(folder: Path, name: str, arm: str, seed: int, n_steps: int) -> Path:
    """The file of one run."""
    return folder / f"{name}-{arm.replace(' ', '_')}-{n_steps}-{seed}.csv"


def checkpoint_of(path: Path) -> Path:
    """The folder of the checkpoints of a run, while it is not finished."""
    return path.with_suffix(".checkpoint")


def agent_of(path: Path) -> Path:
    """The finished agent of a run."""
    return path.with_suffix(".zip")


def remove_checkpoint(path: Path) -> None:
    """Of a finished run."""
    if checkpoint_of(path).exists():
        shutil.rmtree(checkpoint_of(path))


def read(path: Path, phase: str) -> list[tuple[int, float]]:
    """The episodes of one phase of a finished run."""
    with path.open(newline="") as file:
        return [(int(row["step"]), float(row["return"])) for row in csv.DictReader(file) if row["phase"] == phase]


def run(folder: Path, names: list[str], arms: list[str], seeds: list[int], n_steps: int | None, jobs: int) -> None:
    """All runs that are not finished, of each seed those of all tasks first."""
    runs, labels = {}, {}
    for seed in seeds:
        for name in names:
            for arm in arms:
                n = n_steps or TASKS[name].n_steps
                path = run_path(folder, name, arm, seed, n)
                runs[path] = partial(train, name, arm, seed, n, checkpoint_of(path))
                labels[path] = ["sac" if arm == "sac" else "drqv2", name, arm, seed]
    run_all(runs, labels, jobs, [*HEADER, "phase"], remove_checkpoint)


def final_return(path: Path) -> float:
    """Mean return of the finished agent."""
    return float(np.mean([value for _, value in read(path, "evaluate")]))


def plot(folder: Path, names: list[str], seeds: list[int], n_steps: int | None, output: Path) -> None:
    """Curves of every seed, the table of final returns, and the numbers behind them."""
    figure = new_figure((4.6 * len(names), 3.6))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    rows: list[list] = []
    table: list[list[str]] = []
    for axes, name in zip(panels, names, strict=True):
        n = n_steps or TASKS[name].n_steps
        paths = {arm: {seed: run_path(folder, name, arm, seed, n) for seed in seeds} for arm in ARMS}
        found = {arm: {seed: path for seed, path in each.items() if path.exists()} for arm, each in paths.items()}
        finals = {arm: {seed: final_return(path) for seed, path in each.items()} for arm, each in found.items()}
        bar = SOLVED * float(np.mean([*finals["sac"].values()])) if finals["sac"] else float("nan")
        for arm in ARMS:
            if not finals[arm]:
                continue
            values = [*finals[arm].values()]
            solved = f"{sum(value >= bar for value in values)} of {len(values)}" if finals["sac"] else "?"
            finals_of_seeds = ", ".join(f"{value:.0f}" for value in values)
            table.append([f"{name}, {arm}", finals_of_seeds, f"{np.mean(values):.0f}", solved])
            curves = {seed: window_means(read(path, "train"), n, N_WINDOWS) for seed, path in found[arm].items()}
            draw_curves(axes, n, np.array([*curves.values()]), arm)
            rows += [
                [name, arm, seed, f"{finals[arm][seed]:.2f}", *(f"{value:.2f}" for value in curve)]
                for seed, curve in curves.items()
            ]
        if finals["sac"]:
            axes.axhline(bar, color=COLOURS["sac"], linestyle=":", label=f"solved: {100 * SOLVED:.0f} % of SAC")
        axes.set(title=name, xlabel="thousand decisions", ylim=(0, 1000))
        axes.grid(alpha=0.3)
    print_table("Final returns", ["task, arm", "final return of each seed", "mean", "solved"], table)
    panels[0].set_ylabel("return of an episode of training")
    panels[0].legend(fontsize=8)
    save_figure(figure, output / "drqv2_learning.png", dpi=80)
    windows = [f"return_window_{i + 1}" for i in range(N_WINDOWS)]
    write_csv(output / "drqv2_learning.csv", ["task", "arm", "seed", "final_return", *windows], rows)


def draw_curves(axes: Any, n_steps: int, curves: np.ndarray, arm: str) -> None:
    """The mean over seeds, and every seed, thinly."""
    x = (np.arange(N_WINDOWS) + 0.5) * n_steps / N_WINDOWS / 1000
    label = "SAC, from the state" if arm == "sac" else arm
    axes.plot(x, curves.T, color=COLOURS[arm], alpha=0.35, linewidth=0.8)
    axes.plot(x, curves.mean(axis=0), color=COLOURS[arm], linewidth=2, label=f"{label}, n = {len(curves)}")


def speed(names: list[str], n_decisions: int, warmup: int) -> None:
    """What a decision with its update costs, in seconds of the processor, and how long the study takes at that."""
    hours, table = 0.0, []
    for name in names:
        for arm in ARMS:
            model = make_model(name, arm, 0, 1_000 + n_decisions)
            model.learning_starts = warmup // 2
            model.learn(warmup)
            start = time.process_time()
            model.learn(n_decisions, reset_num_timesteps=False)
            seconds = (time.process_time() - start) / n_decisions
            hours += len(SEEDS) * seconds * TASKS[name].n_steps / 3600
            table.append([f"{name}, {arm}", f"{1 / seconds:.1f}", f"{seconds * TASKS[name].n_steps / 3600:.2f}"])
    print_table("Speed", ["task, arm", "decisions per second", "hours of a run"], table)
    print(f"{len(SEEDS)} seeds: {hours:.1f} hours of one core")


def frames(folder: Path, names: list[str], seed: int, n_steps: int | None, output: Path) -> None:
    """A row for each task: pictures of an episode of the finished sparse agent, twice as large as they are."""
    from PIL import Image

    arm, rows = PIXEL_ARMS[-1], []
    for name in names:
        model = DrQv2.load(agent_of(run_path(folder, name, arm, seed, n_steps or TASKS[name].n_steps)), device="cpu")
        env = make_env(name, arm)
        observation, _ = env.reset(seed=1)
        row = []
        for i in range(N_FRAMES * FRAME_EVERY):
            if i % FRAME_EVERY == 0:
                row.append(observation[-3:].transpose(1, 2, 0))
            observation = env.step(model.predict(observation, deterministic=True)[0])[0]
        env.close()
        rows.append(np.concatenate(row, axis=1))
    picture = np.concatenate(rows).repeat(2, axis=0).repeat(2, axis=1)
    output.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(output / "drqv2_frames.png", optimize=True)


def main() -> None:
    """Run, or draw what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "plot", "speed", "frames"])
    parser.add_argument("--folder", type=Path, default=Path("logs/drqv2_study"), help="of the CSV files")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--steps", type=int, help="decisions of a run, for a short trial")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, one thread each")
    parser.add_argument("--output", type=Path, default=Path("docs/images"), help="folder of pictures and tables")
    args = parser.parse_args()
    th.set_num_threads(1)
    if args.command == "run":
        run(args.folder, args.tasks, args.arms, args.seeds, args.steps, args.jobs)
    elif args.command == "plot":
        plot(args.folder, args.tasks, args.seeds, args.steps, args.output)
    elif args.command == "speed":
        speed(args.tasks, n_decisions=args.steps or 300, warmup=200)
    else:
        frames(args.folder, args.tasks, args.seeds[0], args.steps, args.output)


if __name__ == "__main__":
    main()
