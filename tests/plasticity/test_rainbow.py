"""Measurements and resets of Rainbow and DER, whose layers are noisy."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_sparse import DER, Rainbow
from sb3_sparse.networks.noisy import NoisyLinear, noisy_layers
from sb3_sparse.plasticity import PlasticityCallback, Probe, ResetCallback, measure, reset_model_
from sb3_sparse.plasticity.measurement.batches import undisturbed
from sb3_sparse.plasticity.metrics.interference import gradient_gram
from tests.envs import SpaceEnv

VECTOR = spaces.Box(-1, 1, (5,))
IMAGE = spaces.Box(0, 255, (4, 36, 36), np.uint8)
GRID = spaces.Box(0, 1, (10, 10, 4), bool)
# Sparse and dense, with and without convolutions, and all parts switched off.
AGENTS = {
    "sparse": (DER, VECTOR, dict(net_arch=[16, 16], sparsity=0.6), {}),
    "dense": (DER, VECTOR, dict(net_arch=[16, 16]), {}),
    "impala": (DER, IMAGE, dict(encoder="impala", width_scale=0.125, net_arch=[16], sparsity=0.6), {}),
    "grid": (Rainbow, GRID, dict(encoder="grid", net_arch=[16], sparsity=0.6), {}),
    "no dueling": (Rainbow, VECTOR, dict(net_arch=[16]), dict(dueling=False)),
    "not distributional": (Rainbow, VECTOR, dict(net_arch=[16], sparsity=0.5), dict(distributional=False)),
    "DQN": (
        Rainbow,
        VECTOR,
        dict(net_arch=[16]),
        dict(dueling=False, double=False, noisy=False, prioritized=False, distributional=False, n_steps=1),
    ),
}


class RandomEnv(SpaceEnv):
    """Random observations, the same ones for the same seed; the action is the reward."""

    def reset(self, *, seed=None, options=None):
        self.t = 0
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        obs, _, *others = super().step(action)
        return obs, float(action), *others


agents = pytest.mark.parametrize("name", AGENTS)
SETTINGS = dict(learning_starts=20, buffer_size=200, batch_size=8, seed=0, device="cpu", train_freq=1, learning_rate=1e-2)


def make_model(name, steps=60, **kwargs):
    algorithm, space, policy_kwargs, switches = AGENTS[name]
    settings = {**SETTINGS, "n_atoms": 11, "target_update_interval": 15, **switches, **kwargs}
    if settings.get("n_steps") is None:
        settings["n_steps"] = 3
    policy = "MlpPolicy" if space is VECTOR else "CnnPolicy"
    model = algorithm(policy, RandomEnv(space, spaces.Discrete(3)), policy_kwargs={**policy_kwargs}, **settings)
    return model.learn(steps) if steps else model


def noises(model):
    return [noise.clone() for layer in noisy_layers(model.policy) for noise in (layer.noise_in, layer.noise_out)]


def all_equal(a, b):
    return len(a) == len(b) and all(th.equal(x, y) for x, y in zip(a, b, strict=True))


@agents
def test_training_goes_on_as_if_nobody_had_looked(name, tmp_path):
    plain = make_model(name)
    looked_at = make_model(name, steps=0)
    callback = PlasticityCallback(log_freq=7, n_samples=12, metrics="all", csv_path=tmp_path / "plasticity.csv")
    looked_at.learn(60, callback=callback)
    assert len((tmp_path / "plasticity.csv").read_text().splitlines()) == 8
    weights, others = (list(model.policy.state_dict().values()) for model in (plain, looked_at))
    assert all_equal(weights, others)
    assert all_equal(noises(plain), noises(looked_at))
    ours, theirs = plain.replay_buffer, looked_at.replay_buffer
    assert np.array_equal(ours.rewards, theirs.rewards)
    assert np.array_equal(ours.actions, theirs.actions)
    if plain.prioritized:
        assert np.array_equal(ours.priorities._tree.weights, theirs.priorities._tree.weights)


@agents
def test_a_measurement_depends_on_weights_batch_and_seed_alone(name, tmp_path):
    model = make_model(name)
    batch = Probe(model, 16).batch
    before = noises(model)
    first = measure(model, metrics="all", batch=batch, seed=3)
    assert all_equal(noises(model), before)
    for layer in noisy_layers(model.policy):
        layer.reset_noise()
    assert measure(model, metrics="all", batch=batch, seed=3) == first
    model.save(tmp_path / "agent")
    loaded = type(model).load(tmp_path / "agent", device="cpu")
    assert measure(loaded, metrics="all", batch=batch, seed=3) == first
    other = measure(model, metrics="all", batch=batch, seed=4)
    assert (other["critic_gradient_norm"] != first["critic_gradient_norm"]) == model.policy_kwargs["noisy"]
    assert other["critic_parameter_norm"] == first["critic_parameter_norm"]


@agents
def test_metrics_find_the_layers(name):
    model = make_model(name)
    critic = Probe(model, 16).network("critic")
    seen = critic.activations
    linear = {n for n, layer in model.q_net.named_modules() if hasattr(layer, "out_features")}
    convolutions = {n for n, layer in model.q_net.named_modules() if "Conv2d" in type(layer).__name__}
    heads = {n for n in linear if n.endswith(("advantage", "value", "output"))} or {f"q_net.{len(model.q_net.q_net) - 1}"}
    assert set(seen.linear) == (linear | convolutions) - heads
    assert bool(convolutions) == (name in ("impala", "grid"))
    assert [tuple(features.shape) for features in seen.features] == [(16, 16)]
    assert set(critic.module.parameters()) == set(model.q_net.parameters())
    values = measure(model, metrics="all", n_samples=16)
    assert all(np.isfinite(value) for value in values.values()), values
    assert 0 < values["critic_fau"] < 1
    assert values["critic_srank"] >= 1


@agents
def test_gradients_of_single_samples_are_those_of_the_loss(name):
    model = make_model(name)
    probe = Probe(model, 10, seed=5)
    parameters = [p for p in model.q_net.parameters() if p.requires_grad]
    with undisturbed(model, 5):
        losses = model._losses(probe.batch).losses.flatten()
        if model.prioritized:
            losses = losses * probe.batch.weights.flatten()
        assert losses.shape == (10,)
        rows = [
            th.cat([g.flatten() for g in th.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)])
            for loss in losses
        ]
        gram = gradient_gram(model.q_net, lambda: model.per_sample_losses("critic", probe.batch))
    rows = th.stack(rows)
    expected = (rows @ rows.T).double()
    th.testing.assert_close(gram, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    norm = float(rows.mean(dim=0).norm())
    found = measure(model, metrics="gradient_norm", batch=probe.batch, seed=5)
    assert found["critic_gradient_norm"] == pytest.approx(norm, 1e-4)


def test_the_gram_of_noisy_layers_is_not_that_of_the_means_alone():
    layer = NoisyLinear(6, 5)
    x = th.randn(7, 6)
    without = gradient_gram(layer, lambda: layer(x).square().sum(dim=1))
    layer.reset_noise()
    assert not th.allclose(gradient_gram(layer, lambda: layer(x).square().sum(dim=1)), without)
    layer.noisy = False
    th.testing.assert_close(gradient_gram(layer, lambda: layer(x).square().sum(dim=1)), without)


def parts(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def topologies(net):
    return {name: layer.topology for name, layer in net.named_modules() if hasattr(layer, "topology")}


def changed(net, before):
    return {name for name, p in net.named_parameters() if not th.equal(p, before[name])}


@agents
@pytest.mark.parametrize("strategy", ["full", "last_layers", "shrink_perturb", "redo"])
def test_what_a_reset_leaves(name, strategy):
    model = make_model(name)
    before, target, shapes = parts(model.q_net), parts(model.q_net_target), topologies(model.q_net)
    objects, optimizer = [id(p) for p in model.policy.parameters()], model.policy.optimizer
    assert set(optimizer.state) == set(model.q_net.parameters())
    buffer = model.replay_buffer
    reset_model_(model, strategy, seed=1, **({"tau": 0.5} if strategy == "redo" else {}))
    touched = changed(model.q_net, before)
    assert touched
    assert [id(p) for p in model.policy.parameters()] == objects
    assert topologies(model.q_net) == topologies(model.q_net_target) == shapes
    assert model.replay_buffer is buffer
    if strategy == "redo":
        assert len(optimizer.state) == len(before)
    else:
        forgotten = {n for n, p in model.q_net.named_parameters() if p not in optimizer.state}
        assert touched <= forgotten
    now = dict(model.q_net.named_parameters())
    if strategy in ("full", "last_layers"):
        moved = {n: th.equal(p, now[n]) for n, p in model.q_net_target.named_parameters()}
        assert all(moved[n] for n in touched)
    else:
        assert not changed(model.q_net_target, target)
    model.learn(20, reset_num_timesteps=False)
    assert all(p.isfinite().all() for p in model.policy.parameters())


@agents
def test_a_full_reset_is_a_network_that_was_just_built(name):
    model = make_model(name)
    sigmas = [n for n in parts(model.q_net) if "sigma" in n]
    assert bool(sigmas) == model.policy_kwargs["noisy"]
    before = parts(model.q_net)
    reset_model_(model, "full", seed=1)
    # All of a layer's weights and deviations moved while it was trained, and came back.
    assert changed(model.q_net, before) == set(before)
    for layer in noisy_layers(model.q_net):
        bound = 1 / layer.in_features**0.5
        for key in ("weight_sigma", "nonzeros_sigma", "bias_sigma"):
            if hasattr(layer, key):
                th.testing.assert_close(getattr(layer, key).detach(), th.full_like(getattr(layer, key), 0.5 * bound))
        means = layer.values if hasattr(layer, "values") else layer.weight
        assert float(means.detach().abs().max()) <= bound
    assert not model.policy.optimizer.state


@pytest.mark.parametrize("name", ["sparse", "dense"])
def test_the_last_layers_are_both_ends_of_a_dueling_head(name):
    model = make_model(name)
    before = parts(model.q_net)
    reset_model_(model, "last_layers", seed=1)
    heads = {n for n in before if ".advantage." in n or ".value." in n}
    assert len(heads) == 8
    assert changed(model.q_net, before) == heads
    reset_model_(model, "last_layers", n_layers=2, seed=2)
    assert changed(model.q_net, before) == heads | {n for n in before if n.startswith("q_net.2.")}


@pytest.mark.parametrize("target", ["copy", "fresh"])
def test_new_topologies_are_those_of_weights_and_deviations_of_online_and_target(target):
    model = make_model("sparse")
    before = topologies(model.q_net)
    reset_model_(model, "full", redraw_topology=True, target=target, seed=1)
    now = topologies(model.q_net)
    assert now == topologies(model.q_net_target)
    assert all(now[n] != before[n] and now[n].nnz == before[n].nnz for n in before)
    for net in (model.q_net, model.q_net_target):
        for layer in noisy_layers(net):
            assert layer.values.shape == layer.nonzeros_sigma.shape
            th.testing.assert_close(layer.nonzeros_sigma.detach(), th.full_like(layer.values, 0.5 / layer.in_features**0.5))
    model.learn(20, reset_num_timesteps=False)


@pytest.mark.parametrize("name", ["sparse", "dense", "impala"])
def test_recycling_silent_units_does_not_change_what_noisy_layers_compute(name):
    model = make_model(name)
    layer = model.q_net.q_net[0]
    with th.no_grad():
        # Some units of the hidden layer never fire, whatever the noise.
        layer.bias[:5] = -100.0
    obs = model.replay_buffer.sample(500).observations
    outputs = []
    with th.no_grad():
        outputs.append(model.q_net(obs))
        report = reset_model_(model, "redo", seed=1, tau=0.0, batch_size=2000)["critic"]
        outputs.append(model.q_net(obs))
    assert report.recycled["q_net.0"] >= 5
    th.testing.assert_close(*outputs)
    assert not layer.bias[:5].any()
    fresh = 0.5 / layer.in_features**0.5
    th.testing.assert_close(layer.bias_sigma[:5].detach(), th.full((5,), fresh))
    following = model.q_net.q_net[2]
    for outgoing in [following] if hasattr(following, "bias") else [following.advantage, following.value]:
        for weights in ("weight", "weight_sigma") if isinstance(outgoing, nn.Linear) else ("nonzeros", "nonzeros_sigma"):
            dense = getattr(outgoing, weights).detach()
            if not isinstance(outgoing, nn.Linear):
                dense = outgoing.topology.scatter(dense)
            assert not dense[:, :5].any()
    state = model.policy.optimizer.state[layer.bias_sigma]
    assert not state["exp_avg"][:5].any()
    assert state["exp_avg"].any()


def test_resets_in_training():
    model = make_model("sparse", steps=0)
    model.learn(80, callback=ResetCallback(every_env_steps=30))
    assert all(p.isfinite().all() for p in model.policy.parameters())
