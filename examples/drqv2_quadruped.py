"""
DrQ-v2 on quadruped-run with the packaged settings: how fast it is, how much memory it takes, how many units stay active.

    pip install "sb3-sparse[dmc,zoo]"
    python examples/drqv2_quadruped.py                   # a critic of width 4, 10,000 decisions at sparsity 0 and at 0.8
    python examples/drqv2_quadruped.py --decisions 30 --learning-starts 10 --every 10        # to see that it works

Prints a line per measurement, which are also written as CSV, and in the end a table of all runs; ``--output docs/images``
draws them, too. A run that was killed goes on from its last checkpoint, exactly, and one that is finished is not made again.
A decision is two frames. Frames per second are those from the first update on; two runs at a time (``--sparsity 0`` and
``--sparsity 0.8``, then both to see the table) slow each other down. Active units are those of ReLUs alone, as in Figure 11 of
the paper, on a batch of images that are not shifted. So few decisions say nothing of returns.
"""

import argparse
import csv
import multiprocessing
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import torch as th
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from study_runs import print_table, write_csv

from sb3_sparse import DrQv2, ExactCheckpoint, make_dmc_pixels, measure, resume_exact
from sb3_sparse.common.figures import new_figure, save_figure
from sb3_sparse.resume.files.folder import checkpoints
from sb3_sparse.zoo import hyperparams_file

NETWORKS = ["encoder", "actor", "critic"]
COLUMNS = ["decisions", "frames_per_second", "peak_memory_mb", *NETWORKS]


class Report(BaseCallback):
    """
    Measures, prints and writes.

    :param every: After so many decisions.
    :param path: The CSV file.
    """

    def __init__(self, every: int, path: Path):
        super().__init__()
        self.every, self.path = every, path
        self.rows: list[list[float]] = []

    def _on_training_start(self) -> None:
        self.since = time.perf_counter()

    def get_state(self) -> None:
        """For a run that goes on: nothing but the rows."""

    def set_state(self, state: None) -> None:
        """Goes on from now, since its clock cannot."""
        self.since = time.perf_counter()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.every == 0:
            seconds = time.perf_counter() - self.since
            active = measure(self.model, min(self.every // 2, 256), ["fau_relu"], NETWORKS)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            self.rows.append([self.num_timesteps, 2 * self.every / seconds, memory, *active.values()])
            print("  ".join(f"{name} {value:.4g}" for name, value in zip(COLUMNS, self.rows[-1], strict=True)), flush=True)
            write_csv(self.path, COLUMNS, self.rows)
            self.since = time.perf_counter()
        return True


def run(sparsity: float, args: argparse.Namespace) -> None:
    """One agent."""
    th.set_num_threads(args.threads)
    table = path_of(sparsity, args)
    report, checkpoint = Report(args.every, table), table.with_suffix(".checkpoint")
    print(f"width {args.width:g}, sparsity {sparsity:g}", flush=True)
    if checkpoints(checkpoint):
        resume_exact(checkpoint, callback=[report])
    elif not is_finished(table, args.decisions // args.every):
        model = make_model(sparsity, args)
        model.learn(args.decisions, callback=[ExactCheckpoint(checkpoint, args.every, keep=1), report])
    if checkpoint.exists():
        shutil.rmtree(checkpoint)


def path_of(sparsity: float, args: argparse.Namespace) -> Path:
    """The CSV file of a run."""
    return args.folder / f"width{args.width:g}-S{sparsity:g}-{args.seed}.csv"


def is_finished(table: Path, n_rows: int) -> bool:
    """Whether all measurements are in a table."""
    return table.exists() and len(table.read_text().splitlines()) == 1 + n_rows


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns of a run."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}


def summarise(runs: dict[float, dict[str, np.ndarray]], learning_starts: int) -> None:
    """The table of all runs."""
    rows = []
    for sparsity, run in runs.items():
        speed = run["frames_per_second"][run["decisions"] > learning_starts]
        active = [f"{100 * run[name][0]:.1f} % → {100 * run[name][-1]:.1f} %" for name in NETWORKS]
        memory = f"{run['peak_memory_mb'].max() / 1024:.1f} GB"
        rows.append([f"S = {sparsity:g}", f"{np.nanmedian(speed):.2f}" if len(speed) else "", memory, *active])
    header = ["", "frames per second", "peak memory", *(f"active units of {name}" for name in NETWORKS)]
    print_table("Quadruped-run from pictures", header, rows)


def draw(runs: dict[float, dict[str, np.ndarray]], output: Path) -> None:
    """A panel for each network, a line for each run; and the numbers behind it."""
    figure = new_figure((9.6, 3.0))
    for axes, name in zip(figure.subplots(1, len(NETWORKS), sharey=True), NETWORKS, strict=True):
        for sparsity, run in runs.items():
            label = "dense" if sparsity == 0 else f"S = {sparsity:g}"
            axes.plot(run["decisions"] / 1000, 100 * run[name], marker="o", markersize=3, label=label)
        axes.set(title=name, xlabel="thousand decisions", ylim=(0, 100))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("active units, %")
    figure.axes[0].legend()
    save_figure(figure, output / "drqv2_quadruped.png", dpi=80)
    rows = [[sparsity, *row] for sparsity, run in runs.items() for row in zip(*run.values(), strict=True)]
    write_csv(output / "drqv2_quadruped.csv", ["sparsity", *COLUMNS], rows)


def settings_of_task() -> dict:
    """The packaged ones."""
    return yaml.safe_load(hyperparams_file("drqv2").read_text())["dm_control/quadruped-run-v0"]


def make_model(sparsity: float, args: argparse.Namespace) -> DrQv2:
    """An agent with the packaged settings and another critic."""
    settings = settings_of_task()
    (wrapper,) = settings.pop("env_wrapper")
    env = make_dmc_pixels("quadruped", "run", **wrapper["sb3_sparse.pixels.PixelObservations"])
    del settings["n_timesteps"]
    settings["policy_kwargs"] = {"critic_width_scale": args.width, "sparsity": sparsity}
    if args.learning_starts is not None:
        settings["learning_starts"] = args.learning_starts
    return DrQv2(env=env, seed=args.seed, **settings)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """What is to be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=10_000)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.8])
    parser.add_argument("--width", type=float, default=4.0, help="of the critic, as a multiple of the published 1024")
    parser.add_argument("--every", type=int, default=1_000, help="decisions between measurements")
    parser.add_argument("--learning-starts", type=int, help="decisions before the first update (packaged: 2,000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("logs/drqv2_quadruped"))
    parser.add_argument("--output", type=Path, help="draw drqv2_quadruped.png and .csv into this folder")
    return parser.parse_args(arguments)


def main() -> None:
    """Each agent in a process of its own, which its memory is measured of."""
    args = parse()
    for sparsity in args.sparsity:
        process = multiprocessing.get_context("spawn").Process(target=run, args=(sparsity, args))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
    runs = {sparsity: read(path_of(sparsity, args)) for sparsity in args.sparsity}
    summarise(runs, settings_of_task()["learning_starts"] if args.learning_starts is None else args.learning_starts)
    if args.output:
        draw(runs, args.output)


if __name__ == "__main__":
    main()
