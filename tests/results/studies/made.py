"""Folders of studies with numbers that are easy to predict."""

import hashlib
import itertools
import json

import numpy as np

CODE = {"sb3_sparse": "0.2.0", "torch": "2.13.0", "python": "3.11.9"}
MACHINE = {"processor": "A processor", "cores": 2, "system": "Linux 6.1", "gpu": None}
BLOCKS = 1000


def parameters(width, sparsity):
    """Total and learnable ones of two networks."""
    total = int(BLOCKS * width**2)
    learnable = round(total * (1 - sparsity))
    return {"actor": {"total": total, "learnable": learnable}, "critic": {"total": 3 * total, "learnable": 3 * learnable}}


def write_run(study, axes, returns=None, **changes):
    """
    One run, finished if it has returns.

    :param axes: With "seed"; "width" and "sparsity" make its parameters.
    :param changes: ``algo``, ``env``, ``name`` (of the study), ``folder``, ``settings``, ``code``, ``machine``, ``commit``,
        ``modified``, ``done_code``, ``evaluations`` (timesteps and one return each), ``plasticity`` (columns), ``log``,
        ``failed`` (what was said).
    """
    settings = {
        "algo": changes.get("algo", "sac"),
        "env": changes.get("env", "Pendulum-v1"),
        "seed": axes.get("seed"),
        "n_timesteps": 1000,
        "hyperparams": {"policy_kwargs": {name: value for name, value in axes.items() if name != "seed"}},
        "evaluation": {"every": 100, "episodes": 2, "final_episodes": 2},
        **changes.get("settings", {}),
    }
    checksum = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    values = "_".join(f"{name}{value}" for name, value in axes.items())
    folder = study / "runs" / changes.get("folder", f"{settings['env'].replace('/', '_')}_{values}-{checksum[:10]}")
    folder.mkdir(parents=True)
    origin = {
        "code": changes.get("code", CODE),
        "commit": changes.get("commit", "9710cc1"),
        "modified": changes.get("modified", False),
        "machine": changes.get("machine", MACHINE),
    }
    run = {"format": 1, "study": changes.get("name", "width"), "axes": axes, "settings": settings, "hash": checksum}
    (folder / "run.json").write_text(json.dumps({**run, **origin, "command": "sb3-sparse sweep plan.yml"}))
    if returns is not None:
        done = {"finished": "2026-11-26T14:00:00+00:00", "seconds": 60.0, "timesteps": 1000, "returns": list(returns)}
        done["parameters"] = parameters(axes.get("width", 1), axes.get("sparsity", 0))
        origin["code"] = changes.get("done_code", origin["code"])
        (folder / "done.json").write_text(json.dumps({**done, **origin}))
    if "evaluations" in changes:
        steps, values = changes["evaluations"]
        np.savez(folder / "evaluations.npz", timesteps=steps, results=np.asarray(values, dtype=float)[:, None])
    if "plasticity" in changes:
        columns = changes["plasticity"]
        rows = zip(*columns.values(), strict=True)
        lines = [",".join(columns), *(",".join(f"{value:.8g}" for value in row) for row in rows)]
        (folder / "plasticity.csv").write_text("\n".join(lines) + "\n")
    if "log" in changes:
        (folder / "log.txt").write_bytes(changes["log"].encode())
    if "failed" in changes:
        failed = {"when": "2026-11-26T14:00:00+00:00", "error": changes["failed"], "tries": 2}
        (folder / "failed.json").write_text(json.dumps(failed))
    return folder


def make_study(
    study, widths=(1, 2, 4), sparsities=(0.0, 0.8), seeds=5, envs=("Pendulum-v1",), algos=("sac",), points=(20, 30), series=3
):
    """
    A grid of finished runs whose returns follow a formula, with some noise.

    :param points: Evaluations, and rows of plasticity.
    :param series: Columns of plasticity.
    """
    rng = np.random.default_rng(0)
    names = ["critic_srank", "critic_dormant_redo", "critic_gradient_norm", "critic_parameter_norm", "critic_interference_abs"]
    names += [f"actor_series_{i}" for i in range(series)]
    steps, rows = (np.linspace(10_000, 1_000_000, n).astype(int) for n in points)
    for algo, env, width, sparsity, seed in itertools.product(algos, envs, widths, sparsities, range(seeds)):
        # Dense ones fall behind beyond a width of 2, sparse ones go on.
        best = 300 + 120 * np.log2(width) if sparsity else 350 + 60 * np.log2(width) - 25 * width
        noise = rng.normal(0, 25, points[0] + 2)
        learning = best * (1 - np.exp(-3 * steps / steps[-1])) + noise[2:]
        columns = {"timesteps": rows}
        for i, name in enumerate(names[:series]):
            columns[name] = (i + 1) * (1 + width * rows / rows[-1] * (1 - sparsity)) + rng.normal(0, 0.05, len(rows))
        yield write_run(
            study,
            {"width": width, "sparsity": sparsity, "seed": seed},
            best + noise[:2] * 2,
            algo=algo,
            env=env,
            evaluations=(steps, learning),
            plasticity=columns,
        )
