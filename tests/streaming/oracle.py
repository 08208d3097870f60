"""
Streaming RL in numpy and float64, from the formulas of Elsayed et al. (2024): what ``sb3_sparse.streaming`` is held to.

Gradients are written out by hand, networks are dense arrays with an optional 0/1 mask, and nothing here uses torch's
autograd or anything of the package. One object plays one stream: give it the transitions in order.
"""

from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

LEAKY_SLOPE, LAYER_NORM_EPS, NORMALIZER_EPS = 0.01, 1e-5, 1e-8


@dataclass
class Script:
    """What an environment will say, whatever the agent does. Rewards are exact in float32, as SB3 hands them on."""

    observations: np.ndarray
    first_observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    max_episode_steps: int

    @classmethod
    def random(cls, n_steps: int, n_observations: int, seed: int, max_episode_steps: int = 60) -> "Script":
        """Features of very different scales, rewards with rare outliers, three ways for an episode to end."""
        rng = np.random.default_rng(seed)
        scales = 10.0 ** rng.uniform(-2, 2, n_observations)
        offsets = scales * rng.normal(0, 3, n_observations)
        rewards = rng.normal(0.5, 1, n_steps) * np.where(rng.random(n_steps) < 0.03, 40, 1)
        rewards[:3] = 0  # scaled rewards after a start without any
        terminated, truncated = rng.random(n_steps) < 0.03, rng.random(n_steps) < 0.02
        terminated[-1] = truncated[20] = terminated[60] = truncated[60] = True
        truncated[120] = truncated[121] = True  # an episode of one step
        return cls(
            observations=offsets + scales * rng.normal(size=(n_steps, n_observations)),
            first_observations=offsets + scales * rng.normal(size=(n_steps + 1, n_observations)),
            rewards=rewards.astype(np.float32).astype(np.float64),
            terminated=terminated,
            truncated=truncated,
            max_episode_steps=max_episode_steps,
        )

    @property
    def done(self) -> np.ndarray:
        """Where an episode ends, for whatever reason."""
        return self.terminated | self.truncated


class ScriptedEnv(gym.Env):
    """Plays a script and remembers the actions it was given. Bounds are so wide that no action is clipped."""

    def __init__(self, script: Script, action_space: spaces.Space | None = None):
        self.script, self.n_steps, self.n_episodes = script, 0, 0
        self.observation_space = spaces.Box(-np.inf, np.inf, script.observations.shape[1:], np.float64)
        self.action_space = action_space or spaces.Box(-1e6, 1e6, (3,), np.float32)
        self.spec = EnvSpec("Scripted-v0", max_episode_steps=script.max_episode_steps)
        self.actions: list = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_episodes += 1
        return self.script.first_observations[self.n_episodes - 1], {}

    def step(self, action):
        self.actions.append(np.array(action))
        t, script = self.n_steps, self.script
        self.n_steps += 1
        return script.observations[t], script.rewards[t], bool(script.terminated[t]), bool(script.truncated[t]), {}


class SampleStatistics:
    """Mean and sample variance of everything seen, from the definition rather than Welford's recursion."""

    def __init__(self):
        self.seen: list = []

    def add(self, x) -> None:
        self.seen.append(np.array(x, dtype=np.float64))

    @property
    def mean(self):
        return np.mean(self.seen, axis=0)

    @property
    def variance(self):
        return np.var(self.seen, axis=0, ddof=1) if len(self.seen) > 1 else np.ones_like(self.seen[0])


@dataclass
class Features:
    """Observations, normalised, with the raw time appended; rewards, scaled."""

    gamma: float
    max_episode_steps: int
    normalize_observations: bool = True
    normalize_reward: bool = True
    time_feature: bool = True
    observations: SampleStatistics = field(default_factory=SampleStatistics)
    discounted: SampleStatistics = field(default_factory=SampleStatistics)
    discounted_sum: float = 0.0
    n_steps: int = 0

    def reset(self, observation: np.ndarray) -> np.ndarray:
        self.n_steps = 0
        return self._append(observation, -0.5)

    def step(self, observation: np.ndarray, reward: float, done: bool) -> tuple[np.ndarray, float]:
        self.discounted_sum = self.gamma * self.discounted_sum * (not done) + reward
        self.discounted.add(self.discounted_sum)
        if self.normalize_reward:
            reward = float(reward / np.sqrt(self.discounted.variance + NORMALIZER_EPS))
        features = self._append(observation, -0.5 + self.n_steps / self.max_episode_steps)
        self.n_steps += 1
        return features, reward

    def _append(self, observation: np.ndarray, time: float) -> np.ndarray:
        self.observations.add(observation)
        if self.normalize_observations:
            statistics = self.observations
            observation = (observation - statistics.mean) / np.sqrt(statistics.variance + NORMALIZER_EPS)
        return np.append(observation, time) if self.time_feature else np.asarray(observation, dtype=np.float64)


class Network:
    """
    Two hidden layers (linear, layer norm without parameters, leaky ReLU) and linear heads.

    :param weights: Of the hidden layers, then of the heads, ``(n_out, n_in)`` each.
    :param biases: Of the same layers.
    :param masks: 1 where a weight lives; ``None``: everywhere.
    """

    def __init__(self, weights: list[np.ndarray], biases: list[np.ndarray], masks: list[np.ndarray] | None = None):
        self.weights = [w.astype(np.float64) for w in weights]
        self.biases = [b.astype(np.float64) for b in biases]
        self.masks = [np.ones_like(w) for w in self.weights] if masks is None else masks

    @property
    def parameters(self) -> list[np.ndarray]:
        return [*self.weights, *self.biases]

    def forward(self, x: np.ndarray) -> tuple[list[np.ndarray], list[tuple[np.ndarray, ...]]]:
        """Outputs of the heads, and what ``gradient`` needs."""
        tape = []
        for weight, bias in zip(self.weights[:2], self.biases[:2], strict=True):
            z = weight @ x + bias
            deviation = np.sqrt(z.var() + LAYER_NORM_EPS)
            normalized = (z - z.mean()) / deviation
            tape.append((x, normalized, deviation))
            x = np.where(normalized > 0, normalized, LEAKY_SLOPE * normalized)
        tape.append((x,))
        return [w @ x + b for w, b in zip(self.weights[2:], self.biases[2:], strict=True)], tape

    def gradient(self, tape: list[tuple[np.ndarray, ...]], d_outputs: list[np.ndarray]) -> list[np.ndarray]:
        """Gradient of a scalar whose derivatives by the heads' outputs are given; zero where no weight lives."""
        (x,) = tape[-1]
        d_weights = [np.outer(d, x) for d in d_outputs]
        d_biases = [np.array(d) for d in d_outputs]
        d_x = sum(w.T @ d for w, d in zip(self.weights[2:], d_outputs, strict=True))
        for weight, (x, normalized, deviation) in zip(self.weights[1::-1], tape[1::-1], strict=True):
            d_norm = d_x * np.where(normalized > 0, 1.0, LEAKY_SLOPE)
            d_z = (d_norm - d_norm.mean() - normalized * (d_norm * normalized).mean()) / deviation
            d_weights.insert(0, np.outer(d_z, x))
            d_biases.insert(0, d_z)
            d_x = weight.T @ d_z
        return [*(d * m for d, m in zip(d_weights, self.masks, strict=True)), *d_biases]


class Learner:
    """A network, its eligibility trace and its step: ObGD, or the adaptive one."""

    def __init__(self, network: Network, kappa: float, lr: float, decay: float, adaptive: bool = False):
        self.network, self.kappa, self.lr, self.decay, self.adaptive = network, kappa, lr, decay, adaptive
        self.trace = [np.zeros_like(p) for p in network.parameters]
        self.squares = [np.zeros_like(p) for p in network.parameters]
        self.n_updates = 0
        self.bounded: list[bool] = []

    def update(self, gradient: list[np.ndarray], delta: float, reset: bool) -> None:
        self.n_updates += 1
        self.trace = [self.decay * z + g for z, g in zip(self.trace, gradient, strict=True)]
        direction = self._adapted(delta) if self.adaptive else self.trace
        overshoot = self.lr * self.kappa * max(abs(delta), 1.0) * sum(np.abs(z).sum() for z in direction)
        self.bounded.append(bool(overshoot > 1))
        step_size = self.lr / max(overshoot, 1.0)
        for parameter, z in zip(self.network.parameters, direction, strict=True):
            parameter += step_size * delta * z
        if reset:
            self.trace = [np.zeros_like(z) for z in self.trace]

    def _adapted(self, delta: float) -> list[np.ndarray]:
        beta, eps = 0.999, 1e-8
        self.squares = [beta * v + (1 - beta) * (delta * z) ** 2 for v, z in zip(self.squares, self.trace, strict=True)]
        corrected = [v / (1 - beta**self.n_updates) for v in self.squares]
        return [z / np.sqrt(v + eps) for z, v in zip(self.trace, corrected, strict=True)]


@dataclass
class Oracle:
    """
    What all agents share: the stream.

    ``bootstrap_truncated``: a truncated episode is cut, not over: its last state's value counts. Traces end there too.
    """

    features: Features
    gamma: float
    bootstrap_truncated: bool

    def reset(self, observation: np.ndarray) -> None:
        self.x = self.features.reset(observation)

    def transition(self, script: Script, t: int, action: np.ndarray, next_action: np.ndarray | None) -> None:
        """Learn from step ``t`` of the script; the observation after a reset is the caller's to give."""
        done = bool(script.done[t])
        next_x, reward = self.features.step(script.observations[t], script.rewards[t], done)
        no_future = bool(script.terminated[t]) if self.bootstrap_truncated else done
        self.learn(self.x, action, reward, next_x, 0.0 if no_future else self.gamma, done, next_action)
        self.x = next_x

    def learn(self, x, action, reward, next_x, discount, done, next_action) -> None:
        raise NotImplementedError


@dataclass
class ActorCriticOracle(Oracle):
    """Stream AC(λ). An actor with two heads is Gaussian, one with a single head categorical."""

    actor: Learner
    critic: Learner
    ent_coef: float = 0.01

    def learn(self, x, action, reward, next_x, discount, done, next_action) -> None:
        ((value,),), critic_tape = self.critic.network.forward(x)
        ((next_value,),), _ = self.critic.network.forward(next_x)
        delta = reward + discount * next_value - value
        outputs, actor_tape = self.actor.network.forward(x)
        derivative = self._gaussian if len(outputs) == 2 else self._categorical
        actor_gradient = self.actor.network.gradient(actor_tape, derivative(*outputs, action, self.ent_coef * np.sign(delta)))
        critic_gradient = self.critic.network.gradient(critic_tape, [np.ones(1)])
        self.actor.update(actor_gradient, delta, done)
        self.critic.update(critic_gradient, delta, done)

    @staticmethod
    def _gaussian(mean, pre_std, action, bonus) -> list[np.ndarray]:
        """Derivatives of log π(a) + bonus · H by the two heads' outputs."""
        std = np.logaddexp(0, pre_std)
        d_std = (action - mean) ** 2 / std**3 - (1 - bonus) / std
        return [(action - mean) / std**2, d_std / (1 + np.exp(-pre_std))]

    @staticmethod
    def _categorical(logits, action, bonus) -> list[np.ndarray]:
        log_p = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        p = np.exp(log_p)
        entropy = -(p * log_p).sum()
        return [np.eye(len(p))[int(action)] - p - bonus * p * (log_p + entropy)]


@dataclass
class QOracle(Oracle):
    """Stream Q(λ): the traces end where the action taken was not the greedy one."""

    q: Learner
    nongreedy: list[bool] = field(default_factory=list)

    def learn(self, x, action, reward, next_x, discount, done, next_action) -> None:
        (values,), tape = self.q.network.forward(x)
        (next_values,), _ = self.q.network.forward(next_x)
        self.nongreedy.append(bool(action != values.argmax()))
        delta = reward + discount * self._next_value(next_values, next_action, discount) - values[int(action)]
        gradient = self.q.network.gradient(tape, [np.eye(len(values))[int(action)]])
        self.q.update(gradient, delta, self._reset(done))

    def _next_value(self, next_values, next_action, discount) -> float:
        return next_values.max()

    def _reset(self, done: bool) -> bool:
        return done or self.nongreedy[-1]


class SARSAOracle(QOracle):
    """Stream SARSA(λ): the value of the action that will be taken; where an episode was cut, of the greedy one."""

    def _next_value(self, next_values, next_action, discount) -> float:
        return next_values.max() if next_action is None else next_values[int(next_action)]

    def _reset(self, done: bool) -> bool:
        return done
