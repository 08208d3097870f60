"""Resets of Stable-Baselines3 models. Several tests are named after a mistake that an earlier implementation made."""

import copy
import functools

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_sparse import SparseLinear, sparsify_
from sb3_sparse.networks import RunningNorm
from sb3_sparse.plasticity import ResetCallback, measure
from sb3_sparse.plasticity.resets.options import default_target
from sb3_sparse.plasticity.resets.sb3_model import fresh_policy, reset_model_
from sb3_sparse.streaming import StreamAC
from tests.envs import ReachEnv, SpaceEnv

CONTINUOUS = [SAC, TD3, DDPG, TQC, CrossQ]
ALGORITHMS = [*CONTINUOUS, DQN, QRDQN]
STRATEGIES = ["full", "last_layers", "redo", "shrink_perturb"]
POLICIES = ["SparseSimBaPolicy", "MlpPolicy"]


def make_model(algorithm, policy="SparseSimBaPolicy", env=None, steps=26, seed=0, policy_kwargs=None, **kwargs):
    env = env or (ReachEnv() if algorithm in CONTINUOUS else "CartPole-v1")
    if policy_kwargs is None:
        policy_kwargs = {"width_scale": 0.1, "sparsity": 0.8} if policy == "SparseSimBaPolicy" else {"net_arch": [16, 16]}
    kwargs = {"learning_starts": 20, "batch_size": 16, "buffer_size": 500, **kwargs}
    model = algorithm(policy, env, seed=seed, policy_kwargs={**policy_kwargs}, device="cpu", **kwargs)
    return model.learn(steps) if steps else model


def networks(model):
    """Name, online network, target network or None, optimizer."""
    for name in ("actor", "critic", "q_net", "quantile_net"):
        if (online := getattr(model.policy, name, None)) is not None:
            optimizer = online.optimizer if name in ("actor", "critic") else model.policy.optimizer
            yield name, online, getattr(model.policy, f"{name}_target", None), optimizer


def parameters(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(module, before):
    return {name for name, p in module.named_parameters() if not th.equal(p, before[name])}


def is_weight(name, parameter):
    """Drawn at random, unlike a bias or a norm."""
    return name.endswith("nonzeros") or parameter.ndim > 1


def topologies(module):
    return {name: layer.topology for name, layer in module.named_modules() if isinstance(layer, SparseLinear)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_survives_a_reset(algorithm, policy):
    """Mistakes (Plasticine): no parameter left in the optimizer; online network and target with different draws."""
    model = make_model(algorithm, policy, learning_rate=lambda left: 1e-3 * left)
    for strategy in STRATEGIES:
        check_what_survives(model, strategy)


def check_what_survives(model, strategy):
    objects = {name: id(p) for name, p in model.policy.named_parameters()}
    aliases = [id(getattr(model, name, None)) for name in ("actor", "critic", "q_net", "quantile_net", "critic_target")]
    groups = [[id(p) for g in optimizer.param_groups for p in g["params"]] for *_, optimizer in networks(model)]
    rates = [[g["lr"] for g in optimizer.param_groups] for *_, optimizer in networks(model)]
    masks, mode = topologies(model.policy), model.policy.training
    before = {name: (parameters(online), target and parameters(target)) for name, online, target, _ in networks(model)}
    buffer = model.replay_buffer.observations.copy()
    norms = {name: value.clone() for name, value in model.policy.named_buffers() if "obs_" in name}
    ent_coef = getattr(model, "log_ent_coef", None)
    ent_coef = None if ent_coef is None else ent_coef.detach().clone()
    reset_model_(model, strategy, seed=1, **({"tau": 0.5} if strategy == "redo" else {}))

    assert {name: id(p) for name, p in model.policy.named_parameters()} == objects
    assert aliases == [
        id(getattr(model, name, None)) for name in ("actor", "critic", "q_net", "quantile_net", "critic_target")
    ], "the model's shorthands still name the policy's networks"
    assert groups == [[id(p) for g in optimizer.param_groups for p in g["params"]] for *_, optimizer in networks(model)]
    assert rates == [[g["lr"] for g in optimizer.param_groups] for *_, optimizer in networks(model)]
    assert topologies(model.policy) == masks
    assert all(layer.values.numel() == layer.topology.nnz for layer in model.policy.modules() if hasattr(layer, "values"))
    assert model.policy.training == mode
    assert np.array_equal(model.replay_buffer.observations, buffer)
    assert all(th.equal(value, norms[name]) for name, value in model.policy.named_buffers() if "obs_" in name)
    assert ent_coef is None or th.equal(model.log_ent_coef, ent_coef)
    for name, online, target, optimizer in networks(model):
        touched = changed(online, before[name][0])
        assert touched
        for key, p in online.named_parameters():
            trained = {parameter for g in optimizer.param_groups for parameter in g["params"]}
            assert p in trained
            if strategy != "redo" and p.requires_grad:
                assert (p in optimizer.state) == (key not in touched) or before[name][0][key].eq(p).all()
        if target is not None:
            online_now = dict(online.named_parameters())
            if default_target(strategy) == "copy":
                assert changed(target, before[name][1]) <= touched
                assert all(th.equal(p, online_now[key]) for key, p in target.named_parameters() if key in touched)
            else:
                assert not changed(target, before[name][1])
    model.learn(5, reset_num_timesteps=False)
    assert all(p.isfinite().all() for p in model.policy.parameters())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_full_reset_is_a_model_that_was_just_built(algorithm, policy):
    model = make_model(algorithm, policy)
    before = parameters(model.policy)
    reset_model_(model, "full", seed=3)
    fresh = fresh_policy(model, 3)
    for name, p in model.policy.named_parameters():
        twin = dict(fresh.named_parameters()).get(name)
        if twin is not None and "nonzeros" not in name and "target" not in name:
            assert th.equal(p, twin)
        if is_weight(name, p):
            assert not th.equal(p, before[name])
    for _, online, target, optimizer in networks(model):
        assert not optimizer.state
        if target is not None:
            assert all(th.equal(a, b) for a, b in zip(online.parameters(), target.parameters(), strict=True))
            assert topologies(online) == topologies(target)


def test_dense_and_sparse_are_reset_to_the_same_weights():
    sparse, dense = (make_model(SAC, policy_kwargs={"width_scale": 0.1, "sparsity": s}, steps=0) for s in (0.8, 0.0))
    for model in (sparse, dense):
        reset_model_(model, seed=5)
    plain = dict(dense.policy.named_modules())
    for name, layer in sparse.policy.named_modules():
        if isinstance(layer, SparseLinear):
            assert th.equal(layer.weight, plain[name].weight * layer.topology.mask())


def test_the_initial_distribution_is_the_policys_own():
    dense = make_model(SAC, policy_kwargs={"width_scale": 0.5, "sparsity": 0.0}, steps=25)
    reset_model_(dense)
    for encoder in (dense.actor.latent_pi, dense.critic.qf0[0]):
        fc1 = encoder.blocks[0].fc1
        assert fc1.weight.std().item() == pytest.approx((2 / fc1.in_features) ** 0.5, rel=0.03)
        assert th.equal(encoder.norm.weight, th.ones_like(encoder.norm.weight))
    head = dense.actor.mu.weight
    assert th.allclose(head @ head.T, th.eye(2), atol=1e-5)
    ppo = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=16, seed=0).learn(64)
    reset_model_(ppo)
    assert ppo.policy.action_net.weight.norm().item() == pytest.approx(0.01 * 2**0.5, rel=1e-4)
    hidden = ppo.policy.mlp_extractor.policy_net[2].weight
    assert th.allclose(hidden @ hidden.T, 2 * th.eye(64), atol=1e-4)
    mlp = make_model(SAC, "MlpPolicy")
    reset_model_(mlp)
    bound = 1 / mlp.critic.qf0[2].in_features ** 0.5
    assert 0.95 * bound < mlp.critic.qf0[2].weight.abs().max() <= bound


def test_critics_stay_different_and_networks_apart():
    for policy in POLICIES:
        model = make_model(TD3, policy)
        reset_model_(model)
        first, second = (list(q.parameters()) for q in model.critic.q_networks)
        assert not any(th.equal(a, b) for a, b in zip(first, second, strict=True) if a.ndim == 2)
        own = [{id(p) for p in network.parameters()} for network in (model.actor, model.critic, model.critic_target)]
        assert not own[0] & own[1]
        assert not own[1] & own[2]


@pytest.mark.parametrize("strategy", ["full", "last_layers"])
def test_what_happens_to_targets(strategy):
    for target in ("copy", "fresh", "keep"):
        model = make_model(TD3)
        before = {name: parameters(network) for name, _, network, _ in networks(model)}
        reset_model_(model, strategy, target=target, seed=1)
        for name, online, network, _ in networks(model):
            last = {"full": "", "last_layers": {"actor": "mu.1.", "critic": ("qf0.1.", "qf1.1.")}[name]}[strategy]
            weights = {key for key, p in online.named_parameters() if is_weight(key, p) and key.startswith(last)}
            assert weights
            ours, theirs = dict(online.named_parameters()), dict(network.named_parameters())
            moved = changed(network, before[name])
            assert bool(moved) == (target != "keep")
            equal = {key for key in weights if th.equal(ours[key], theirs[key])}
            if target == "copy":
                assert equal == weights
            if target == "fresh":
                assert not equal
                assert weights <= moved
            assert topologies(online) == topologies(network)
        model.learn(5, reset_num_timesteps=False)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("target", "mask_seed"), [("copy", 7), ("fresh", None)])
def test_redrawing_changes_online_and_target_together(algorithm, target, mask_seed, tmp_path):
    model = make_model(algorithm, policy_kwargs={"width_scale": 0.1, "mask_seed": mask_seed})
    old, objects = topologies(model.policy), [id(p) for p in model.policy.parameters()]
    reset_model_(model, redraw_topology=True, target=target, seed=2)
    new = topologies(model.policy)
    assert [id(p) for p in model.policy.parameters()] == objects
    assert {name: t.nnz for name, t in new.items()} == {name: t.nnz for name, t in old.items()}
    # A layer that lacks a few weights may find the same positions again.
    assert all(new[name] != old[name] for name in old if new[name].numel - new[name].nnz > 20)
    for _, online, network, optimizer in networks(model):
        assert not optimizer.state
        if network is not None:
            assert all(topologies(network)[name] is t for name, t in topologies(online).items())
    dense = fresh_policy(model, 2)
    for name, layer in model.policy.named_modules():
        if isinstance(layer, SparseLinear) and "target" not in name:
            drawn = dict(dense.named_modules())[name].dense_draw
            assert th.equal(layer.weight, drawn * layer.topology.mask())
    model.learn(3, reset_num_timesteps=False)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    assert topologies(loaded.policy) == new
    obs = model.get_env().observation_space.sample()
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_redrawing_the_last_layers_alone():
    model = make_model(SAC)
    old = topologies(model.critic)
    reset_model_(model, "last_layers", networks=["critic"], n_layers=2, redraw_topology=True)
    differ = {name for name, t in topologies(model.critic).items() if t != old[name]}
    assert differ == {name for name in old if name.endswith(("blocks.1.fc2", "qf0.1", "qf1.1"))}
    assert topologies(model.critic) == topologies(model.critic_target)


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_one_network_alone(name):
    model = make_model(SAC)
    other = "critic" if name == "actor" else "actor"
    before = {n: parameters(getattr(model.policy, n)) for n in ("actor", "critic", "critic_target")}
    reset_model_(model, networks=[name])
    assert changed(getattr(model.policy, name), before[name])
    assert not changed(getattr(model.policy, other), before[other])
    assert bool(changed(model.policy.critic_target, before["critic_target"])) == (name == "critic")
    assert len(getattr(model.policy, other).optimizer.state) == len(before[other])
    assert not getattr(model.policy, name).optimizer.state


@pytest.mark.parametrize(("algorithm", "policy"), [(SAC, "SparseSimBaPolicy"), (SAC, "MlpPolicy"), (TQC, "MlpPolicy")])
def test_the_heads_are_the_last_layers(algorithm, policy):
    model = make_model(algorithm, policy)
    before = {name: parameters(online) for name, online, _, _ in networks(model)}
    reset_model_(model, "last_layers")
    assert changed(model.actor, before["actor"]) <= {
        f"{head}.{p}" for head in ("mu", "log_std") for p in ("weight", "nonzeros", "bias")
    }
    last = "1" if policy == "SparseSimBaPolicy" else "4"
    assert {name.rpartition(".")[0] for name in changed(model.critic, before["critic"])} == {
        f"qf{i}.{last}" for i in range(len(model.critic.q_networks))
    }


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_redo_finds_the_hidden_layers_and_what_reads_them(algorithm, policy):
    model = make_model(algorithm, policy)
    before = {name: parameters(online) for name, online, _, _ in networks(model)}
    rng = th.get_rng_state()
    reports = reset_model_(model, "redo", tau=0.9, seed=0)
    assert th.equal(rng, th.get_rng_state())
    assert set(reports) == {"critic"} if algorithm in (DQN, QRDQN) else {"actor", "critic"}
    for name, online, _, optimizer in networks(model):
        report = reports["actor" if name == "actor" else "critic"]
        n_critics = len(online.q_networks) if hasattr(online, "q_networks") else 1
        blocks = 2 if name != "actor" else 1
        # SB3's MLPs have two hidden layers, SimBa one in each block.
        assert len(report.units) == n_critics * (blocks if policy == "SparseSimBaPolicy" else 2)
        assert 0 < report.dormant_ratio < 1
        assert changed(online, before[name])
        assert set(optimizer.state) == set(online.parameters()), "moments lose entries, not tensors"
        heads = {key for key in changed(online, before[name]) if key.startswith(("mu.", "log_std."))}
        if hasattr(online, "log_std") and policy == "MlpPolicy":
            assert heads == {"mu.weight", "log_std.weight"}, "both heads read the last hidden layer"


def test_redo_needs_collected_data():
    with pytest.raises(ValueError, match="empty: collect first"):
        reset_model_(make_model(SAC, steps=0), "redo")


@pytest.mark.parametrize("ent_coef", ["auto", "auto_0.1"])
def test_the_temperature_by_option(ent_coef):
    model = make_model(SAC, ent_coef=ent_coef, learning_rate=1e-2)
    coefficient, initial = model.log_ent_coef, np.log(0.1 if "_" in ent_coef else 1.0)
    reset_model_(model)
    assert model.log_ent_coef.item() != pytest.approx(initial)
    assert model.ent_coef_optimizer.state
    reset_model_(model, include_temperature=True)
    assert model.log_ent_coef is coefficient
    assert model.log_ent_coef.item() == pytest.approx(initial)
    assert not model.ent_coef_optimizer.state
    assert model.ent_coef_optimizer.param_groups[0]["params"][0] is coefficient
    model.learn(5, reset_num_timesteps=False)
    assert model.log_ent_coef.item() != pytest.approx(initial)


@pytest.mark.parametrize("algorithm", [SAC, TD3])
@pytest.mark.parametrize("strategy", ["full", "shrink_perturb"])
def test_a_shared_features_extractor_belongs_to_the_actor(algorithm, strategy):
    kwargs = {"width_scale": 0.1, "share_features_extractor": True}
    space = spaces.Dict({"a": spaces.Box(0, 255, (36, 36, 1), np.uint8), "b": spaces.Box(-1, 1, (2,))})
    model = make_model(algorithm, env=SpaceEnv(space, spaces.Box(-1, 1, (2,))), policy_kwargs=kwargs, buffer_size=60)
    key = "features_extractor.extractors.a.cnn.0.weight"
    for networks_, is_reset in ((["critic"], False), (["actor"], True)):
        old = dict(model.actor.named_parameters())[key].detach().clone()
        reset_model_(model, strategy, networks=networks_, target="copy")
        weight = dict(model.actor.named_parameters())[key]
        assert th.equal(weight, old) != is_reset
        # TD3's critic lists it as well, and never trains it.
        assert (weight in model.actor.optimizer.state) != is_reset
        assert model.actor.features_extractor is model.critic.features_extractor
        # The critic that its target follows has it as well.
        assert th.equal(dict(model.critic_target.named_parameters())[key], weight) == is_reset
    others = parameters(model.critic_target)
    reset_model_(model, strategy, networks=["actor"], target="keep")
    assert not changed(model.critic_target, others)
    reset_model_(model, target="copy")
    weight = dict(model.actor.named_parameters())[key]
    assert th.equal(dict(model.critic_target.named_parameters())[key], weight)


class TwoHalves(th.nn.Module):
    """Hidden layers under names of their own."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (th.nn.Sequential(th.nn.Linear(3, 8), th.nn.Tanh()) for _ in range(2))
        self.latent_dim_pi = self.latent_dim_vf = 8

    def forward(self, features):
        return self.one(features), self.other(features)

    def forward_actor(self, features):
        return self.one(features)

    def forward_critic(self, features):
        return self.other(features)


class HalvesPolicy(ActorCriticPolicy):
    def _build_mlp_extractor(self):
        self.mlp_extractor = TwoHalves()


@pytest.mark.parametrize("strategy", ["full", "last_layers", "shrink_perturb"])
def test_hidden_layers_that_nobody_knows_the_owner_of_are_not_reset(strategy):
    model = PPO(HalvesPolicy, "Pendulum-v1", n_steps=16, batch_size=16, seed=0, device="cpu").learn(16)
    before = parameters(model.policy)
    with pytest.raises(
        TypeError, match=r"PPO cannot be reset: the place or the optimizer of its network 'actor'.*model_parts"
    ):
        reset_model_(model, strategy, networks=["actor"])
    assert not changed(model.policy, before)


class Given(BaseFeaturesExtractor):
    """Works with modules that it is given."""

    def __init__(self, observation_space, layers=()):
        super().__init__(observation_space, 8)
        self.layers = layers["all"][0] if isinstance(layers, dict) else layers()

    def forward(self, observations):
        return self.layers(observations)


def test_modules_that_have_weights_already_are_not_reset():
    """Mistake of ours: they were copied as they were trained, and that was taken for fresh weights."""
    trained = th.nn.Linear(4, 8)
    for given in ({"all": [trained]}, functools.partial(lambda layer: layer, trained)):
        kwargs = {"features_extractor_class": Given, "features_extractor_kwargs": {"layers": given}}
        model = make_model(DQN, policy="MlpPolicy", policy_kwargs=kwargs)
        before = parameters(model.policy)
        with pytest.raises(TypeError, match=r"DQN cannot be reset: policy_kwargs hold Linear\(\.\.\.\), a module that has"):
            reset_model_(model)
        with pytest.raises(TypeError, match="policy_kwargs hold Linear"):
            model.learn(5, callback=ResetCallback(at=[100]))
        assert not changed(model.policy, before)
        assert measure(model, 16, metrics=["parameter_norm"])


def test_an_image_encoder_can_be_kept():
    env = SpaceEnv(spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(3))
    model = make_model(DQN, env=env, buffer_size=60)
    before = parameters(model.q_net)
    reset_model_(model, "last_layers", n_layers=6)
    assert not {name for name in changed(model.q_net, before) if name.startswith("features_extractor")}
    assert len({name for name in changed(model.q_net, before) if "q_net" in name}) >= 6
    with pytest.raises(ValueError, match="n_layers=7: the network has 6"):
        reset_model_(model, "last_layers", n_layers=7)


def test_crossqs_batch_renormalisation_starts_anew():
    model = make_model(CrossQ, "MlpPolicy")
    statistics = {name: b for name, b in model.critic.named_buffers() if "ra_mean" in name}
    objects = [id(b) for b in statistics.values()]
    assert any(b.any() for b in statistics.values())
    reset_model_(model, networks=["critic"])
    assert not any(b.any() for b in statistics.values())
    assert objects == [id(b) for name, b in model.critic.named_buffers() if "ra_mean" in name]


def test_gsde_noise_is_drawn_anew():
    model = make_model(SAC, use_sde=True, policy_kwargs={"width_scale": 0.1})
    noise = model.actor.action_dist.exploration_mat.clone()
    reset_model_(model)
    assert not th.equal(model.actor.action_dist.exploration_mat, noise)
    model.learn(10, reset_num_timesteps=False)


@pytest.mark.parametrize("strategy", ["full", "last_layers", "shrink_perturb"])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_on_policy(algorithm, strategy):
    kwargs = {"n_steps": 16, "seed": 0} | ({"batch_size": 8} if algorithm is PPO else {})
    model = algorithm("MlpPolicy", "CartPole-v1", **kwargs).learn(32)
    objects, before = [id(p) for p in model.policy.parameters()], parameters(model.policy)
    reset_model_(model, strategy, networks=["critic"])
    touched = changed(model.policy, before)
    assert touched
    assert all(name.startswith(("mlp_extractor.value_net", "value_net")) for name in touched)
    assert {name for name, p in model.policy.named_parameters() if p not in model.policy.optimizer.state} == touched
    reset_model_(model, strategy)
    assert any(name.startswith("action_net") for name in changed(model.policy, before))
    assert [id(p) for p in model.policy.parameters()] == objects
    model.learn(32, reset_num_timesteps=False)
    with pytest.raises(TypeError, match="no replay buffer"):
        reset_model_(model, "redo")


def test_on_policy_shared_encoder_goes_with_both_networks_only():
    env = SpaceEnv(spaces.Box(0, 255, (36, 36, 1), np.uint8), spaces.Discrete(3))
    for share in (True, False):
        model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, policy_kwargs={"share_features_extractor": share})
        before = parameters(model.policy)
        reset_model_(model, networks=["actor"])
        touched = changed(model.policy, before)
        assert any("features_extractor" in name for name in touched) != share
        assert not any(name.startswith(("vf_features_extractor", "value_net")) for name in touched)
        reset_model_(model)
        assert any("features_extractor" in name for name in changed(model.policy, before))


def test_new_positions_for_one_network_of_two_in_a_module_leave_the_other_alone():
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=8, seed=0, policy_kwargs={"net_arch": [32, 32]})
    sparsify_(model.policy, 0.5, seed=1)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters())
    old, before = topologies(model.policy), parameters(model.policy)
    reset_model_(model, networks=["critic"], redraw_topology=True, seed=2)
    moved = {name for name, topology in topologies(model.policy).items() if topology != old[name]}
    critic = ("mlp_extractor.value_net", "value_net")
    assert moved == {name for name in old if name.startswith(critic)}
    assert {name for name in changed(model.policy, before) if name.endswith("nonzeros")} == {
        f"{name}.nonzeros" for name in moved
    }
    fresh = dict(fresh_policy(model, 2).named_modules())
    for name, layer in model.policy.named_modules():
        if name in moved:
            assert th.equal(layer.weight, fresh[name].weight * layer.topology.mask())


def test_a_streaming_algorithm_is_refused_in_its_own_words():
    model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0)
    with pytest.raises(TypeError, match="StreamAC cannot be reset: nothing says how its policy is built anew"):
        model.learn(10, callback=ResetCallback(every_env_steps=5))
    assert model.num_timesteps == 0


@pytest.mark.parametrize("algorithm", [ARS, TRPO])
def test_other_algorithms_are_refused(algorithm):
    model = algorithm("MlpPolicy", "Pendulum-v1")
    with pytest.raises(TypeError, match=rf"{algorithm.__name__} cannot be reset"):
        reset_model_(model)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"strategy": "soft"}, "strategy='soft': expected one of"),
        ({"target": "none"}, "target='none': expected one of"),
        ({"networks": ["q_net"]}, r"unknown network 'q_net' \(q_net goes by the name 'critic'\)"),
        ({"networks": 1}, "networks=1: expected a name, or a list of names"),
        ({"networks": []}, r"networks=\[\]: expected a name, or a list of names"),
        ({"strategy": "redo", "target": "fresh"}, "target='fresh' goes with"),
        ({"strategy": "redo", "redraw_topology": True}, "redraw_topology=True goes with"),
        ({"redraw_topology": True, "target": "keep"}, "redraw_topology=True with target='keep'"),
        ({"strategy": "redo", "include_temperature": True}, "include_temperature=True goes with"),
        ({"strategy": "redo", "tau": 2}, r"tau=2"),
        ({"strategy": "last_layers", "n_layers": 0}, "n_layers=0"),
        ({"strategy": "shrink_perturb", "shrink": -1}, "shrink=-1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    model = make_model(SAC)
    before = parameters(model.policy)
    with pytest.raises(ValueError, match=message):
        reset_model_(model, **kwargs)
    assert not changed(model.policy, before)


def test_what_a_model_does_not_have_is_named():
    model = make_model(DQN, steps=0)
    with pytest.raises(ValueError, match=r"DQN has no 'actor', only \['critic'\]"):
        reset_model_(model, networks=["actor"])
    with pytest.raises(ValueError, match="DQN has no learned temperature"):
        reset_model_(model, include_temperature=True)
    with pytest.raises(ValueError, match="SAC has no learned temperature"):
        reset_model_(make_model(SAC, steps=0, ent_coef=0.1), include_temperature=True)


def test_the_seed_decides_and_the_default_is_the_global_generator():
    def values(model, **kwargs):
        reset_model_(model, **kwargs)
        return th.cat([p.detach().flatten() for p in model.policy.parameters()])

    model = make_model(SAC)
    assert th.equal(values(model, seed=1), values(model, seed=1))
    assert not th.equal(values(model, seed=1), values(model, seed=2))
    th.manual_seed(0)
    first = values(model)
    assert not th.equal(first, values(model))
    th.manual_seed(0)
    assert th.equal(first, values(model))


def test_a_loaded_model_is_reset_with_its_own_topology(tmp_path):
    model = make_model(SAC, seed=3)
    model.save(tmp_path / "model")
    loaded = SAC.load(tmp_path / "model", env=model.get_env())
    loaded.set_random_seed(99)
    reset_model_(loaded)
    assert topologies(loaded.policy) == topologies(model.policy)
    loaded.learn(10, reset_num_timesteps=False)


def test_policy_kwargs_are_left_alone():
    kwargs = {"width_scale": 0.1, "sparsity": {"pi": 0.5, "qf": 0.9}, "optimizer_kwargs": {"weight_decay": 0.1}}
    model = make_model(SAC, policy_kwargs=kwargs)
    before = copy.deepcopy(model.policy_kwargs)
    reset_model_(model)
    assert model.policy_kwargs == before
    assert model.critic.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_sac_keeps_learning_after_a_reset():
    kwargs = {"net_arch": [32], "sparsity": 0.5, "n_critics": 1}
    model = make_model(SAC, steps=250, learning_starts=100, batch_size=32, learning_rate=3e-3, policy_kwargs=kwargs)

    def score():
        return evaluate_policy(model, ReachEnv(), n_eval_episodes=10, warn=False)[0]

    reset_model_(model, include_temperature=True, seed=0)
    after = score()
    model.learn(400, reset_num_timesteps=False)
    # The best possible is about -3.5, standing still about -25.
    assert after < -20
    assert score() > -12


def test_observation_statistics_do_not_move_while_units_are_scored():
    model = make_model(SAC)
    (norm,) = {m for m in model.policy.modules() if isinstance(m, RunningNorm)}
    before = {name: value.clone() for name, value in norm.named_buffers()}
    model.policy.set_training_mode(True)
    reset_model_(model, "redo")
    assert all(th.equal(value, before[name]) for name, value in norm.named_buffers())
    assert model.actor.training


def test_a_parameter_that_no_optimizer_knows_is_named():
    model = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]})
    model.critic.qf0[0] = th.nn.Linear(4, 8)
    with pytest.raises(ValueError, match=r"critic\.qf0\.0\.weight of SAC is in no optimizer"):
        reset_model_(model)
