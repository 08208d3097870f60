"""Policies inside SB3's algorithms."""

import copy
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_sparse import (
    SparseLinear,
    SparseSimBaDQNPolicy,
    SparseSimBaPolicy,
    SparseSimBaQRDQNPolicy,
    sparsity_report,
    to_dense,
)
from sb3_sparse.networks import RunningNorm, SimBaEncoder
from sb3_sparse.simba.networks import SimBaContinuousCritic, SimBaSACActor
from sb3_sparse.simba.policies import POLICIES, POLICY_ALIAS
from tests.envs import ReachEnv, SpaceEnv

CONTINUOUS = [SAC, TD3, DDPG, TQC, CrossQ]
DISCRETE = [DQN, QRDQN]
ALGORITHMS = CONTINUOUS + DISCRETE
SMALL = {"width_scale": 0.1}


def make_model(algorithm, sparsity=0.8, seed=0, env=None, **policy_kwargs):
    env = env or (ReachEnv() if algorithm in CONTINUOUS else "CartPole-v1")
    return algorithm(
        POLICY_ALIAS,
        env,
        learning_starts=20,
        batch_size=32,
        buffer_size=1000,
        seed=seed,
        policy_kwargs={**SMALL, "sparsity": sparsity, **policy_kwargs},
        device="cpu",
    )


def networks(model):
    """Pairs of online and target networks, the target None where there is none."""
    policy = model.policy
    for name in ("actor", "critic", "q_net", "quantile_net"):
        if hasattr(policy, name):
            yield getattr(policy, name), getattr(policy, f"{name}_target", None)


def sparse_layers(network):
    return {name: layer for name, layer in network.named_modules() if isinstance(layer, SparseLinear)}


def assert_targets_share_the_topology(model):
    for online, target in networks(model):
        layers = sparse_layers(online)
        assert layers
        for name, layer in sparse_layers(target).items() if target is not None else []:
            assert layer.topology is layers[name].topology


def predictions(model, n=5):
    env = model.get_env()
    obs = np.stack([env.observation_space.sample() for _ in range(n)]) if env else None
    return obs, model.predict(obs, deterministic=True)[0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_online_and_target_share_the_topology_through_everything(algorithm, tmp_path):
    model = make_model(algorithm)
    assert_targets_share_the_topology(model)
    model.learn(60)
    assert_targets_share_the_topology(model)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=model.get_env())
    assert_targets_share_the_topology(loaded)
    other = make_model(algorithm, seed=1)
    topologies = [layer.topology for layer in sparse_layers(other.policy).values()]
    other.set_parameters(model.get_parameters())
    assert_targets_share_the_topology(other)
    assert topologies != [layer.topology for layer in sparse_layers(other.policy).values()]
    clone = copy.deepcopy(model.policy)
    for ours, theirs in zip(sparse_layers(model.policy).values(), sparse_layers(clone).values(), strict=True):
        assert ours.topology is theirs.topology
    loaded.learn(40)
    assert_targets_share_the_topology(loaded)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_saved_agent_predicts_bit_equally(algorithm, tmp_path):
    model = make_model(algorithm).learn(60)
    obs, actions = predictions(model)
    model.save(tmp_path / "model")
    assert np.array_equal(algorithm.load(tmp_path / "model").predict(obs, deterministic=True)[0], actions)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy")
    assert np.array_equal(policy.predict(obs, deterministic=True)[0], actions)
    online, _ = next(networks(model))
    online.save(tmp_path / "network")
    network = type(online).load(tmp_path / "network")
    assert network.obs_norm.norms[0].obs_count == model.policy.obs_norm.norms[0].obs_count
    with th.no_grad():
        batch = th.as_tensor(obs).float()
        assert th.equal(network._predict(batch, deterministic=True), online._predict(batch, deterministic=True))


def test_a_saved_agent_predicts_bit_equally_in_a_new_process(tmp_path):
    model = make_model(SAC).learn(60)
    obs, actions = predictions(model)
    model.save(tmp_path / "model")
    np.save(tmp_path / "obs.npy", obs)
    code = (
        "import sys, numpy as np; from stable_baselines3 import SAC; folder = sys.argv[1];"
        "model = SAC.load(folder + '/model');"
        "np.save(folder + '/actions.npy', model.predict(np.load(folder + '/obs.npy'), deterministic=True)[0])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert np.array_equal(np.load(tmp_path / "actions.npy"), actions)


@pytest.mark.parametrize("algorithm", [SAC, TD3, DQN])
def test_the_same_seed_gives_the_same_run(algorithm):
    def run(seed):
        return th.cat([p.flatten() for p in make_model(algorithm, seed=seed).learn(60).policy.parameters()]).detach()

    first = run(0)
    assert th.equal(first, run(0))
    assert not th.equal(first, run(1))


def test_sparse_and_dense_start_from_the_same_weights():
    sparse, dense = make_model(SAC, sparsity=0.8), make_model(SAC, sparsity=0)
    assert not sparse_layers(dense.policy)
    plain = dict(dense.policy.named_modules())
    for name, layer in sparse_layers(sparse.policy).items():
        assert th.equal(layer.weight, plain[name].weight * layer.topology.mask())


def test_mask_seed_fixes_the_masks_alone():
    first, second = (make_model(SAC, seed=seed, mask_seed=7) for seed in (0, 1))
    masks = [[layer.topology for layer in sparse_layers(model.policy).values()] for model in (first, second)]
    assert masks[0] == masks[1]
    values = [next(iter(sparse_layers(model.policy).values())).values for model in (first, second)]
    assert not th.equal(*values)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_overall_sparsity_is_met_per_network(algorithm):
    for online, _ in networks(make_model(algorithm, sparsity=0.9, width_scale=0.5)):
        assert sparsity_report(online).sparsity == pytest.approx(0.9, abs=1e-3)


def test_sparsity_for_each_network():
    policy = make_model(SAC, sparsity={"pi": 0.0, "qf": 0.9}).policy
    assert not sparse_layers(policy.actor)
    assert sparsity_report(policy.critic).sparsity == pytest.approx(0.9, abs=2e-3)


def test_the_default_network_is_the_documented_one():
    policy = SAC(POLICY_ALIAS, ReachEnv(), buffer_size=1).policy
    assert (policy.actor.net_arch, policy.critic.net_arch) == ([256], [1024, 1024])
    assert sparsity_report(policy.actor).sparsity == pytest.approx(0.8, abs=1e-4)
    assert type(policy.critic.optimizer) is th.optim.AdamW
    assert policy.critic.optimizer.defaults["weight_decay"] == 0.01
    assert policy.critic.optimizer.defaults["fused"] is True


def test_net_arch_instead_of_scales():
    model = SAC(POLICY_ALIAS, ReachEnv(), policy_kwargs={"net_arch": {"pi": [16], "qf": [24, 24, 24]}}, buffer_size=100)
    assert len(model.policy.actor.latent_pi.blocks) == 1
    assert model.policy.actor.mu.in_features == 16
    assert len(model.policy.critic.qf0[0].blocks) == 3
    assert DQN(POLICY_ALIAS, "CartPole-v1", policy_kwargs={"net_arch": [8, 8]}).policy.q_net.net_arch == [8, 8]


@pytest.mark.parametrize("algorithm", [*DISCRETE, TQC, CrossQ, DDPG])
def test_optimizer_is_adamw_unless_named(algorithm):
    model = make_model(algorithm)
    optimizer = model.policy.optimizer if algorithm in DISCRETE else model.policy.critic.optimizer
    assert type(optimizer) is th.optim.AdamW
    assert optimizer.defaults["weight_decay"] == 0.01
    assert optimizer.defaults["betas"] == ((0.5, 0.999) if algorithm is CrossQ else (0.9, 0.999))
    model = make_model(algorithm, optimizer_class=th.optim.Adam, optimizer_kwargs={"eps": 1e-3, "betas": (0.9, 0.99)})
    optimizer = model.policy.optimizer if algorithm in DISCRETE else model.policy.critic.optimizer
    assert type(optimizer) is th.optim.Adam
    assert optimizer.defaults["eps"] == 1e-3


def test_optimizer_kwargs_without_a_class_reach_adamw():
    model = make_model(SAC, optimizer_kwargs={"weight_decay": 0.5})
    assert model.policy.actor.optimizer.defaults["weight_decay"] == 0.5
    assert make_model(SAC, optimizer_kwargs={"foreach": True}).policy.actor.optimizer.defaults["fused"] is False


@pytest.mark.parametrize(
    ("observation_space", "extractor", "n_norms"),
    [
        (spaces.Box(-1, 1, (3,)), FlattenExtractor, 1),
        (spaces.Box(-1, 1, (3, 2), np.float64), FlattenExtractor, 1),
        (spaces.Box(0, 255, (36, 36, 1), np.uint8), NatureCNN, 0),
        (spaces.Box(0, 255, (7, 7, 3), np.uint8), FlattenExtractor, 0),
        (spaces.Discrete(4), FlattenExtractor, 0),
        (spaces.MultiDiscrete([3, 2]), FlattenExtractor, 0),
        (spaces.MultiBinary(5), FlattenExtractor, 0),
        (
            spaces.Dict({"a": spaces.Box(-5, 5, (3,)), "c": spaces.Discrete(2), "v": spaces.Box(0, 1, (2,))}),
            CombinedExtractor,
            2,
        ),
    ],
)
@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_every_observation_space(algorithm, observation_space, extractor, n_norms, tmp_path):
    action_space = spaces.Box(-1, 1, (2,)) if algorithm is SAC else spaces.Discrete(3)
    model = make_model(algorithm, env=SpaceEnv(observation_space, action_space)).learn(60)
    assert type(next(networks(model))[0].features_extractor) is extractor
    norms = model.policy.obs_norm.norms
    assert len(norms) == n_norms
    assert all(norm.obs_count > 0 for norm in norms)
    model.save(tmp_path / "model")
    obs = observation_space.sample()
    assert np.array_equal(
        algorithm.load(tmp_path / "model").predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0]
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_statistics_move_once_per_update_and_nowhere_else(algorithm):
    model = make_model(algorithm)
    (norm,) = model.policy.obs_norm.norms
    model.learn(20)
    assert norm.obs_count == 0, "not while acting"
    model.learn(40, reset_num_timesteps=False)
    updates = norm.obs_count.item()
    assert updates == model._n_updates > 0
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    evaluate_policy(model, model.get_env(), n_eval_episodes=2, warn=False)
    model.predict(model.get_env().reset())
    assert all(th.equal(before[name], value) for name, value in norm.state_dict().items())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_norm_is_shared_by_all_networks(algorithm, tmp_path):
    model = make_model(algorithm).learn(40)
    model.save(tmp_path / "model")
    for candidate in (model, algorithm.load(tmp_path / "model")):
        assert len({id(m) for m in candidate.policy.modules() if isinstance(m, RunningNorm)}) == 1
    clone = copy.deepcopy(model.policy)
    assert len({id(m) for m in clone.modules() if isinstance(m, RunningNorm)}) == 1


def test_statistics_are_those_of_everything_collected():
    model = make_model(SAC, env=ReachEnv(mean=100.0, scale=0.01)).learn(400)
    collected = model.replay_buffer.observations[: model.replay_buffer.size(), 0]
    (norm,) = model.policy.obs_norm.norms
    # Batches of 32 over a growing buffer: the estimate lags a little behind.
    assert np.abs(norm.obs_mean.numpy() - collected.mean(0)).max() < 0.25 * collected.std(0).min()
    assert norm.obs_var.sqrt().numpy() == pytest.approx(collected.std(0), rel=0.2)


@pytest.mark.full
def test_learns_as_well_from_badly_scaled_observations():
    def final_return(**env_kwargs):
        env = ReachEnv(**env_kwargs)
        model = SAC(
            POLICY_ALIAS,
            env,
            learning_rate=2e-3,
            learning_starts=100,
            batch_size=64,
            seed=0,
            policy_kwargs={"width_scale": 0.125, "sparsity": 0.5, "n_critics": 1},
        ).learn(1500)
        return evaluate_policy(model, ReachEnv(**env_kwargs), n_eval_episodes=20, warn=False)[0]

    plain, shifted = final_return(), final_return(mean=100.0, scale=0.01)
    untrained = evaluate_policy(make_model(SAC), ReachEnv(), n_eval_episodes=20, warn=False)[0]
    # The best possible is about -3.5, standing still about -25.
    assert plain > -6 > untrained
    assert shifted > -6


def test_vec_normalize_instead():
    env = VecNormalize(DummyVecEnv([ReachEnv]), norm_reward=False)
    model = make_model(SAC, env=env, normalize_observations=False).learn(60)
    assert model.policy.obs_norm is None
    assert not any("obs_mean" in name for name in model.policy.state_dict())


@pytest.mark.parametrize("algorithm", CONTINUOUS)
def test_the_actors_loss_leaves_no_gradient_in_the_critic(algorithm):
    policy = make_model(algorithm).policy
    policy.set_training_mode(True)
    obs = th.randn(8, 2)
    actions = policy.actor(obs)
    sum(values.sum() for values in policy.critic(obs, actions)).backward()
    assert all(p.grad is None for p in policy.critic.parameters())
    assert all(p.requires_grad for p in policy.critic.parameters())
    assert any(p.grad is not None and p.grad.any() for p in policy.actor.parameters())
    sum(values.sum() for values in policy.critic(obs, actions.detach())).backward()
    assert all(p.grad is not None for p in policy.critic.parameters())


@pytest.mark.parametrize("algorithm", CONTINUOUS)
def test_a_pass_of_the_actors_loss_leaves_the_critics_parameters_as_they_were(algorithm):
    critic = make_model(algorithm).policy.critic
    frozen = next(critic.parameters()).requires_grad_(False)
    wanted = [p.requires_grad for p in critic.parameters()]
    obs, actions = th.randn(8, 2), th.rand(8, 2, requires_grad=True)
    calls = [critic] + ([critic.q1_forward] if hasattr(critic, "q1_forward") else [])
    for call in calls:
        values = call(obs, actions)
        assert [p.requires_grad for p in critic.parameters()] == wanted
        (gradient,) = th.autograd.grad(sum(value.sum() for value in values), actions)
        assert gradient.abs().sum() > 0
        for interruption in (RuntimeError, KeyboardInterrupt):

            def interrupt(*_, error=interruption):
                raise error

            hook = next(module for module in critic.modules() if isinstance(module, SimBaEncoder)).register_forward_hook(
                interrupt
            )
            with pytest.raises(interruption):
                call(obs, actions)
            hook.remove()
            assert [p.requires_grad for p in critic.parameters()] == wanted
    assert not frozen.requires_grad


def test_the_actors_gradient_is_that_of_the_stock_critic():
    policy = make_model(SAC).policy
    obs, actions = th.randn(8, 2), th.rand(8, 2, requires_grad=True)
    (ours,) = th.autograd.grad(policy.critic(obs, actions)[0].sum(), actions)
    plain = super(SimBaContinuousCritic, policy.critic)
    features = plain.extract_features(obs, policy.critic.features_extractor)
    (stock,) = th.autograd.grad(policy.critic.qf0(th.cat([features, actions], 1)).sum(), actions)
    assert th.allclose(ours, stock, atol=1e-6)


def test_log_std_is_squashed_as_in_simba_or_clipped_as_in_sb3():
    for squash in (True, False):
        actor = make_model(SAC, squash_log_std=squash).policy.actor
        obs = th.randn(64, 2) * 50
        mean, log_std, _ = actor.get_action_dist_params(obs)
        latent = actor.latent_pi(actor.extract_features(obs, actor.features_extractor))
        raw = actor.log_std(latent)
        expected = -10 + 6 * (1 + raw.tanh()) if squash else raw.clamp(-20, 2)
        assert th.allclose(log_std, expected)
        assert th.allclose(mean, actor.mu(latent))


def test_gsde_works(tmp_path):
    model = SAC(POLICY_ALIAS, ReachEnv(), use_sde=True, learning_starts=20, policy_kwargs=dict(SMALL), batch_size=16).learn(60)
    model.save(tmp_path / "model")
    SAC.load(tmp_path / "model", env=model.get_env()).learn(40)


def test_policy_kwargs_of_the_caller_are_not_changed_by_us():
    kwargs = {"sparsity": {"pi": 0.5, "qf": 0.9}, "net_arch": {"pi": [8], "qf": [8]}, "optimizer_kwargs": {"eps": 1e-5}}
    given = copy.deepcopy(kwargs)
    SparseSimBaPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, **kwargs)
    assert kwargs == given


@pytest.mark.parametrize("algorithm", [SAC, QRDQN])
def test_constructor_parameters_rebuild_the_policy(algorithm):
    policy = make_model(algorithm, sparsity=0.7, sparsity_distribution="uniform", rescale=True, mask_seed=3).policy
    data = policy._get_constructor_parameters()
    twin = type(policy)(**data)
    assert twin._get_constructor_parameters().keys() == data.keys()
    for name in ("sparsity", "width_scale", "sparsity_distribution", "mask_seed", "rescale", "net_arch"):
        assert twin._get_constructor_parameters()[name] == data[name]
    assert [layer.topology for layer in sparse_layers(twin).values()] == [
        layer.topology for layer in sparse_layers(policy).values()
    ]


def test_shared_features_extractor_survives_saving(tmp_path):
    policy = make_model(SAC, share_features_extractor=True).policy
    policy.save(tmp_path / "policy")
    assert SparseSimBaPolicy.load(tmp_path / "policy").share_features_extractor is True


def test_alias_is_registered_everywhere():
    for algorithm, policy in POLICIES.items():
        assert algorithm.policy_aliases[POLICY_ALIAS] is policy
    assert DDPG.policy_aliases[POLICY_ALIAS] is POLICIES[TD3]


def test_a_checkpoint_shrinks_with_the_network(tmp_path):
    """S = 0.9 at width 2: weights and optimiser take at most 0.15 of the dense file."""

    def size(sparsity):
        kwargs = {"width_scale": 2, "sparsity": sparsity, "n_critics": 1}
        model = SAC(POLICY_ALIAS, ReachEnv(), learning_starts=1, batch_size=2, buffer_size=10, policy_kwargs=kwargs).learn(3)
        path = tmp_path / f"{sparsity}.zip"
        model.save(path)
        with zipfile.ZipFile(path) as archive:
            assert {"policy.pth", "critic.optimizer.pth"} <= set(archive.namelist())
        return path.stat().st_size

    assert size(0.9) <= 0.15 * size(0)


@pytest.mark.parametrize(("algorithm", "published"), [(SAC, 4_394_923), (DDPG, 4_392_214)])
def test_policies_have_the_published_number_of_parameters(algorithm, published):
    env = SpaceEnv(spaces.Box(-1, 1, (67,)), spaces.Box(-1, 1, (21,)))
    kwargs = {"width_scale": 1, "sparsity": 0.8, "n_critics": 1}
    policy = algorithm(POLICY_ALIAS, env, policy_kwargs=kwargs, buffer_size=1).policy
    assert sum(sparsity_report(network).total_parameters for network in (policy.actor, policy.critic)) == published


@pytest.mark.parametrize("algorithm", [SAC, DQN])
def test_a_dense_copy_of_a_policy_can_be_saved(algorithm, tmp_path):
    model = make_model(algorithm).learn(40)
    obs = model.observation_space.sample()
    for module in (model.policy, next(networks(model))[0]):
        dense = to_dense(module)
        dense.save(tmp_path / "dense")
        loaded = type(dense).load(tmp_path / "dense")
        assert not sparse_layers(loaded)
        assert np.array_equal(loaded.predict(obs, deterministic=True)[0], dense.predict(obs, deterministic=True)[0])
        assert np.allclose(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0], atol=1e-5)
    assert sparse_layers(model.policy)


def test_classes_by_name():
    assert isinstance(make_model(SAC).policy.actor, SimBaSACActor)
    assert isinstance(make_model(DQN).policy, SparseSimBaDQNPolicy)
    assert isinstance(make_model(QRDQN).policy, SparseSimBaQRDQNPolicy)
