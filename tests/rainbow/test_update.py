"""One whole update against formulas of its own, in float64."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_sparse.networks.noisy import noisy_layers
from sb3_sparse.rainbow import Rainbow


class Walk(gym.Env):
    """Random observations, rewards and ends."""

    observation_space = spaces.Box(-1, 1, (4,))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        chance = self.np_random.random()
        return self.observation_space.sample(), float(self.np_random.normal() * 3), chance < 0.1, chance > 0.95, {}


def filled(**kwargs):
    settings = dict(learning_starts=300, batch_size=16, buffer_size=300, seed=1, device="cpu", n_atoms=7, v_min=-5, v_max=5)
    model = Rainbow("MlpPolicy", Walk(), policy_kwargs=dict(net_arch=[8]), **{**settings, **kwargs})
    # Until the first update, so that all is there to look at.
    model.learn(250)
    th.manual_seed(5)
    with th.no_grad():
        for parameter in model.q_net_target.parameters():
            parameter += 0.1 * th.randn_like(parameter)
    return model


def weights(net):
    """The network as numpy arrays, the noise of the moment inside."""
    layers = []
    for layer in net.q_net.modules():
        if isinstance(layer, th.nn.Linear):
            weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
            if hasattr(layer, "weight_sigma"):
                out, into = layer.noise_out.double().numpy(), layer.noise_in.double().numpy()
                weight = weight + layer.weight_sigma.detach().double().numpy() * np.outer(out, into)
                bias = bias + layer.bias_sigma.detach().double().numpy() * out
            layers.append((weight, bias))
    return layers


def forward(layers, x, dueling, n_atoms):
    """``(batch, actions, atoms)``"""
    (w1, b1), *heads = layers
    hidden = np.maximum(x @ w1.T + b1, 0)
    if not dueling:
        return (hidden @ heads[0][0].T + heads[0][1]).reshape(len(x), -1, n_atoms)
    advantage = (hidden @ heads[0][0].T + heads[0][1]).reshape(len(x), -1, n_atoms)
    value = (hidden @ heads[1][0].T + heads[1][1]).reshape(len(x), 1, n_atoms)
    return value + advantage - advantage.mean(axis=1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def expected_losses(model, batch, online, target, dueling, distributional, double):
    atoms = np.linspace(-5, 5, 7)
    obs, next_obs = batch.observations.double().numpy(), batch.next_observations.double().numpy()
    actions, rewards = batch.actions.numpy().ravel(), batch.rewards.double().numpy().ravel()
    discounts = (1 - batch.dones.double().numpy().ravel()) * batch.discounts.double().numpy().ravel()
    n_atoms = 7 if distributional else 1
    now, then_online, then = (
        forward(layers, x, dueling, n_atoms) for layers, x in ((online, obs), (online, next_obs), (target, next_obs))
    )
    losses = np.zeros(len(obs))
    for i in range(len(obs)):
        if distributional:
            chooser = (softmax(then_online[i]) if double else softmax(then[i])) @ atoms
            p = softmax(then[i])[chooser.argmax()]
            projected = np.zeros(7)
            for j in range(7):
                moved = min(max(rewards[i] + discounts[i] * atoms[j], -5), 5)
                projected += p[j] * np.clip(1 - np.abs(moved - atoms) / (atoms[1] - atoms[0]), 0, None)
            losses[i] = -(projected * np.log(softmax(now[i])[actions[i]])).sum()
        else:
            best = (then_online[i] if double else then[i])[:, 0].argmax()
            delta = now[i, actions[i], 0] - rewards[i] - discounts[i] * then[i, best, 0]
            losses[i] = 0.5 * delta**2 if abs(delta) < 1 else abs(delta) - 0.5
    return losses


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("distributional", [False, True])
def test_losses(distributional, dueling, double, noisy):
    model = filled(distributional=distributional, dueling=dueling, double=double, noisy=noisy)
    batch = model._sample(64)
    for net in (model.q_net, model.q_net_target):
        net.reset_noise()
    online, target = weights(model.q_net), weights(model.q_net_target)
    if not (distributional or dueling or noisy):
        assert len(online) == 2
    found = model._losses(batch)
    expected = expected_losses(model, batch, online, target, dueling, distributional, double)
    np.testing.assert_allclose(found.losses.detach().numpy().ravel(), expected, rtol=1e-4, atol=1e-5)
    assert found.losses.requires_grad
    assert not found.priorities.requires_grad


def check_against_differences(model, twin, batch, losses, gradients):
    """Loss and gradients against the formulas in float64, the gradients by central differences."""
    online, target = weights(twin), weights(model.q_net_target)
    importance = batch.weights.double().numpy().ravel()

    def loss():
        return (importance * expected_losses(model, batch, online, target, True, True, True)).mean()

    assert float((batch.weights * losses.detach()).mean()) == pytest.approx(loss(), rel=1e-5)
    found = dict(zip([name for name, _ in twin.named_parameters()], gradients, strict=True))
    layers = [(name, layer) for name, layer in twin.named_modules() if isinstance(layer, th.nn.Linear)]
    assert len(layers) == len(online) == 3
    rng, step = np.random.default_rng(0), 1e-6
    for (name, layer), (weight, _) in zip(layers, online, strict=True):
        for _ in range(12):
            i, j = rng.integers(weight.shape[0]), rng.integers(weight.shape[1])
            before, sides = weight[i, j], []
            for sign in (1, -1):
                weight[i, j] = before + sign * step
                sides.append(loss())
            weight[i, j] = before
            slope = (sides[0] - sides[1]) / (2 * step)
            # The mean moves the weight as it is, the deviation by the noise of the moment.
            noise = float(layer.noise_out[i] * layer.noise_in[j])
            assert float(found[f"{name}.weight"][i, j]) == pytest.approx(slope, rel=1e-3, abs=1e-5)
            assert float(found[f"{name}.weight_sigma"][i, j]) == pytest.approx(slope * noise, rel=1e-3, abs=1e-5)


def test_an_update_weighs_its_samples_and_gives_them_priorities():
    model = filled()
    model.max_grad_norm = float("inf")
    # Transitions that are drawn as often as others would all weigh 1.
    model.replay_buffer.sample(1)
    n = model.replay_buffer.size()
    model.replay_buffer.update_priorities(np.arange(n), np.random.default_rng(1).uniform(0.1, 3, n))
    twin = copy.deepcopy(model.q_net)
    seen = {}
    sample = model.replay_buffer.sample

    def remember(*args, **kwargs):
        seen["batch"] = sample(*args, **kwargs)
        return seen["batch"]

    model.replay_buffer.sample = remember
    losses = model._losses
    model._losses = lambda batch: seen.setdefault("losses", losses(batch))
    model.train(1, 32)
    batch, found = seen["batch"], seen["losses"]
    assert len(set(batch.weights.flatten().tolist())) > 10
    # The network from before the step, with the noise that acted in it.
    for ours, theirs in zip(noisy_layers(twin), noisy_layers(model.q_net), strict=True):
        ours.noise_in.copy_(theirs.noise_in)
        ours.noise_out.copy_(theirs.noise_out)
    gradients = [p.grad.clone() for p in model.q_net.parameters()]
    parameters = list(twin.parameters())
    expected = th.autograd.grad((batch.weights * _same_targets(model, twin, batch)).mean(), parameters)
    for a, b in zip(gradients, expected, strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    check_against_differences(model, twin, batch, found.losses, gradients)
    # What is said of a sample's loss, to those who measure gradients, is what it adds to the update.
    model.q_net = twin
    found_again = model.per_sample_losses("critic", batch)
    th.testing.assert_close(found_again, (batch.weights * found.losses).flatten().detach(), rtol=1e-4, atol=1e-6)
    th.testing.assert_close(model.per_sample_losses("critic", batch._replace(weights=None)), found.losses.flatten().detach())
    tree = model.replay_buffer.priorities._tree
    last = {int(index): float(p) for index, p in zip(batch.indices, found.priorities, strict=True)}
    np.testing.assert_allclose(tree[list(last)], [(p + 1e-6) ** 0.5 for p in last.values()], rtol=1e-5)


@pytest.mark.parametrize("limit", [1e-3, float("inf")])
def test_gradients_are_clipped_where_there_is_a_limit(limit):
    model = filled()
    model.max_grad_norm = limit
    model.train(1, 32)
    norm = th.stack([p.grad.norm() for p in model.q_net.parameters()]).norm().item()
    assert norm == pytest.approx(limit, rel=1e-2) if limit < 1 else norm > 0.1


def _same_targets(model, twin, batch):
    """Losses of the network from before the step, on targets that were computed with it."""
    with th.no_grad():
        probabilities = model.q_net_target.log_probabilities(batch.next_observations).exp()
        best = twin(batch.next_observations).argmax(dim=1)
        projected = twin.support.project(
            probabilities[th.arange(len(best)), best],
            batch.rewards.flatten(),
            ((1 - batch.dones) * batch.discounts).flatten(),
        )
    chosen = twin.log_probabilities(batch.observations)[th.arange(len(best)), batch.actions.flatten().long()]
    return -(projected * chosen).sum(dim=1, keepdim=True)
