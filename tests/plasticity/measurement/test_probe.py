"""The probe: the right losses, the right batch, the right networks, and no trace left."""

import copy
import random

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv
from torch import nn
from torch.nn.utils import prune

from sb3_sparse import SparseSimBaPolicy
from sb3_sparse.common.model_parts import ModelParts
from sb3_sparse.common.sb3_models import model_parts
from sb3_sparse.plasticity import METRICS, Network, Probe, feature_norm, measure, parameter_norm, srank
from sb3_sparse.plasticity.measurement.batches import ObservedBatch, sample_batch, undisturbed
from sb3_sparse.plasticity.measurement.losses import per_sample_losses
from sb3_sparse.plasticity.measurement.named_metrics import columns
from tests.envs import ReachEnv, SpaceEnv

SMALL = {"net_arch": [8, 8]}
DISCRETE = (spaces.Box(-1, 1, (3,)), spaces.Discrete(4))


def make(algorithm, policy="MlpPolicy", env=None, steps=40, policy_kwargs=SMALL, **kwargs):
    if env is None:
        env = SpaceEnv(*DISCRETE) if algorithm in (DQN, QRDQN) else ReachEnv()
    if algorithm in (PPO, TRPO, A2C, MaskablePPO):
        kwargs = {"n_steps": 40, **({"batch_size": 40} if algorithm is not A2C else {}), **kwargs}
    else:
        kwargs = {"learning_starts": 20, "batch_size": 16, "buffer_size": 200, **kwargs}
    model = algorithm(policy, env, seed=0, policy_kwargs=copy.deepcopy(policy_kwargs), device="cpu", **kwargs)
    return model.learn(steps)


@pytest.mark.parametrize(
    ("algorithm", "policy", "kwargs"),
    [
        (SAC, "MlpPolicy", {}),
        (SAC, "MlpPolicy", {"ent_coef": 0.3, "n_steps": 3}),
        (TD3, "MlpPolicy", {"policy_delay": 1, "target_policy_noise": 0.0}),
        (DDPG, "MlpPolicy", {}),
        (TQC, "MlpPolicy", {}),
        (CrossQ, "SparseSimBaPolicy", {"policy_delay": 1, "policy_kwargs": {**SMALL, "normalize_observations": False}}),
        (DQN, "MlpPolicy", {}),
        (QRDQN, "MlpPolicy", {}),
    ],
)
def test_mean_losses_are_those_that_the_algorithm_logs(algorithm, policy, kwargs, monkeypatch):
    model = make(algorithm, policy, learning_rate=0.0, **kwargs)
    for layer in model.policy.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.7)  # online and target networks that differ
    batch = sample_batch(model, 32)
    monkeypatch.setattr(model.replay_buffer, "sample", lambda *args, **kwargs: batch)
    monkeypatch.setattr(th.distributions.Normal, "rsample", lambda self, shape=(): self.loc)
    model.policy.set_training_mode(False)
    names = {"critic": "critic_loss", "actor": "actor_loss"} if hasattr(model, "actor") else {"critic": "loss"}
    losses = {network: per_sample_losses(model, network, batch) for network in names}
    model.train(1, 32)
    for network, name in names.items():
        assert losses[network].shape == (32,)
        assert float(losses[network].detach().mean()) == pytest.approx(model.logger.name_to_value[f"train/{name}"], rel=1e-5)


class Masked(SpaceEnv):
    """Forbids some actions, others in each step."""

    def action_masks(self):
        return np.arange(self.action_space.n) != self.t % self.action_space.n


ON_POLICY = [(PPO, True), (PPO, False), (A2C, True), (A2C, False), (MaskablePPO, True)]


@pytest.mark.parametrize(("algorithm", "discrete"), ON_POLICY)
def test_gradients_of_on_policy_losses_are_those_of_the_update(algorithm, discrete):
    kwargs = {} if algorithm is A2C else {"n_epochs": 1, "normalize_advantage": True}
    env = Masked(*DISCRETE) if algorithm is MaskablePPO else SpaceEnv(*DISCRETE) if discrete else ReachEnv()
    model = make(algorithm, env=env, learning_rate=0.0, ent_coef=0.05, vf_coef=1.0, max_grad_norm=1e9, **kwargs)
    probe = Probe(model, 40)
    for name in ("actor", "critic"):
        part = probe.network(name)
        with_gradient = [p for p in part.module.parameters() if p.grad is not None]
        assert len(part.gradients) == len(with_gradient) > 5
        for gradient, parameter in zip(part.gradients, with_gradient, strict=True):
            th.testing.assert_close(gradient, parameter.grad, rtol=1e-3, atol=1e-5)


def test_interference_and_gradients_agree_on_every_network():
    model = make(SAC, "SparseSimBaPolicy", policy_kwargs={"width_scale": 0.1, "n_critics": 2})
    probe = Probe(model, 16)
    for name, module in (("actor", model.actor), ("critic", model.critic)):
        part = probe.network(name)
        batch = probe.batch
        parameters = list(module.parameters())
        with undisturbed(model, 0):
            losses = per_sample_losses(model, name, batch)
            rows = []
            for loss in losses:
                gradients = th.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
                rows.append(th.cat([gradient.flatten() for gradient in gradients]))
        matrix = th.stack(rows)
        cosine = nn.functional.cosine_similarity(matrix[:, None], matrix[None], dim=2, eps=1e-30).double()
        th.testing.assert_close(part.interference.matrix, cosine, rtol=1e-4, atol=1e-5)
        flat = th.cat([gradient.flatten() for gradient in part.gradients])
        th.testing.assert_close(flat, matrix.mean(dim=0), rtol=1e-4, atol=1e-6)


def test_features_are_what_the_heads_see():
    model = make(SAC)
    probe = Probe(model, 16)
    batch = probe.batch
    critic = probe.network("critic")
    inputs = th.cat([batch.observations.float(), batch.actions], dim=1)
    assert [f.shape for f in critic.features] == [(16, 8), (16, 8)]
    for i, features in enumerate(critic.features):
        th.testing.assert_close(features, model.critic.q_networks[i][:-1](inputs))
    (features,) = probe.network("actor").features
    th.testing.assert_close(features, model.actor.latent_pi(batch.observations.float()))
    values = measure(model, 16, seed=0)
    assert values["critic_srank"] == np.mean([srank(f) for f in critic.features])
    assert values["critic_feature_norm"] == pytest.approx(np.mean([feature_norm(f) for f in critic.features]))
    assert values["critic_parameter_norm"] == parameter_norm(model.critic.parameters())
    assert list(values) == columns(list(METRICS), ["actor", "critic"])


def state_of(model):
    """Everything that training depends on, as comparable values."""
    state = {f"policy.{key}": value.clone() for key, value in model.policy.state_dict().items()}
    state |= {f"grad.{name}": None if p.grad is None else p.grad.clone() for name, p in model.policy.named_parameters()}
    state |= {f"requires.{name}": p.requires_grad for name, p in model.policy.named_parameters()}
    state |= {f"training.{name}": module.training for name, module in model.policy.named_modules()}
    state |= {"torch": th.get_rng_state(), "numpy": str(np.random.get_state()), "python": random.getstate()}
    state["actions"] = str(model.action_space.np_random.bit_generator.state)
    return state


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert th.equal(value, other[key]) if isinstance(value, th.Tensor) else value == other[key], key


@pytest.mark.parametrize(
    ("algorithm", "policy", "kwargs"),
    [
        (SAC, "SparseSimBaPolicy", {"policy_kwargs": {"width_scale": 0.1}}),
        (SAC, "MlpPolicy", {"use_sde": True}),
        (CrossQ, "MlpPolicy", {}),
        (QRDQN, "SparseSimBaPolicy", {"policy_kwargs": {"width_scale": 0.05}}),
        (PPO, "MlpPolicy", {"use_sde": True}),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_nothing_changes(algorithm, policy, kwargs, training):
    model = make(algorithm, policy, **kwargs)
    model.action_space.seed(0)
    model.policy.set_training_mode(training)
    before = state_of(model)
    if algorithm is PPO:
        buffer = {name: copy.deepcopy(value) for name, value in vars(model.rollout_buffer).items()}
    values = measure(model, 16)
    # PPO has tanh, and no ReLU that there could be a fraction of.
    without = {"actor_fau_relu", "critic_fau_relu"} if algorithm is PPO else set()
    assert {name for name, value in values.items() if not np.isfinite(value)} == without, values
    assert_equal_states(before, state_of(model))
    if algorithm is PPO:
        for name, value in vars(model.rollout_buffer).items():
            assert np.array_equal(value, buffer[name]) if isinstance(value, np.ndarray) else str(value) == str(buffer[name])
    assert measure(model, 16) == values
    if not kwargs.get("use_sde"):  # then it is not possible without a probe either
        copy.deepcopy(model.policy)  # nor where a module keeps a tensor with its graph


def test_a_generator_inside_the_buffer_is_put_back_also_after_an_error():
    model = make(SAC)
    generator = model.replay_buffer.generator = np.random.default_rng(3)
    state = str(generator.bit_generator.state)
    model.policy.set_training_mode(True)
    before = state_of(model)

    def fail():
        with undisturbed(model):
            generator.random(), np.random.random(), th.rand(1), random.random()
            assert not model.actor.training
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert str(generator.bit_generator.state) == state
    assert_equal_states(before, state_of(model))


@pytest.mark.parametrize("flattened", [False, True])
def test_a_rollout_batch_is_a_part_of_the_rollout(flattened):
    model = make(PPO, env=SpaceEnv(*DISCRETE))
    model.rollout_buffer.reset()
    shape = model.rollout_buffer.values.shape
    model.rollout_buffer.values = np.arange(40, dtype=np.float32).reshape(shape)
    model.rollout_buffer.returns = 2 * model.rollout_buffer.values
    model.rollout_buffer.observations = np.repeat(model.rollout_buffer.values[..., None], 3, axis=2)
    model.rollout_buffer.pos, model.rollout_buffer.full = 40, True
    if flattened:
        next(model.rollout_buffer.get(10))
    batch = sample_batch(model, 25, seed=1)
    assert len(set(batch.old_values.tolist())) == 25
    assert th.equal(batch.returns, 2 * batch.old_values)
    assert th.equal(batch.observations, batch.old_values[:, None].expand(-1, 3))
    assert not th.equal(batch.old_values, sample_batch(model, 25, seed=2).old_values)
    assert sample_batch(model, 41) is None


def test_names_of_networks():
    assert list(model_parts(make(DQN)).networks) == list(model_parts(make(QRDQN)).networks) == ["critic"]
    model = make(PPO)
    parts = {name: network.module for name, network in model_parts(model).networks.items()}
    assert next(name for name, _ in parts["actor"].named_parameters()) == "log_std"
    shared = {id(p) for p in parts["actor"].parameters()} & {id(p) for p in parts["critic"].parameters()}
    assert not shared
    assert sum(p.numel() for part in parts.values() for p in part.parameters()) == sum(
        p.numel() for p in model.policy.parameters()
    )
    with pytest.raises(ValueError, match="recurrent"):
        model_parts(RecurrentPPO("MlpLstmPolicy", "CartPole-v1"))
    with pytest.raises(ValueError, match="PPO has no network 'target', it has: actor, critic"):
        Probe(model, 16).network("target")


def test_a_batch_without_actions_and_one_sample_are_refused_by_name():
    model = make(SAC)
    with pytest.raises(ValueError, match="this batch has no actions"):
        measure(model, batch=ObservedBatch(th.zeros(4, model.observation_space.shape[0])), metrics=["srank"])
    with pytest.raises(ValueError, match="n_samples=1"):
        measure(model, 1)


def test_images_and_dictionaries():
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    env = SpaceEnv(spaces.Dict({"image": image, "vector": spaces.Box(-1, 1, (2,))}), spaces.Discrete(3))
    model = make(DQN, "SparseSimBaPolicy", env, policy_kwargs={"net_arch": [16], "sparsity": 0.5})
    values = measure(model, 16)
    assert all(np.isfinite(value) for value in values.values()), values
    seen = Probe(model, 16).network("critic").activations
    assert any("cnn" in name for name in seen.linear)
    model = make(PPO, "CnnPolicy", SpaceEnv(image, spaces.Discrete(3)))
    values = measure(model, 16)
    assert all(np.isfinite(value) for value in values.values()), values
    names = Probe(model, 16).network("actor").activations.linear
    assert [name.split(".")[0] for name in names][:4] == ["features_extractor"] * 4


def test_hindsight_replay_waits_for_the_end_of_an_episode():
    env = BitFlippingEnv(n_bits=16, continuous=True, max_steps=30)
    model = SAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, learning_starts=1000, policy_kwargs=dict(SMALL))
    model.learn(29)
    assert sample_batch(model, 8) is None
    model.learn(40, reset_num_timesteps=False)
    assert np.isfinite(measure(model, 8)["critic_srank"])


def test_a_saved_model_is_measured_on_a_batch_of_ones_own(tmp_path):
    model = make(SAC, "SparseSimBaPolicy", policy_kwargs={"width_scale": 0.1})
    batch = sample_batch(model, 16, seed=4)
    values = measure(model, batch=batch)
    model.save(tmp_path / "agent")
    assert measure(SAC.load(tmp_path / "agent", device="cpu"), batch=batch) == values


def test_observations_alone_are_enough_for_what_needs_no_loss():
    model = make(SAC)
    values = measure(model, batch=ObservedBatch(th.randn(8, 2), th.rand(8, 2)))
    assert list(values) == columns([name for name, metric in METRICS.items() if not metric.needs_losses], ["actor", "critic"])


def test_an_algorithm_may_bring_its_own_losses():
    class Own(SAC):
        def per_sample_losses(self, network, batch):
            actions = self.actor(batch.observations) if network == "actor" else batch.actions
            return self.critic(batch.observations, actions)[0].flatten()

    model = make(Own)
    # Also where there is no buffer.
    values = measure(model, batch=ObservedBatch(th.randn(8, 2), th.rand(8, 2)), metrics="gradient_norm")
    assert values.keys() == {"actor_gradient_norm", "critic_gradient_norm"}
    assert all(value > 0 for value in values.values())


def test_an_algorithm_may_name_its_own_networks():
    class Encoded(SAC):
        def model_parts(self):
            qf0 = self.critic.qf0
            critic = Network(qf0, lambda batch: qf0(th.cat([batch.observations, batch.actions], 1)))
            return ModelParts({"critic": critic})

    values = measure(make(Encoded), batch=ObservedBatch(th.randn(8, 2), th.rand(8, 2)), metrics=["parameter_norm", "srank"])
    assert list(values) == ["critic_parameter_norm", "critic_srank", "critic_srank_normalized"]


def test_what_cannot_work_is_named():
    model = make(SAC)
    for call, message in [
        (lambda: measure(model, 500), "n_samples=500: the replay buffer holds 40 transitions"),
        (lambda: measure(model, 16, metrics=["dormant"]), "unknown metric 'dormant' \\(name the convention"),
        (lambda: measure(model, 16, metrics=[]), r"metrics=\[\]: expected a name, or a list of names"),
        (lambda: measure(model, 16, networks=["q_net"]), "q_net goes by the name 'critic'"),
        (lambda: measure(make(DQN), 16, networks=["actor"]), "DQN has no network actor, it has: critic"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_a_network_without_hidden_layers_has_features_and_no_activations():
    model = make(SAC, SparseSimBaPolicy, policy_kwargs={"net_arch": []})
    values = measure(model, 16)
    assert values["critic_srank"] >= 1
    assert np.isnan([values["critic_dormant_redo"], values["critic_dormant_authors"], values["critic_fau"]]).all()


def test_the_parameter_norm_leaves_out_what_masks_hide():
    """Mistake of ours: masked critics had the norm of dense ones."""
    model = make(SAC)
    masked = 0
    for layer in model.critic.modules():
        if isinstance(layer, nn.Linear):
            prune.random_unstructured(layer, "weight", 0.9)
            masked += int((layer.weight_mask == 0).sum())
    measured = measure(model, 16, metrics=["parameter_norm"], networks=["critic"])["critic_parameter_norm"]
    for layer in model.critic.modules():
        if isinstance(layer, nn.Linear):
            prune.remove(layer, "weight")
    assert masked > 0
    assert measured == pytest.approx(parameter_norm(model.critic.parameters()), rel=1e-6)
