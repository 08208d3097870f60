"""
DrQ-v2 (Yarats et al. 2021) written straight from the paper, in the plainest PyTorch: what the package is measured against.

Modules, autograd, torch's Adam with its defaults, shifts by resampling a padded image, numpy arrays of whole observations: as
single-file implementations are written. Nothing here imports the package.
"""

from collections import deque

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F


def initialise(module):
    """Orthogonal weights, biases of zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.orthogonal_(module.weight, 2**0.5 if isinstance(module, nn.Conv2d) else 1.0)
        nn.init.zeros_(module.bias)


def mlp(n_inputs, width, n_outputs):
    """Two hidden layers."""
    layers = [nn.Linear(n_inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_outputs)]
    return nn.Sequential(*layers)


def trunk(n_features):
    """From features to 50 numbers."""
    return nn.Sequential(nn.Linear(n_features, 50), nn.LayerNorm(50), nn.Tanh())


class Encoder(nn.Module):
    """Four convolutions."""

    def __init__(self, n_channels, channels):
        super().__init__()
        layers = [nn.Conv2d(n_channels, channels, 3, stride=2), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(channels, channels, 3), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, images):
        return self.convolutions(images / 255.0 - 0.5).flatten(1)


class Actor(nn.Module):
    """Means of actions."""

    def __init__(self, n_features, n_actions, width):
        super().__init__()
        self.trunk, self.mu = trunk(n_features), mlp(50, width, n_actions)

    def forward(self, features):
        return th.tanh(self.mu(self.trunk(features)))


class Critic(nn.Module):
    """Two heads on one trunk."""

    def __init__(self, n_features, n_actions, width):
        super().__init__()
        self.trunk = trunk(n_features)
        self.q1, self.q2 = (mlp(50 + n_actions, width, 1) for _ in range(2))

    def forward(self, features, actions):
        inputs = th.cat([self.trunk(features), actions], dim=1)
        return self.q1(inputs), self.q2(inputs)


def shift(images, pad=4):
    """Images in [0, 255], each moved by up to ``pad`` pixels: a grid of points in the padded image, resampled."""
    n, _, size, _ = images.shape
    padded = F.pad(images.float(), (pad,) * 4, mode="replicate")
    whole = size + 2 * pad
    # Middles of the pixels in the middle of the padded image; the whole of it is from -1 to 1.
    middle = (2 * th.arange(pad, pad + size) + 1) / whole - 1
    grid = th.stack(th.meshgrid(middle, middle, indexing="xy"), dim=2)
    pixels = th.randint(-pad, pad + 1, (2, n)).T
    return F.grid_sample(padded, grid[None] + (2 * pixels / whole)[:, None, None, :], align_corners=False)


def act(means, std, clip=None):
    """Noise on means; the bounds are passed straight through by gradients."""
    noise = std * th.randn_like(means)
    actions = means + (noise if clip is None else noise.clamp(-clip, clip))
    return actions - actions.detach() + actions.detach().clamp(-1 + 1e-6, 1 - 1e-6)


class Buffer:
    """Transitions of several steps, put together as they come in."""

    def __init__(self, capacity, shape, n_actions, n_steps, gamma):
        self.n_steps, self.gamma, self.count = n_steps, gamma, 0
        self.capacity = capacity
        self.observations, self.next_observations = (np.zeros((capacity, *shape), dtype=np.uint8) for _ in range(2))
        self.actions = np.zeros((capacity, n_actions), dtype=np.float32)
        self.rewards, self.discounts = (np.zeros((capacity, 1), dtype=np.float32) for _ in range(2))
        self.window = deque()

    def add(self, observation, action, reward, next_observation, terminated, truncated):
        self.window.append((observation, action, reward))
        done = terminated or truncated
        while self.window and (done or len(self.window) == self.n_steps):
            place = self.count % self.capacity
            rewards = [reward for _, _, reward in self.window]
            self.observations[place], self.actions[place], _ = self.window.popleft()
            self.next_observations[place] = next_observation
            self.rewards[place] = sum(self.gamma**i * reward for i, reward in enumerate(rewards))
            self.discounts[place] = 0.0 if terminated else self.gamma ** len(rewards)
            self.count += 1

    def sample(self, n):
        indices = np.random.randint(min(self.count, self.capacity), size=n)
        arrays = self.observations, self.next_observations, self.actions, self.rewards, self.discounts
        return [th.as_tensor(array[indices]) for array in arrays]


class DrQ:
    """The learner, with the settings of the paper."""

    def __init__(self, shape, n_actions, width=1024, channels=32, capacity=10_000):
        n_channels, size, _ = shape
        n_features = channels * ((size - 3) // 2 - 5) ** 2
        self.encoder = Encoder(n_channels, channels).apply(initialise)
        self.actor = Actor(n_features, n_actions, width).apply(initialise)
        self.critic, self.target = (Critic(n_features, n_actions, width).apply(initialise) for _ in range(2))
        self.target.load_state_dict(self.critic.state_dict())
        self.optimizers = [th.optim.Adam(m.parameters(), lr=1e-4) for m in (self.encoder, self.critic, self.actor)]
        self.buffer = Buffer(capacity, shape, n_actions, 3, 0.99)
        self.std, self.clip, self.tau = 1.0, 0.3, 0.01

    def update(self, batch_size=256):
        observations, next_observations, actions, rewards, discounts = self.buffer.sample(batch_size)
        observations, next_observations = shift(observations), shift(next_observations)
        features = self.encoder(observations)
        with th.no_grad():
            next_features = self.encoder(next_observations)
            next_actions = act(self.actor(next_features), self.std, self.clip)
            targets = rewards + discounts * th.min(*self.target(next_features, next_actions))
        encoder, critic, actor = self.optimizers
        q1, q2 = self.critic(features, actions)
        critic_loss = F.mse_loss(q1, targets) + F.mse_loss(q2, targets)
        encoder.zero_grad()
        critic.zero_grad()
        critic_loss.backward()
        critic.step()
        encoder.step()
        features = features.detach()
        actor_loss = -th.min(*self.critic(features, act(self.actor(features), self.std, self.clip))).mean()
        actor.zero_grad()
        actor_loss.backward()
        actor.step()
        for target, online in zip(self.target.parameters(), self.critic.parameters(), strict=True):
            target.data.copy_(self.tau * online.data + (1 - self.tau) * target.data)
        return critic_loss.item(), actor_loss.item()
