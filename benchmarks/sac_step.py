"""
A whole gradient step of SB3's SAC (both losses, optimisers, target update), and acting, beside dense and masked networks.

    python benchmarks/sac_step.py [--threads 2] [--rounds 5] [--width 5] [--device cpu] [--clock processor]
    python benchmarks/sac_step.py --growth           # time against the number of weights, width 1 to 5 at S = 0.9
    python benchmarks/sac_step.py --equal-parameters # width 2 dense against width 5 with as many weights

Humanoid sizes (67 observations, 21 actions), one critic, batch 256. The contenders:

- dense: SimBa of this package at sparsity 0, fused AdamW, no gradient for the critic's weights in the actor's loss.
- dense bfloat16: the same under autocast.
- dense compiled, dense compiled bfloat16: both, trunks and heads by ``torch.compile``; where there is a C++ compiler.
- MlpPolicy: SB3's own as it is, two layers of 256.
- prune: what a user of SB3 does today: ``torch.nn.utils.prune`` on the layers of that network, SB3's critic and Adam.
- sparse: ours.
- sbx: SimbaPolicy of sbx (JAX, compiled), if it is installed.

"Times the best dense" is beside the fastest SimBa network that is not sparse.
"""

import argparse
import os
import shutil
import time

import numpy as np
import torch as th
from common import Humanoid, alternate, machine, milliseconds, print_table
from stable_baselines3 import SAC
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn
from torch.nn.utils import prune

from sb3_sparse import sparsity_report

# By its old address, which earlier versions have too: versions.py runs this with them.
from sb3_sparse.policy_networks import SimBaContinuousCritic

N_OBSERVATIONS, N_ACTIONS, BATCH = 67, 21, 256
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def make_model(width, sparsity=0.0, device="cpu", **policy_kwargs):
    """SAC with a filled replay buffer."""
    kwargs = {"width_scale": width, "sparsity": sparsity, "n_critics": 1, **policy_kwargs}
    return make_sac("SparseSimBaPolicy", device, kwargs)


def make_sac(policy, device, policy_kwargs=None):
    """The same, of any policy."""
    model = SAC(
        policy,
        Humanoid(N_OBSERVATIONS, N_ACTIONS),
        learning_rate=1e-4,
        learning_starts=10_000,
        buffer_size=2_000,
        seed=0,
        device=device,
        ent_coef="auto_0.01",
        policy_kwargs=policy_kwargs,
    )
    return model.learn(512)


def make_pruned(width, sparsity, device):
    """Masks on every layer, SB3's optimiser, and its critic, which computes gradients that it throws away."""
    model = make_model(width, 0.0, device, optimizer_class=th.optim.Adam)
    for network in (model.actor, model.critic, model.critic_target):
        for layer in list(network.modules()):
            if isinstance(layer, nn.Linear):
                prune.random_unstructured(layer, "weight", sparsity)
    for critic in (model.critic, model.critic_target):
        critic.forward = ContinuousCritic.forward.__get__(critic)
    assert isinstance(model.critic, SimBaContinuousCritic)
    assert isinstance(model.critic.features_extractor, FlattenExtractor)
    return model


def step(model, autocast=False):
    """A function that makes one gradient step."""

    def run():
        with th.autocast(model.device.type, dtype=th.bfloat16, enabled=autocast):
            model.train(1, BATCH)

    return run


def compiled_contenders(width, device):
    """The dense network compiled, with and without autocast; none where torch finds no C++ compiler."""
    if device == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        print("without torch.compile: no C++ compiler (g++, or what CXX names)")
        return {}
    # One function is compiled for actor, critic and target, with and without gradients, of each contender.
    th._dynamo.config.recompile_limit = 64
    contenders = {}
    for name, autocast in {"dense compiled": False, "dense compiled bfloat16": True}.items():
        model = make_model(width, 0.0, device)
        for network in (model.actor.latent_pi, *model.critic.q_networks, *model.critic_target.q_networks):
            network.compile()
        contenders[name] = step(model, autocast)
    return contenders


def act(model):
    """A function that predicts 20 times for one observation."""
    observation = np.zeros(N_OBSERVATIONS, dtype=np.float32)
    return lambda: [model.predict(observation, deterministic=True) for _ in range(20)] and None


def actor_pass(model):
    """A function that evaluates the actor's network for one sample 20 times, without what SB3 does around it."""
    observation = th.zeros(1, N_OBSERVATIONS, device=model.device)

    def run():
        with th.no_grad():
            for _ in range(20):
                model.actor.get_action_dist_params(observation)

    return run


def critic_pass(model):
    """A function that evaluates the critic for one sample: acting with the large network."""
    observation, action = (th.zeros(1, size, device=model.device) for size in (N_OBSERVATIONS, N_ACTIONS))

    def run():
        with th.no_grad():
            for _ in range(3):
                model.critic(observation, action)

    return run


def sbx_contender(width, depth=1):
    """SBX's SAC with its SimbaPolicy, or None."""
    try:
        from sbx import SAC as SBXSAC
    except ImportError:
        return None
    model = SBXSAC(
        "SimbaPolicy",
        Humanoid(N_OBSERVATIONS, N_ACTIONS),
        learning_starts=10_000,
        buffer_size=2_000,
        policy_kwargs={"net_arch": {"pi": [128 * width] * depth, "qf": [512 * width] * 2 * depth}, "n_critics": 1},
    ).learn(512)

    def run():
        import jax

        model.train(1, BATCH)
        jax.block_until_ready(model.policy.qf_state.params)

    return run


def compare(width, sparsities, rounds, device, clock):
    """The tables of one width: the step, and acting."""
    dense = make_model(width, 0.0, device)
    steps = {"dense": step(dense), "dense bfloat16": step(dense, autocast=True), **compiled_contenders(width, device)}
    acting = {"predict": act, "actor's network": actor_pass, "critic's network": critic_pass}
    single = {title: {"dense": make(dense)} for title, make in acting.items()}
    for sparsity in sparsities:
        model = make_model(width, sparsity, device)
        steps[f"sparse S={sparsity}"] = step(model)
        for title, make in acting.items():
            single[title][f"sparse S={sparsity}"] = make(model)
    # A mask costs the same at any sparsity: one contender stands for all.
    steps["prune"] = step(make_pruned(width, sparsities[0], device))
    steps["MlpPolicy"] = step(make_sac("MlpPolicy", device))
    if (run := sbx_contender(width)) is not None:
        steps["sbx SimbaPolicy"] = run

    seconds = alternate(steps, rounds, clock=clock)
    best_dense = min(value for name, value in seconds.items() if not name.startswith(("sparse", "MlpPolicy")))
    rows = [
        [
            name,
            milliseconds(value),
            f"{seconds['dense'] / value:.2f}",
            f"{best_dense / value:.2f}",
            f"{seconds['prune'] / value:.2f}",
            f"{1 / (1 - float(name.rpartition('=')[2])):.0f}" if name.startswith("sparse") else "",
        ]
        for name, value in seconds.items()
    ]
    header = ["contender", "ms per step", "times dense", "times the best dense", "times prune", "limit"]
    print_table(f"SAC gradient step, W{width} D1", header, rows)

    dense.policy.set_training_mode(False)
    rows = []
    for title, contenders in single.items():
        seconds = alternate(contenders, 4 * rounds + 1, clock=clock)
        rows.append([title, *(f"{seconds['dense'] / value:.2f}" for value in seconds.values())])
    print_table(f"One sample at a time, times dense, W{width}", ["", *next(iter(single.values()))], rows)


def growth(rounds, device, clock):
    """Step time against the number of weights at one sparsity."""
    widths = (1, 2, 3, 4, 5)
    models = {width: make_model(width, 0.9, device) for width in widths}
    seconds = alternate({f"W{width}": step(model) for width, model in models.items()}, rounds, clock=clock)
    nnz = np.array([sum(sparsity_report(n).learnable_parameters for n in (m.actor, m.critic)) for m in models.values()])
    times = np.array(list(seconds.values()))
    # A straight line by least squares of relative errors, so that small networks count as much as large ones.
    design = np.stack([np.ones_like(times), nnz], axis=1) / times[:, None]
    (constant, slope), *_ = np.linalg.lstsq(design, np.ones_like(times), rcond=None)
    line = constant + slope * nnz
    rows = [
        [f"W{width}", f"{n:,}", milliseconds(t), milliseconds(f), f"{100 * (t / f - 1):+.0f} %"]
        for width, n, t, f in zip(widths, nnz, times, line, strict=True)
    ]
    print_table("Growth at S = 0.9", ["network", "parameters", "ms per step", "straight line", "off by"], rows)


def equal_parameters(rounds, device, clock):
    """The sparse large network against the dense one with as many weights."""
    dense, sparse = make_model(2, 0.0, device), make_model(5, 0.839, device)
    seconds = alternate({"W2 dense": step(dense), "W5 S=0.839": step(sparse)}, rounds, clock=clock)
    counts = [sum(sparsity_report(n).learnable_parameters for n in (m.actor, m.critic)) for m in (dense, sparse)]
    rows = [
        [name, f"{count:,}", milliseconds(value), f"{value / seconds['W2 dense']:.2f}"]
        for (name, value), count in zip(seconds.items(), counts, strict=True)
    ]
    print_table("Equal parameters", ["network", "parameters", "ms per step", "time relative to dense"], rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--sparsity", nargs="+", type=float, default=[0.8, 0.9, 0.95])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: for one thread beside other work")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--equal-parameters", action="store_true")
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    print(machine())
    if args.growth:
        growth(args.rounds, args.device, CLOCKS[args.clock])
    if args.equal_parameters:
        equal_parameters(args.rounds, args.device, CLOCKS[args.clock])
    if not (args.growth or args.equal_parameters):
        for width in args.width:
            compare(width, args.sparsity, args.rounds, args.device, CLOCKS[args.clock])
