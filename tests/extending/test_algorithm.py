"""Algorithms from outside of the package, made of public parts alone, as docs/extending/algorithm.md has them."""

import csv
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_sparse import SparseLinear, SparseSimBaPolicy
from sb3_sparse.common.model_parts import ModelParts, Network, runs_on_observations
from sb3_sparse.common.model_report import describe_model
from sb3_sparse.common.sb3_models import sb3_model_parts
from sb3_sparse.export import predict_module
from sb3_sparse.plasticity import PlasticityCallback, Probe, ResetCallback, measure, reset_model_, sb3_per_sample_losses
from tests.envs import ReachEnv


class Encoder(BaseFeaturesExtractor):
    def __init__(self, observation_space, features_dim=6):
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, features_dim), nn.ReLU())

    def forward(self, observations):
        return self.net(observations)


class EncodedSAC(SAC):
    """SAC with a ``train`` of its own, whose encoder is a network that can be looked at and reset."""

    def train(self, gradient_steps, batch_size=64):
        super().train(gradient_steps, batch_size)
        with th.no_grad():
            for parameter in self.critic.features_extractor.parameters():
                parameter.mul_(0.999)

    def model_parts(self):
        known, critic = sb3_model_parts(self), self.critic
        encoder = Network(
            critic.features_extractor,
            lambda batch: critic.extract_features(batch.observations, critic.features_extractor),
            place="critic.features_extractor",
            target=self.critic_target.features_extractor,
            optimizer=critic.optimizer,
            has_heads=False,
        )
        return replace(known, networks={**known.networks, "encoder": encoder})

    def per_sample_losses(self, network, batch):
        return sb3_per_sample_losses(self, "actor" if network == "actor" else "critic", batch)


def encoded(algorithm=EncodedSAC, **kwargs):
    policy_kwargs = dict(net_arch=[8], features_extractor_class=Encoder)
    settings = dict(learning_starts=20, batch_size=16, buffer_size=200, seed=0, policy_kwargs=policy_kwargs)
    return algorithm("MlpPolicy", ReachEnv(), device="cpu", **{**settings, **kwargs})


def test_the_dormant_ratio_of_the_encoder_is_logged(tmp_path):
    path = tmp_path / "p.csv"
    model = encoded()
    model.learn(60, callback=PlasticityCallback(20, 16, networks=["encoder"], csv_path=path))
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:2] == ["timesteps", "encoder_dormant_redo"]
    assert len(rows) == 3
    assert all(cell for row in rows for cell in row)
    encoder = Probe(model, 16).network("encoder")
    # Both layers count, also the last one, which is no head.
    assert list(encoder.activations.linear) == ["net.0", "net.2"]
    assert list(encoder.activations.activated) == ["net.0", "net.2"]
    features = model.critic.features_extractor(encoder.probe.batch.observations.float())
    assert th.equal(encoder.features[0], features)
    assert len(encoder.gradients) == 4
    critic = Probe(model, 16).network("critic")
    ours = [p for name, p in model.critic.named_parameters() if name.startswith("features_extractor")]
    assert all(map(th.equal, encoder.gradients, critic.gradients[: len(ours)]))
    units = th.cat([output.abs().mean(0) / output.abs().mean() for output in encoder.activations.activated.values()])
    assert measure(model, 16, "dormant_redo", "encoder") == {
        "encoder_dormant_redo": pytest.approx(float((units <= 0.025).double().mean()))
    }


def test_what_an_encoder_is_trained_on_has_to_be_said():
    """Not guessed: it might be the actor's."""

    class Silent(SAC):
        model_parts = EncodedSAC.model_parts

    model = encoded(Silent).learn(40)
    with pytest.warns(UserWarning, match=r"what Silent trains its encoder on is not known: .* Left out: gradient_norm\."):
        values = measure(model, 16, ["fau", "gradient_norm"], ["critic", "encoder"])
    assert list(values) == ["critic_fau", "critic_gradient_norm", "encoder_fau"]
    with pytest.raises(ValueError, match="what Silent trains its encoder on is not known"):
        _ = Probe(model, 16).network("encoder").gradients
    with pytest.raises(ValueError, match="network='encoder': expected one of"):
        sb3_per_sample_losses(model, "encoder", Probe(model, 16).batch)
    with pytest.raises(ValueError, match=r"TinyAlgorithm is none of SAC, TD3, .* and no subclass"):
        sb3_per_sample_losses(TinyAlgorithm("MlpPolicy", "CartPole-v1"), "critic", None)


def test_watching_the_encoder_changes_nothing(tmp_path):
    watched = encoded().learn(60, callback=PlasticityCallback(20, 16, "all", ["encoder", "critic"], csv_path=tmp_path / "p"))
    alone = encoded().learn(60)
    assert all(map(th.equal, watched.policy.state_dict().values(), alone.policy.state_dict().values()))


def test_a_network_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="SAC has no network encoder, it has: actor, critic"):
        encoded(SAC).learn(40, callback=PlasticityCallback(20, 16, networks=["critic", "encoder"]))
    with pytest.raises(ValueError, match=r"SAC has no 'encoder', only \['actor', 'critic'\]"):
        reset_model_(encoded(SAC), networks=["encoder"])


def test_a_critic_may_leave_its_encoder_out():
    class Apart(EncodedSAC):
        def model_parts(self):
            parts = super().model_parts()
            names = [name for name, _ in self.critic.named_parameters() if not name.startswith("features_extractor.")]
            return replace(parts, networks={**parts.networks, "critic": replace(parts.networks["critic"], parameters=names)})

    for algorithm, is_reset in ((EncodedSAC, True), (Apart, False)):
        model = encoded(algorithm).learn(30)
        before = model.critic.features_extractor.net[0].weight.detach().clone()
        head = model.critic.qf0[0].weight.detach().clone()
        reset_model_(model, networks=["critic"])
        assert th.equal(model.critic.features_extractor.net[0].weight, before) != is_reset
        assert not th.equal(model.critic.qf0[0].weight, head)


def test_the_encoder_alone_is_reset_with_its_target():
    model = encoded().learn(30)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    reset_model_(model, networks=["encoder"], seed=1)
    after = model.policy.state_dict()
    changed = {name for name in before if not th.equal(before[name], after[name])}
    places = ("critic.features_extractor.", "critic_target.features_extractor.")
    assert changed == {name for name in before if name.startswith(places)}
    state, parameters = model.critic.optimizer.state, dict(model.critic.named_parameters())
    assert {name for name, p in parameters.items() if p not in state} == {
        name for name in parameters if name.startswith("features_extractor.")
    }
    assert th.equal(after["critic.features_extractor.net.0.weight"], after["critic_target.features_extractor.net.0.weight"])
    model.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("strategy", ["full", "last_layers", "redo", "shrink_perturb"])
def test_all_networks_are_reset_as_often_as_one_likes(strategy):
    model = encoded()
    model.learn(
        60, callback=ResetCallback(every_env_steps=25, strategy=strategy, **({"batch_size": 16} if strategy == "redo" else {}))
    )
    assert model.reset_progress["count"] == 2


def test_it_is_described_with_the_encoder_inside_the_critic():
    tables = describe_model(encoded()).split("\n\n")
    assert [table.split("\n")[0] for table in tables] == ["actor", "critic"]
    assert "features_extractor.net.0" in tables[1]


class Policy(SparseSimBaPolicy):
    """Other defaults are all that it takes."""

    def __init__(self, *args, width_scale=0.1, sparsity=0.5, **kwargs):
        super().__init__(*args, width_scale=width_scale, sparsity=sparsity, **kwargs)


class OwnSAC(EncodedSAC):
    def train(self, gradient_steps, batch_size=64):
        SAC.train(self, gradient_steps, batch_size)

    def model_parts(self):
        return sb3_model_parts(self)


@pytest.mark.parametrize("policy", [Policy, "SparseSimBaPolicy"])
def test_our_policy_on_an_algorithm_of_ones_own(policy, tmp_path):
    kwargs = {} if policy is Policy else dict(width_scale=0.1, sparsity=0.5)
    model = OwnSAC(policy, ReachEnv(), learning_starts=20, batch_size=16, buffer_size=200, seed=0, policy_kwargs=kwargs)
    model.learn(40)
    assert sum(isinstance(layer, SparseLinear) for layer in model.critic.modules()) > 4
    assert measure(model, 16, "interference")
    reset_model_(model, redraw_topology=True, seed=2)
    observations = np.random.default_rng(0).uniform(-1, 1, (5, *model.observation_space.shape)).astype(np.float32)
    exported = predict_module(model)(th.as_tensor(observations))
    np.testing.assert_allclose(exported.detach().numpy(), model.predict(observations, deterministic=True)[0], atol=1e-5)
    model.save(tmp_path / "agent")
    loaded = OwnSAC.load(tmp_path / "agent")
    assert all(map(th.equal, loaded.policy.state_dict().values(), model.policy.state_dict().values()))


class Batch(NamedTuple):
    observations: th.Tensor
    actions: th.Tensor
    rewards: th.Tensor


class TinyPolicy(BasePolicy):
    """Expected rewards of the actions."""

    def __init__(self, observation_space, action_space, lr_schedule, width=8):
        super().__init__(observation_space, action_space)
        n_observations, n_actions = observation_space.shape[0], int(action_space.n)
        self.q_net = nn.Sequential(nn.Linear(n_observations, width), nn.ReLU(), nn.Linear(width, n_actions))
        self.optimizer = th.optim.Adam(self.q_net.parameters(), lr=lr_schedule(1))

    def _predict(self, observation, deterministic=False):
        return self.q_net(observation).argmax(dim=1)


class TinyAlgorithm(BaseAlgorithm):
    """A new algorithm, which keeps what it has seen in a list."""

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": TinyPolicy}
    rollout_length = 5

    def __init__(self, policy, env, learning_rate=1e-2, policy_kwargs=None, seed=None):
        super().__init__(policy, env, learning_rate, policy_kwargs, seed=seed, device="cpu")
        self.memory = []
        self._setup_model()

    def _setup_model(self):
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self._new_policy()

    def _new_policy(self):
        return self.policy_class(self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs)

    def learn(
        self, total_timesteps, callback=None, log_interval=1, reset_num_timesteps=True, progress_bar=False, tb_log_name=""
    ):
        total, callback = self._setup_learn(total_timesteps, callback, reset_num_timesteps, "run", progress_bar)
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total:
            callback.on_rollout_start()
            for _ in range(self.rollout_length):
                actions = np.array([self.action_space.sample()])
                observations = self._last_obs
                self._last_obs, rewards, _, _ = self.env.step(actions)
                self.memory.append((observations[0].copy(), actions, rewards))
                self.num_timesteps += 1
                callback.update_locals(locals())
                callback.on_step()
            callback.on_rollout_end()
            self._train()
        callback.on_training_end()
        return self

    def _train(self):
        self.policy.optimizer.zero_grad()
        self.per_sample_losses("critic", self.plasticity_batch(4)).mean().backward()
        self.policy.optimizer.step()

    # What the package asks for.

    def model_parts(self):
        q_net, optimizer = self.policy.q_net, self.policy.optimizer
        critic = Network(q_net, runs_on_observations(q_net), place="q_net", optimizer=optimizer)
        return ModelParts({"critic": critic}, build_policy=self._new_policy)

    def per_sample_losses(self, network, batch):
        return (self.policy.q_net(batch.observations).gather(1, batch.actions) - batch.rewards).flatten() ** 2

    def plasticity_batch(self, n_samples):
        if len(self.memory) < n_samples:
            return None
        chosen = [self.memory[i] for i in np.random.choice(len(self.memory), n_samples)]
        observations, actions, rewards = (th.as_tensor(np.stack(column)) for column in zip(*chosen, strict=True))
        return Batch(observations.float(), actions, rewards.float())


def test_a_new_algorithm_is_measured_reset_and_described(tmp_path):
    path = tmp_path / "p.csv"
    model = TinyAlgorithm("MlpPolicy", "CartPole-v1", seed=0)
    with pytest.raises(ValueError, match=r"TinyAlgorithm.plasticity_batch\(16\) has not as many yet"):
        measure(model, 16)
    resets = ResetCallback(every_env_steps=20, strategy="redo", batch_size=16, tau=0.9)
    model.learn(60, callback=[PlasticityCallback(20, 16, "all", csv_path=path), resets])
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert "critic_interference_mean" in header
    assert [row[0] for row in rows] == ["20", "40", "60"]
    assert all(cell for row in rows for cell in row)
    assert model.reset_progress["count"] == 2
    assert describe_model(model).startswith("q_net\n")
    before = [p.detach().clone() for p in model.policy.parameters()]
    reset_model_(model, seed=3)
    assert not any(map(th.equal, before[::2], list(model.policy.parameters())[::2]))
    assert not model.policy.optimizer.state


def test_training_of_a_new_algorithm_is_the_same_while_somebody_looks(tmp_path):
    watched, alone = (TinyAlgorithm("MlpPolicy", "CartPole-v1", seed=0) for _ in range(2))
    for model in (watched, alone):
        model.action_space.seed(1)
        look = PlasticityCallback(10, 8, "all", csv_path=tmp_path / "p.csv") if model is watched else None
        model.env.seed(0)
        model.set_random_seed(0)
        model.learn(40, callback=look)
    assert all(map(th.equal, watched.policy.state_dict().values(), alone.policy.state_dict().values()))


def test_what_is_missing_for_a_reset_is_named():
    class Unplaced(TinyAlgorithm):
        def model_parts(self):
            q_net = self.policy.q_net
            return ModelParts({"critic": Network(q_net, runs_on_observations(q_net))}, build_policy=self._new_policy)

    class Unbuilt(TinyAlgorithm):
        def model_parts(self):
            return replace(super().model_parts(), build_policy=None)

    for algorithm, message in (
        (Unplaced, "the place or the optimizer of its network 'critic'"),
        (Unbuilt, "nothing says how"),
    ):
        model = algorithm("MlpPolicy", "CartPole-v1", seed=0)
        with pytest.raises(TypeError, match=rf"{algorithm.__name__} cannot be reset: {message}"):
            reset_model_(model)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda model: {"optimizer": model.actor.optimizer}, "has no parameter at policy.critic.features_extractor that its"),
        (lambda model: {"target": model.critic_target}, "has a parameter 'net.0.bias' that is not in its target"),
        (lambda model: {"parameters": ["net.0.weigth"]}, "has a parameter 'net.0.weigth' that is not in policy.critic.feat"),
        (lambda model: {"place": "critic"}, None),
    ],
)
def test_a_network_that_is_described_wrongly_is_not_reset_in_part(mistake, message):
    class Mistaken(EncodedSAC):
        def model_parts(self):
            parts = super().model_parts()
            return replace(parts, networks={**parts.networks, "encoder": replace(parts.networks["encoder"], **mistake(self))})

    model = encoded(Mistaken)
    before = model.critic.features_extractor.net[0].weight.detach().clone()
    # Another place is found out by its target.
    with pytest.raises(ValueError, match=rf"Mistaken\.model_parts\(\): 'encoder' {message or 'has a parameter'}"):
        reset_model_(model, networks=["encoder"])
    assert th.equal(before, model.critic.features_extractor.net[0].weight)


def test_the_method_that_version_0_2_asked_for_is_refused():
    model = encoded(type("Old", (SAC,), {"plasticity_networks": lambda self: {}}))
    with pytest.raises(TypeError, match=r"Old\.plasticity_networks\(\) is not asked for any more: write model_parts\(\)"):
        measure(model)
