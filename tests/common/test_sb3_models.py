"""What models are made of: every algorithm by name, and that the parts are those the algorithm trains."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

from sb3_sparse.common.model_parts import HasModelParts, HasPlasticityObservations, NoKnownNetworks, check_networks
from sb3_sparse.common.model_report import trained_networks
from sb3_sparse.common.sb3_models import keeps_samples, model_parts
from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA
from tests.envs import SpaceEnv

BOTH = {"actor": "actor", "critic": "critic"}
WHOLE = {"actor": "", "critic": ""}
# Places, targets, whether there is a temperature, whether resets are possible.
MODELS = {
    SAC: (BOTH, ["critic"], True, True),
    TQC: (BOTH, ["critic"], True, True),
    CrossQ: (BOTH, [], True, True),
    TD3: (BOTH, ["actor", "critic"], False, True),
    DDPG: (BOTH, ["actor", "critic"], False, True),
    DQN: ({"critic": "q_net"}, ["critic"], False, True),
    QRDQN: ({"critic": "quantile_net"}, ["critic"], False, True),
    PPO: (WHOLE, [], False, True),
    A2C: (WHOLE, [], False, True),
    TRPO: (WHOLE, [], False, False),
    StreamAC: (BOTH, [], False, False),
    StreamQ: ({"critic": "q_net"}, [], False, False),
    StreamSARSA: ({"critic": "q_net"}, [], False, False),
}
DISCRETE = (DQN, QRDQN, StreamQ, StreamSARSA)


def make(algorithm, **kwargs):
    return algorithm("MlpPolicy", "CartPole-v1" if algorithm in DISCRETE else "Pendulum-v1", seed=0, **kwargs)


@pytest.mark.parametrize("algorithm", MODELS)
def test_parts(algorithm):
    places, targets, has_temperature, can_be_reset = MODELS[algorithm]
    model = make(algorithm)
    parts = model_parts(model)
    assert {name: network.place for name, network in parts.networks.items()} == places
    assert [name for name, network in parts.networks.items() if network.target is not None] == targets
    assert list(parts.others) == (["temperature"] if has_temperature else [])
    assert (parts.build_policy is not None) == can_be_reset
    for network in parts.networks.values():
        online = model.policy.get_submodule(network.place)
        names = network.parameter_names(online)
        trained = {id(p) for group in network.optimizer.param_groups for p in group["params"]}
        assert {id(dict(online.named_parameters())[name]) for name in names} <= trained
        assert {id(p) for p in network.module.parameters() if p.requires_grad} <= trained
        if network.place:
            assert network.module is online
            assert len(names) == len(list(online.parameters()))
        if network.target is not None:
            assert network.target.state_dict().keys() == online.state_dict().keys()
        assert all(chain for chain in network.chains())
    optimizers = {id(network.optimizer) for network in parts.networks.values()}
    assert len(optimizers) == (2 if places == BOTH else 1)


@pytest.mark.parametrize("algorithm", MODELS)
def test_networks_run_on_a_batch_and_draw_nothing(algorithm):
    model = make(algorithm)
    observations = th.rand(4, *model.observation_space.shape)
    if isinstance(model, HasPlasticityObservations):
        observations = th.as_tensor(model.policy.features(observations.numpy()))

    class Batch:
        actions = th.rand(4, 1)

    Batch.observations = observations
    state = th.get_rng_state()
    with th.no_grad():
        for network in model_parts(model).networks.values():
            network.forward(Batch)
    assert th.equal(th.get_rng_state(), state)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("shared", [True, False])
def test_what_two_networks_share_belongs_to_both(algorithm, shared):
    env = SpaceEnv(spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(3))
    model = algorithm("CnnPolicy", env, n_steps=64, policy_kwargs={"share_features_extractor": shared})
    actor, critic = (network.parameters for network in model_parts(model).networks.values())
    everything = {name for name, _ in model.policy.named_parameters(remove_duplicate=False)}
    assert actor | critic == everything
    extractor = ("features_extractor.", "pi_features_extractor.", "vf_features_extractor.")
    both = {name for name in everything if name.startswith(extractor if shared else extractor[0])}
    assert actor & critic == both


def test_a_policy_that_nobody_knows_is_named():
    for model, message in (
        (RecurrentPPO("MlpLstmPolicy", "CartPole-v1"), "recurrent"),
        (ARS("MlpPolicy", "Pendulum-v1"), "has no network that is known"),
    ):
        with pytest.raises(NoKnownNetworks, match=message):
            model_parts(model)
        assert trained_networks(model) == {"policy": model.policy}


def test_protocols_are_told_by_their_methods():
    stream, sac = make(StreamAC), make(SAC, buffer_size=10)
    assert isinstance(stream, HasModelParts)
    assert isinstance(stream, HasPlasticityObservations)
    assert not isinstance(sac, (HasModelParts, HasPlasticityObservations))
    assert [keeps_samples(model) for model in (stream, sac, make(PPO))] == [False, True, False]


def test_names_of_networks():
    assert check_networks(["critic", "encoder", "critic"]) == ["critic", "encoder"]
    for wrong, message in (("q_net", "goes by the name 'critic'"), ([], "expected a name"), (3, "expected a name")):
        with pytest.raises(ValueError, match=message):
            check_networks(wrong)
