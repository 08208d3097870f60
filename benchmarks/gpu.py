"""
What this package costs and saves on a GPU: a layer, a whole SAC step, and memory. One table, in under ten minutes.

    python benchmarks/gpu.py [--markdown gpu.md] [--csv gpu.csv]
    python benchmarks/gpu.py --device cpu --quick      # a dry run, which shows that everything works

A layer is forward and both gradients, batch 256; a step is a gradient step of SB3's SAC at Humanoid's sizes, batch 256;
memory is the peak of three such steps, of the whole learner (networks, targets, gradients, moments, activations).
Contenders take turns, each number is the median of the rounds; times on a GPU are those of its own clock (CUDA events).
"times dense" is the time of ``nn.Linear``, or of the dense network, over that of the contender: larger is faster.

It needs torch with CUDA, stable-baselines3, sb3-contrib, gymnasium, numpy and llvmlite, and nothing from the network.
"""

import argparse
import csv
import gc
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# Choices of backends are measured anew, and the user's are left alone.
os.environ.setdefault("SB3_SPARSE_CACHE", "")

import torch as th
from common import machine
from sac_step import make_model, make_pruned, step
from torch import nn
from torch.nn.utils import prune

from sb3_sparse.sparse import SparseLinear, Topology
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE, available_backends

BATCH = 256
HEADER = ("what", "size", "sparsity", "contender", "ms", "times dense", "MiB")


class Clock:
    """Seconds of a function on a device."""

    def __init__(self, device: str):
        self.on_gpu = device.startswith("cuda")

    def seconds(self, run: Callable[[], object], repeats: int) -> float:
        """Of one call; several are timed together, so that the clock's own steps do not count."""
        if not self.on_gpu:
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - start) / repeats
        begin, end = (th.cuda.Event(enable_timing=True) for _ in range(2))
        th.cuda.synchronize()
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def medians(self, contenders: dict[str, Callable[[], object]], rounds: int, least: float) -> dict[str, float]:
        """
        Median seconds of each contender; they take turns.

        :param least: Seconds that a measurement takes at least: quick contenders are repeated.
        """
        repeats = {}
        for name, run in contenders.items():
            run()  # compiles, allocates, chooses
            repeats[name] = max(1, min(1000, round(least / max(self.seconds(run, 3), 1e-6))))
        times: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, run in contenders.items():
                times[name].append(self.seconds(run, repeats[name]))
        return {name: statistics.median(values) for name, values in times.items()}


def layer_pass(layer, batch, device, backend="auto", autocast=False):
    """A function that runs forward and backward of a layer."""
    x = th.randn(batch, layer.in_features, device=device, requires_grad=True)
    grad = th.randn(batch, layer.out_features, device=device)

    def run():
        os.environ[BACKEND_VARIABLE] = backend
        x.grad = None
        layer.zero_grad()
        with th.autocast(th.device(device).type, dtype=th.bfloat16, enabled=autocast):
            y = layer(x)
        y.backward(grad.to(y.dtype))

    return run


def layers(shape, sparsities, args, clock):
    """Rows of one shape."""
    out_features, in_features = map(int, shape.split("x"))
    rows = []
    for sparsity in sparsities:
        th.manual_seed(0)
        dense = nn.Linear(in_features, out_features).to(args.device)
        masked = prune.random_unstructured(nn.Linear(in_features, out_features), "weight", sparsity).to(args.device)
        topology = Topology.random((out_features, in_features), round((1 - sparsity) * dense.weight.numel()), seed=0)
        sparse = SparseLinear.from_dense(dense, topology)
        contenders = {
            "nn.Linear": layer_pass(dense, args.batch, args.device),
            "nn.Linear, bfloat16": layer_pass(dense, args.batch, args.device, autocast=True),
            "masks of torch.nn.utils.prune": layer_pass(masked, args.batch, args.device),
        }
        for backend in available_backends(args.device):
            contenders[f"ours, {backend}"] = layer_pass(sparse, args.batch, args.device, backend)
        contenders["ours, chosen"] = layer_pass(sparse, args.batch, args.device)
        contenders["ours, bfloat16"] = layer_pass(sparse, args.batch, args.device, autocast=True)
        seconds = clock.medians(contenders, args.rounds, args.least)
        base = seconds["nn.Linear"]
        rows += [("layer", shape, sparsity, name, 1e3 * value, base / value, None) for name, value in seconds.items()]
        os.environ[BACKEND_VARIABLE] = "auto"
    return rows


def learners(width, sparsities):
    """How to build each learner, by name and sparsity."""
    made = {("dense", 0.0): make_model, ("masks of torch.nn.utils.prune", sparsities[0]): make_pruned}
    return made | {("ours", sparsity): make_model for sparsity in sparsities}


def steps(width, sparsities, args, clock):
    """Rows of a gradient step at one width."""
    contenders, models = {}, []
    for (name, sparsity), build in learners(width, sparsities).items():
        models.append(build(width, sparsity, args.device))
        contenders[name, sparsity] = step(models[-1])
        if name != "masks of torch.nn.utils.prune":
            contenders[f"{name}, bfloat16", sparsity] = step(models[-1], autocast=True)
    seconds = clock.medians(contenders, args.rounds, args.least)
    base = seconds["dense", 0.0]
    return [("SAC step", f"W{width}", key[1], key[0], 1e3 * value, base / value, None) for key, value in seconds.items()]


def memory(width, sparsities, args, clock):
    """Rows of the peak while training, at one width. Each learner is alone on the device."""
    rows = []
    for (name, sparsity), build in learners(width, sparsities).items():
        gc.collect()
        peak = None
        if clock.on_gpu:
            th.cuda.empty_cache()
            before = th.cuda.memory_allocated()
        model = build(width, sparsity, args.device)
        run = step(model)
        run()
        if clock.on_gpu:
            th.cuda.synchronize()
            th.cuda.reset_peak_memory_stats()
        for _ in range(3):
            run()
        if clock.on_gpu:
            th.cuda.synchronize()
            peak = (th.cuda.max_memory_allocated() - before) / 2**20
        rows.append(("memory", f"W{width}", sparsity, name, None, None, peak))
        del model, run
    return rows


def table(rows):
    """Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|---:|---|---:|---:|---:|"]
    for what, size, sparsity, contender, ms, ratio, mib in rows:
        numbers = ("" if value is None else format(value, spec) for value, spec in ((ms, ".3f"), (ratio, ".2f"), (mib, ".0f")))
        lines.append("| " + " | ".join([what, size, f"{sparsity:g}", contender, *numbers]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", nargs="+", default=["10240x2560", "2560x10240", "2048x512", "512x128"], help="OUTxIN")
    parser.add_argument("--width", nargs="+", type=float, default=[1, 5], help="of the SAC learners")
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--batch", type=int, default=BATCH, help="of the layers")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--least", type=float, default=0.02, help="seconds of one measurement, at least")
    parser.add_argument("--minutes", type=float, default=9.0, help="after this time, what is left is left out, and named")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: whether it works, not how fast")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    parser.add_argument("--csv", type=Path, help="file for the numbers")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not th.cuda.is_available():
        parser.error(f"torch {th.__version__} finds no GPU; --device cpu --quick is a dry run.")
    if args.quick:
        args.shape, args.width, args.sparsity = ["64x32"], [0.05], args.sparsity[:1]
        args.batch, args.rounds, args.least = 16, 1, 0.0

    clock, begin = Clock(args.device), time.monotonic()
    jobs: list[tuple[str, Callable[[], list]]] = []
    jobs += [(f"layer {shape}", lambda shape=shape: layers(shape, args.sparsity, args, clock)) for shape in args.shape]
    jobs += [(f"SAC step W{w:g}", lambda w=w: steps(w, args.sparsity, args, clock)) for w in args.width]
    jobs += [(f"memory W{w:g}", lambda w=w: memory(w, args.sparsity, args, clock)) for w in args.width]
    rows, left_out = [], []
    print(machine(), flush=True)
    for name, job in jobs:
        if time.monotonic() - begin > 60 * args.minutes:
            left_out.append(name)
            continue
        rows += job()
        print(f"{name}: done after {time.monotonic() - begin:.0f} s", flush=True)

    text = f"{machine()}\n\n{table(rows)}\n"
    if left_out:
        text += f"\nNot measured within {args.minutes:g} minutes: {', '.join(left_out)}.\n"
    print(f"\n{text}")
    if args.markdown is not None:
        args.markdown.write_text(text)
    if args.csv is not None:
        with args.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            writer.writerows(rows)


if __name__ == "__main__":
    main()
