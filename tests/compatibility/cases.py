"""
What is kept from earlier versions: small agents of every algorithm, and single layers.

Used by ``make_files.py``, with the package as it was, and by ``test_old_files.py``, with the package as it is. So it may
only use what both have.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, PPO, SAC, TD3
from torch import nn

import sb3_sparse  # noqa: F401  (gives the algorithms the policy "SparseSimBaPolicy")
from sb3_sparse.sparse import SparseConv2d, SparseLinear, Topology, sparsify_
from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA

FILES = Path(__file__).parent / "files"
BACKENDS = ("dense", "compiled")
BATCH = 16


class Anything(gym.Env):
    """Random observations of a space, rewards that depend on them."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space, self.steps = observation_space, action_space, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation_space.sample(), float(self.np_random.uniform()), False, self.steps >= 10, {}


VECTOR_AND_IMAGE = spaces.Dict({"vector": spaces.Box(-1, 1, (3,)), "image": spaces.Box(0, 1, (2, 4, 4))})
SMALL_IMAGE = spaces.Box(0, 255, (3, 8, 8), np.uint8)
TWO_ACTIONS = spaces.Box(-1.0, 1.0, (2,))


@dataclass(frozen=True)
class Agent:
    """How to build one agent. Equal arguments give equal agents, in every version."""

    algorithm: Any
    env: Any
    policy_kwargs: dict[str, Any]
    kwargs: dict[str, Any]
    policy: str = "SparseSimBaPolicy"
    steps: int = 40

    def make_env(self) -> gym.Env:
        return gym.make(self.env) if isinstance(self.env, str) else Anything(*self.env)

    def build(self) -> Any:
        return self.algorithm(
            self.policy, self.make_env(), seed=3, device="cpu", policy_kwargs=dict(self.policy_kwargs), **self.kwargs
        )


OFF_POLICY = {"learning_starts": 20, "batch_size": 8, "buffer_size": 100}
SMALL = {"net_arch": {"pi": [8], "qf": [16, 16]}, "n_critics": 1}
SCALED = {"width_scale": 0.04, "n_critics": 1, "sparsity_distribution": "uniform", "mask_seed": 11}
ACTOR_CRITIC = {
    "sac": Agent(SAC, "Pendulum-v1", {"net_arch": {"pi": [8], "qf": [8]}, "sparsity": 0.9}, OFF_POLICY),
    "sac_dense": Agent(SAC, "Pendulum-v1", {**SMALL, "net_arch": [8], "sparsity": 0.0}, OFF_POLICY),
    "sac_dict": Agent(SAC, (VECTOR_AND_IMAGE, TWO_ACTIONS), SMALL, OFF_POLICY),
    "td3": Agent(TD3, "Pendulum-v1", {**SMALL, "sparsity": {"pi": 0.5, "qf": 0.9}, "rescale": True}, OFF_POLICY),
    "ddpg": Agent(DDPG, "Pendulum-v1", SCALED, OFF_POLICY),
    "tqc": Agent(TQC, "Pendulum-v1", {**SMALL, "squash_log_std": False}, OFF_POLICY),
    "crossq": Agent(CrossQ, "Pendulum-v1", {**SMALL, "normalize_observations": False}, OFF_POLICY),
}
VALUE_BASED = {
    "dqn": Agent(DQN, "CartPole-v1", {"net_arch": [16, 16]}, {**OFF_POLICY, "train_freq": 1}),
    "dqn_image": Agent(DQN, (SMALL_IMAGE, spaces.Discrete(3)), {"net_arch": [16]}, {**OFF_POLICY, "train_freq": 1}),
    "qrdqn": Agent(QRDQN, "CartPole-v1", {"net_arch": [16], "n_quantiles": 10}, {**OFF_POLICY, "train_freq": 1}),
}
SPARSE = {"net_arch": [32, 32], "sparsity": 0.8}
SPARSE_INIT = {"net_arch": [16, 16], "initialization": "sparse_init"}
STREAMING = {
    "stream_ac_box_sparse": Agent(StreamAC, "Pendulum-v1", SPARSE, {}, "MlpPolicy", 120),
    "stream_ac_box_sparse_init": Agent(StreamAC, "Pendulum-v1", SPARSE_INIT, {}, "MlpPolicy", 120),
    "stream_ac_discrete_sparse": Agent(StreamAC, "CartPole-v1", SPARSE, {"adaptive": True}, "MlpPolicy", 120),
    "stream_ac_discrete_sparse_init": Agent(StreamAC, "CartPole-v1", SPARSE_INIT, {}, "MlpPolicy", 120),
    "stream_q": Agent(StreamQ, "CartPole-v1", SPARSE, {}, "MlpPolicy", 120),
    "stream_sarsa": Agent(StreamSARSA, "CartPole-v1", SPARSE_INIT, {}, "MlpPolicy", 120),
}
AGENTS: dict[str, Agent] = {**ACTOR_CRITIC, **VALUE_BASED, **STREAMING}

# Whose whole policies were pickled, and whose network alone was saved.
PICKLES = Path(__file__).parent / "pickles"
TINY = {"net_arch": {"pi": [4], "qf": [4]}, "n_critics": 1, "sparsity": {"pi": 0.5, "qf": 0.3}, "mask_seed": 5}
PICKLED = {
    "sac": Agent(SAC, "Pendulum-v1", TINY, OFF_POLICY),
    "qrdqn": Agent(QRDQN, "CartPole-v1", {"net_arch": [4], "n_quantiles": 5}, {**OFF_POLICY, "train_freq": 1}),
    "dqn_image": Agent(
        DQN,
        (spaces.Dict({"image": SMALL_IMAGE, "vector": spaces.Box(-1, 1, (3,))}), spaces.Discrete(2)),
        {"net_arch": [4], "sparsity_distribution": "uniform"},
        {**OFF_POLICY, "train_freq": 1},
    ),
    "stream_ac": Agent(StreamAC, "Pendulum-v1", {"net_arch": [8], "sparsity": {"pi": 0.5, "vf": 0.2}}, {}, "MlpPolicy"),
    "stream_q": Agent(StreamQ, "CartPole-v1", {"net_arch": [8]}, {"adaptive": True}, "MlpPolicy"),
}


def network_of(policy: Any) -> nn.Module:
    """The network that acts."""
    return next(getattr(policy, name) for name in ("actor", "q_net", "quantile_net") if hasattr(policy, name))


def saved_keywords(policy: Any) -> str:
    """What a saved policy says about how it was built, in order, without what is no plain value."""
    data = policy._get_constructor_parameters()
    return json.dumps({name: data[name] for name in sorted(data) if isinstance(data[name], PLAIN)}, sort_keys=True)


PLAIN = (bool, int, float, str, list, dict, type(None))


def sparsified_ppo() -> PPO:
    """An agent whose policy became sparse afterwards: only its state dict is kept, and this is the way back to it."""
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=8, n_epochs=1, seed=3, device="cpu")
    sparsify_(model.policy, 0.8, exclude=("action_net", "value_net"), seed=7)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters(), lr=1e-3, eps=1e-5)
    return model


def _given_topology() -> Topology:
    row, column = np.indices((12, 10))
    return Topology.from_mask((3 * row + 5 * column) % 7 < 3)


def _linear_seed() -> nn.Module:
    return SparseLinear(40, 24, density=0.25, seed=123)


def _linear_given() -> nn.Module:
    return SparseLinear(10, 12, topology=_given_topology(), bias=False)


def _conv() -> nn.Module:
    topology = Topology.random((8, 3, 3, 3), 70, seed=99)
    return SparseConv2d(nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="circular"), topology, rescale=True)


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    th.manual_seed(5)
    return make()


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear_seed": (partial(_seeded, _linear_seed), (BATCH, 40)),
    "linear_given": (partial(_seeded, _linear_given), (BATCH, 10)),
    "conv": (partial(_seeded, _conv), (4, 3, 7, 7)),
}


@contextmanager
def forced_backend(name: str) -> Iterator[None]:
    """Every sparse product by one backend, and torch with one thread."""
    before, threads = os.environ.get("SB3_SPARSE_BACKEND"), th.get_num_threads()
    os.environ["SB3_SPARSE_BACKEND"] = name
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(threads)
        if before is None:
            del os.environ["SB3_SPARSE_BACKEND"]
        else:
            os.environ["SB3_SPARSE_BACKEND"] = before


def observations(space: spaces.Space) -> dict[str, np.ndarray]:
    """A batch of observations by part; the only part of a space that is no Dict is called "obs"."""
    generator = np.random.default_rng(0)
    parts = space.spaces if isinstance(space, spaces.Dict) else {"obs": space}
    batches = {}
    for name, part in parts.items():
        low, high = np.maximum(part.low, -3.0), np.minimum(part.high, 255.0)
        batches[name] = generator.uniform(low, high, (BATCH, *part.shape)).astype(part.dtype)
    return batches


def agent_outputs(model: Any, batches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Actions for a batch and for its first observation alone, and the values that a critic gives them."""
    obs = batches["obs"] if set(batches) == {"obs"} else batches
    first = obs[0] if isinstance(obs, np.ndarray) else {name: part[0] for name, part in obs.items()}
    policy = model.policy
    policy.set_training_mode(False)
    actions, _ = model.predict(obs, deterministic=True)
    outputs = {"actions": actions, "action": model.predict(first, deterministic=True)[0]}
    with th.no_grad():
        tensor, _ = policy.obs_to_tensor(obs)
        if hasattr(policy, "features"):
            tensor = policy._features_tensor(tensor)
        if isinstance(model, QRDQN):
            outputs["values"] = policy.quantile_net(tensor).numpy()
        elif hasattr(policy, "q_net"):
            outputs["values"] = policy.q_net(tensor).numpy()
        elif hasattr(policy, "value_net"):
            outputs["values"] = policy.predict_values(tensor).numpy()
        elif hasattr(policy, "features"):
            outputs["values"] = policy.critic(tensor).numpy()
        else:
            values = policy.critic(tensor, th.as_tensor(actions))
            outputs["values"] = th.cat(values, dim=-1).numpy() if isinstance(values, tuple) else values.numpy()
    return outputs


def layer_outputs(layer: nn.Module, batches: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs and both gradients."""
    layer.zero_grad()
    x = th.from_numpy(batches["x"]).requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    gradient = layer.values.grad
    return {"y": y.detach().numpy(), "grad_x": x.grad.numpy(), "grad_values": gradient.numpy()}


def layer_batch(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Inputs of a layer."""
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


def weights_checksum(module: nn.Module) -> str:
    """Of the names, shapes and bytes of all parameters. Those of sparse layers were called ``values`` when it was made."""
    digest = hashlib.sha256()
    named = [(name.replace("nonzeros", "values"), parameter) for name, parameter in module.named_parameters()]
    for name, parameter in sorted(named):
        digest.update(f"{name} {tuple(parameter.shape)} ".encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_norm(module: nn.Module) -> float:
    """For machines whose random numbers differ in the last bit."""
    return float(sum(parameter.detach().double().abs().sum() for parameter in module.parameters()))


def topologies_checksum(module: nn.Module) -> str:
    """Of the places of all sparse layers and of the weights that live in them."""
    digest = hashlib.sha256()
    for name, layer in module.named_modules():
        if isinstance(layer, (SparseLinear, SparseConv2d)):
            mask = layer.topology.mask()
            digest.update(f"{name} {tuple(mask.shape)} ".encode() + np.packbits(mask.numpy()).tobytes())
    return digest.hexdigest()[:16]
