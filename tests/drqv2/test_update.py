"""One whole update against its formulas, in float64, from copied weights and the same noise."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import NatureCNN
from torch.nn import functional as F

from sb3_sparse.drqv2 import DrQFeatures
from sb3_sparse.sparse import SparseLinear
from tests.drqv2.pictures import Dot, agent

RATE = 0.05
# Of the batch of the whole update: two pieces of the encoder's, and a rest.
N = 37


def tensors(module):
    """Weights and biases by name, dense and in float64, with a graph of their own; and which weights live."""
    found, living = {}, {}
    for name, layer in module.named_modules():
        if getattr(layer, "weight", None) is not None:
            found[f"{name}.weight"] = layer.weight.detach().double().requires_grad_()
            found[f"{name}.bias"] = layer.bias.detach().double().requires_grad_()
            if isinstance(layer, SparseLinear):
                living[f"{name}.weight"] = layer.topology.scatter(th.ones(layer.values.shape)) != 0
    return found, living


def encoded(w, images):
    x = images.double() / 255 - 0.5
    for i in range(4):
        x = F.relu(F.conv2d(x, w[f"encoder.{2 * i + 1}.weight"], w[f"encoder.{2 * i + 1}.bias"], stride=2 if i == 0 else 1))
    return x.flatten(1)


def trunk(w, x):
    x = x @ w["trunk.0.weight"].T + w["trunk.0.bias"]
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return (x * w["trunk.1.weight"] + w["trunk.1.bias"]).tanh()


def mlp(w, name, x):
    for i in (0, 2, 4):
        x = x @ w[f"{name}.{i}.weight"].T + w[f"{name}.{i}.bias"]
        x = x.clamp(min=0) if i < 4 else x
    return x


def q_values(w, features, actions):
    x = th.cat([trunk(w, features), actions], 1)
    return [mlp(w, f"q_networks.{i}", x) for i in range(2)]


def acted(w, features, noise, std):
    mean = mlp(w, "mu", trunk(w, features)).tanh()
    action = mean + (noise.double() * std).clamp(-0.3, 0.3)
    return mean + (action.clamp(1e-6 - 1, 1 - 1e-6) - mean).detach()


def moved(images, shifts):
    """Shifted by padding and cutting out, image by image."""
    padded = F.pad(images.double(), (4, 4, 4, 4), mode="replicate")
    height, width = images.shape[2:]
    return th.stack(
        [
            p[:, 4 + down : 4 + down + height, 4 + right : 4 + right + width]
            for p, (right, down) in zip(padded, shifts.T.tolist(), strict=True)
        ]
    )


@pytest.mark.parametrize("sparsity", [0.0, 0.8])
@pytest.mark.parametrize("scope", ["heads", "critic"])
def test_an_update_is_its_formulas(sparsity, scope):
    policy = dict(sparsity=sparsity, sparsity_scope=scope, optimizer_class=th.optim.SGD)
    model = agent(Dot(length=5, ends=False), policy, learning_rate=RATE, learning_starts=40, tau=0.1, exploration_steps=100)
    model.learn(40)
    # Target and online network differ, as they do later on.
    with th.no_grad():
        for parameter in model.critic.parameters():
            parameter += 0.1 * th.randn_like(parameter)
    (encoder, _), (actor, _), (critic, living), (target, _) = (
        tensors(part) for part in (model.policy.encoder, model.actor, model.critic, model.critic_target)
    )
    assert bool(living) == (sparsity > 0)

    np.random.seed(1)
    samples = model.replay_buffer.sample(N)
    assert set(samples.discounts.flatten().tolist()) > {np.float32(0.99) ** 3}
    th.manual_seed(2)
    shifts = th.randint(-4, 5, (2, N)), th.randint(-4, 5, (2, N))
    noise = th.randn(N, 2), th.randn(N, 2)
    std = 1.0 - 0.9 * 40 / 100

    observations, next_observations = moved(samples.observations, shifts[0]), moved(samples.next_observations, shifts[1])
    with th.no_grad():
        next_features = encoded(encoder, next_observations)
        next_values = q_values(target, next_features, acted(actor, next_features, noise[0], std))
        y = samples.rewards.double() + (1 - samples.dones) * samples.discounts.double() * th.minimum(*next_values)
    features = encoded(encoder, observations)
    critic_loss = sum(((q - y) ** 2).mean() for q in q_values(critic, features, samples.actions.double()))
    critic_loss.backward()
    with th.no_grad():
        for weights in (encoder, critic):
            for name, tensor in weights.items():
                tensor -= RATE * tensor.grad * (living.get(name, 1) if weights is critic else 1)
                tensor.grad = None
    actor_loss = -th.minimum(*q_values(critic, features.detach(), acted(actor, features.detach(), noise[1], std))).mean()
    actor_loss.backward()
    with th.no_grad():
        for tensor in actor.values():
            tensor -= RATE * tensor.grad
        for name, tensor in target.items():
            tensor += 0.1 * (critic[name] - tensor)

    np.random.seed(1)
    th.manual_seed(2)
    model.train(1, N)
    for part, expected in (
        (model.policy.encoder, encoder),
        (model.actor, actor),
        (model.critic, critic),
        (model.critic_target, target),
    ):
        for name, tensor in tensors(part)[0].items():
            th.testing.assert_close(
                tensor, expected[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )
    logged = model.logger.name_to_value
    assert logged["train/critic_loss"] == pytest.approx(critic_loss.item(), rel=1e-5)
    assert logged["train/actor_loss"] == pytest.approx(actor_loss.item(), rel=1e-5)


def test_the_encoder_learns_from_the_critic_alone():
    model = agent()
    model.learn(20)
    model.policy.zero_grad()
    samples = model._sample(6)
    features = model.policy.encode(samples.observations)
    model._actor_losses(features.detach()).mean().backward()
    # Nor is the critic trained by the actor's loss.
    assert all(p.grad is None for part in (model.policy.encoder, model.critic) for p in part.parameters())
    assert all(p.grad.any() for p in model.actor.parameters())
    model._critic_losses(features, samples).mean().backward()
    assert all(p.grad.any() for p in model.policy.encoder.parameters())


class Mixing(DrQFeatures):
    """Features that the other images of a batch change."""

    piece_size = None

    def forward(self, observations):
        features = super().forward(observations)
        return features - features.mean(0)


def test_batches_are_encoded_in_pieces_where_images_stand_alone(monkeypatch):
    sizes = []
    forward = DrQFeatures.forward
    monkeypatch.setattr(DrQFeatures, "forward", lambda self, x: sizes.append(len(x)) or forward(self, x))
    for encoder, expected in ((DrQFeatures, [16, 16, 5]), (Mixing, [N])):
        model = agent(policy_kwargs=dict(features_extractor_class=encoder))
        model.learn(20)
        sizes.clear()
        images = model._sample(N).observations
        features = model._encode(images)
        assert sizes == expected
        th.testing.assert_close(features, model.policy.encode(images), rtol=1e-5, atol=1e-6)
        sizes.clear()
        model.train(1, N)
        # Of observations and next observations.
        assert sizes == 2 * expected
    # One that says nothing of it.
    model = agent(policy_kwargs=dict(features_extractor_class=NatureCNN, features_extractor_kwargs={}), env=Dot(size=36))
    whole = []
    model.policy.encoder.register_forward_hook(lambda module, inputs, output: whole.append(len(output)))
    model._encode(th.zeros(N, 9, 36, 36, dtype=th.uint8))
    assert whole == [N]


def test_the_target_is_made_by_the_online_actor_and_encoder():
    model = agent()
    model.learn(20)
    samples, before = model._sample(6), []
    for part in (model.policy.encoder, model.actor, model.critic_target, model.critic):
        th.manual_seed(0)
        before.append(model._targets(samples))
        with th.no_grad():
            for parameter in part.parameters():
                parameter += 0.3
    th.manual_seed(0)
    after = [*before[1:], model._targets(samples)]
    changed = [not th.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [True, True, True, False]


def test_terminal_states_end_returns_and_time_limits_do_not():
    for ends, length in ((True, 12), (False, 7)):
        model = agent(Dot(length=length, ends=ends), learning_starts=100, buffer_size=1000)
        model.learn(70)
        buffer = model.replay_buffer
        # Every seventh step is an end.
        steps = np.array([3, 4, 5, 6])
        samples = buffer._at(steps, np.zeros(4, dtype=int), None)
        assert samples.discounts.flatten().tolist() == pytest.approx([0.99**3, 0.99**3, 0.99**2, 0.99])
        assert samples.dones.flatten().tolist() == ([0, 1, 1, 1] if ends else [0, 0, 0, 0])


@pytest.mark.parametrize(("n", "expected"), [(2008, 3), (2009, 4), (2100, 49)])
def test_updates_after_so_many_steps(n, expected):
    updates = []
    model = agent(learning_starts=2000, buffer_size=100)
    model.train = lambda gradient_steps, batch_size: updates.append(gradient_steps)
    model.learn(n)
    # One in every second step after the first 2,000, as published within one: floor((N - 2000) / 2).
    assert abs(sum(updates) - (n - 2000) // 2) <= 1


@pytest.mark.parametrize(
    ("n_envs", "settings", "decisions_of_an_update"), [(4, {}, 8), (4, dict(train_freq=1, gradient_steps=2), 2)]
)
def test_updates_of_several_environments(n_envs, settings, decisions_of_an_update):
    model = agent(make_vec_env(Dot, n_envs, seed=0), learning_starts=40, **settings).learn(200)
    assert model._n_updates == 160 // decisions_of_an_update


def test_the_schedule_of_the_noise():
    model = agent()
    for step, std in ((0, 1.0), (250_000, 0.55), (500_000, 0.1), (3_000_000, 0.1)):
        model.num_timesteps = step
        assert model.exploration_std == pytest.approx(std)
