"""
Streaming agents written straight from the formulas, in the plainest PyTorch: what the package is measured against.

Stream AC(λ), Q(λ) and SARSA(λ) with ObGD (Elsayed et al., 2024, arXiv 2410.14606): modules, autograd, one loop over the
parameter tensors per update, one gymnasium environment. Nothing here imports the package.
"""

import math

import numpy as np
import torch as th
from torch import nn
from torch.distributions import Categorical, Normal
from torch.nn import functional as F


class Welford:
    """Running mean and sample variance."""

    def __init__(self):
        self.count, self.mean, self.sum_of_squares = 0, 0.0, 0.0

    def update(self, x):
        self.count += 1
        delta = x - self.mean
        self.mean = self.mean + delta / self.count
        self.sum_of_squares = self.sum_of_squares + delta * (x - self.mean)

    @property
    def std(self):
        variance = self.sum_of_squares / (self.count - 1) if self.count > 1 else np.ones_like(self.mean)
        return np.sqrt(variance + 1e-8)


class Stream:
    """An environment whose observations are normalised, with the time appended, and whose rewards are scaled."""

    def __init__(self, env, gamma):
        self.env, self.gamma = env, gamma
        self.observations, self.returns = Welford(), Welford()
        self.discounted = 0.0
        self.time = -0.5
        self.time_step = 1 / env.spec.max_episode_steps

    def reset(self, seed=None):
        observation, _ = self.env.reset(seed=seed)
        self.time = -0.5
        return self._features(observation)

    def step(self, action):
        if isinstance(action, np.ndarray):
            action = np.clip(action, self.env.action_space.low, self.env.action_space.high)
        observation, reward, terminated, truncated, _ = self.env.step(action)
        done = terminated or truncated
        self.discounted = self.gamma * self.discounted * (1 - done) + reward
        self.returns.update(self.discounted)
        features = self._features(observation)
        self.time += self.time_step
        return features, reward / self.returns.std, done, reward

    def _features(self, observation):
        observation = np.asarray(observation, dtype=np.float64).reshape(-1)
        self.observations.update(observation)
        normalized = (observation - self.observations.mean) / self.observations.std
        return th.as_tensor(np.append(normalized, self.time), dtype=th.float32)


def linear(n_inputs, n_outputs, zeros):
    """A linear layer from LeCun's uniform initialisation, with a share of zeros per output unit."""
    layer = nn.Linear(n_inputs, n_outputs)
    bound = 1 / math.sqrt(n_inputs)
    with th.no_grad():
        layer.weight.uniform_(-bound, bound)
        for row in layer.weight:
            row[th.randperm(n_inputs)[: math.ceil(zeros * n_inputs)]] = 0
        layer.bias.zero_()
    return layer


class Network(nn.Module):
    """Two hidden layers, and as many heads as sizes are given."""

    def __init__(self, n_inputs, width, head_sizes, zeros):
        super().__init__()
        self.hidden1 = linear(n_inputs, width, zeros)
        self.hidden2 = linear(width, width, zeros)
        self.heads = nn.ModuleList(linear(width, size, zeros) for size in head_sizes)

    def forward(self, x):
        for layer in (self.hidden1, self.hidden2):
            x = layer(x)
            x = F.leaky_relu(F.layer_norm(x, x.shape))
        outputs = [head(x) for head in self.heads]
        return outputs[0] if len(outputs) == 1 else outputs


class ObGD(th.optim.Optimizer):
    """Overshooting-bounded gradient descent with accumulating eligibility traces; ascends along the gradients it finds."""

    def __init__(self, parameters, lr, decay, kappa):
        super().__init__(parameters, {"lr": lr, "decay": decay, "kappa": kappa})

    @th.no_grad()
    def step(self, delta, reset):
        (group,) = self.param_groups
        norm = 0.0
        for parameter in group["params"]:
            state = self.state[parameter]
            if not state:
                state["trace"] = th.zeros_like(parameter)
            state["trace"].mul_(group["decay"]).add_(parameter.grad)
            norm += state["trace"].abs().sum().item()
        bound = group["lr"] * group["kappa"] * max(abs(delta), 1.0) * norm
        step_size = group["lr"] / max(bound, 1.0)
        for parameter in group["params"]:
            trace = self.state[parameter]["trace"]
            parameter.add_(trace, alpha=step_size * delta)
            if reset:
                trace.zero_()


class Agent:
    """
    What the three agents share: the loop over episodes.

    :param env: A gymnasium environment with a time limit and flat observations.
    :param width: Units of each hidden layer.
    :param zeros: Share of initial weights that are zero (SparseInit), 0 for a dense start.
    """

    def __init__(self, env, seed, width, zeros=0.9, gamma=0.99):
        th.manual_seed(seed)
        env.action_space.seed(seed)
        self.rng = np.random.default_rng(seed)
        self.stream, self.gamma = Stream(env, gamma), gamma
        self.n_inputs = env.observation_space.shape[0] + 1
        self.width, self.zeros = width, zeros
        self.n_steps = 0
        self.episodes = []
        self.build(env.action_space)
        self.features, self.episode_return = self.stream.reset(seed), 0.0
        self.action = self.act(self.features)

    def network(self, *head_sizes):
        return Network(self.n_inputs, self.width, head_sizes, self.zeros)

    def run(self, n_steps):
        """Act and learn; finished episodes are appended to ``episodes`` as (number of steps at the end, raw return)."""
        for _ in range(n_steps):
            next_features, reward, done, raw_reward = self.stream.step(self.to_env(self.action))
            self.n_steps += 1
            self.episode_return += raw_reward
            next_action = self.update(self.features, self.action, reward, next_features, done)
            self.features, self.action = next_features, next_action
            if done:
                self.episodes.append((self.n_steps, float(self.episode_return)))
                self.features, self.episode_return = self.stream.reset(), 0.0
                self.action = None
            if self.action is None:
                self.action = self.act(self.features)


class StreamAC(Agent):
    """Stream AC(λ), for Box and Discrete actions."""

    def __init__(self, env, seed, width, decay=0.99 * 0.8, kappas=(3.0, 2.0), ent_coef=0.01, **kwargs):
        self.decay, self.kappas, self.ent_coef = decay, kappas, ent_coef
        super().__init__(env, seed, width, **kwargs)

    def build(self, action_space):
        self.discrete = hasattr(action_space, "n")
        if self.discrete:
            self.actor = self.network(action_space.n)
        else:
            self.actor = self.network(action_space.shape[0], action_space.shape[0])
        self.critic = self.network(1)
        self.actor_optimizer = ObGD(self.actor.parameters(), 1.0, self.decay, self.kappas[0])
        self.critic_optimizer = ObGD(self.critic.parameters(), 1.0, self.decay, self.kappas[1])

    def distribution(self, features):
        if self.discrete:
            return Categorical(logits=self.actor(features))
        mean, pre_std = self.actor(features)
        return Normal(mean, F.softplus(pre_std))

    @th.no_grad()
    def act(self, features):
        return self.distribution(features).sample()

    def to_env(self, action):
        return int(action) if self.discrete else action.numpy()

    def update(self, features, action, reward, next_features, done):
        value = self.critic(features)
        with th.no_grad():
            delta = (reward + self.gamma * self.critic(next_features) * (1 - done) - value).item()
        distribution = self.distribution(features)
        log_prob, entropy = distribution.log_prob(action).sum(), distribution.entropy().sum()
        self.actor.zero_grad()
        (log_prob + self.ent_coef * np.sign(delta) * entropy).backward()
        self.critic.zero_grad()
        value.backward()
        self.actor_optimizer.step(delta, reset=done)
        self.critic_optimizer.step(delta, reset=done)


class StreamQ(Agent):
    """
    Stream Q(λ).

    :param exploration_steps: Steps over which epsilon falls from 1 to 0.01.
    """

    def __init__(self, env, seed, width, exploration_steps, decay=0.99 * 0.8, kappa=2.0, **kwargs):
        self.exploration_steps, self.decay, self.kappa = exploration_steps, decay, kappa
        self.n_selections = 0
        super().__init__(env, seed, width, **kwargs)

    def build(self, action_space):
        self.n_actions = int(action_space.n)
        self.q_net = self.network(self.n_actions)
        self.optimizer = ObGD(self.q_net.parameters(), 1.0, self.decay, self.kappa)

    @th.no_grad()
    def act(self, features):
        self.n_selections += 1
        epsilon = max(1.0 - 0.99 * self.n_selections / self.exploration_steps, 0.01)
        greedy = self.q_net(features).argmax().item()
        action = int(self.rng.integers(self.n_actions)) if self.rng.random() < epsilon else greedy
        self.is_nongreedy = action != greedy
        return action

    def to_env(self, action):
        return action

    def update(self, features, action, reward, next_features, done):
        with th.no_grad():
            target = self.q_net(next_features).max()
        self.learn(features, action, reward, target, done, reset=done or self.is_nongreedy)

    def learn(self, features, action, reward, next_value, done, reset):
        value = self.q_net(features)[action]
        delta = (reward + self.gamma * (1 - done) * next_value - value).item()
        self.q_net.zero_grad()
        value.backward()
        self.optimizer.step(delta, reset)


class StreamSARSA(StreamQ):
    """Stream SARSA(λ): the next action is chosen before the update, and then taken."""

    def update(self, features, action, reward, next_features, done):
        next_action = None if done else self.act(next_features)
        with th.no_grad():
            next_value = 0.0 if done else self.q_net(next_features)[next_action]
        self.learn(features, action, reward, next_value, done, reset=done)
        return next_action
