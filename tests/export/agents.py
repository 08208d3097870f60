"""Tiny agents of every kind, trained for a few steps so that their statistics and weights are not those of the start."""

import functools
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

import sb3_sparse  # noqa: F401
from sb3_sparse import DER, DrQv2, Rainbow, sparsify_
from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA
from tests.envs import SpaceEnv

VECTOR = spaces.Box(np.array([-3.0, 0.0, 4.0]), np.array([3.0, 1.0, 8.0]), dtype=np.float64)
IMAGE = spaces.Box(0, 255, (3, 36, 40), np.uint8)
# Names that the exporter gives to values of its own, spaces in names, and the name of the output.
DICT = spaces.Dict(
    {
        "a goal": VECTOR,
        "linear": spaces.Discrete(3),
        "action": spaces.MultiBinary(2),
        "mul": spaces.Box(-9, 9, (2,), np.float32),
    }
)
BOX = spaces.Box(np.array([-2.0, -1.0], dtype=np.float32), np.array([1.0, 5.0], dtype=np.float32))
DISCRETE = spaces.Discrete(4)

OFF_POLICY = {"buffer_size": 200, "learning_starts": 10, "batch_size": 8, "train_freq": 1}
ON_POLICY = {"n_steps": 16}


def simba(algorithm, observations, actions, **policy_kwargs):
    policy_kwargs = {"net_arch": [8], "sparsity": 0.5, **policy_kwargs}
    return algorithm("SparseSimBaPolicy", SpaceEnv(observations, actions), policy_kwargs=policy_kwargs, seed=0, **OFF_POLICY)


def mlp(algorithm, observations, actions, policy="MlpPolicy", sparsity=0.0, **kwargs):
    """An agent with a policy of SB3, which :func:`sparsify_` may be applied to."""
    kwargs = {**(ON_POLICY if algorithm in (PPO, A2C, TRPO) else OFF_POLICY), **kwargs}
    if algorithm in (PPO, TRPO):
        kwargs["batch_size"] = 8
    policy_kwargs = {"net_arch": [8, 8], **kwargs.pop("policy_kwargs", {})}
    model = algorithm(policy, SpaceEnv(observations, actions), seed=0, policy_kwargs=policy_kwargs, **kwargs)
    if sparsity:
        make_sparse(model, sparsity)
    return model


def make_sparse(model, sparsity):
    """Prune the networks of an agent of SB3, and make its optimizers anew, as the page on sparse layers says."""
    sparsify_(model.policy, sparsity, seed=1)
    for name in model._get_torch_save_params()[0]:
        owner, _, attribute = name.rpartition(".")
        if attribute == "optimizer":
            network = functools.reduce(getattr, owner.split("."), model)
            if isinstance(network, th.nn.Module):
                kind = type(network.optimizer)
                settings = {k: network.optimizer.param_groups[0][k] for k in ("lr", "eps")}
                parameters = network.q_net.parameters() if hasattr(network, "q_net") else network.parameters()
                network.optimizer = kind(parameters, **settings)
    for online, target in (("critic", "critic_target"), ("actor", "actor_target"), ("q_net", "q_net_target")):
        if hasattr(model.policy, target):
            getattr(model.policy, target).load_state_dict(getattr(model.policy, online).state_dict())


def rainbow(algorithm, observations, policy="MlpPolicy", switches=None, **policy_kwargs):
    policy_kwargs = {"net_arch": [8], "sparsity": 0.5, **policy_kwargs}
    settings = {**OFF_POLICY, "n_atoms": 7, **(switches or {})}
    return algorithm(policy, SpaceEnv(observations, DISCRETE), policy_kwargs=policy_kwargs, seed=0, **settings)


def drqv2(observations=IMAGE, **policy_kwargs):
    """With parts of all three networks pruned."""
    sparsity = {"encoder": 0.5, "pi": 0.5, "qf": 0.8}
    small = {"net_arch": [8], "feature_dim": 16, "features_extractor_kwargs": {"channels": 4}, "sparsity": sparsity}
    return DrQv2("CnnPolicy", SpaceEnv(observations, BOX), seed=0, policy_kwargs={**small, **policy_kwargs}, **OFF_POLICY)


def stream(algorithm, observations, actions, policy="MlpPolicy", sparsity=0.5, **kwargs):
    return algorithm(policy, SpaceEnv(observations, actions), seed=0, policy_kwargs={"sparsity": sparsity}, **kwargs)


MAKERS: dict[str, Callable[[], BaseAlgorithm]] = {
    "sac": lambda: simba(SAC, VECTOR, BOX),
    "td3": lambda: simba(TD3, VECTOR, BOX),
    "ddpg": lambda: simba(DDPG, VECTOR, BOX),
    "tqc": lambda: simba(TQC, VECTOR, BOX),
    "crossq": lambda: simba(CrossQ, VECTOR, BOX),
    "dqn": lambda: simba(DQN, VECTOR, DISCRETE),
    "qrdqn": lambda: simba(QRDQN, VECTOR, DISCRETE, n_quantiles=5),
    "sac dict": lambda: simba(SAC, DICT, BOX),
    "sac image": lambda: simba(SAC, IMAGE, BOX),
    "sac small image": lambda: simba(SAC, spaces.Box(0, 255, (10, 10, 1), np.uint8), BOX),
    "sac bytes": lambda: simba(SAC, spaces.Box(0, 255, (5,), np.uint8), BOX),
    "dqn discrete": lambda: simba(DQN, spaces.Discrete(5), DISCRETE),
    "dqn multidiscrete": lambda: simba(DQN, spaces.MultiDiscrete([3, 4], dtype=np.int32), DISCRETE),
    "dqn multibinary": lambda: simba(DQN, spaces.MultiBinary(4), DISCRETE),
    "sac matrix": lambda: simba(SAC, spaces.Box(-np.inf, np.inf, (2, 3)), spaces.Box(-3, 3, (2, 2))),
    "stream_ac": lambda: stream(StreamAC, VECTOR, BOX),
    "stream_ac discrete": lambda: stream(StreamAC, VECTOR, DISCRETE, sparsity=0.0),
    "stream_q": lambda: stream(StreamQ, VECTOR, DISCRETE, normalize_observations=False),
    "stream_sarsa": lambda: stream(StreamSARSA, VECTOR, DISCRETE, time_feature=False),
    "stream_q minatar": lambda: stream(StreamQ, spaces.Box(0, 1, (10, 10, 4), bool), DISCRETE, "CnnPolicy"),
    "der": lambda: rainbow(DER, VECTOR),
    "der impala": lambda: rainbow(DER, IMAGE, "CnnPolicy", encoder="impala", width_scale=0.25),
    "rainbow minatar": lambda: rainbow(Rainbow, spaces.Box(0, 1, (10, 10, 4), bool), "CnnPolicy", encoder="grid"),
    "rainbow dense": lambda: rainbow(Rainbow, VECTOR, switches={"distributional": False, "dueling": False}, sparsity=0),
    "rainbow dict": lambda: rainbow(Rainbow, DICT, "MultiInputPolicy", {"noisy": False}),
    "drqv2": lambda: drqv2(),
    "drqv2 dense": lambda: drqv2(sparsity=0.0),
    "sb3 sac": lambda: mlp(SAC, VECTOR, BOX),
    "sb3 td3 sparse": lambda: mlp(TD3, VECTOR, BOX, sparsity=0.5),
    "sb3 crossq": lambda: mlp(CrossQ, VECTOR, BOX),
    "sb3 dqn sparse": lambda: mlp(DQN, VECTOR, DISCRETE, sparsity=0.5),
    "ppo": lambda: mlp(PPO, VECTOR, BOX, sparsity=0.5),
    "ppo sde": lambda: mlp(PPO, VECTOR, BOX, use_sde=True, policy_kwargs={"squash_output": True}),
    "ppo image": lambda: mlp(PPO, IMAGE, DISCRETE, "CnnPolicy", sparsity=0.5, policy_kwargs={"net_arch": None}),
    "ppo multibinary": lambda: mlp(PPO, VECTOR, spaces.MultiBinary(3)),
    "a2c multidiscrete": lambda: mlp(A2C, VECTOR, spaces.MultiDiscrete([3, 4])),
    "trpo": lambda: mlp(TRPO, VECTOR, DISCRETE),
}


@functools.cache
def agent(name):
    """The agent of that name. Tests share it: they do not change it."""
    model = MAKERS[name]()
    model.learn(32)
    shake(model)
    return model


def shake(model):
    """Add noise to the weights of an agent until it does not take the same action nearly always."""
    observations = observations_of(model.observation_space, 200, seed=0)
    start = [parameter.detach().clone() for parameter in model.policy.parameters()]
    for seed in range(20):
        generator = th.Generator().manual_seed(seed)
        with th.no_grad():
            for parameter, first in zip(model.policy.parameters(), start, strict=True):
                parameter.copy_(first + 0.3 * th.randn(first.shape, generator=generator))
        actions = model.predict(observations, deterministic=True)[0].reshape(200, -1)
        if np.unique(actions, axis=0, return_counts=True)[1].max() < 150:
            return
    raise AssertionError("whatever it observes, it does the same.")


def observations_of(space, n, seed):
    """Samples of a space as a batch, by gymnasium."""
    if isinstance(space, spaces.Dict):
        return {key: observations_of(part, n, seed + i) for i, (key, part) in enumerate(space.spaces.items())}
    space.seed(seed)
    return np.stack([space.sample() for _ in range(n)])


def assert_equal_actions(found, expected, tolerance=1e-5):
    # Observations that all lead to the same action would show nothing.
    assert len(expected) == 1 or len(np.unique(expected)) > 1
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if expected.dtype.kind == "f":
        assert np.abs(found - expected).max() <= tolerance
    else:
        # Two actions may be equally good but for rounding.
        assert (found != expected).reshape(len(expected), -1).any(axis=1).mean() <= 0.001


def in_child(code, *arguments, blocked=("sb3_sparse",), cwd=None):
    """Run code in a process in which some packages cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({list(blocked)!r}))\n"
    command = [sys.executable, "-c", block + code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
