"""Frames, repetition, ends, actions and arguments of the wrapper, on environments whose every frame is known."""

import copy
import json
import pickle

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_checker import check_env

from sb3_sparse import PixelObservations
from tests.pixels.stubs import Counting


def shown(obs):
    """The steps whose frames are in an observation; every channel has one colour."""
    assert (obs == obs[:, :1, :1]).all()
    colours = obs[:, 0, 0].reshape(-1, 3)
    assert (colours - colours[:, :1] == [0, 1, 2]).all()
    return (colours[:, 0] // 10).tolist()


def test_the_oldest_frame_is_first_and_the_first_one_is_repeated():
    env = PixelObservations(Counting(), size=16, n_stack=3, action_repeat=2)
    assert env.observation_space == spaces.Box(0, 255, (9, 16, 16), np.uint8)
    for _ in range(2):
        obs, _ = env.reset()
        assert env.observation_space.contains(obs)
        seen = [shown(obs), *(shown(env.step(0)[0]) for _ in range(4))]
        assert seen == [[0, 0, 0], [0, 0, 2], [0, 2, 4], [2, 4, 6], [4, 6, 8]]


@pytest.mark.parametrize("n_stack", [1, 4])
def test_so_many_frames_are_stacked(n_stack):
    env = PixelObservations(Counting(), size=16, n_stack=n_stack, action_repeat=1)
    assert shown(env.reset()[0]) == [0] * n_stack
    assert shown(env.step(0)[0]) == [0] * (n_stack - 1) + [1]


def test_an_observation_belongs_to_whom_it_was_given():
    env = PixelObservations(Counting(), size=16, action_repeat=1)
    obs, _ = env.reset()
    obs[:] = 255
    later, *_ = env.step(0)
    later[:] = 255
    assert shown(env.step(0)[0]) == [0, 1, 2]


@pytest.mark.parametrize("action_repeat", [1, 2, 5])
def test_one_picture_per_decision(action_repeat):
    env = PixelObservations(Counting(), size=16, action_repeat=action_repeat)
    env.reset()
    assert env.unwrapped.drawn == 1
    for i in range(4):
        env.step(0)
        assert env.unwrapped.drawn == i + 2
    assert env.unwrapped.t == 4 * action_repeat


def test_rewards_are_summed_and_the_last_info_is_handed_on():
    env, plain = PixelObservations(Counting(), size=16, action_repeat=3), Counting()
    assert env.reset(options={"a": 1})[1] == plain.reset()[1]
    assert env.unwrapped.begun_with == {"a": 1}
    for _ in range(3):
        steps = [plain.step(1) for _ in range(3)]
        _, reward, terminated, truncated, info = env.step(1)
        assert reward == sum(step[1] for step in steps)
        assert (terminated, truncated, info) == steps[-1][2:]


@pytest.mark.parametrize("ends_at", [4, 5, 6])
def test_an_end_within_a_decision_is_its_end(ends_at):
    env = PixelObservations(Counting(ends_at=ends_at), size=16, action_repeat=3)
    env.reset()
    assert env.step(0)[2:4] == (False, False)
    obs, reward, *ends, _ = env.step(0)
    assert ends == [True, False]
    assert env.unwrapped.t == ends_at
    assert shown(obs) == [0, 3, ends_at]
    assert reward == sum(2.0**t for t in range(4, ends_at + 1))


@pytest.mark.parametrize(("steps", "decisions"), [(1000, 500), (999, 500), (7, 4)])
def test_a_time_limit_truncates(steps, decisions):
    env = PixelObservations(TimeLimit(Counting(shape=(16, 16)), steps), size=16, action_repeat=2)
    env.unwrapped.step = lambda action: (np.zeros(1, np.float32), 0.0, False, False, {})
    env.unwrapped.render = lambda: np.zeros((16, 16, 3), np.uint8)
    env.reset()
    ends = [env.step(0)[2:4] for _ in range(decisions)]
    assert ends == [(False, False)] * (decisions - 1) + [(False, True)]


def test_actions_in_a_box_are_rescaled():
    actions = spaces.Box(np.array([0.0, -10.0]), np.array([4.0, 10.0]), dtype=np.float64)
    env = PixelObservations(Counting(actions=actions), size=16, action_repeat=1)
    assert env.action_space == spaces.Box(-1.0, 1.0, (2,), np.float32)
    env.reset()
    for action in ([-1.0, 0.5], [1.0, -1.0]):
        env.step(np.array(action, np.float32))
    assert np.allclose(env.unwrapped.seen, [[0.0, 5.0], [4.0, -10.0]])


def test_rounding_leads_to_no_action_beyond_the_bounds():
    bounds = [(low / 10, high / 10) for low in range(-12, 12) for high in range(low + 1, 13)]
    low, high = np.array(bounds, np.float32).T
    env = PixelObservations(Counting(actions=spaces.Box(low, high)), size=16, action_repeat=1)
    env.reset()
    for action in (-1.0, 1.0):
        env.step(np.full(len(bounds), action, np.float32))
    assert all(env.unwrapped.action_space.contains(seen) for seen in env.unwrapped.seen)


def test_whole_numbers_as_actions_are_the_nearest_ones():
    env = PixelObservations(Counting(actions=spaces.Box(0, 10, (2,), np.int32)), size=16, action_repeat=1)
    env.reset()
    for action in ([-1.0, 1.0], [0.5, -0.5]):
        env.step(np.array(action, np.float32))
    assert [seen.tolist() for seen in env.unwrapped.seen] == [[0, 10], [8, 2]]
    assert all(seen.dtype == np.int32 for seen in env.unwrapped.seen)


@pytest.mark.parametrize("actions", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3])])
def test_other_actions_are_left_alone(actions):
    env = PixelObservations(Counting(actions=actions), size=16, action_repeat=2)
    assert env.action_space == actions
    env.reset()
    action = actions.sample()
    env.step(action)
    assert all(seen is action for seen in env.unwrapped.seen)


def test_any_environment_of_gymnasium_that_draws_itself():
    env = PixelObservations(gym.make("CartPole-v1", render_mode="rgb_array"), size=36, action_repeat=1)
    check_env(env)
    large = env.render()
    assert (large.shape, large.dtype) == ((400, 600, 3), np.uint8)
    env.close()


def made(**kwargs):
    return PixelObservations(gym.make("CartPole-v1", render_mode="rgb_array"), **{"size": 20, **kwargs})


def test_an_environment_is_made_again_from_its_spec():
    env = made(n_stack=np.int64(2), action_repeat=3.0)
    json.dumps(env._saved_kwargs)
    for again in (gym.make(env.spec), gym.make(EnvSpec.from_json(env.spec.to_json()))):
        assert str(again) == str(env)
        assert again.observation_space == env.observation_space
        assert np.array_equal(again.reset(seed=1)[0], env.reset(seed=1)[0])
        for _ in range(3):
            ours, theirs = (each.step(1) for each in (env, again))
            assert np.array_equal(ours[0], theirs[0])
            assert ours[1:] == theirs[1:]
    assert PixelObservations(Counting(), size=16).spec is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_by_itself(copied):
    env = PixelObservations(Counting(), size=16, action_repeat=1)
    env.reset()
    env.step(0)
    other = copied(env)
    assert shown(other.step(0)[0]) == [0, 1, 2]
    assert (env.unwrapped.t, env.unwrapped.drawn, other.unwrapped.drawn) == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("size", 15, "a whole number of at least 16"),
        ("size", "84", "a whole number of at least 16"),
        ("size", (84, 84), "a whole number of at least 16"),
        ("n_stack", 0, "a positive whole number"),
        ("n_stack", 1.5, "a positive whole number"),
        ("n_stack", 29, "size=84: SB3 would take 87 channels of 84 x 84 pixels .* at most 28 frames"),
        ("action_repeat", 0, "a positive whole number"),
        ("action_repeat", True, "a positive whole number"),
        ("rendering", "fast", r"one of \['coarse_shadows'"),
        ("rendering", None, r"one of \['coarse_shadows'"),
        ("rendering", "no_shadows", "draws its pictures itself"),
        ("camera_id", 0, "draws its pictures itself"),
    ],
)
def test_bad_arguments_are_named(name, value, expected):
    with pytest.raises(ValueError, match=rf"^{name}=.*{expected}"):
        PixelObservations(Counting(), **{name: value})


@pytest.mark.parametrize("render_mode", [None, "human"])
def test_an_environment_that_returns_no_pictures_is_refused(render_mode):
    with pytest.raises(ValueError, match=rf"^render_mode={render_mode!r}: .*make\(\.\.\., render_mode=\"rgb_array\"\)"):
        PixelObservations(Counting(render_mode))


def test_actions_without_bounds_are_refused():
    with pytest.raises(ValueError, match=r"expected bounds, got Box\(-inf, inf"):
        PixelObservations(Counting(actions=spaces.Box(-np.inf, np.inf, (2,))))


@pytest.mark.parametrize(
    ("frame", "given"),
    [
        (np.zeros((20, 30), np.uint8), r"uint8 of shape \(20, 30\)"),
        (np.zeros((3, 20, 30), np.uint8), r"uint8 of shape \(3, 20, 30\)"),
        (np.zeros((20, 30, 4), np.uint8), r"uint8 of shape \(20, 30, 4\)"),
        (np.zeros((20, 30, 3), np.float32), r"float32 of shape \(20, 30, 3\)"),
        ([np.zeros((20, 30, 3), np.uint8)], "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_frame_is_refused(frame, given):
    env = PixelObservations(Counting(), size=16)
    env.unwrapped.render = lambda: frame
    with pytest.raises(ValueError, match=rf"returned {given}: expected uint8 of shape \(height, width, 3\)"):
        env.reset()
