"""
One convolution, forward and both gradients: on our kernels beside oneDNN's, in either layout and in bfloat16.

    python benchmarks/conv.py [--threads 2] [--layer ...] [--batch 32] [--sparsity 0.8 0.9 0.95]
    python benchmarks/conv.py --forward --batch 1      # acting

A layer is written IN-OUT-KERNEL-STRIDE-PADDING-SIZE. Ratios are times of ``nn.Conv2d`` in its faster layout over times of the
contender, larger is faster; the limit of skipping every missing weight is 1 / (1 - S). Images come as torch lays them out, and
gradients in the layout of the output. With one thread, times are seconds of the processor.
"""

import argparse
import os
import time

import torch as th
from common import alternate, machine, print_table
from torch import nn

from sb3_sparse.sparse import SparseConv2d, Topology
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE

LAYERS = ["96-96-3-1-1-21", "96-96-3-1-1-11", "4-32-8-4-0-84", "32-64-4-2-0-20", "64-64-3-1-0-9", "32-32-3-1-0-39"]

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--layer", nargs="+", default=LAYERS)
parser.add_argument("--batch", nargs="+", type=int, default=[32])
parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.95])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=9)
parser.add_argument("--forward", action="store_true", help="the output alone, without gradients")
args = parser.parse_args()
th.set_num_threads(args.threads)


def contender(layer, x, backend="auto", autocast=False):
    """A function that runs forward and backward of a layer, or forward alone."""
    x = x.clone().requires_grad_(not args.forward)
    os.environ[BACKEND_VARIABLE] = backend
    grad = th.randn_like(layer(x)).detach()
    wanted = [x, *layer.parameters()]

    def run():
        os.environ[BACKEND_VARIABLE] = backend
        with th.set_grad_enabled(not args.forward), th.autocast("cpu", dtype=th.bfloat16, enabled=autocast):
            y = layer(x)
        if args.forward:
            return
        # Not `backward`, which would copy the gradient of `x` into its layout: in a network nobody keeps that.
        th.autograd.grad(y, wanted, grad.to(y.dtype))

    return run


print(machine())
for batch in args.batch:
    for text in args.layer:
        n_in, n_out, kernel, stride, padding, size = map(int, text.split("-"))
        rows = []
        for sparsity in args.sparsity:
            dense = nn.Conv2d(n_in, n_out, kernel, stride, padding)
            topology = Topology.random(dense.weight.shape, round((1 - sparsity) * dense.weight.numel()), seed=0)
            sparse = SparseConv2d.from_dense(dense, topology)
            x = th.randn(batch, n_in, size, size)
            channels_last = x.contiguous(memory_format=th.channels_last)
            contenders = {
                "nn.Conv2d": contender(dense, x),
                "nn.Conv2d, channels last": contender(dense, channels_last),
                "nn.Conv2d, channels last, bfloat16": contender(dense, channels_last, autocast=True),
                "ours, dense weight": contender(sparse, x, "dense"),
                "ours, shifted": contender(sparse, x, "blocked"),
                "ours, chosen": contender(sparse, x),
            }
            clock = time.process_time if args.threads == 1 else time.perf_counter
            seconds = alternate(contenders, args.rounds, clock=clock)
            base = min(seconds["nn.Conv2d"], seconds["nn.Conv2d, channels last"])
            for name, value in seconds.items():
                limit = f"{1 / (1 - sparsity):.0f}" if name.startswith("ours") else ""
                rows.append([f"S={sparsity} {name}", f"{1e3 * value:.2f}", f"{base / value:.2f}", limit])
        title = f"Convolution {text}, batch {batch}, {'forward' if args.forward else 'forward and both gradients'}"
        print_table(title, ["contender", "ms", "times nn.Conv2d", "limit"], rows)
