"""
Updates per second of Rainbow from images, beside a plain PyTorch Rainbow of the same network; and its replay buffer.

    python benchmarks/rainbow.py [--rounds 15]       # NatureCNN, what replay takes of an update, adding a step
    python benchmarks/rainbow.py --impala [--rounds 5] [--width 3] [--sparsity 0.8]
    python benchmarks/rainbow.py --memory [--transitions 10000 100000]

Stacks of four frames of 84 x 84 pixels, 6 actions, the settings of DER (10 steps, 51 atoms, Adam, batch 32), one thread.
Contenders take turns. Seconds are those of the processor, which are the clock's on an idle machine and leave out what other
processes take on a busy one; ``--clock wall`` takes the clock's. The contenders:

- plain: ``benchmarks/rainbow_plain.py``.
- ours: DER. Its gradients are not clipped; a second table clips those of both, as SB3's DQN does.

Memory is what a process grows by while a buffer is filled, each buffer in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time

import numpy as np
import rainbow_plain
import torch as th
from common import alternate, in_bfloat16, machine, milliseconds, print_table
from gymnasium import Env, spaces
from memory import status
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure
from torch.profiler import ProfilerActivity, profile, record_function

from sb3_sparse.rainbow import DER
from sb3_sparse.replay import FrameReplayBuffer, PrioritizedReplayBuffer
from sb3_sparse.sparse.kernels.convolution.shifted import Shifted

SHAPE, N_ACTIONS, BATCH, EPISODE = (4, 84, 84), 6, 32, 200
CLOCKS = {"processor": time.process_time, "wall": time.perf_counter}


class Images(Env):
    """The spaces of an Atari game, with nothing to play."""

    observation_space, action_space = spaces.Box(0, 255, SHAPE, np.uint8), spaces.Discrete(N_ACTIONS)


def steps(n):
    """Observation, action, reward, next observation, and whether the episode ended, as of ``VecFrameStack``."""
    generator = np.random.default_rng(0)
    observation = np.zeros(SHAPE, dtype=np.uint8)
    for step in range(n):
        frame = generator.integers(0, 256, (1, *SHAPE[1:]), dtype=np.uint8)
        following = np.concatenate([observation[1:], frame])
        ended = (step + 1) % EPISODE == 0
        yield observation, int(generator.integers(N_ACTIONS)), float(generator.normal()), following, ended
        observation = np.zeros_like(following) if ended else following


def add(buffer, observation, action, reward, following, ended):
    """A step, to a buffer of SB3's kind."""
    buffer.add(observation[None], following[None], np.array([action]), np.array([reward]), np.array([ended]), [{}])


def fill(buffer, n):
    """Add steps to a buffer of SB3's kind."""
    for step in steps(n):
        add(buffer, *step)


def ours(n_steps, **policy_kwargs):
    """DER with a filled replay buffer of single frames."""
    model = DER(
        "CnnPolicy",
        Images(),
        buffer_size=100_000,
        policy_kwargs=policy_kwargs,
        replay_buffer_kwargs={"n_stack": 4},
        seed=0,
        device="cpu",
    )
    model.set_logger(configure(None, []))
    fill(model.replay_buffer, n_steps)
    return model


def plain(n_steps, make_encoder, n_features):
    """The plain learner with a filled buffer."""
    agent = rainbow_plain.Rainbow(make_encoder, n_features, N_ACTIONS)
    for observation, action, reward, following, ended in steps(n_steps):
        agent.buffer.add(observation, action, reward, following, ended, False)
    return agent


def compare(title, contenders, rounds, clock):
    """The table of updates per second, of models of both kinds."""
    updates = {
        name: agent.update if isinstance(agent, rainbow_plain.Rainbow) else (lambda agent=agent: agent.train(1, BATCH))
        for name, agent in contenders.items()
    }
    updates |= {name: in_bfloat16(update) for name, update in updates.items() if name.endswith("bfloat16")}
    seconds = alternate(updates, rounds, warmups=3, clock=clock)
    rows = [
        [name, milliseconds(value), f"{1 / value:.3g}", f"{seconds['plain'] / value:.2f}", convolutions(updates[name])]
        for name, value in seconds.items()
    ]
    header = ["contender", "ms per update", "updates per second", "times plain", "convolutions' share"]
    print_table(title, header, rows)


def convolutions(update):
    """The share of their own operations in the time of an update, gradients included."""
    products = {name: getattr(Shifted, name) for name in ("pack", "pack_gradient", "forward", "grad_input", "grad_values")}
    for name, product in products.items():
        setattr(Shifted, name, record_function("ours")(product))
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(3):
            update()
    for name, product in products.items():
        setattr(Shifted, name, product)
    averages = found.key_averages()
    names = ("aten::convolution", "aten::convolution_backward", "ours")
    inside = sum(event.cpu_time_total for event in averages if event.key in names)
    return f"{100 * inside / sum(event.self_cpu_time_total for event in averages):.0f} %"


def nature(n_steps, rounds, clock):
    """The tables of the NatureCNN."""
    model, agent = ours(n_steps, encoder="nature"), plain(n_steps, rainbow_plain.nature_encoder, 3136)
    contenders = {"plain": agent, "ours": model}
    compare("NatureCNN", contenders, rounds, clock)
    agent.max_grad_norm = model.max_grad_norm = 10.0
    compare("NatureCNN, gradients clipped to a norm of 10", contenders, rounds, clock)
    model.max_grad_norm = float("inf")

    buffer = model.replay_buffer
    indices, priorities = buffer.sample(BATCH).indices, th.rand(BATCH, 1)
    parts = {
        "an update": lambda: model.train(1, BATCH),
        "prioritised sampling": lambda: [buffer.sample(BATCH) for _ in range(10)],
        "update of priorities": lambda: [buffer.update_priorities(indices, priorities) for _ in range(10)],
    }
    seconds = alternate(parts, rounds, clock=clock)
    whole = seconds.pop("an update")
    rows = [[name, f"{1e5 * value:.0f}", f"{10 * value / whole:.1f} %"] for name, value in seconds.items()]
    print_table("Replay in an update", ["", "microseconds", "of an update"], rows)


def adding(n_steps, rounds, clock):
    """The table of adding a step, to memory that was used before, and what the draw that follows takes more for it."""
    space = Images.observation_space, Images.action_space
    size = max(n_steps // 4, 100)
    buffers = {
        "SB3's ReplayBuffer": ReplayBuffer(size, *space),
        "PrioritizedReplayBuffer, whole stacks": PrioritizedReplayBuffer(size, *space, n_steps=10),
        "PrioritizedReplayBuffer, single frames": PrioritizedReplayBuffer(size, *space, n_steps=10, n_stack=4),
        "FrameReplayBuffer": FrameReplayBuffer(size, *space, n_steps=10),
    }
    # Few, so that the processor still has them at hand, as what an environment has just made.
    arguments = [
        (observation[None], following[None], np.array([action]), np.array([reward]), np.array([ended]), [{}])
        for observation, action, reward, following, ended in steps(100)
    ]

    def run(buffer):
        for _ in range(size // len(arguments)):
            for step in arguments:
                buffer.add(*step)
        # What was put off is a part of it.
        buffer.sample(1)

    seconds = alternate({name: (lambda b=buffer: run(b)) for name, buffer in buffers.items()}, rounds, clock=clock)
    print_table("Adding a step", ["", "microseconds"], [[name, f"{1e6 * s / size:.1f}"] for name, s in seconds.items()])


def memory(transitions):
    """The table of memory."""
    rows = []
    for n in transitions:
        sizes = {}
        for kind in ("SB3", "whole", "frames"):
            output = subprocess.run(
                [sys.executable, __file__, "--child", kind, str(n)], capture_output=True, text=True, check=True
            ).stdout
            sizes[kind] = json.loads(output.splitlines()[-1])
        rows.append([f"{n:,}", *(f"{size / 1e6:,.0f} MB" for size in sizes.values()), f"{sizes['SB3'] / sizes['frames']:.2f}"])
    header = ["transitions", "SB3's ReplayBuffer", "prioritised, whole stacks", "prioritised, single frames", "SB3 / frames"]
    print_table("Memory", header, rows)


def measure_memory(kind, n):
    """In a child process: print the bytes that a buffer takes."""
    fill(make_buffer(kind, 10), 20)
    before = status("VmRSS")
    buffer = make_buffer(kind, n)
    fill(buffer, n)
    assert buffer.full
    print(json.dumps((status("VmRSS") - before) * 2**20))


def make_buffer(kind, n):
    """A buffer by its name in the table of memory."""
    space = Images.observation_space, Images.action_space
    if kind == "SB3":
        return ReplayBuffer(n, *space)
    return PrioritizedReplayBuffer(n, *space, n_steps=10, n_stack=4 if kind == "frames" else None)


def impala(n_steps, rounds, clock, width, sparsity):
    """The table of IMPALA's encoder."""
    contenders = {
        "plain": plain(n_steps, lambda: rainbow_plain.impala_encoder(width), 3872 * width),
        "ours, dense": ours(n_steps, encoder="impala", width_scale=width),
        "ours, dense, bfloat16": ours(n_steps, encoder="impala", width_scale=width),
        f"ours, S = {sparsity}": ours(n_steps, encoder="impala", width_scale=width, sparsity=sparsity),
        f"ours, S = {sparsity}, bfloat16": ours(n_steps, encoder="impala", width_scale=width, sparsity=sparsity),
    }
    compare(f"IMPALA x{width}", contenders, rounds, clock)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of torch; with more than one give --clock wall")
    parser.add_argument("--clock", choices=CLOCKS, default="processor")
    parser.add_argument("--impala", action="store_true")
    parser.add_argument("--width", type=int, default=3, help="of IMPALA")
    parser.add_argument("--sparsity", type=float, default=0.8, help="of IMPALA")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--transitions", type=int, nargs="+", default=[10_000, 100_000], help="whose memory is measured")
    parser.add_argument("--quick", action="store_true", help="few transitions: whether it works, not how fast")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "N"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    th.set_num_threads(args.threads)
    if args.child:
        measure_memory(args.child[0], int(args.child[1]))
        sys.exit()
    print(machine())
    n_steps, clock = 200 if args.quick else 4000, CLOCKS[args.clock]
    if args.memory:
        memory(args.transitions)
    if args.impala:
        impala(n_steps, args.rounds, clock, args.width, args.sparsity)
    if not (args.memory or args.impala):
        nature(n_steps, args.rounds, clock)
        adding(n_steps, args.rounds, clock)
