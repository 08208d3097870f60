"""Rainbow with SimBa's trunk."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN

from sb3_sparse import Rainbow, SparseSimBaDQNPolicy, SparseSimBaRainbowPolicy, measure, reset_model_, sparsity_report
from sb3_sparse.networks.noisy import NoisyLinear
from sb3_sparse.sparse import SparseLinear

OFF = dict(distributional=False, dueling=False, double=False, noisy=False, prioritized=False, n_steps=1)
SMALL = dict(width_scale=0.125, depth_scale=1, sparsity=0.6)


def make(cls=Rainbow, policy="SparseSimBaPolicy", policy_kwargs=SMALL, **kwargs):
    return cls(policy, "CartPole-v1", policy_kwargs=policy_kwargs, learning_starts=50, seed=3, device="cpu", **kwargs)


def test_the_name_gives_this_policy():
    assert type(make().policy) is SparseSimBaRainbowPolicy


def test_all_off_is_the_policy_of_dqn():
    ours = make(**OFF, target_update_interval=100).learn(500)
    base = make(DQN, SparseSimBaDQNPolicy, target_update_interval=100).learn(500)
    states = ours.policy.state_dict(), base.policy.state_dict()
    renamed = {key.replace(".output.", "."): value for key, value in states[0].items()}
    assert renamed.keys() == states[1].keys()
    assert all(th.equal(renamed[key], value) for key, value in states[1].items())


def test_trunk_and_head_are_pruned_and_the_head_is_noisy():
    model = make()
    report = sparsity_report(model.q_net)
    assert report.sparsity == pytest.approx(0.6, abs=0.02)
    trunk, _ = model.q_net.q_net
    assert any(isinstance(layer, SparseLinear) for layer in trunk.modules())
    assert not any(isinstance(layer, NoisyLinear) for layer in trunk.modules())
    obs = th.rand(8, 4)
    model.q_net.reset_noise()
    noisy = model.q_net(obs)
    with model.q_net.without_noise():
        still = model.q_net(obs)
    assert not th.equal(noisy, still)


def test_observations_are_normalised_by_the_batches_that_are_trained_on():
    model = make(train_freq=1).learn(120)
    norm = model.policy.obs_norm.norms[0]
    counts = {name: value.clone() for name, value in norm.state_dict().items()}
    assert any(not th.equal(value, th.zeros_like(value)) for value in counts.values())
    model.predict(np.full((5, 4), 1e3, dtype=np.float32))
    assert all(th.equal(counts[name], value) for name, value in norm.state_dict().items())
    assert model.q_net.obs_norm is model.policy.obs_norm
    assert model.q_net_target.obs_norm is model.policy.obs_norm
    # Shown by hand: one blend of moments for each update, with the batch that the loss is of.
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    drawn = []
    sample = model.replay_buffer.sample
    model.replay_buffer.sample = lambda *args, **kwargs: drawn.append(sample(*args, **kwargs)) or drawn[-1]
    model.train(1, 16)
    other = make().policy.obs_norm.norms[0]
    other.load_state_dict(before)
    other.move_to(other.blended(drawn[0].observations))
    assert all(th.equal(other.state_dict()[name], value) for name, value in norm.state_dict().items())


def test_save_and_load(tmp_path):
    model = make().learn(80)
    model.save(tmp_path / "agent")
    loaded = Rainbow.load(tmp_path / "agent", device="cpu")
    obs = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    assert (loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]).all()
    states = model.policy.state_dict(), loaded.policy.state_dict()
    assert all(th.equal(states[0][key], value) for key, value in states[1].items())
    assert loaded.policy.rainbow_kwargs == model.policy.rainbow_kwargs


@pytest.mark.parametrize("strategy", ["full", "last_layers", "redo", "shrink_perturb"])
def test_it_is_measured_and_reset(strategy):
    model = make().learn(80)
    values = measure(model, n_samples=16, seed=1)
    assert values
    assert values == measure(model, n_samples=16, seed=1)
    reset_model_(model, strategy)
    model.learn(20, reset_num_timesteps=False)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_policies_of_other_algorithms_are_refused():
    with pytest.raises(ValueError, match="Rainbow with the policy SparseSimBaDQNPolicy: expected RainbowPolicy"):
        make(policy=SparseSimBaDQNPolicy)
