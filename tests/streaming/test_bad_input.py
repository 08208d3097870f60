"""Numbers that are none, and numbers that are absurd: from environments, in steps, at resets and at ends of episodes."""

import copy
import math
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA
from sb3_sparse.streaming.normalizers import ObservationNormalizer, RewardScaler, magnitude
from tests.envs import ReachEnv, SpaceEnv
from tests.streaming.test_algorithms import ALL, Each, assert_same_state, state_of

LENGTH, BAD_STEP = 5, 15
WHERE = {
    "reward": r"reward nan at step 15",
    "observation": r"observation\[1\]=nan at step 13",
    "terminal": r"terminal_observation\[1\]=nan at step 15",
    "reset": r"observation\[1\]=nan of the reset after step 15",
}


class Spoiled(gym.Wrapper):
    """Episodes of five steps. In the third one, once, a number is replaced."""

    def __init__(self, env, where, value=np.nan):
        super().__init__(gym.wrappers.TimeLimit(env.unwrapped, LENGTH))
        self.where, self.value, self.steps = where, value, 0

    def spoil(self, obs):
        self.where = None
        obs = np.array(obs, dtype=self.observation_space.dtype)
        obs[1] = self.value
        return obs

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return self.spoil(obs) if self.where == "reset" and self.steps == BAD_STEP else obs, info

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.steps += 1
        if self.where == "reward" and self.steps == BAD_STEP:
            self.where, reward = None, self.value
        if (self.where, self.steps) in {("observation", BAD_STEP - 2), ("terminal", BAD_STEP)}:
            obs = self.spoil(obs)
        return obs, reward, *rest


def counters(model):
    return model.num_timesteps, model._n_updates, model._episode_num, model._episode_steps


@ALL
@pytest.mark.parametrize("where", WHERE)
def test_what_is_not_a_number_changes_nothing(algorithm, env, where, tmp_path):
    def agent():
        return algorithm("MlpPolicy", Spoiled(gym.make(env), where), seed=0)

    bad_step = BAD_STEP - 2 if where == "observation" else BAD_STEP
    before = agent().learn(bad_step - 1)
    model = agent()
    with pytest.raises(ValueError, match=WHERE[where]):
        model.learn(30)
    assert_same_state(state_of(model), state_of(before))
    assert counters(model) == counters(before)
    # It goes on, here and from a file, with a new episode.
    model.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=Spoiled(gym.make(env), None))
    for one in (model, loaded):
        one.learn(20, reset_num_timesteps=False)
        assert one.num_timesteps == bad_step - 1 + 20
        assert all(th.isfinite(value).all() for value in one.policy.state_dict().values())


@ALL
def test_the_first_observation_is_looked_at_too(algorithm, env):
    model = algorithm("MlpPolicy", env, seed=0).learn(20)
    before, n_updates = state_of(model), model._n_updates
    model.set_env(Spoiled(gym.make(env), "reset"))
    spoiled = model.env.envs[0]
    while not isinstance(spoiled, Spoiled):
        spoiled = spoiled.env
    spoiled.steps = BAD_STEP
    with pytest.raises(ValueError, match=r"observation\[1\]=nan of the reset after step 20"):
        model.learn(30, reset_num_timesteps=False)
    assert_same_state(state_of(model), before)
    assert (model.num_timesteps, model._n_updates) == (20, n_updates)
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 30


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_entry_of_an_image_is_named(value):
    class Image(SpaceEnv):
        def step(self, action):
            obs, *rest = super().step(action)
            if self.t == 4:
                obs[2, 3, 1] = value
            return obs, *rest

    env = Image(spaces.Box(0, 1, (10, 10, 4), np.float32), spaces.Discrete(3))
    model = StreamQ("CnnPolicy", env, seed=0)
    with pytest.raises(ValueError, match=rf"observation\[2, 3, 1\]={value} at step 4: expected finite"):
        model.learn(20)
    assert model.num_timesteps == 3


@ALL
@pytest.mark.parametrize("where", ["observation", "terminal", "reset", "reward"])
@pytest.mark.parametrize("value", [1e10, 1e20, 3e38])
@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "raw"])
def test_one_absurd_number_is_survived(algorithm, env, where, value, normalize):
    spoiled = Spoiled(gym.make(env), where, value)
    model = algorithm("MlpPolicy", spoiled, seed=0, normalize_observations=normalize, normalize_reward=normalize)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(100)
    assert all(th.isfinite(entry).all() for entry in model.policy.state_dict().values())
    assert all(th.isfinite(s["trace"]).all() for name in model.optimizer_names for s in optimizer_state(model, name))
    if normalize:
        # What the entry says is still seen: one among a hundred does not make the others vanish.
        assert float(model.policy.obs_norm.obs_square.max()) < 1e6
        assert float(model.policy.reward_scaler.reward_statistics.abs().max()) < 1e8


def optimizer_state(model, name):
    return getattr(model.policy, name).state.values()


def test_an_absurd_reward_leaves_moments_that_decay():
    spoiled = Spoiled(gym.make("Pendulum-v1"), "reward", 3e38)
    model = StreamAC("MlpPolicy", spoiled, adaptive=True, normalize_reward=False, seed=0).learn(30)
    for name in model.optimizer_names:
        for state in optimizer_state(model, name):
            assert th.isfinite(state["second_moment"]).all()
            assert th.isfinite(state["trace"]).all()
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize("position", [0, 1, 50])
@pytest.mark.parametrize("value", [1e10, 1e20, -3e38, 1e300])
def test_statistics_without_the_outlier(position, value):
    rng = np.random.default_rng(0)
    ordinary = rng.normal(3.0, 2.0, (2000, 3))
    plain, norm = ObservationNormalizer([3]), ObservationNormalizer([3])
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, observation in enumerate(ordinary):
            plain.update(observation)
            if i == position:
                absurd = observation.copy()
                absurd[1] = value
                norm.update(absurd)
                seen.append(norm.normalize(absurd))
            norm.update(observation)
            seen.append(norm.normalize(observation))
    if position > 0 or abs(value) > 1e15:
        np.testing.assert_allclose(norm.normalize(ordinary), plain.normalize(ordinary), atol=0.1)
    assert np.isfinite(seen).all()
    # As far away as one among so many can be, and in the same place of a batch.
    count = position + 1
    if position > 0:
        assert seen[position][1] == pytest.approx(math.copysign(math.sqrt(count), value), rel=0.5)
        assert np.abs(seen[position][[0, 2]]).max() < 10


def test_large_numbers_that_are_usual_are_no_outliers():
    rng = np.random.default_rng(0)
    for scale in (1e9, 1e12):
        norm, samples = ObservationNormalizer([2]), scale * rng.normal(1.0, 0.1, (500, 2))
        for sample in samples:
            norm.update(sample)
        np.testing.assert_allclose(norm.obs_mean, samples.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(
            norm.normalize(samples), (samples - samples.mean(axis=0)) / samples.std(axis=0, ddof=1), rtol=1e-6
        )


def test_one_absurd_reward_leaves_the_scale_of_the_others():
    rng = np.random.default_rng(0)
    rewards = rng.normal(0.0, 5.0, 500)
    plain, scaler = RewardScaler(0.9), RewardScaler(0.9)
    for i, reward in enumerate(rewards):
        expected = plain.scale(reward, False)
        if i == 100:
            assert scaler.scale(1e20, False) == 10.0
            assert scaler.scale(-3e38, False) == -10.0
        scaled = scaler.scale(reward, False)
    assert scaled == pytest.approx(expected, rel=0.05)


def test_magnitudes():
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (1, 64, 65, 400):
            for dtype in (np.float16, np.float32, np.float64):
                values = rng.standard_normal(size).astype(dtype)
                assert magnitude(values) == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=1e-2)
                for bad in (np.nan, np.inf, -np.inf):
                    values[size // 2] = bad
                    assert not math.isfinite(magnitude(values))
                values[size // 2] = np.finfo(dtype).max
                assert magnitude(values) > 1e4
        assert magnitude(np.full((84, 84, 4), 255, np.uint8)) == 0.0
        assert magnitude(np.ones((10, 10, 4), bool)) == 0.0


def test_a_prediction_for_an_absurd_observation_is_a_number():
    model = StreamAC("MlpPolicy", ReachEnv(), seed=0).learn(50)
    for value in (1e20, 1e300, np.inf):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            action = model.predict(np.array([value, 0.5]), deterministic=True)[0]
        assert np.isfinite(action).all()


@pytest.mark.parametrize("algorithm", [StreamQ, StreamSARSA, StreamAC])
def test_a_weight_that_is_not_a_number_teaches_nothing(algorithm):
    model = algorithm("MlpPolicy", "CartPole-v1", seed=0).learn(10)
    network = "critic" if algorithm is StreamAC else "q_net"
    with th.no_grad():
        next(getattr(model.policy, network).heads[0].parameters())[0] = math.nan
    before = copy.deepcopy(dict(model.policy.named_parameters()))
    n_updates = model._n_updates
    with pytest.raises(ValueError, match="TD error nan at step 11: a weight of the networks"):
        model.learn(10, reset_num_timesteps=False, callback=Each(lambda callback: None))
    assert model._n_updates == n_updates
    for name, value in model.policy.named_parameters():
        assert th.equal(value.nan_to_num(7.0), before[name].nan_to_num(7.0))
