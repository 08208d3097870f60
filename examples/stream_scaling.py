"""
Width and sparsity in streaming RL: Figures 12 and 13 of "Network Sparsity Unlocks the Scaling Potential of Deep RL", small.

    python examples/stream_scaling.py --jobs 2      # all runs; finished ones are skipped, so it can be resumed
    python examples/stream_scaling.py --plot        # docs/images/stream_scaling.png and .csv, and the summary table

StreamAC with its default hyperparameters; only the width of the actor and the critic and their sparsity change. ``dense``
starts from LeCun's uniform initialisation; ``S=…`` prunes those weights at random once and for ever (Erdős–Rényi, no
rescaling); ``SparseInit`` starts nine tenths of the weights at zero and trains all of them. Seeds are the outermost loop:
what is finished at any time is balanced.
"""

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from study_runs import EpisodeRecorder, last_mean, make_env, print_table, read_episodes, run_all, window_means, write_csv

from sb3_sparse.common.figures import new_figure, save_figure

N_WINDOWS = 20
NETWORKS = {
    "dense": {"initialization": "lecun_uniform"},
    "S=0.5": {"sparsity": 0.5},
    "S=0.9": {"sparsity": 0.9},
    "SparseInit": {"initialization": "sparse_init"},
}
COLOURS = {"dense": "#d62728", "S=0.5": "#2ca02c", "S=0.9": "#1f77b4", "SparseInit": "#9467bd"}


def train(env_id: str, width_scale: int, network: str, seed: int, n_steps: int) -> list[tuple[int, float]]:
    """Episodes of one run."""
    from sb3_sparse import StreamAC

    policy_kwargs = {"width_scale": width_scale, **NETWORKS[network]}
    model = StreamAC("MlpPolicy", make_env(env_id), policy_kwargs=policy_kwargs, seed=seed, device="cpu")
    recorder = EpisodeRecorder()
    model.learn(n_steps, callback=recorder)
    return recorder.episodes


def run_path(folder: Path, env_id: str, width_scale: int, network: str, seed: int, n_steps: int) -> Path:
    """The file of one run."""
    return folder / f"{env_id}-W{width_scale}-{network}-{seed}-{n_steps}.csv"


def plot(args: argparse.Namespace) -> None:
    """Curves of every seed, one panel per width, and final returns; the windows as CSV; the table."""
    widths = args.width_scales
    figure = new_figure((4.2 * (len(widths) + 1), 3.8))
    all_axes = figure.subplots(1, len(widths) + 1)
    rows, table, bars = [], [], all_axes[-1]
    x = (np.arange(N_WINDOWS) + 0.5) * args.steps / N_WINDOWS / 1000
    for i, (width, axes) in enumerate(zip(widths, all_axes[:-1], strict=True)):
        for j, network in enumerate(args.networks):
            colour = COLOURS[network]
            paths = {seed: run_path(args.folder, args.env, width, network, seed, args.steps) for seed in args.seeds}
            finished = {seed: read_episodes(path) for seed, path in paths.items() if path.exists()}
            curves = [window_means(episodes, args.steps, N_WINDOWS) for episodes in finished.values()]
            if not curves:
                continue
            for curve in curves:
                axes.plot(x, curve, color=colour, alpha=0.35, linewidth=0.9)
            axes.plot(x, np.mean(curves, axis=0), color=colour, linewidth=2.2, label=f"{network}, n = {len(curves)}")
            finals = [np.nanmean(curve[-N_WINDOWS // 5 :]) for curve in curves]
            place = i + 0.18 * (j - 1.5)
            bars.bar(place, np.mean(finals), 0.16, color=colour, alpha=0.6)
            bars.plot([place] * len(finals), finals, "k.", markersize=5)
            area = [np.nanmean(curve) for curve in curves]
            table.append([f"W{width}", network, *(f"{v:.0f}" for v in finals), *[""] * (len(args.seeds) - len(finals))])
            table[-1] += [f"{np.mean(finals):.0f}", f"{np.mean(area):.0f}"]
            for (seed, episodes), curve in zip(finished.items(), curves, strict=True):
                row = [args.env, width, network, seed, args.steps, len(episodes), f"{last_mean(episodes):.1f}"]
                rows.append([*row, *(f"{v:.1f}" for v in curve)])
        axes.set(title=f"{args.env}, width {128 * width}", xlabel="thousand steps", ylabel="return of an episode")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    bars.set(title="last fifth of the run, every seed a dot", xticks=range(len(widths)), xlim=(-0.5, len(widths) - 0.5))
    bars.set_xticklabels([f"width {128 * width}" for width in widths])
    bars.grid(alpha=0.3, axis="y")
    save_figure(figure, args.output, dpi=90)
    windows = [f"return_window_{i + 1}" for i in range(N_WINDOWS)]
    first = ["env", "width_scale", "network", "seed", "steps", "episodes", "mean_return_of_last_10"]
    write_csv(args.output.with_suffix(".csv"), [*first, *windows], rows)
    print("Mean return of the last fifth of the run, per seed and over the seeds, and the mean of the whole run:\n")
    print_table("Scaling", ["width", "network", *(f"seed {s}" for s in args.seeds), "mean", "whole run"], table)


def main() -> None:
    """Run, or draw what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Walker2d-v4")
    parser.add_argument("--folder", type=Path, default=Path("logs/stream_scaling"), help="of the CSV files")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--width-scales", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time, one thread each")
    parser.add_argument("--plot", action="store_true", help="draw what is finished, run nothing")
    parser.add_argument("--output", type=Path, default=Path("docs/images/stream_scaling.png"))
    args = parser.parse_args()
    if args.plot:
        plot(args)
        return
    runs, labels = {}, {}
    for seed in args.seeds:
        for width in args.width_scales:
            for network in args.networks:
                path = run_path(args.folder, args.env, width, network, seed, args.steps)
                runs[path] = partial(train, args.env, width, network, seed, args.steps)
                labels[path] = ["stream_ac", args.env, f"W{width} {network}", seed]
    run_all(runs, labels, args.jobs)


if __name__ == "__main__":
    main()
