"""Target networks, and layers that have several names: pruned as the network that they follow, however it is reached."""

import numpy as np
import pytest
import torch as th
from sb3_contrib import TQC
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_sparse import sparsify_, sparsify_by_masks_
from sb3_sparse.sparse import SparseConv2d, SparseLinear
from tests.envs import SpaceEnv
from tests.export.agents import BOX, DISCRETE, IMAGE, VECTOR

SMALL = {"buffer_size": 100, "learning_starts": 10, "batch_size": 8, "device": "cpu", "seed": 0}


def agent(algorithm, observations=IMAGE, share=True):
    policy = "CnnPolicy" if observations is IMAGE else "MlpPolicy"
    kwargs = {"policy_kwargs": {"share_features_extractor": share, "net_arch": [8], **_small(observations)}, **SMALL}
    return algorithm(policy, SpaceEnv(observations, BOX), **kwargs)


def _small(observations):
    return {"features_extractor_kwargs": {"features_dim": 16}} if observations is IMAGE else {}


def assert_same_topologies(online, target):
    pairs = list(zip(online.modules(), target.modules(), strict=True))
    assert [type(ours) for ours, _ in pairs] == [type(theirs) for _, theirs in pairs]
    sparse = [pair for pair in pairs if isinstance(pair[0], SparseLinear | SparseConv2d)]
    assert all(ours.topology == theirs.topology for ours, theirs in sparse)
    return len(sparse)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("algorithm", [SAC, TD3, TQC])
def test_an_extractor_that_networks_share_has_the_positions_of_its_target(algorithm, share):
    model = agent(algorithm, share=share)
    sparsify_(model.policy, 0.5)
    assert assert_same_topologies(model.critic, model.critic_target) >= 2
    with th.no_grad():
        for parameter in model.critic.parameters():
            parameter.mul_(1.5)
    polyak_update(model.critic.parameters(), model.critic_target.parameters(), 1.0)
    # SB3 fills the target's extractor from the actor's where they share it.
    observations, actions = th.rand(3, *IMAGE.shape), th.rand(3, 2)
    for ours, theirs in zip(model.critic(observations, actions), model.critic_target(observations, actions), strict=True):
        assert th.equal(ours, theirs)


def test_masks_of_a_shared_extractor_reach_its_target():
    model = agent(SAC)
    shape = model.critic.features_extractor.cnn[0].weight.shape
    mask = th.rand(shape) < 0.3
    # By the name that the critic has for it; the first one is the actor's.
    sparsify_by_masks_(model.policy, {"critic.features_extractor.cnn.0": mask})
    assert assert_same_topologies(model.critic, model.critic_target) == 1
    assert th.equal(model.actor.features_extractor.cnn[0].topology.mask(), mask)


@pytest.mark.parametrize("name", ["features_extractor", "pi_features_extractor", "vf_features_extractor"])
def test_masks_by_any_of_the_names_of_a_layer(name):
    kwargs = {"features_extractor_kwargs": {"features_dim": 16}}
    model = PPO("CnnPolicy", SpaceEnv(IMAGE, BOX), n_steps=8, batch_size=8, policy_kwargs=kwargs, device="cpu")
    layer = model.policy.features_extractor.cnn[0]
    mask = np.random.default_rng(0).random(layer.weight.shape) < 0.5
    sparsify_by_masks_(model.policy, {f"{name}.cnn.0.weight": mask})
    layers = [getattr(model.policy, each).cnn[0] for each in ("features_extractor", "pi_features_extractor")]
    assert isinstance(layers[0], SparseConv2d)
    assert layers[0] is layers[1] is model.policy.vf_features_extractor.cnn[0]
    assert np.array_equal(layers[0].topology.mask().numpy(), mask)


def test_two_names_of_one_layer_have_one_mask():
    model = PPO("CnnPolicy", SpaceEnv(IMAGE, BOX), n_steps=8, batch_size=8, device="cpu")
    mask = th.ones(model.policy.features_extractor.cnn[0].weight.shape)
    with pytest.raises(ValueError, match=r"two entries for the layer 'vf_features_extractor\.cnn\.0'"):
        sparsify_by_masks_(model.policy, {"features_extractor.cnn.0": mask, "vf_features_extractor.cnn.0": mask})


@pytest.mark.parametrize(
    "exclude",
    [("critic.qf0",), lambda name, layer: name.startswith("critic.qf0"), (name for name in ["critic.qf0"])],
    ids=["names", "function", "generator"],
)
def test_what_is_excluded_is_so_in_its_target(exclude):
    model = agent(SAC, VECTOR)
    sparsify_(model.policy, 0.5, exclude=exclude)
    assert all(type(layer) is not SparseLinear for layer in model.critic.qf0)
    assert assert_same_topologies(model.critic, model.critic_target) >= 1
    model.learn(20)


def test_what_is_excluded_of_a_q_network_is_so_in_its_target():
    model = DQN("MlpPolicy", SpaceEnv(VECTOR, DISCRETE), policy_kwargs={"net_arch": [8, 8]}, **SMALL)
    sparsify_(model.policy, 0.5, exclude=["q_net.q_net.2"])
    assert type(model.q_net_target.q_net[2]) is nn.Linear
    assert assert_same_topologies(model.q_net, model.q_net_target) == 2


def test_names_may_be_given_once():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    sparsify_(net, 0.5, exclude=filter(lambda name: name == "2", ["0", "2"]))
    assert [type(layer) for layer in net] == [SparseLinear, SparseLinear, nn.Linear]


def test_a_function_is_asked_by_names_that_there_are():
    """What is called a target and follows nothing is a layer like others."""
    net = nn.Module()
    net.trunk, net.speed_target = nn.Linear(8, 8), nn.Linear(8, 8)
    asked = []
    sparsify_(net, 0.5, exclude=lambda name, layer: asked.append(name) or name != "speed_target")
    assert set(asked) == {"trunk", "speed_target"}
    assert [type(net.trunk), type(net.speed_target)] == [nn.Linear, SparseLinear]
