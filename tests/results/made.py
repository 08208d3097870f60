"""Folders of runs, with numbers that are easy to predict."""

import json
from collections import OrderedDict

import numpy as np
import pytest

yaml = pytest.importorskip("yaml")


def zoo_run(folder, seed, sparsity=0.8, steps=(100, 200, 300), plasticity=True):
    """What rl-zoo3 leaves behind, with returns that are easy to predict."""
    settings = folder / "Pendulum-v1"
    settings.mkdir(parents=True)
    config = OrderedDict(n_timesteps=300, policy_kwargs={"sparsity": sparsity, "net_arch": (8,)}, seed=seed)
    (settings / "config.yml").write_text(yaml.dump(config))
    arguments = OrderedDict(algo="sac", env="Pendulum-v1", seed=seed, log_folder=str(folder))
    (settings / "args.yml").write_text(yaml.dump(arguments))
    steps = np.array(steps)
    np.savez(folder / "evaluations.npz", timesteps=steps, results=np.stack([steps + seed, steps + seed + 2.0], axis=1))
    if plasticity:
        rows = "".join(f"{t},{t / 10 + seed},{0.1 * seed}\n" for t in steps)
        (folder / "plasticity.csv").write_text("timesteps,critic_srank,actor_dormant\n" + rows)
    return str(folder)


def monitor_run(folder):
    """Two environments side by side, ten steps each episode, the second one later by a second."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        header = json.dumps({"t_start": 1000.0, "env_id": "x"})
        rows = "".join(f"{float(2 * k + i)},10,{3600.0 * (k + 1) + i}\n" for k in range(3))
        (folder / f"{i}.monitor.csv").write_text(f"#{header}\nr,l,t\n{rows}")
    return str(folder)
