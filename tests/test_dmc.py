import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_checker import check_env

from sb3_sparse.dmc import DMCWrapper, make_dmc, rescaled
from sb3_sparse.pixels import PixelObservations
from tests.envs import ReachEnv, SpaceEnv

pytest.importorskip("dm_control")

# (domain, task): observation and action size
TASKS = {
    ("cartpole", "swingup"): (5, 1),
    ("walker", "walk"): (24, 6),
    ("cheetah", "run"): (17, 6),
    ("humanoid", "run"): (67, 21),
    ("dog", "run"): (223, 38),
}


@pytest.mark.parametrize(("domain", "task"), TASKS)
def test_spaces(domain, task):
    env = make_dmc(domain, task)
    n_obs, n_actions = TASKS[domain, task]
    assert env.observation_space == spaces.Box(-np.inf, np.inf, (n_obs,), np.float32)
    assert env.action_space == spaces.Box(-1.0, 1.0, (n_actions,), np.float32)
    check_env(env, warn=False)


@pytest.mark.parametrize("action_repeat", [1, 2, 3])
def test_an_episode_ends_by_truncation_after_1000_steps(action_repeat):
    env = make_dmc("cartpole", "swingup", action_repeat)
    env.reset(seed=0)
    decisions, done = 0, False
    while not done:
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert obs.dtype == np.float32
        assert 0 <= reward <= action_repeat
        assert not terminated
        decisions, done = decisions + 1, truncated
    assert decisions == -(-1000 // action_repeat)


def test_repeating_sums_rewards_of_the_same_action():
    single, double = make_dmc("walker", "walk", 1), make_dmc("walker", "walk", 2)
    single.reset(seed=3)
    double.reset(seed=3)
    for _ in range(5):
        action = single.action_space.sample()
        steps = [single.step(action) for _ in range(2)]
        obs, reward, *_ = double.step(action)
        assert np.array_equal(obs, steps[1][0])
        assert reward == pytest.approx(steps[0][1] + steps[1][1])


def test_actions_are_rescaled_to_the_environments_range():
    class Wide(ReachEnv):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(np.array([0.0, -10.0]), np.array([4.0, 10.0]), dtype=np.float64)

        def step(self, action):
            self.seen = action
            return super().step(action)

    env = DMCWrapper(Wide(), action_repeat=1)
    env.reset(seed=0)
    env.step(np.array([-1.0, 0.5], dtype=np.float32))
    assert env.unwrapped.seen == pytest.approx([0.0, 5.0])


class Strict(SpaceEnv):
    """Takes what is in its space, and nothing else."""

    def __init__(self, actions):
        super().__init__(spaces.Box(-1, 1, (2,)), actions)

    def step(self, action):
        assert self.action_space.contains(action), action
        self.seen = action
        return super().step(action)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64])
def test_the_environment_is_given_what_is_in_its_space(dtype):
    """Mistake of ours: whole numbers, and components with one value, became NaN; rounding led beyond the bounds."""
    if np.issubdtype(dtype, np.integer):
        low, high = np.array([0, 3, 5]), np.array([5, 3, 100])
    else:
        bounds = [(low / 10, high / 10) for low in range(-12, 12) for high in range(low, 13)]
        largest = np.finfo(dtype).max
        low, high = np.array([*bounds, (-largest, largest)], dtype).T
    env = DMCWrapper(Strict(spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)), action_repeat=1)
    env.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1, 1, (50, len(low))).astype(np.float32):
        env.step(action)
    for action, expected in ((-1.0, low), (1.0, high)):
        env.step(np.full(len(low), action, np.float32))
        assert np.allclose(env.unwrapped.seen.astype(float), expected.astype(float), rtol=1e-14 if dtype is np.float64 else 0)
    env.step(np.zeros(len(low), np.float32))
    assert np.allclose(env.unwrapped.seen.astype(float), low / 2 + high / 2, atol=0.5 if low.dtype.kind == "i" else 1e-3)


def test_what_is_no_action_is_refused():
    whole, real = spaces.Box(0, 5, (2,), np.int64), spaces.Box(0, 5, (2,), np.float32)
    for space in (whole, real):
        for action in ([0.5], 0.5, [[0.5, 0.5]]):
            with pytest.raises(ValueError, match=r"an action of shape \(.*\): expected \(2,\)"):
                rescaled(action, space)
    with pytest.raises(ValueError, match=r"action \[nan +0"):
        rescaled([np.nan, 0.0], whole)
    # For the environment to say what it is.
    assert np.isnan(rescaled([np.nan, 0.0], real)).tolist() == [True, False]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8])
def test_the_ends_of_all_whole_numbers(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    assert rescaled([-1, 1, 2], spaces.Box(low, high, (3,), dtype)).tolist() == [low, high, high]


def test_actions_of_the_same_range_stay_as_they_are():
    env = DMCWrapper(Strict(spaces.Box(-1, 1, (5,), np.float64)), action_repeat=1)
    env.reset(seed=0)
    for scale in (1, 1e-3, 1e-20):
        action = (np.random.default_rng(0).uniform(-1, 1, 5) * scale).astype(np.float32)
        env.step(action)
        assert env.unwrapped.seen.tolist() == action.astype(np.float64).tolist()


def test_actions_without_limits_are_refused():
    """Mistake of ours: for what has no limits dm_control says 1e10, and so large were the forces."""
    pytest.importorskip("dm_control")
    with pytest.raises(ValueError, match="expected a bounded Box"):
        make_dmc("lqr", "lqr_2_1")
    with pytest.raises(ValueError, match="expected a bounded Box"):
        DMCWrapper(Strict(spaces.Box(-1e10, 1e10, (1,), np.float32)))
    # Whole numbers have such bounds of their own.
    DMCWrapper(Strict(spaces.Box(0, 10**10, (1,), np.int64)))


@pytest.mark.parametrize(("domain", "task", "decisions_a_second"), [("cheetah", "run", 50), ("humanoid", "run", 20)])
def test_videos_of_deepmind_control_play_at_their_real_speed(domain, task, decisions_a_second):
    """Mistake of ours: shimmy gives the milliseconds of a step for steps in a second."""
    pytest.importorskip("dm_control")
    env = make_dmc(domain, task, action_repeat=2)
    assert env.metadata["render_fps"] == pytest.approx(decisions_a_second)
    env.reset(seed=0)
    physics = env.unwrapped._env.physics
    before = physics.time()
    env.step(np.zeros(env.action_space.shape, np.float32))
    assert 1 / (physics.time() - before) == pytest.approx(decisions_a_second)
    # A wrapper around that has the speed that it finds.
    assert DMCWrapper(env, action_repeat=2).metadata["render_fps"] == pytest.approx(decisions_a_second / 2)
    assert PixelObservations(env, action_repeat=1).metadata["render_fps"] == pytest.approx(decisions_a_second)


class Copying(gym.Wrapper):
    """As users write wrappers."""

    def __init__(self, env, **changes):
        super().__init__(env)
        self.metadata = {**env.metadata, **changes}


def test_videos_play_at_their_real_speed_in_wrappers_that_copy_metadata():
    """Mistake of ours: what was copied was taken for corrected."""
    cheetah = make_dmc("cheetah", "run", render_mode="rgb_array")._given_env
    copying = [lambda env: env, gym.wrappers.RenderCollection, lambda env: Copying(env, x=1)]
    for below in copying:
        copied = below(cheetah)
        # Shimmy gives all its environments the speed of the newest.
        make_dmc("humanoid", "run")
        for env in (copied, below(cheetah)):
            decisions = DMCWrapper(env, action_repeat=2)
            assert decisions.metadata["render_fps"] == pytest.approx(50)
            assert PixelObservations(env, action_repeat=4).metadata["render_fps"] == pytest.approx(25)
            # A collection of pictures is none of another one.
            for above in (copying[0], copying[2]):
                assert DMCWrapper(above(decisions), action_repeat=5).metadata["render_fps"] == pytest.approx(10)
    # The right number may be the wrong one: a step takes 10 ms.
    for above in copying:
        assert DMCWrapper(above(DMCWrapper(cheetah, action_repeat=10)), 1).metadata["render_fps"] == pytest.approx(10)
    assert DMCWrapper(Copying(cheetah, render_fps=100), 2).metadata["render_fps"] == 50


def test_videos_play_at_their_real_speed():
    env = gym.make("Pendulum-v1", render_mode="rgb_array")
    assert DMCWrapper(env, action_repeat=2).metadata["render_fps"] == env.metadata["render_fps"] / 2
    assert PixelObservations(env, size=16, action_repeat=3).metadata["render_fps"] == env.metadata["render_fps"] / 3
    assert env.metadata["render_fps"] == 30


def test_an_environment_is_made_again_from_its_spec():
    env = make_dmc("cartpole", "swingup", 4)
    again = gym.make(env.spec)
    assert again.spec.additional_wrappers == env.spec.additional_wrappers
    names = [type(wrapper).__name__ for wrapper in (env, again)]
    assert names == ["DMCWrapper", "DMCWrapper"]
    assert str(again) == str(env)
    env.reset(seed=1)
    again.reset(seed=1)
    env.action_space.seed(0)
    for _ in range(5):
        action = env.action_space.sample()
        results = [made.step(action) for made in (env, again)]
        assert np.array_equal(results[0][0], results[1][0])
        assert results[0][1:4] == results[1][1:4]


def test_a_spec_survives_json_and_further_wrappers():
    env = DMCWrapper(gym.make("Pendulum-v1"), action_repeat=np.int64(3))
    assert gym.make(EnvSpec.from_json(env.spec.to_json())).action_repeat == 3
    above = gym.wrappers.TimeAwareObservation(env)
    again = gym.make(above.spec)
    assert str(again) == str(above)
    assert again.observation_space == above.observation_space
    # Of an environment that was not made by name, there is none.
    assert DMCWrapper(ReachEnv()).spec is None


@pytest.mark.parametrize("action_repeat", [0, -1, 1.5, True, "2", None])
def test_bad_action_repeat_is_named(action_repeat):
    with pytest.raises(ValueError, match=f"action_repeat={action_repeat!r}: expected a positive whole number"):
        DMCWrapper(ReachEnv(), action_repeat)


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match=r"bounded Box, got Discrete\(3\)"):
        DMCWrapper(SpaceEnv(spaces.Box(-1, 1, (2,)), spaces.Discrete(3)))
