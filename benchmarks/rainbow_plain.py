"""
Rainbow (Hessel et al. 2018) written straight from the papers, in the plainest PyTorch: what the package is measured against.

Modules, autograd, torch's Adam with its defaults, numpy arrays of whole observations with a sum tree over them: as
single-file implementations are written. Nothing here imports the package.
"""

from collections import deque

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F


class NoisyLinear(nn.Module):
    """Weights and biases with factorised Gaussian noise; the matrix of the noise is kept."""

    def __init__(self, n_inputs, n_outputs, sigma):
        super().__init__()
        bound = n_inputs**-0.5
        self.weight_mu = nn.Parameter(th.empty(n_outputs, n_inputs).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(th.full((n_outputs, n_inputs), sigma * bound))
        self.bias_mu = nn.Parameter(th.empty(n_outputs).uniform_(-bound, bound))
        self.bias_sigma = nn.Parameter(th.full((n_outputs,), sigma * bound))
        self.register_buffer("weight_epsilon", th.zeros(n_outputs, n_inputs))
        self.register_buffer("bias_epsilon", th.zeros(n_outputs))
        self.reset_noise()

    @staticmethod
    def noise(size):
        z = th.randn(size)
        return z.sign() * z.abs().sqrt()

    def reset_noise(self):
        noise_in, noise_out = self.noise(self.weight_mu.shape[1]), self.noise(self.weight_mu.shape[0])
        self.weight_epsilon.copy_(th.outer(noise_out, noise_in))
        self.bias_epsilon.copy_(noise_out)

    def forward(self, x):
        weight = self.weight_mu + self.weight_sigma * self.weight_epsilon
        return F.linear(x, weight, self.bias_mu + self.bias_sigma * self.bias_epsilon)


class Network(nn.Module):
    """The encoder that it is given, a noisy hidden layer, and a noisy dueling head of distributions."""

    def __init__(self, encoder, n_features, n_actions, n_atoms, sigma):
        super().__init__()
        self.n_actions, self.n_atoms = n_actions, n_atoms
        self.encoder = encoder
        self.hidden = NoisyLinear(n_features, 512, sigma)
        self.advantage = NoisyLinear(512, n_actions * n_atoms, sigma)
        self.value = NoisyLinear(512, n_atoms, sigma)

    def forward(self, observations):
        hidden = F.relu(self.hidden(self.encoder(observations / 255.0)))
        advantage = self.advantage(hidden).view(-1, self.n_actions, self.n_atoms)
        value = self.value(hidden).view(-1, 1, self.n_atoms)
        return F.log_softmax(value + advantage - advantage.mean(dim=1, keepdim=True), dim=2)

    def reset_noise(self):
        for layer in (self.hidden, self.advantage, self.value):
            layer.reset_noise()


def nature_encoder():
    """Of 84 x 84 pixels and four frames: 3,136 features."""
    layers = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten())


class Block(nn.Module):
    """Of :func:`impala_encoder`."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1), nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


def impala_encoder(width_scale):
    """Of 84 x 84 pixels and four frames: 3,872 features times the scale."""
    layers, before = [], 4
    for channels, pad in zip((16 * width_scale, 32 * width_scale, 32 * width_scale), (1, 1, 0), strict=True):
        # Even sizes are padded behind only, as in Flax.
        layers += [nn.Conv2d(before, channels, 3, 1, 1), nn.ConstantPad2d((0, pad, 0, pad), -float("inf"))]
        layers += [nn.MaxPool2d(3, 2, 1 - pad), Block(channels), Block(channels)]
        before = channels
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten())


class SumTree:
    """Every node is the sum of its two children; the leaves are the second half."""

    def __init__(self, capacity):
        self.n_leaves = 1
        while self.n_leaves < capacity:
            self.n_leaves *= 2
        self.nodes = np.zeros(2 * self.n_leaves)

    def set(self, indices, values):
        nodes = np.asarray(indices) + self.n_leaves
        self.nodes[nodes] = values
        while nodes[0] > 1:
            nodes = np.unique(nodes // 2)
            self.nodes[nodes] = self.nodes[2 * nodes] + self.nodes[2 * nodes + 1]

    def draw(self, n):
        masses = np.random.random(n) * self.nodes[1]
        nodes = np.ones(n, dtype=np.int64)
        while nodes[0] < self.n_leaves:
            left = self.nodes[2 * nodes]
            right = masses >= left
            masses = np.where(right, masses - left, masses)
            nodes = 2 * nodes + right
        return nodes - self.n_leaves, self.nodes[nodes] / self.nodes[1]


class PrioritizedBuffer:
    """Transitions of several steps, put together as they come in."""

    def __init__(self, capacity, shape, n_steps, gamma, alpha, beta):
        self.capacity, self.n_steps, self.gamma, self.alpha, self.beta = capacity, n_steps, gamma, alpha, beta
        self.observations, self.next_observations = (np.zeros((capacity, *shape), dtype=np.uint8) for _ in range(2))
        self.actions = np.zeros(capacity, dtype=np.int64)
        self.rewards, self.discounts = (np.zeros(capacity, dtype=np.float32) for _ in range(2))
        self.tree = SumTree(capacity)
        self.largest = 1.0
        self.count = 0
        self.window = deque()

    def add(self, observation, action, reward, next_observation, terminated, truncated):
        self.window.append((observation, action, reward))
        done = terminated or truncated
        while self.window and (done or len(self.window) == self.n_steps):
            self._keep(next_observation, terminated)

    def _keep(self, next_observation, terminated):
        place = self.count % self.capacity
        rewards = [reward for _, _, reward in self.window]
        self.observations[place], self.actions[place], _ = self.window.popleft()
        self.next_observations[place] = next_observation
        self.rewards[place] = sum(self.gamma**i * reward for i, reward in enumerate(rewards))
        self.discounts[place] = 0.0 if terminated else self.gamma ** len(rewards)
        self.tree.set([place], self.largest**self.alpha)
        self.count += 1

    def sample(self, n):
        indices, probabilities = self.tree.draw(n)
        weights = (min(self.count, self.capacity) * probabilities) ** -self.beta
        arrays = self.observations, self.next_observations, self.actions, self.rewards, self.discounts
        batch = [th.as_tensor(array[indices]) for array in arrays]
        return indices, *batch, th.as_tensor(weights / weights.max(), dtype=th.float32)

    def update_priorities(self, indices, losses):
        priorities = losses.numpy() + 1e-6
        self.tree.set(indices, priorities**self.alpha)
        self.largest = max(self.largest, priorities.max())


class Rainbow:
    """The learner, with the settings of Data-Efficient Rainbow (van Hasselt et al. 2019)."""

    def __init__(self, make_encoder, n_features, n_actions, shape=(4, 84, 84), capacity=100_000):
        self.online, self.target = (Network(make_encoder(), n_features, n_actions, 51, 0.5) for _ in range(2))
        self.target.load_state_dict(self.online.state_dict())
        self.optimizer = th.optim.Adam(self.online.parameters(), lr=1e-4, eps=1.5e-4)
        self.buffer = PrioritizedBuffer(capacity, shape, 10, 0.99, 0.5, 0.5)
        self.max_grad_norm = float("inf")
        self.v_min, self.v_max = -10.0, 10.0
        self.atoms = th.linspace(self.v_min, self.v_max, 51)

    def losses(self, observations, next_observations, actions, rewards, discounts):
        rows = th.arange(len(actions))
        with th.no_grad():
            best = (self.online(next_observations).exp() * self.atoms).sum(dim=2).argmax(dim=1)
            probabilities = self.target(next_observations).exp()[rows, best]
            moved = (rewards[:, None] + discounts[:, None] * self.atoms).clamp(self.v_min, self.v_max)
            place = (moved - self.v_min) / (self.atoms[1] - self.atoms[0])
            lower, upper = place.floor().long(), place.ceil().long()
            # Mass at an atom itself goes to it as a whole.
            lower_share = upper - place + (lower == upper)
            projected = th.zeros_like(probabilities)
            projected.scatter_add_(1, lower.clamp(0, 50), probabilities * lower_share)
            projected.scatter_add_(1, upper.clamp(0, 50), probabilities * (place - lower))
        return -(projected * self.online(observations)[rows, actions]).sum(dim=1)

    def update(self, batch_size=32):
        indices, *batch, weights = self.buffer.sample(batch_size)
        self.online.reset_noise()
        self.target.reset_noise()
        losses = self.losses(*batch)
        loss = (weights * losses).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm < float("inf"):
            nn.utils.clip_grad_norm_(self.online.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.buffer.update_priorities(indices, losses.detach())
        return loss.item()
