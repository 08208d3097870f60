"""What the networks are made of, and where their weights are zero."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_sparse.sparse import SparseConv2d, SparseLinear, sparsity_report
from sb3_sparse.streaming import (
    ObGD,
    StreamAC,
    StreamACCnnPolicy,
    StreamACPolicy,
    StreamQ,
    StreamQCnnPolicy,
    StreamQPolicy,
    StreamSARSA,
)
from sb3_sparse.streaming.learners import AutogradLearner, CompiledLearner
from sb3_sparse.streaming.networks import StreamNetwork, mlp_trunk, sparse_init_

WALKER = (spaces.Box(-np.inf, np.inf, (17,)), spaces.Box(-1, 1, (6,)))
CARTPOLE = (spaces.Box(-np.inf, np.inf, (4,)), spaces.Discrete(2))


def linear_layers(module):
    return [m for m in module.modules() if isinstance(m, (nn.Linear, SparseLinear, nn.Conv2d, SparseConv2d))]


def test_sizes_of_walker():
    policy = StreamACPolicy(*WALKER, time_limit=1000)
    assert sum(p.numel() for p in policy.actor.parameters()) == 20_492
    assert sum(p.numel() for p in policy.critic.parameters()) == 19_073
    assert [layer.out_features for layer in linear_layers(policy.actor)] == [128, 128, 6, 6]
    assert [layer.out_features for layer in linear_layers(policy.critic)] == [128, 128, 1]


def test_discrete_actions_get_small_networks():
    policy = StreamACPolicy(*CARTPOLE, time_limit=500)
    assert [(layer.in_features, layer.out_features) for layer in linear_layers(policy.actor)] == [(5, 32), (32, 32), (32, 2)]
    q_net = StreamQPolicy(*CARTPOLE, width_scale=2).q_net
    assert [(layer.in_features, layer.out_features) for layer in linear_layers(q_net)] == [(4, 64), (64, 64), (64, 2)]


@pytest.mark.parametrize(
    ("fan_in", "left"), [(5, 0), (9, 0), (10, 1), (12, 1), (18, 1), (28, 2), (106, 10), (128, 12), (512, 51), (1024, 102)]
)
def test_sparse_init_leaves_as_many_weights_of_each_unit(fan_in, left):
    th.manual_seed(0)
    layer = nn.Linear(fan_in, 40)
    sparse_init_(layer)
    assert ((layer.weight != 0).sum(dim=1) == left).all()
    assert layer.weight.abs().max() <= 1 / math.sqrt(fan_in)
    assert not layer.bias.any()
    if left > 1:
        # Positions differ from unit to unit.
        assert (layer.weight != 0).any(dim=0).sum() > left


def test_sparse_init_leaves_a_weight_behind_the_first_layer():
    """As published, two layers of up to nine inputs in a row begin as zeros: no gradient reaches either."""
    net = StreamNetwork(*mlp_trunk(5, [8, 9, 30]), {"q": 2})
    sparse_init_(net)
    assert [(layer.weight != 0).sum(dim=1).unique().tolist() for layer in linear_layers(net)] == [[0], [1], [1], [3]]
    sparse_init_(net, 1.0)
    assert [(layer.weight != 0).sum(dim=1).unique().tolist() for layer in linear_layers(net)] == [[0], [1], [1], [1]]


@pytest.mark.parametrize(
    ("algorithm", "env", "kwargs"),
    [
        (StreamQ, "CartPole-v1", {"width_scale": 0.25}),
        (StreamSARSA, "Acrobot-v1", {"width_scale": 0.25}),
        (StreamAC, "CartPole-v1", {"net_arch": [8, 8]}),
        (StreamAC, "Pendulum-v1", {"net_arch": [64, 8, 8]}),
        (StreamQ, "CartPole-v1", {"init_sparsity": 1.0}),
    ],
    ids=str,
)
def test_narrow_networks_learn(algorithm, env, kwargs):
    """Mistake of ours: only the bias of the head ever moved."""
    model = algorithm("MlpPolicy", env, seed=0, policy_kwargs=kwargs)
    before = {name: parameter.clone() for name, parameter in model.policy.named_parameters()}
    model.learn(600)
    assert not [name for name, parameter in model.policy.named_parameters() if th.equal(parameter, before[name])]


def test_sparse_init_of_a_convolution_counts_per_filter():
    layer = nn.Conv2d(4, 32, 8)
    sparse_init_(layer)
    assert ((layer.weight != 0).flatten(1).sum(dim=1) == 256 - math.ceil(0.9 * 256)).all()


def test_zeros_of_sparse_init_are_trained():
    policy = StreamACPolicy(*WALKER)
    learner = CompiledLearner(policy.critic, ObGD(policy.critic.parameters()))
    for x in np.random.default_rng(0).standard_normal((50, 17)).astype(np.float32):
        learner.learn(x, np.ones(1, dtype=np.float32), 0.5, False)
    assert all((layer.weight != 0).all() for layer in linear_layers(policy.critic))


def test_static_topology_is_erdos_renyi_over_a_uniform_start():
    th.manual_seed(3)
    policy = StreamACPolicy(*WALKER, time_limit=1000, sparsity=0.9)
    sparsities = [1 - getattr(layer, "density", 1.0) for layer in linear_layers(policy.actor)]
    np.testing.assert_allclose(sparsities, [0.809, 0.953, 0.473, 0.473], atol=2e-3)
    sparsities = [1 - getattr(layer, "density", 1.0) for layer in linear_layers(policy.critic)]
    np.testing.assert_allclose(sparsities, [0.724, 0.932, 0.0], atol=2e-3)
    hidden = linear_layers(policy.actor)[1]
    assert 0.9 < hidden.values.abs().max() * math.sqrt(128) <= 1.0
    assert (hidden.values != 0).all()
    assert not hidden.bias.any()
    rescaled = StreamACPolicy(*WALKER, sparsity=0.9, rescale=True)
    hidden = linear_layers(rescaled.actor)[1]
    assert 0.9 < hidden.values.abs().max() * math.sqrt(128 * hidden.density) <= 1.0


def test_mask_seed_fixes_the_topology_alone():
    def actor(torch_seed, mask_seed):
        th.manual_seed(torch_seed)
        return linear_layers(StreamACPolicy(*WALKER, sparsity=0.9, mask_seed=mask_seed).actor)[1]

    assert actor(1, 7).topology == actor(2, 7).topology
    assert actor(1, 7).topology != actor(1, 8).topology
    assert actor(1, None).topology == actor(1, None).topology
    assert actor(1, None).topology != actor(2, None).topology
    th.manual_seed(1)
    policy = StreamACPolicy(*WALKER, sparsity={"pi": 0.9, "vf": 0.9}, mask_seed=7)
    assert linear_layers(policy.actor)[1].topology != linear_layers(policy.critic)[1].topology


@pytest.mark.parametrize("learner_class", [AutogradLearner, CompiledLearner])
def test_what_is_pruned_has_no_trace_and_no_part_in_the_step_size(learner_class):
    """The twin is dense and masks its gradients; its bound sums over the living coordinates."""
    th.manual_seed(0)
    trunk, width = mlp_trunk(12, [32, 32])
    dense = StreamNetwork(trunk, width, {"mu": 3, "pre_std": 3})
    policy = StreamACPolicy(spaces.Box(-1, 1, (12,)), spaces.Box(-1, 1, (3,)), net_arch=[32, 32], sparsity=0.9)
    sparse = policy.actor
    masks = {}
    for ours, twin in zip(linear_layers(sparse), linear_layers(dense), strict=True):
        twin.weight.data.copy_(ours.weight)
        twin.bias.data.copy_(ours.bias)
        masks[twin.weight] = ours.topology.mask() if isinstance(ours, SparseLinear) else th.ones_like(ours.weight).bool()
    n_living = sum(int(mask.sum()) for mask in masks.values()) + 32 + 32 + 3 + 3
    optimizer = ObGD(sparse.parameters(), kappa=3.0)
    assert sum(state["trace"].numel() for state in optimizer.state.values()) == n_living

    learner = learner_class(sparse, optimizer)
    traces = {p: th.zeros_like(p) for p in dense.parameters()}
    rng = np.random.default_rng(0)
    for _ in range(30):
        x, direction = rng.standard_normal(12).astype(np.float32), rng.standard_normal(6).astype(np.float32)
        delta = rng.standard_normal()
        learner.learn(x, direction, delta, False)
        dense.zero_grad()
        (dense(th.from_numpy(x)) @ th.from_numpy(direction)).backward()
        for p, z in traces.items():
            z.mul_(0.99 * 0.8).add_(p.grad * masks.get(p, 1.0))
        l1 = sum(z.abs().sum().item() for z in traces.values())
        step_size = 1.0 / max(3.0 * max(abs(delta), 1.0) * l1, 1.0)
        assert learner.step_size == pytest.approx(step_size, rel=1e-5)
        for p, z in traces.items():
            p.data.add_(z, alpha=step_size * delta)
        for ours, twin in zip(linear_layers(sparse), linear_layers(dense), strict=True):
            th.testing.assert_close(ours.weight.data, twin.weight.data, rtol=0, atol=1e-6)


def test_asking_for_both_kinds_of_zeros_raises():
    with pytest.raises(ValueError, match=r"together with sparsity=0\.5"):
        StreamACPolicy(*WALKER, initialization="sparse_init", sparsity=0.5)
    StreamACPolicy(*WALKER, initialization="sparse_init", sparsity=0.0)
    StreamACPolicy(*WALKER, initialization="lecun_uniform", sparsity=0.5)
    assert (linear_layers(StreamACPolicy(*WALKER, initialization="lecun_uniform").actor)[1].weight != 0).all()
    one_sparse = StreamACPolicy(*WALKER, sparsity={"pi": 0.9, "vf": 0.0})
    assert (linear_layers(one_sparse.critic)[1].weight != 0).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(initialization="zeros"), "initialization='zeros'"),
        (dict(init_sparsity=1.5), "init_sparsity=1.5"),
        (dict(sparsity=1.0), "sparsity=1.0"),
        (dict(sparsity={"pi": 0.5}), "sparsity={'pi': 0.5}"),
        (dict(width_scale=0), "width_scale=0"),
        (dict(mask_seed=-1), "mask_seed=-1"),
        (dict(net_arch=[64, 0]), r"net_arch\[1\]=0: expected a positive whole number"),
        (dict(net_arch=[64], width_scale=2.0), "Give one or the other"),
        (dict(net_arch={"pi": [64], "qf": [64]}), r"expected a list, or one for each of \['pi', 'vf'\]"),
        (dict(sparsity_distribution="erk"), "distribution='erk': expected one of"),
    ],
    ids=str,
)
def test_bad_values_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        StreamACPolicy(*WALKER, **kwargs)


def test_observations_have_to_be_a_box():
    with pytest.raises(ValueError, match="FlattenObservation"):
        StreamQPolicy(spaces.Discrete(4), spaces.Discrete(2))
    with pytest.raises(ValueError, match="three dimensions"):
        StreamQCnnPolicy(*CARTPOLE)


def test_the_network_for_images_follows_their_size():
    atari = StreamQCnnPolicy(spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6)).q_net
    shapes = [tuple(layer.weight.shape) for layer in linear_layers(atari)]
    assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (256, 256), (6, 256)]
    for shape in [(10, 10, 7), (7, 10, 10), (10, 10, 10)]:
        policy = StreamQCnnPolicy(spaces.Box(0, 1, shape, bool), spaces.Discrete(6))
        shapes = [tuple(layer.weight.shape) for layer in linear_layers(policy.q_net)]
        channels = 10 if shape[-1] == shape[0] else 7
        assert shapes == [(16, channels, 3, 3), (128, 1024), (6, 128)]
        assert policy.features(np.zeros((2, *shape), dtype=bool)).shape == (2, channels, 10, 10)
    named = StreamQCnnPolicy(spaces.Box(0, 255, (3, 20, 20), np.uint8), spaces.Discrete(6), network="minatar")
    assert len(linear_layers(named.q_net)) == 3
    with pytest.raises(ValueError, match="too small"):
        StreamQCnnPolicy(spaces.Box(0, 255, (3, 20, 20), np.uint8), spaces.Discrete(6), network="atari")
    with pytest.raises(ValueError, match="network='nature'"):
        StreamQCnnPolicy(spaces.Box(0, 255, (3, 20, 20), np.uint8), spaces.Discrete(6), network="nature")


def test_sparse_networks_for_images():
    space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    policy = StreamACCnnPolicy(space, spaces.Discrete(6), sparsity=0.9, width_scale={"pi": 1, "vf": 2})
    assert any(isinstance(layer, SparseConv2d) for layer in linear_layers(policy.critic))
    assert linear_layers(policy.critic)[0].topology.shape[0] == 64
    assert sparsity_report(policy.actor).sparsity == pytest.approx(0.9, abs=1e-3)
