"""What the tests of the compiled pass share: agents, and what they say in float64 and by torch's pass."""

import copy

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.policies import BasePolicy

from sb3_sparse import to_dense
from tests.envs import SpaceEnv

ALGORITHMS = [SAC, TQC, CrossQ, TD3, DDPG, DQN, QRDQN]
GAUSSIAN = [SAC, TQC, CrossQ]
VECTOR = spaces.Box(-np.inf, np.inf, (11,))
ACTIONS = spaces.Box(np.float32([-2.0, 0.0, -1.0]), np.float32([2.0, 5.0, 1.0]))
# Of actions in [-1, 1], or in units of what they are scaled to.
CLOSE = dict(rtol=1e-6, atol=1e-6)


class Anything(SpaceEnv):
    """Random observations, the same for the same seed."""

    def __init__(self, observation_space, action_space):
        super().__init__(copy.deepcopy(observation_space), copy.deepcopy(action_space))

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(np.sum(action)), False, self.t >= 10, {}


def make(algorithm=SAC, observation_space=VECTOR, action_space=ACTIONS, steps=30, settings=(), **policy_kwargs):
    """An agent that has learned a little, so that statistics and biases are no longer what they were at first."""
    is_discrete = algorithm in (DQN, QRDQN)
    if "net_arch" not in policy_kwargs:
        policy_kwargs = {"width_scale": 0.1 if is_discrete else {"pi": 0.25, "qf": 0.1}, **policy_kwargs}
    action_space = spaces.Discrete(4) if is_discrete else action_space
    settings = {"buffer_size": 64, "learning_starts": 16, "batch_size": 8, "train_freq": 1, "seed": 0, **dict(settings)}
    model = algorithm(
        "SparseSimBaPolicy",
        Anything(observation_space, action_space),
        device="cpu",
        learning_rate=1e-2,
        policy_kwargs=policy_kwargs,
        **settings,
    )
    return model.learn(steps)


def observations(space=VECTOR, n=20, dtype=np.float32):
    """Several observations."""
    return np.random.default_rng(1).normal(1.0, 3.0, (n, *space.shape)).astype(dtype)


def network_of(policy):
    """The network that acts."""
    return next(policy._modules[name] for name in ("actor", "q_net", "quantile_net") if name in policy._modules)


def by_torch(model, observation, deterministic=True):
    """What SB3's own ``predict`` says."""
    return BasePolicy.predict(model.policy, observation, deterministic=deterministic)[0]


def in_doubles(model, observation):
    """What the outputs of the network are, by a dense network in float64: of actors the action in [-1, 1]."""
    network = to_dense(copy.deepcopy(network_of(model.policy))).double().eval()
    # SB3 casts observations to float32, and so does `predict`.
    network._preprocess = lambda obs: obs
    x = th.as_tensor(np.float32(observation)).double()[None]
    with th.no_grad():
        if hasattr(network, "latent_pi"):
            mean, log_std, _ = network.get_action_dist_params(x)
            return th.tanh(mean)[0].numpy(), log_std[0].numpy()
        return network(x)[0].numpy()


def outputs_of(model):
    """What the pass wrote last: the outputs of the heads."""
    return model.policy._pass._of_thread.room.outputs.copy()
