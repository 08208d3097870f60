"""
Simplicity bias scores of untrained networks at rising sparsity, as in Figure 8 of the paper.

    python examples/simplicity_bias.py --output docs/images/simplicity_bias

Writes a table (CSV, one row per network) and a picture (PNG). The score of every single initialisation goes to a
CSV per network in the folder ``--scores``; what is there already is not computed again, so a stopped run goes on where it was.
"""

import argparse
import csv
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch as th

from sb3_sparse.common.figures import save_figure
from sb3_sparse.common.files import written_beside
from sb3_sparse.plasticity import mlp, simba_actor, simba_critic, simplicity_bias_score

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--n-inits", type=int, default=100, help="initialisations of the MLP and of each actor")
parser.add_argument("--n-critic-inits", type=int, default=0, help="initialisations of each critic (slow)")
parser.add_argument("--width-scale", type=float, default=1.0, help="of actor and critic")
parser.add_argument("--sparsities", type=float, nargs="+", default=[0.0, 0.8, 0.9, 0.95])
parser.add_argument("--raw", action="store_true", help="do not normalise the inputs")
parser.add_argument("--scores", default="simplicity_scores", help="folder for the scores of single initialisations")
parser.add_argument("--output", default="simplicity_bias", help="where table and picture go, without ending")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

# Small networks: a second thread costs more than it brings.
th.set_num_threads(1)
BLOCK = 10
FIELDS = ("network", "sparsity", "inits", "mean", "standard_error", "standard_deviation")


def write(path, header, rows):
    with written_beside(path) as beside, beside.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def measure(name, factory, n_inits):
    """The scores of initialisations 0 to ``n_inits``, as far as they are not in the file already."""
    path = Path(args.scores) / f"{name}{'_raw' if args.raw else ''}.csv"
    scores = []
    if path.exists():
        with path.open() as file:
            scores = [float(row["score"]) for row in csv.DictReader(file)]
    while len(scores) < n_inits:
        block = min(BLOCK, n_inits - len(scores))
        found = simplicity_bias_score(factory, block, normalize_inputs=not args.raw, seed=len(scores), device=args.device)
        scores += found.scores
        write(path, ("seed", "score"), enumerate(scores))
    return scores[:n_inits]


def summary(network, sparsity, scores):
    n = len(scores)
    mean = sum(scores) / n
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / (n - 1)) if n > 1 else math.nan
    print(f"{network:10s} S={sparsity:<5g} {mean:.3f} ± {deviation / math.sqrt(n):.3f} ({n} initialisations)", flush=True)
    return (network, sparsity, n, f"{mean:.4f}", f"{deviation / math.sqrt(n):.4f}", f"{deviation:.4f}")


rows = [summary("MLP 256x2", 0.0, measure("mlp", mlp(), args.n_inits))]
kinds = {"SimBa actor": (simba_actor, args.n_inits), "SimBa critic": (simba_critic, args.n_critic_inits)}
for kind, (make, n_inits) in kinds.items():
    for sparsity in args.sparsities if n_inits else ():
        name = f"{kind.split()[1]}_{args.width_scale:g}_{sparsity:g}"
        rows.append(summary(kind, sparsity, measure(name, make(args.width_scale, sparsity), n_inits)))

output = Path(args.output)
write(output.with_name(output.name + ".csv"), FIELDS, rows)
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for network, colour in {"MLP 256x2": "#7f7f7f", "SimBa actor": "#1f77b4", "SimBa critic": "#d62728"}.items():
    points = [(f"{row[1]:g}", float(row[3]), 2 * float(row[4])) for row in rows if row[0] == network]
    if points:
        places, means, errors = zip(*points, strict=True)
        label = f"{network}, {next(row[2] for row in rows if row[0] == network)} initialisations"
        axes.errorbar(places, means, errors, color=colour, marker="o", capsize=4, label=label)
axes.set(xlabel="sparsity", ylabel="simplicity bias score, mean ± 2 standard errors")
axes.grid(alpha=0.3)
axes.legend(loc="upper left")
save_figure(figure, output.with_name(output.name + ".png"), dpi=120)
