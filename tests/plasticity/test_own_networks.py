"""Networks that a user built himself: what is measured of them, and what of them is reset."""

import copy

import pytest
import torch as th
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.policies import ActorCriticPolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_sparse import sparsify_
from sb3_sparse.plasticity import PlasticityCallback, Probe, measure, record_activations, reset_model_
from tests.envs import ReachEnv

SMALL = {"learning_starts": 20, "batch_size": 16, "buffer_size": 200, "seed": 0}


class Entities(BaseFeaturesExtractor):
    """One layer for each number of an observation."""

    def __init__(self, observation_space):
        n = observation_space.shape[0]
        super().__init__(observation_space, 40 * n)
        self.layer = nn.Linear(1, 40)

    def forward(self, x):
        return self.layer(x[..., None]).relu().flatten(1)


def test_units_of_layers_for_sequences_are_in_their_last_dimension():
    """Mistake of ours: positions counted as units, and training ended where such a layer was pruned."""
    net, x = nn.Sequential(nn.Linear(4, 100), nn.ReLU(), nn.Flatten(1), nn.Linear(500, 1)), th.randn(32, 5, 4)
    nn.init.constant_(net[0].bias[:90], -1e4)
    seen = record_activations(net, lambda: net(x))
    assert seen.activated["0"].shape == seen.linear["0"].shape == seen.rectified["0"].shape == (32, 100, 5)
    assert th.equal(seen.activated["0"].movedim(1, -1), net[:2](x))
    assert seen.features[0].shape == (32, 500)
    model = PPO("MlpPolicy", ReachEnv(), n_steps=64, policy_kwargs={"features_extractor_class": Entities, "net_arch": [8]})
    nn.init.constant_(model.policy.features_extractor.layer.bias[:30], -1e4)
    model.learn(64)
    assert Probe(model, 64).network("actor").activations.activated["features_extractor.layer"].shape[1] == 40
    # Of 48 units, 30 never fire.
    assert measure(model, 64, ["dormant_redo"])["actor_dormant_redo"] == pytest.approx(30 / 48, abs=0.03)
    sparsify_(model.policy, 0.5)
    model.learn(64, callback=PlasticityCallback(n_samples=64, log_freq=32))


class Ensemble(nn.Module):
    """Two members of a linear layer."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.out_features = n_outputs
        self.weight = nn.Parameter(th.randn(2, n_inputs, n_outputs))

    def forward(self, x):
        return x @ self.weight


def test_each_member_of_an_ensemble_has_features_of_its_own():
    net, x = nn.Sequential(Ensemble(3, 16), nn.ReLU(), Ensemble(16, 1)), th.randn(32, 3)
    seen = record_activations(net, lambda: net(x), n_samples=32)
    assert seen.activated["0"].shape == (2, 16, 32)
    assert [features.shape for features in seen.features] == [(32, 16), (32, 16)]
    assert th.equal(th.stack(seen.features), net[:2](x))
    with pytest.raises(ValueError, match=r"features of shape \(2, 32, 16\), of 30 samples"):
        record_activations(net, lambda: net(x), n_samples=30)


class SharedTrunk(nn.Module):
    """A layer for actor and critic, and one for each of them."""

    def __init__(self, n_features):
        super().__init__()
        self.latent_dim_pi = self.latent_dim_vf = 8
        self.shared = nn.Sequential(nn.Linear(n_features, 64), nn.ReLU())
        self.scale = nn.Parameter(th.ones(64))
        self.policy_net = nn.Sequential(nn.Linear(64, 8), nn.ReLU())
        self.value_net = nn.Sequential(nn.Linear(64, 8), nn.ReLU())

    def forward(self, x):
        return self.forward_actor(x), self.forward_critic(x)

    def forward_actor(self, x):
        return self.policy_net(self.shared(x) * self.scale)

    def forward_critic(self, x):
        return self.value_net(self.shared(x) * self.scale)


class SharedTrunkPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = SharedTrunk(self.features_dim)


def test_a_trunk_that_actor_and_critic_share_is_measured_and_reset_with_both():
    """Mistake of ours: it was reset, and not measured."""
    model = PPO(SharedTrunkPolicy, "CartPole-v1", n_steps=128, seed=0).learn(128)
    extractor = model.policy.mlp_extractor
    own = [*extractor.shared.parameters(), extractor.scale]
    probe = Probe(model, 64)
    for name in ("actor", "critic"):
        parts = {id(parameter) for parameter in probe.network(name).module.parameters()}
        assert {id(parameter) for parameter in own} < parts
        assert next(iter(probe.network(name).activations.linear)) == "mlp_extractor.shared.0"
    nn.init.constant_(extractor.shared[0].bias, -1e4)
    found = measure(model, 64, ["dormant_redo", "parameter_norm"])
    assert min(found["actor_dormant_redo"], found["critic_dormant_redo"]) > 0.8
    assert min(found["actor_parameter_norm"], found["critic_parameter_norm"]) > 1e4
    reset_model_(model, "full")
    assert extractor.shared[0].bias.abs().max() < 10


class Dueling(QNetwork):
    """Two heads beside each other."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.q_net
        self.trunk = nn.Sequential(nn.Linear(self.features_dim, 32), nn.ReLU())
        self.value, self.advantage = nn.Linear(32, 1), nn.Linear(32, int(self.action_space.n))

    def forward(self, obs):
        hidden = self.trunk(self.extract_features(obs, self.features_extractor))
        return self.value(hidden) + self.advantage(hidden)


class DuelingPolicy(DQNPolicy):
    def make_q_net(self):
        return Dueling(**self._update_features_extractor(self.net_args, features_extractor=None)).to(self.device)


class TwoCritics(ContinuousCritic):
    """Under names of its own."""

    def __init__(self, observation_space, action_space, net_arch, features_extractor, features_dim, **kwargs):
        super().__init__(observation_space, action_space, net_arch, features_extractor, features_dim, **kwargs)
        del self.qf0, self.qf1, self.q_networks
        n_inputs = features_dim + action_space.shape[0]
        self.q1, self.q2 = (nn.Sequential(nn.Linear(n_inputs, 32), nn.ReLU(), nn.Linear(32, 1)) for _ in range(2))

    def forward(self, obs, actions):
        x = th.cat([self.extract_features(obs, self.features_extractor), actions], dim=1)
        return self.q1(x), self.q2(x)


class TwoCriticsPolicy(SACPolicy):
    def make_critic(self, features_extractor=None):
        return TwoCritics(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)


@pytest.mark.parametrize("strategy", ["last_layers", "redo"])
@pytest.mark.parametrize(
    ("algorithm", "policy", "env", "named"),
    [
        (DQN, DuelingPolicy, "CartPole-v1", "'advantage' with 32 inputs cannot follow 'value' with 1 outputs"),
        (SAC, TwoCriticsPolicy, "Pendulum-v1", "'q2.0' with 4 inputs cannot follow 'q1.2' with 1 outputs"),
    ],
)
def test_heads_beside_each_other_are_no_chain(algorithm, policy, env, named, strategy):
    """Mistake of ours: one of them was reset, and ReDo of dead units changed what the network computes."""
    model = algorithm(policy, env, **SMALL).learn(30)
    before = copy.deepcopy(model.policy.state_dict())
    with pytest.raises(ValueError, match=f"critic of {algorithm.__name__}: {named}"):
        reset_model_(model, strategy, networks=["critic"])
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    reset_model_(model, "full", networks=["critic"])
    assert measure(model, 16)["critic_srank"] > 0


@pytest.mark.parametrize("strategy", ["full", "last_layers", "redo", "shrink_perturb"])
@pytest.mark.parametrize("policy", ["MlpPolicy", "SparseSimBaPolicy"])
def test_what_is_frozen_stays(strategy, policy):
    """Mistake of ours: a layer that was trained elsewhere became a random one that could not learn."""
    sparse_kwargs = {"width_scale": 0.1, "depth_scale": 3, "sparsity": 0.5}
    kwargs = sparse_kwargs if policy == "SparseSimBaPolicy" else {"net_arch": [16, 16, 16]}
    model = SAC(policy, ReachEnv(), policy_kwargs=kwargs, **SMALL).learn(40)
    layers = [layer for layer in model.actor.modules() if hasattr(layer, "out_features")]
    sparse = [layer for layer in layers if hasattr(layer, "topology")]
    layers = sparse or layers
    frozen = [*layers[0].parameters(), *layers[-1].parameters()]
    for parameter in frozen:
        parameter.requires_grad_(False)
    values = [parameter.clone() for parameter in frozen]
    topologies = [layer.topology for layer in sparse]
    others = [parameter.clone() for parameter in model.actor.parameters() if parameter.requires_grad]
    options = {"redraw_topology": True} if strategy == "full" and topologies else {}
    options |= {"n_layers": 2} if strategy == "last_layers" else {"tau": 0.9, "batch_size": 32} if strategy == "redo" else {}
    reset_model_(model, strategy, networks=["actor"], **options)
    assert all(map(th.equal, frozen, values))
    # Of the layers whose positions are drawn anew, only those in between learn.
    assert [layer.topology is before for layer, before in zip(sparse, topologies, strict=True)] == [
        strategy != "full" or i in (0, len(sparse) - 1) for i in range(len(sparse))
    ]
    now = [parameter for parameter in model.actor.parameters() if parameter.requires_grad]
    assert not all(map(th.equal, now, others))
