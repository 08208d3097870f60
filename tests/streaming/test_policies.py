"""Policies in use: images, the time feature, policies of one's own, and files of a policy alone."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from sb3_sparse import DMCWrapper
from sb3_sparse.streaming import StreamAC, StreamACPolicy, StreamQ, StreamSARSA
from sb3_sparse.streaming.learners import CompiledLearner
from tests.envs import ReachEnv, SpaceEnv
from tests.streaming.test_algorithms import assert_same_state, state_of


@pytest.mark.parametrize(("time_feature", "limit"), [(True, 200), (50, 50), (False, None)])
def test_the_time_limit_of_the_time_feature(time_feature, limit, tmp_path):
    model = StreamAC("MlpPolicy", "Pendulum-v1", time_feature=time_feature)
    assert model.policy.time_limit == limit
    model.save(tmp_path / "agent")
    assert StreamAC.load(tmp_path / "agent").policy.time_limit == limit
    assert StreamAC("MlpPolicy", ReachEnv(), time_feature=True).policy.time_limit == 1000


def test_predict_knows_the_time_if_the_state_is_passed_back():
    model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0).learn(50)
    seen = []
    features = model.policy.features
    model.policy.features = lambda *args: seen.append(features(*args)[:, -1]) or features(*args)
    observations, state = np.stack([model.observation_space.sample()] * 2), None
    for episode_start in ([True, True], [False, False], [False, False], [False, True], [False, False]):
        _, state = model.predict(observations, state, np.array(episode_start))
    expected = np.array([[0, 0], [0, 0], [1, 1], [2, 0], [3, 0]]) / 200 - 0.5
    np.testing.assert_allclose(seen, expected, atol=1e-6)
    seen.clear()
    model.predict(observations[0])
    np.testing.assert_allclose(seen, [[-0.5]])


def test_predict_is_what_training_sees():
    """The same features, step by step, as those that the agent acts on."""
    model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0)
    act, state = model._act, None

    def compare(features):
        nonlocal state
        start = np.array([model._episode_steps == 0])
        action, state = model.predict(model.env.buf_obs[None], state, start, deterministic=True)
        mean = model._actor.outputs(features)[:1]
        np.testing.assert_allclose(action[0], mean.clip(-2, 2), rtol=1e-5)
        return act(features)

    model._act = compare
    model.learn(250)


@pytest.mark.parametrize("algorithm", [StreamAC, StreamQ, StreamSARSA])
def test_images(algorithm, tmp_path):
    minatar = SpaceEnv(spaces.Box(0, 1, (10, 10, 4), bool), spaces.Discrete(3))
    model = algorithm("CnnPolicy", minatar, seed=0, policy_kwargs=dict(sparsity=0.5)).learn(25)
    model.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=minatar)
    assert_same_state(state_of(model), state_of(loaded))
    loaded.learn(5)
    assert model.policy.time_limit is None
    assert model.predict(minatar.observation_space.sample())[0].shape == ()


def test_stacked_frames():
    env = DummyVecEnv([lambda: SpaceEnv(spaces.Box(0, 255, (84, 84, 1), np.uint8), spaces.Discrete(3))])
    model = StreamQ("CnnPolicy", VecFrameStack(env, 4), seed=0).learn(12)
    assert model.policy.q_net.trunk[0].weight.shape == (32, 4, 8, 8)
    assert model.policy.obs_norm.obs_count == 12 + 1 + 1


def test_a_policy_of_ones_own():
    """Another trunk learns through autograd."""

    class Narrow(StreamACPolicy):
        def make_trunk(self, network):
            trunk, latent_dim = super().make_trunk(network)
            return th.nn.Sequential(*trunk, th.nn.Tanh()), latent_dim

    model = StreamAC(Narrow, "Pendulum-v1", seed=0)
    before = state_of(model)
    model.learn(20)
    assert not isinstance(model._learners[0], CompiledLearner)
    with pytest.raises(AssertionError):
        assert_same_state(before, state_of(model))


def test_a_policy_file_alone(tmp_path):
    model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0, policy_kwargs=dict(sparsity=0.5)).learn(30)
    model.policy.save(tmp_path / "policy.pth")
    policy = StreamACPolicy.load(tmp_path / "policy.pth")
    observation = model.observation_space.sample()
    np.testing.assert_array_equal(
        policy.predict(observation, deterministic=True)[0], model.predict(observation, deterministic=True)[0]
    )
    assert copy.deepcopy(model.policy).predict(observation, deterministic=True)[0] == pytest.approx(
        model.predict(observation, deterministic=True)[0]
    )


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        *[((10, 10, 4), 4), ((10, 10, 10), 10), ((10, 10, 16), 16), ((4, 10, 10), 4), ((16, 10, 10), 16)],
        *[((84, 84, 4), 4), ((4, 84, 84), 4), ((3, 60, 80), 3), ((60, 80, 3), 3)],
    ],
)
def test_where_channels_are(shape, channels):
    """Four stacked frames of MinAtar have more channels than pixels on a side: rows were taken for channels."""
    env = SpaceEnv(spaces.Box(0, 1, shape, np.float32), spaces.Discrete(3))
    model = StreamQ("CnnPolicy", env, seed=0)
    first = next(layer for layer in model.policy.modules() if isinstance(layer, th.nn.Conv2d))
    assert first.in_channels == channels
    model.learn(3)


@pytest.mark.parametrize(
    ("make", "decisions"),
    [
        (lambda: DMCWrapper(gym.make("Pendulum-v1"), action_repeat=4), 50),
        (lambda: gym.wrappers.TimeLimit(DMCWrapper(gym.make("Pendulum-v1"), action_repeat=3), 30), 30),
        (lambda: DMCWrapper(gym.make("Pendulum-v1"), action_repeat=3), 67),
        (lambda: gym.make("Pendulum-v1"), 200),
        # Without a limit, as tasks of dm_control.
        (lambda: DMCWrapper(ReachEnv(), action_repeat=2), 500),
        # Steps of its physics, which the limit does not count.
        (lambda: gym.make("HalfCheetah-v5"), 1000),
    ],
)
def test_the_time_feature_counts_decisions(make, decisions):
    """With repeated actions it ended far from where an episode does."""
    assert StreamAC("MlpPolicy", make(), time_feature=True).policy.time_limit == decisions


def test_evaluations_leave_the_mode_of_training(monkeypatch):
    """Of trunks with dropout: it was off after the first prediction."""

    class Drops(StreamACPolicy):
        def make_trunk(self, network):
            trunk, size = super().make_trunk(network)
            return th.nn.Sequential(trunk, th.nn.Dropout(0.5)), size

    def modes(evaluates):
        """Those of the updates."""
        model, seen = StreamAC(Drops, "Pendulum-v1", seed=0), []
        update = model._update
        monkeypatch.setattr(model, "_update", lambda *args: seen.append(model.policy.actor.training) or update(*args))

        def look(variables, _):
            if evaluates:
                with th.random.fork_rng():
                    model.predict(model.observation_space.sample())
                assert not model.policy.actor.training
            return True

        model.learn(5, callback=look)
        model.learn(5, callback=look, reset_num_timesteps=False)
        return seen

    assert modes(True) == modes(False) == [True] * 10
