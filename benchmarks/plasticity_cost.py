"""
What plasticity diagnostics cost, beside the training they watch: time of one measurement, memory of the largest.

    python benchmarks/plasticity_cost.py [--width 2] [--sparsity 0.8] [--threads 1] [--rounds 5]
    python benchmarks/plasticity_cost.py --memory [--width 5] [--sparsity 0.9]

Time: one firing of PlasticityCallback with its defaults (figures for TensorBoard included) over the 10,000 steps of SAC
between two firings. Only the gradient steps are counted for those, one per step; the environment costs nothing.

Memory: growth of the process from before the interference matrix of the critic was computed to the peak, k = 256.
Humanoid sizes (67 observations, 21 actions), one critic, batch 256.
"""

import argparse
import tempfile
import time

import torch as th
from common import Humanoid, alternate, machine, milliseconds, print_table
from memory import reset_peak, status
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure

from sb3_sparse.plasticity import DEFAULT_METRICS, METRICS, PlasticityCallback, Probe, measure

BATCH, LOG_FREQ = 256, 10_000


def make_model(width, sparsity):
    """SAC with a filled replay buffer."""
    kwargs = {"width_scale": width, "sparsity": sparsity, "n_critics": 1}
    model = SAC(
        "SparseSimBaPolicy",
        Humanoid(),
        learning_starts=10_000,
        buffer_size=2_000,
        seed=0,
        policy_kwargs=kwargs,
    )
    model.learn(512)
    return model


def measure_time(width, sparsity, rounds):
    """Print the time of one firing, over the training between two."""
    model = make_model(width, sparsity)
    with tempfile.TemporaryDirectory() as folder:
        model.set_logger(configure(folder, ["tensorboard"]))
        callback = PlasticityCallback(log_freq=LOG_FREQ)
        callback.init_callback(model)
        callback.on_training_start({}, {})

        def fire():
            model.num_timesteps += LOG_FREQ
            callback.on_step()
            model.logger.dump(model.num_timesteps)

        times = alternate({"step": lambda: model.train(1, BATCH), "fire": fire}, rounds)
        rows = []
        for name in [name for name in METRICS if name in DEFAULT_METRICS]:
            start = time.perf_counter()
            measure(model, metrics=name)
            rows.append([name, milliseconds(time.perf_counter() - start)])
    print_table("Each metric alone, actor and critic", ["metric", "ms"], rows)
    share = times["fire"] / (LOG_FREQ * times["step"])
    print_table(
        f"SAC, width {width:g}, sparsity {sparsity:g}",
        ["gradient step, ms", "one firing, ms", f"share of {LOG_FREQ} steps"],
        [[milliseconds(times["step"]), milliseconds(times["fire"]), f"{100 * share:.2f} %"]],
    )


def measure_memory(width, sparsity):
    """Print what the interference matrix takes on top of a trained model."""
    model = make_model(width, sparsity)
    model.train(2, BATCH)
    probe = Probe(model)
    reset_peak()
    before = status("VmRSS")
    start = time.perf_counter()
    part = probe.network("critic")
    result = part.interference
    seconds = time.perf_counter() - start
    peak = status("VmHWM")
    weights = sum(p.numel() for p in part.module.parameters())
    print_table(
        f"Interference matrix of the critic, width {width:g}, sparsity {sparsity:g}",
        ["parameters", "k", "model before, MiB", "growth, MiB", "peak of the process, MiB", "s"],
        [[f"{weights:,}", str(len(result.matrix)), f"{before:.0f}", f"{peak - before:.0f}", f"{peak:.0f}", f"{seconds:.1f}"]],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=float, default=2)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    print(machine())
    if args.memory:
        measure_memory(args.width, args.sparsity)
    else:
        measure_time(args.width, args.sparsity, args.rounds)
