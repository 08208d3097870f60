"""
Updates of DrQ-v2 with a wide critic, dense and sparse, beside a plain PyTorch DrQ-v2; what its parts take; acting.

    python benchmarks/drqv2.py [--pairs 15] [--threads 1] [--batch 256] [--size 84] [--width 4] [--sparsity 0.8]

Stacks of three RGB frames, 12 actions as of the quadruped, the settings of the paper (32 channels, bottlenecks of 50, hidden
layers of 1024 times the width, batch 256). Contenders take turns. Seconds are those of the processor, which with one thread
are the clock's on an idle machine and leave out what other processes take on a busy one; ``--clock wall`` takes the clock's,
and has to with several threads. Only the encoder's ``--channels`` can be others, for a short run.

- Heads: of the critic, both, forward and backward, and forward of the target's: what grows with the width, and is pruned.
- Updates: whole ones, with what is drawn from replay; plain is ``benchmarks/drqv2_plain.py``.
- Parts: each run alone, as often as an update does. What is left are bottlenecks, the actor's layers, Adam and the target's
  average.
- Acting: ``predict`` for one observation beside the bare torch pass of the same network.
"""

import argparse
import sys
import time

import drqv2_plain
import numpy as np
import torch as th
from common import alternate, in_bfloat16, machine, milliseconds, print_table
from gymnasium import Env, spaces
from stable_baselines3.common.logger import configure
from torch.nn import functional as F

from sb3_sparse.drqv2 import DrQv2
from sb3_sparse.networks.frozen import frozen

N_ACTIONS, EPISODE = 12, 100
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}


class Pictures(Env):
    """The spaces of quadruped, with nothing to simulate."""

    def __init__(self, size):
        self.observation_space = spaces.Box(0, 255, (9, size, size), np.uint8)
        self.action_space = spaces.Box(-1.0, 1.0, (N_ACTIONS,), np.float32)


def steps(n, size):
    """Observation, action, reward, next observation, and whether the time limit ended the episode."""
    generator = np.random.default_rng(0)
    observation = np.tile(generator.integers(0, 256, (3, size, size), dtype=np.uint8), (3, 1, 1))
    for step in range(n):
        frame = generator.integers(0, 256, (3, size, size), dtype=np.uint8)
        following = np.concatenate([observation[3:], frame])
        action = generator.uniform(-1, 1, N_ACTIONS).astype(np.float32)
        ended = (step + 1) % EPISODE == 0
        yield observation, action, float(generator.normal()), following, ended
        observation = np.tile(frame, (3, 1, 1)) if ended else following


def ours(n_steps, size, channels=32, **policy_kwargs):
    """Our learner with a filled replay buffer."""
    model = DrQv2(
        "CnnPolicy",
        Pictures(size),
        buffer_size=max(n_steps, 2),
        policy_kwargs={"features_extractor_kwargs": {"channels": channels}, **policy_kwargs},
        seed=0,
        device="cpu",
    )
    model.set_logger(configure(None, []))
    for observation, action, reward, following, ended in steps(n_steps, size):
        arrays = observation[None], following[None], action[None], np.array([reward]), np.array([ended])
        model.replay_buffer.add(*arrays, [{"TimeLimit.truncated": ended}])
    model.policy.set_training_mode(True)
    return model


def plain(n_steps, size, channels=32, width=1024):
    """The plain learner with a filled buffer."""
    agent = drqv2_plain.DrQ((9, size, size), N_ACTIONS, width, channels, capacity=n_steps)
    for observation, action, reward, following, ended in steps(n_steps, size):
        agent.buffer.add(observation, action, reward, following, False, ended)
    return agent


def heads(model, batch):
    """What an update does with the heads of the critic before the actor's turn, on inputs of their size."""
    inputs = th.randn(batch, 50 + N_ACTIONS, requires_grad=True)
    targets = th.randn(batch, 1)

    def run():
        with th.no_grad():
            for head in model.critic_target.q_networks:
                head(inputs)
        sum(F.mse_loss(head(inputs), targets) for head in model.critic.q_networks).backward()
        model.critic.optimizer.zero_grad()

    return run


def actors_pass(model, batch):
    """The way of the actor's gradient through the heads of the critic."""
    inputs = th.randn(batch, 50 + N_ACTIONS, requires_grad=True)

    def run():
        with frozen(model.critic):
            th.cat([head(inputs) for head in model.critic.q_networks], dim=1).sum().backward()

    return run


def encoder(model, images):
    """Of observations with gradients, of next observations without."""
    gradient = th.randn(len(images), model.policy.encoder.features_dim)

    def run():
        model._encode(images).backward(gradient)
        with th.no_grad():
            model._encode(images)
        model.critic.optimizer.zero_grad()

    return run


def parts(model, batch):
    """What of an update is run alone."""
    images = model.replay_buffer.sample(batch).observations
    return {
        "sampling": lambda: model.replay_buffer.sample(batch),
        "augmentation": lambda: (model.shift(images), model.shift(images)),
        "encoder": encoder(model, images),
        "heads": heads(model, batch),
        "heads, actor's pass": actors_pass(model, batch),
    }


def print_ratios(title, seconds, *pairs):
    """The table of a comparison: each ratio is how many times faster the second contender is than the first."""
    rows = [[name, milliseconds(value), ""] for name, value in seconds.items()]
    rows += [[f"{slow} / {fast}", "", f"{seconds[slow] / seconds[fast]:.2f}"] for slow, fast in pairs]
    print_table(title, ["", "milliseconds", "ratio"], rows)


def compare(args, clock):
    """All tables."""
    shared = args.transitions, args.size, args.channels
    sparse = f"width {args.width:g}, S = {args.sparsity:g}"
    wide = f"width {args.width:g}, dense"
    models = {
        "width 1, dense": ours(*shared),
        wide: ours(*shared, critic_width_scale=args.width),
        sparse: ours(*shared, critic_width_scale=args.width, sparsity=args.sparsity),
    }

    found = alternate({name: heads(models[name], args.batch) for name in (wide, sparse)}, args.pairs, clock=clock)
    print_ratios("Heads (online forward and backward, target forward)", found, (wide, sparse))

    updates = {name: (lambda model=model: model.train(1, args.batch)) for name, model in models.items()}
    updates |= {f"{name}, bfloat16": in_bfloat16(updates[name]) for name in (wide, sparse)}
    baseline = plain(*shared)
    updates["plain, width 1"] = lambda: baseline.update(args.batch)
    whole = alternate(updates, args.pairs, clock=clock)
    pairs = (wide, sparse), (f"{wide}, bfloat16", f"{sparse}, bfloat16"), ("plain, width 1", "width 1, dense")
    print_ratios("Updates", whole, *pairs)

    rows = []
    for name, model in models.items():
        # Beside the whole, which they are parts of.
        seconds = alternate({"whole": updates[name], **parts(model, args.batch)}, args.pairs, clock=clock)
        total = seconds.pop("whole")
        seconds["the rest"] = total - sum(seconds.values())
        rows.append([name, *(f"{milliseconds(s)} ms, {100 * s / total:.0f} %" for s in seconds.values())])
    print_table("Parts of an update, and their share", ["", *seconds], rows)
    acting(models["width 1, dense"], args, clock)


def acting(model, args, clock):
    """The table of one decision."""
    observation = next(steps(1, args.size))[0]
    convolutions, actor = model.policy.encoder.encoder, model.actor

    def bare():
        with th.no_grad():
            return actor(convolutions(th.as_tensor(observation)[None].float() / 255)).numpy()

    def predict():
        return model.predict(observation, deterministic=True)[0]

    np.testing.assert_allclose(predict(), bare()[0], atol=1e-5)
    n = 20
    contenders = {"bare torch pass": lambda: [bare() for _ in range(n)], "predict": lambda: [predict() for _ in range(n)]}
    seconds = {name: value / n for name, value in alternate(contenders, args.pairs, clock=clock).items()}
    print_ratios("Acting, one observation", seconds, ("bare torch pass", "predict"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=15, help="how often each contender is timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, help="processor with one thread, else wall, unless given")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=84, help="pixels on a side")
    parser.add_argument("--channels", type=int, default=32, help="of the encoder")
    parser.add_argument("--width", type=float, default=4, help="of the critic")
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--transitions", type=int, default=2_000, help="in the replay buffers")
    args = parser.parse_args()
    clock = args.clock or ("processor" if args.threads == 1 else "wall")
    if clock == "processor" and args.threads > 1:
        sys.exit("--clock processor adds up what all threads take: use --clock wall with several threads")
    th.set_num_threads(args.threads)
    print(machine())
    print(
        f"{args.pairs} pairs, clock: {clock}, batch {args.batch}, {args.size} x {args.size} pixels, {args.channels} channels"
    )
    compare(args, CLOCKS[clock])
