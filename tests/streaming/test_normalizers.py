"""Normalisers against numpy's statistics."""

import copy

import numpy as np
import pytest
import torch as th

from sb3_sparse.streaming.normalizers import ObservationNormalizer, RewardScaler, time_feature


def test_observations_have_the_sample_statistics_of_everything_so_far():
    rng = np.random.default_rng(0)
    observations = 1e4 + 0.1 * rng.standard_normal((200, 3)) * [1.0, 10.0, 0.0]
    normalizer = ObservationNormalizer((3,))
    for t, observation in enumerate(observations, 1):
        normalizer.update(observation)
        seen = observations[:t]
        variance = seen.var(axis=0, ddof=1) if t > 1 else np.ones(3)
        expected = (observation - seen.mean(axis=0)) / np.sqrt(variance + 1e-8)
        # In relation to the mean, numpy's own variance is exact to about 1e-16 * (1e4 / 0.1)**2.
        np.testing.assert_allclose(normalizer.normalize(observation), expected, atol=1e-5)
        assert normalizer.normalize(observation)[2] == 0.0
    assert normalizer.obs_mean.dtype == th.float64


def test_the_first_observation_is_zero_and_nothing_is_clipped():
    normalizer = ObservationNormalizer((2,))
    normalizer.update(np.array([5.0, -3.0]))
    assert not normalizer.normalize(np.array([5.0, -3.0])).any()
    for _ in range(1000):
        normalizer.update(np.zeros(2))
    normalizer.update(np.array([1e6, 0.0]))
    assert normalizer.normalize(np.array([1e6, 0.0]))[0] > 30


def test_statistics_stay_in_double_precision():
    normalizer = ObservationNormalizer((2,)).half()
    assert normalizer.obs_square.dtype == th.float64


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, np.int32, np.float64])
def test_outliers_among_whole_numbers_are_left_out(dtype):
    """Mistake of ours: whole numbers were never outliers, and one absurd one was remembered for ever."""
    huge = 10**17 if np.dtype(dtype).itemsize == 8 else 2**31 - 1
    generator, normalizer, reference = np.random.default_rng(0), ObservationNormalizer((3,)), ObservationNormalizer((3,))
    for step in range(300):
        x = generator.integers(0, 10, 3)
        reference.update(x.astype(np.float64))
        x[0] = huge if step == 100 else x[0]
        normalizer.update(x.astype(dtype))
    seen, usual = (each.normalize(np.array([[9, 9, 9]], dtype=dtype)) for each in (normalizer, reference))
    np.testing.assert_allclose(seen, usual, rtol=0.02)
    assert np.abs(normalizer.normalize(np.array([[huge, 1, 1]], dtype=dtype))).max() < 20


def test_copies_and_loaded_statistics_are_apart():
    normalizer = ObservationNormalizer((2,))
    normalizer.update(np.array([1.0, 2.0]))
    twin = copy.deepcopy(normalizer)
    twin.update(np.array([3.0, 2.0]))
    assert twin.obs_mean.tolist() == [2.0, 2.0]
    assert normalizer.obs_mean.tolist() == [1.0, 2.0]
    normalizer.load_state_dict(twin.state_dict(), assign=True)
    normalizer.update(np.array([5.0, 2.0]))
    assert normalizer.obs_mean.tolist() == [3.0, 2.0]
    assert normalizer.normalize(np.array([3.0, 2.0])).tolist() == [0.0, 0.0]


def test_rewards_are_scaled_by_the_deviation_of_the_return():
    rng = np.random.default_rng(0)
    scaler, u, returns = RewardScaler(0.9), 0.0, []
    for t in range(100):
        reward, done = rng.standard_normal() + 1, t % 10 == 9
        u = 0.9 * u * (1 - done) + reward
        returns.append(u)
        deviation = np.sqrt((np.var(returns, ddof=1) if t else 1.0) + 1e-8)
        assert scaler.scale(reward, done) == pytest.approx(reward / deviation, rel=1e-10)


def test_the_last_reward_of_an_episode_leaks_into_the_next():
    scaler = RewardScaler(0.5)
    scaler.scale(8.0, False)
    scaler.scale(2.0, True)
    assert scaler.reward_statistics[0] == 2.0
    scaler.scale(1.0, False)
    assert scaler.reward_statistics[0] == 2.0


def test_known_scales():
    assert RewardScaler(0.99).scale(3.0, False) == pytest.approx(3.0)
    late = RewardScaler(0.99)
    for _ in range(999):
        assert late.scale(0.0, False) == 0.0
    assert late.scale(1.0, False) == pytest.approx(np.sqrt(1000), rel=1e-5)
    equal = RewardScaler(0.0)
    assert [equal.scale(1.0, False) for _ in range(3)][-1] == pytest.approx(1e4)


def test_time_goes_from_one_half_below_zero_and_stays_there_once():
    assert [time_feature(steps, 10) for steps in range(4)] == pytest.approx([-0.5, -0.5, -0.4, -0.3])
    np.testing.assert_allclose(time_feature(np.array([0, 1, 11]), 10), [-0.5, -0.5, 0.5])
