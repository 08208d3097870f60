"""
Write the files that ``test_old_files.py`` reads: agents and layers as an earlier version saved them, and what they computed.

Run it with the package at the commit whose files are to be kept, one thread, from anywhere::

    git worktree add ../before COMMIT
    PYTHONPATH=../before OMP_NUM_THREADS=1 python tests/compatibility/make_files.py [FOLDER]

Files that are there already are the promise: write new ones into another folder, or for cases that are new (``--only``).
"""

import argparse
import json
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import cases
import llvmlite.binding as llvm
import numpy as np
import stable_baselines3
import torch as th
from torch import nn

import sb3_sparse


def machine() -> dict[str, str]:
    """What bit-equal results need."""
    return {
        "torch": th.__version__.partition("+")[0],
        "processor": llvm.get_host_cpu_name(),
        "capability": th.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "stable_baselines3": stable_baselines3.__version__,
        "sb3_sparse": sb3_sparse.__version__,
    }


def write(path: Path, compute: Any, subject: Any, batches: dict[str, np.ndarray]) -> None:
    """Inputs, and outputs by backend."""
    arrays = {f"in_{name}": array for name, array in batches.items()}
    for backend in cases.BACKENDS:
        with cases.forced_backend(backend):
            arrays |= {f"{backend}_{name}": array for name, array in compute(subject, batches).items()}
    np.savez_compressed(path, **arrays)


def checksums(module: nn.Module) -> dict[str, Any]:
    """Of a module that has just been built."""
    return {
        "weights": cases.weights_checksum(module),
        "norm": cases.weights_norm(module),
        "topologies": cases.topologies_checksum(module),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=cases.FILES)
    parser.add_argument("--only", nargs="+", help="names of cases")
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    print(f"writing to {folder}, with {sb3_sparse.__file__}", file=sys.stderr)
    wanted = set(options.only or [*cases.AGENTS, *cases.LAYERS, "ppo"])
    manifest_path = folder / "manifest.json"
    manifest = json.loads(manifest_path.read_text()) if manifest_path.is_file() else {}
    here = machine()

    for name, agent in cases.AGENTS.items():
        if name not in wanted:
            continue
        with cases.forced_backend("dense"), warnings.catch_warnings():
            # Of algorithms about settings that are only small here.
            warnings.simplefilter("ignore")
            model = agent.build()
            manifest[name] = {"machine": here, "initial": checksums(model.policy)}
            model.learn(agent.steps)
            model.save(folder / name)
            model = agent.algorithm.load(folder / name, device="cpu")
        manifest[name]["trained"] = checksums(model.policy)
        write(folder / f"{name}.npz", cases.agent_outputs, model, cases.observations(model.observation_space))

    if "ppo" in wanted:
        with cases.forced_backend("dense"):
            model = cases.sparsified_ppo()
            manifest["ppo"] = {"machine": here, "initial": checksums(model.policy)}
            model.learn(32)
            th.save(model.policy.state_dict(), folder / "ppo.pt")
        manifest["ppo"]["trained"] = checksums(model.policy)
        write(folder / "ppo.npz", cases.agent_outputs, model, cases.observations(model.observation_space))

    for name, (make, shape) in cases.LAYERS.items():
        if name in wanted:
            layer = make()
            manifest[name] = {"machine": here, "initial": checksums(layer)}
            th.save(layer.state_dict(), folder / f"{name}.pt")
            write(folder / f"{name}.npz", cases.layer_outputs, layer, cases.layer_batch(shape))
    manifest_path.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
