"""
A healthy and a sick network, seen through every metric: the pictures of docs/plasticity.

    python examples/plasticity_pictures.py --seeds 0 1 2 --output docs/plasticity/images

DQN with SB3's MlpPolicy (64, 64) on CartPole, twice: with a learning rate that works (0.0023, that of rl-zoo3), and with
one forty times as large, which the network does not survive. Runs that are finished are not repeated.
"""

import argparse
import csv
from pathlib import Path

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_sparse.common.figures import save_figure
from sb3_sparse.common.files import written_beside
from sb3_sparse.plasticity import PlasticityCallback, Probe

RATES = {"healthy": 2.3e-3, "sick": 0.1}
COLOURS = {"healthy": "#1f77b4", "sick": "#d62728"}
# Picture, and the columns of the table that it shows.
PICTURES = {
    "dormant_ratio": {"dormant_redo": "dormant (redo)", "dormant_authors": "dormant (authors)"},
    "fraction_active_units": {"fau": "fraction of active units"},
    "srank": {"srank": "srank", "effective_rank": "effective rank", "stable_rank": "stable rank"},
    "gradient_norm": {"gradient_norm": "gradient norm"},
    "parameter_norm": {"parameter_norm": "parameter norm"},
    "feature_norm": {"feature_norm": "feature norm"},
    "interference": {
        "interference_mean": "mean cosine",
        "interference_abs": "mean |cosine|",
        "interference_negative": "share below 0",
    },
}
LOGARITHMIC = {"gradient_norm", "parameter_norm", "feature_norm"}


def train(name, seed, steps, folder):
    """One run; leaves a table, and what the matrices at its end look like."""
    result = folder / f"{name}_{seed}_{steps}.npz"
    if result.is_file():
        return
    model = DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=RATES[name],
        learning_starts=1000,
        train_freq=64,
        gradient_steps=32,
        target_update_interval=64,
        exploration_fraction=0.16,
        exploration_final_eps=0.04,
        batch_size=64,
        seed=seed,
        device="cpu",
        policy_kwargs={"net_arch": [64, 64]},
    )
    table = result.with_suffix(".csv")
    model.learn(steps, callback=PlasticityCallback(500, metrics="all", csv_path=str(table)))
    returns, _ = evaluate_policy(model, Monitor(gym.make("CartPole-v1")), n_eval_episodes=10)
    part = Probe(model, 128).network("critic")
    spectrum = part.spectra[0].values
    with written_beside(result) as beside:
        np.savez(beside, matrix=part.interference.matrix, spectrum=spectrum, mean_return=returns)
    print(f"{name}, seed {seed}: return {returns:.0f}", flush=True)


def read(path):
    """Columns of a table by name."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {column: np.array([float(row[column] or "nan") for row in rows]) for column in rows[0]}


def draw_series(picture, tables, output):
    """One panel per column, every seed a line."""
    columns = PICTURES[picture]
    figure, panels = plt.subplots(1, len(columns), figsize=(1 + 3.2 * len(columns), 2.8), layout="constrained", squeeze=False)
    for axes, (column, label) in zip(panels[0], columns.items(), strict=True):
        for (name, seed), table in tables.items():
            shown = name if seed == min(s for _, s in tables) else None
            axes.plot(table["timesteps"], table[f"critic_{column}"], color=COLOURS[name], label=shown, lw=1.2)
        if picture in LOGARITHMIC:
            axes.set_yscale("log")
        axes.set(xlabel="timesteps", title=label)
        axes.grid(alpha=0.3)
    panels[0][-1].legend(fontsize=7)
    save_figure(figure, output / f"{picture}.png")
    plt.close(figure)


def draw_ends(results, output):
    """Matrices and spectra of the critics at the end of training."""
    figure, panels = plt.subplots(1, len(results) + 1, figsize=(3.3 * (len(results) + 1), 2.9), layout="constrained")
    for axes, (name, result) in zip(panels, results.items(), strict=False):
        image = axes.imshow(result["matrix"], cmap="RdBu", vmin=-1, vmax=1, interpolation="nearest")
        axes.set(title=f"{name}: cosines of gradients", xlabel="sample", ylabel="sample")
        relative = result["spectrum"] / result["spectrum"][0]
        panels[-1].semilogy(np.maximum(relative, 1e-8), color=COLOURS[name], label=name)
    figure.colorbar(image, ax=panels[:-1], shrink=0.9)
    panels[-1].set(title="singular values / largest", xlabel="index")
    panels[-1].grid(alpha=0.3)
    panels[-1].legend(fontsize=7)
    save_figure(figure, output / "matrices.png")
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, default=Path("plasticity_runs"))
    parser.add_argument("--output", type=Path, default=Path("docs/plasticity/images"))
    args = parser.parse_args()
    th.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    runs = [(name, seed) for seed in args.seeds for name in RATES]
    for name, seed in runs:
        train(name, seed, args.steps, args.folder)
    tables = {(name, seed): read(args.folder / f"{name}_{seed}_{args.steps}.csv") for name, seed in runs}
    for picture in PICTURES:
        draw_series(picture, tables, args.output)
    draw_ends({name: np.load(args.folder / f"{name}_{args.seeds[0]}_{args.steps}.npz") for name in RATES}, args.output)
    for name, seed in runs:
        mean_return = np.load(args.folder / f"{name}_{seed}_{args.steps}.npz")["mean_return"]
        print(f"{name}, seed {seed}: return {float(mean_return):.0f}")
