"""
Does a network lose its ability to learn, and do sparsity or resets keep it? Random labels, drawn anew again and again.

    python examples/plasticity_loss.py                 # every arm and seed; results that exist are kept
    python examples/plasticity_loss.py --plot          # one CSV and one picture of all that is there

One task is to memorise random labels (10 classes) of 512 points from a 32-dimensional unit normal, in 200 steps of AdamW
on batches of 64. Then points and labels are drawn anew, and the same network goes on. All tasks are equally hard, so a
network that learns the last as well as the first has lost nothing. After each task the accuracy on its 512 points is
written down with the usual measurements of plasticity. Every arm sees the same tasks in the same order.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_sparse import sparsify_
from sb3_sparse.common.figures import save_figure
from sb3_sparse.common.files import written_beside
from sb3_sparse.networks import ResidualBlock, SimBaEncoder, orthogonal_linear
from sb3_sparse.plasticity import dormant_ratio, gradient_norm, parameter_norm, srank
from sb3_sparse.plasticity.redo import redo_
from sb3_sparse.plasticity.resets import draw_fresh, reset_full_, reset_last_layers_, shrink_perturb_
from sb3_sparse.results.statistics import bootstrap_interval

N_POINTS, N_INPUTS, N_CLASSES, BATCH_SIZE = 512, 32, 10, 64
STEPS_PER_TASK = 200
N_TASKS = 60
# Tasks between two resets: 4,000 steps; for ReDo the paper's 1,000.
RESET_EVERY = 20
REDO_EVERY = 5
DENSE = {"width": 128, "sparsity": 0.0, "learning_rate": 3e-3, "reset": None, "rescale": False}
ARMS = {
    "dense": DENSE,
    "sparse 0.8": {**DENSE, "sparsity": 0.8},
    "dense, full reset": {**DENSE, "reset": "full"},
    "dense, shrink and perturb": {**DENSE, "reset": "shrink_perturb"},
    "dense, ReDo": {**DENSE, "reset": "redo"},
    "dense, last 2 layers reset": {**DENSE, "reset": "last_layers"},
    # As many weights as "sparse 0.8".
    "small dense": {**DENSE, "width": 56},
    "sparse 0.8, rescaled": {**DENSE, "sparsity": 0.8, "rescale": True},
    "sparse 0.9": {**DENSE, "sparsity": 0.9},
    "sparse 0.8, full reset": {**DENSE, "sparsity": 0.8, "reset": "full"},
    "dense, learning rate 1e-3": {**DENSE, "learning_rate": 1e-3},
}


def build(width: int, sparsity: float, rescale: bool) -> nn.Sequential:
    """A SimBa encoder of one block and a linear head."""
    net = nn.Sequential(SimBaEncoder(N_INPUTS, width, n_blocks=1), orthogonal_linear(width, N_CLASSES))
    sparsify_(net, sparsity, rescale=rescale)
    return net


def measure(net: nn.Sequential, x: th.Tensor, y: th.Tensor) -> dict[str, float]:
    """Accuracy, loss, and the state of the network on all points of a task."""
    hidden: list[th.Tensor] = []
    block = next(module for module in net.modules() if isinstance(module, ResidualBlock))
    hook = block.activation.register_forward_hook(lambda _, __, output: hidden.append(output.detach().clone()))
    with th.no_grad():
        features = net[0](x)
        logits = net[1](features)
    hook.remove()
    return {
        "accuracy": (logits.argmax(1) == y).float().mean().item(),
        "loss": F.cross_entropy(logits, y).item(),
        "dormant_ratio": float(dormant_ratio(hidden[0])),
        "srank_share": srank(features, normalized=True),
        "parameter_norm": parameter_norm(net.parameters()),
    }


def reset(strategy: str, net: nn.Sequential, optimizer: th.optim.Optimizer, seed: int, arm: dict, x: th.Tensor) -> None:
    """Reset between two tasks; ReDo scores the units on the task that is over."""
    fresh = draw_fresh(lambda: build(arm["width"], arm["sparsity"], arm["rescale"]), seed)
    if strategy == "full":
        reset_full_(net, fresh, optimizer)
    elif strategy == "last_layers":
        reset_last_layers_(net, fresh, optimizer, n_layers=2)
    elif strategy == "shrink_perturb":
        shrink_perturb_(net, fresh, optimizer)
    else:
        redo_(net, fresh, lambda: net(x), optimizer)


def run(arm: dict, seed: int, n_tasks: int) -> list[dict[str, float]]:
    """Train one network on all tasks; one row of measurements for each."""
    th.manual_seed(seed)
    net = build(arm["width"], arm["sparsity"], arm["rescale"])
    optimizer = th.optim.AdamW(net.parameters(), lr=arm["learning_rate"], fused=True)
    tasks = th.Generator().manual_seed(10_000 + seed)
    rows = []
    x = th.empty(0)
    for task in range(n_tasks):
        every = REDO_EVERY if arm["reset"] == "redo" else RESET_EVERY
        if arm["reset"] and task and task % every == 0:
            reset(arm["reset"], net, optimizer, 1_000 * (seed + 1) + task, arm, x)
        x = th.randn(N_POINTS, N_INPUTS, generator=tasks)
        y = th.randint(N_CLASSES, (N_POINTS,), generator=tasks)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        norm = gradient_norm(p.grad for p in net.parameters())
        for _ in range(STEPS_PER_TASK):
            batch = th.randint(N_POINTS, (BATCH_SIZE,), generator=tasks)
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
        rows.append({"task": task, **measure(net, x, y), "gradient_norm": norm})
    return rows


def write_csv(path: Path, rows: list[dict]) -> None:
    """A file that is there is complete."""
    with written_beside(path) as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)


def result_file(folder: Path, arm: str, seed: int) -> Path:
    """Where the rows of one arm and seed are kept."""
    return folder / f"{arm.replace(', ', '_').replace(' ', '_')}_{seed}.csv"


def n_rows(path: Path) -> int:
    """Tasks in a result file: one of a shorter trial run does not count as done."""
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def collect(folder: Path, seeds: int, n_tasks: int) -> list[dict]:
    """The rows of all results that are there."""
    rows = []
    for arm in ARMS:
        for seed in range(seeds):
            path = result_file(folder, arm, seed)
            if path.exists():
                with path.open(newline="") as file:
                    rows += [{"arm": arm, "seed": seed, **row} for row in csv.DictReader(file) if int(row["task"]) < n_tasks]
    return rows


def table(rows: list[dict]) -> str:
    """Means over seeds of the first and last ten tasks, with the range over seeds of the last accuracy."""
    lines = [
        "| arm | seeds | accuracy, first 10 tasks | last 10 (range over seeds) | dormant | srank / width | norm |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        runs: dict[int, list[dict]] = {}
        for row in rows:
            if row["arm"] == arm:
                runs.setdefault(row["seed"], []).append(row)

        def mean(key: str, tasks: slice, runs: dict[int, list[dict]] = runs) -> np.ndarray:
            return np.array([np.mean([float(row[key]) for row in run[tasks]]) for run in runs.values()])

        first, last = slice(0, 10), slice(-10, None)
        accuracy = mean("accuracy", last)
        others = [mean(key, last).mean() for key in ("dormant_ratio", "srank_share", "parameter_norm")]
        lines.append(
            f"| {arm} | {len(runs)} | {mean('accuracy', first).mean():.3f} | {accuracy.mean():.3f} "
            f"({accuracy.min():.3f} to {accuracy.max():.3f}) | {others[0]:.2f} | {others[1]:.2f} | {others[2]:.0f} |"
        )
    return "\n".join(lines)


def plot(rows: list[dict], output: Path) -> None:
    """Left the arms without resets, right those with them; one row of panels for each measurement."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError("The picture needs matplotlib: pip install 'sb3-sparse[zoo]'.") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {
        "accuracy": "accuracy at the end of a task",
        "dormant_ratio": "dormant hidden units (redo, τ = 0.025)",
        "srank_share": "srank / width",
        "parameter_norm": "parameter norm",
    }
    resets = [name for name, arm in ARMS.items() if arm["reset"]]
    columns = {"Without resets": [name for name in ARMS if name not in resets], "With resets": ["dense", *resets]}
    figure, axes = plt.subplots(len(panels), 2, figsize=(11, 13), layout="constrained", sharex=True, sharey="row")
    for column, (title, arms) in enumerate(columns.items()):
        for index, arm in enumerate(arm for arm in arms if any(row["arm"] == arm for row in rows)):
            colour = "black" if arm == "dense" else plt.get_cmap("tab10")(index)
            for (key, label), axis in zip(panels.items(), axes[:, column], strict=True):
                by_seed: dict[int, list[float]] = {}
                for row in rows:
                    if row["arm"] == arm:
                        by_seed.setdefault(row["seed"], []).append(float(row[key]))
                values = np.array(list(by_seed.values()))
                task = np.arange(values.shape[1])
                axis.plot(task, values.mean(0), color=colour, lw=1.3, label=f"{arm} ({len(values)})")
                axis.fill_between(task, *bootstrap_interval(values), color=colour, alpha=0.15, lw=0)
                axis.set_ylabel(label if column == 0 else "")
                axis.grid(alpha=0.3)
        axes[0, column].set(title=title, ylim=(0, 1.03))
        axes[0, column].legend(fontsize=8, loc="lower left", title="arm (seeds)", title_fontsize=8)
        axes[-1, column].set_xlabel(f"task ({STEPS_PER_TASK} steps each)")
    save_figure(figure, output, dpi=80)


def main() -> None:
    """Train what is missing, or draw what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on")
    parser.add_argument("--tasks", type=int, default=N_TASKS)
    parser.add_argument("--results", type=Path, default=Path("results/plasticity_loss"), help="one CSV per arm and seed")
    parser.add_argument("--plot", action="store_true", help="draw the results instead of training")
    parser.add_argument("--output", type=Path, default=Path("docs/images/plasticity_loss.png"))
    args = parser.parse_args()
    if args.plot:
        rows = collect(args.results, args.seeds, args.tasks)
        if not rows:
            parser.error(f"no results in {args.results}: run without --plot first, or name the folder with --results.")
        write_csv(args.output.with_suffix(".csv"), rows)
        plot(rows, args.output)
        print(table(rows))
        return
    th.set_num_threads(1)
    for seed in range(args.seeds):
        for arm in args.arms:
            path = result_file(args.results, arm, seed)
            if n_rows(path) < args.tasks:
                start = time.monotonic()
                rows = run(ARMS[arm], seed, args.tasks)
                write_csv(path, rows)
                accuracy = [row["accuracy"] for row in rows]
                first, last = np.mean(accuracy[:10]), np.mean(accuracy[-10:])
                seconds = time.monotonic() - start
                print(f"{arm}, seed {seed}: first 10 tasks {first:.3f}, last 10 {last:.3f} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
