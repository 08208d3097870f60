"""
Memory of a SAC learner while it trains: networks, targets, gradients, optimiser moments, indices and activations.

    python benchmarks/memory.py [--width 5] [--threads 2]

Each learner is a process of its own. "Training" is the growth of the process from before the learner was built to the
peak of three gradient steps; "building" the peak while it was built. On a GPU (``--device cuda``) both are of the device.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch as th
from common import machine, print_table


def status(field: str) -> float:
    """A size from the kernel's account of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def reset_peak() -> None:
    """Give free memory back, and start the kernel's high-water mark anew."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(kind: str, width: int, sparsity: float, threads: int, device: str) -> None:
    """In a child process: build a learner, train it, print what it took."""
    import os

    # Measuring backends allocates a dense weight; the table is about training.
    os.environ.setdefault("SB3_SPARSE_BACKEND", "dense" if device == "cuda" else "blocked" if sparsity else "auto")
    from sac_step import make_model, make_pruned, make_sac, step

    th.set_num_threads(threads)
    step(make_model(0.1, 0.5 if sparsity else 0.0, device))()  # loads libraries, compiles kernels
    if device == "cuda":
        th.cuda.reset_peak_memory_stats()
        before = th.cuda.memory_allocated() / 2**20
    else:
        reset_peak()
        before = status("VmRSS")
    if kind == "MlpPolicy":
        model = make_sac("MlpPolicy", device)
    else:
        model = make_pruned(width, sparsity, device) if kind == "prune" else make_model(width, sparsity, device)
    run = step(model, autocast=kind == "dense bfloat16")
    built = th.cuda.max_memory_allocated() / 2**20 if device == "cuda" else status("VmHWM")
    run()
    if device == "cuda":
        th.cuda.reset_peak_memory_stats()
    else:
        reset_peak()
    for _ in range(3):
        run()
    peak = th.cuda.max_memory_allocated() / 2**20 if device == "cuda" else status("VmHWM")
    with TemporaryDirectory() as folder:
        model.save(f"{folder}/model")
        with zipfile.ZipFile(f"{folder}/model.zip") as archive:
            size = sum(entry.file_size for entry in archive.infolist()) / 2**20
    print(json.dumps({"training": peak - before, "building": built - before, "file": size}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=5)
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "SPARSITY"))
    args = parser.parse_args()
    if args.child:
        measure(args.child[0], args.width, float(args.child[1]), args.threads, args.device)
        sys.exit()
    th.set_num_threads(args.threads)
    print(machine())
    learners = {
        "dense": ("dense", 0.0),
        "dense bfloat16": ("dense bfloat16", 0.0),
        "prune": ("prune", args.sparsity[0]),
        "MlpPolicy": ("MlpPolicy", 0.0),
    }
    learners |= {f"sparse S={sparsity}": ("sparse", sparsity) for sparsity in args.sparsity}
    results = {}
    for name, (kind, sparsity) in learners.items():
        command = [sys.executable, __file__, "--child", kind, str(sparsity), "--width", str(args.width)]
        command += ["--threads", str(args.threads), "--device", args.device]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
    columns = {"training": "peak while training", "building": "peak while building", "file": "saved agent"}
    rows = []
    for name, result in results.items():
        sizes = []
        for key in columns:
            sizes += [f"{result[key]:.0f}", f"{result[key] / results['dense'][key]:.2f}"]
        rows.append([name, *sizes, f"{1 - learners[name][1]:.2f}" if name.startswith("sparse") else ""])
    header = [column for title in columns.values() for column in (f"{title}, MiB", f"{title}, relative to dense")]
    print_table(f"SAC learner, W{args.width} D1", ["learner", *header, "limit"], rows)
