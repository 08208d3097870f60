"""
One layer, forward and both gradients: every backend beside dense and masked layers.

    python benchmarks/layer.py [--threads 2] [--shape 10240x2560 2560x10240] [--batch 256] [--device cpu]
    python benchmarks/layer.py --forward --threads 1 --batch 1 16      # acting: no gradients, seconds of the processor

Ratios are times of ``nn.Linear`` over times of the contender, larger is faster; the limit of skipping every missing
weight is 1 / (1 - S).
"""

import argparse
import os
import time

import torch as th
from common import alternate, machine, milliseconds, print_table
from torch import nn
from torch.nn.utils import prune

from sb3_sparse.sparse import SparseLinear, Topology
from sb3_sparse.sparse.kernels import BACKEND_VARIABLE, available_backends

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shape", nargs="+", default=["10240x2560", "2560x10240", "2048x512"], help="OUTxIN")
parser.add_argument("--batch", nargs="+", type=int, default=[256])
parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.95])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=9)
parser.add_argument("--device", default="cpu")
parser.add_argument("--forward", action="store_true", help="the output alone, without gradients")
parser.add_argument(
    "--without-avx512", action="store_true", help="with ATEN_CPU_CAPABILITY=avx2: as processors without it are"
)
args = parser.parse_args()
if args.without_avx512:
    import without_avx512  # noqa: F401
th.set_num_threads(args.threads)


def contender(layer, batch, backend="auto", autocast=False):
    """A function that runs forward and backward of a layer, or forward alone, ten times."""
    x = th.randn(batch, layer.in_features, device=args.device, requires_grad=True)
    # What arrives in training is the gradient of an element-wise function: in the layout of the output.
    grad = th.randn_like(layer(x)).detach()

    def run():
        os.environ[BACKEND_VARIABLE] = backend
        if args.forward:
            with th.no_grad(), th.autocast(args.device, dtype=th.bfloat16, enabled=autocast):
                for _ in range(10):
                    layer(x)
            return
        x.grad = None
        layer.zero_grad()
        with th.autocast(args.device, dtype=th.bfloat16, enabled=autocast):
            y = layer(x)
        y.backward(grad.to(y.dtype))

    return run


print(machine())
for batch in args.batch:
    for shape in args.shape:
        out_features, in_features = map(int, shape.split("x"))
        rows = []
        for sparsity in args.sparsity:
            dense = nn.Linear(in_features, out_features).to(args.device)
            masked = prune.random_unstructured(nn.Linear(in_features, out_features), "weight", sparsity).to(args.device)
            topology = Topology.random((out_features, in_features), round((1 - sparsity) * dense.weight.numel()), seed=0)
            sparse = SparseLinear.from_dense(dense, topology)
            contenders = {
                "nn.Linear": contender(dense, batch),
                "nn.Linear bfloat16": contender(dense, batch, autocast=True),
                "torch.nn.utils.prune": contender(masked, batch),
            }
            for backend in available_backends(args.device):
                contenders[f"ours, {backend}"] = contender(sparse, batch, backend)
            contenders["ours, chosen"] = contender(sparse, batch)
            # Of one thread the processor's seconds, which leave out what other processes take.
            clock = time.process_time if args.forward and args.threads == 1 else time.perf_counter
            seconds = alternate(contenders, args.rounds, clock=clock)
            base = seconds["nn.Linear"]
            for name, value in seconds.items():
                limit = f"{1 / (1 - sparsity):.0f}" if name.startswith("ours") else ""
                rows.append([f"S={sparsity} {name}", milliseconds(value), f"{base / value:.2f}", limit])
        print_table(f"Layer {shape}, batch {batch}", ["contender", "ms", "times nn.Linear", "limit"], rows)
