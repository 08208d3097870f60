"""Environments whose state is easily lost: each is put back, or named."""

import re

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_sparse.resume import resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.environments.vec_env import capture_env, left_out_of, restore_env, why_not_exact
from tests.resume.cases import sac
from tests.resume.comparing import differences, everything
from tests.resume.test_exact import Interrupted, scramble


class Queue(gym.Wrapper):
    """Attributes that are called as those of SB3's and gymnasium's own classes, and seen in a reward now and then."""

    def __init__(self, env):
        super().__init__(env)
        self.waiting, self.processes, self.envs, self.closed, self.remotes = 0, 3, [0], 0, (0,)

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.waiting += 1
        self.processes = self.processes * 7 % 101
        self.envs[0] += 2
        self.closed += 3
        self.remotes = (self.waiting,)
        if self.waiting % 20 == 0:
            reward += self.waiting + self.processes + self.envs[0] + self.closed + self.remotes[0]
        return obs, reward, *rest


def test_a_name_that_sb3_uses_elsewhere_is_state(tmp_path):
    def make():
        return sac(Queue(gym.make("Pendulum-v1")))

    wanted = everything(make().learn(300))
    with pytest.raises(StoppedOnRequest):
        make().learn(300, callback=Interrupted(tmp_path / "run", 120))
    scramble()
    assert not differences(wanted, everything(resume_exact(tmp_path / "run")))


class Generator(gym.Wrapper):
    """A generator in Python's sense, from which something is drawn every so many steps."""

    def __init__(self, env, every):
        super().__init__(env)
        self.numbers, self.every, self.t = iter(i for i in range(10**6)), every, 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.t += 1
        return obs, reward + (next(self.numbers) if self.t % self.every == 0 else 0), *rest


def now_and_then():
    return Generator(gym.make("Pendulum-v1"), 20)


def each_step():
    return Generator(gym.make("Pendulum-v1"), 1)


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_what_is_lost_but_was_not_seen_in_the_test_is_named(kind, tmp_path):
    env = kind([now_and_then])
    with (
        pytest.warns(UserWarning, match=r"not exact if it matters: .*Generator\.numbers"),
        pytest.raises(StoppedOnRequest),
    ):
        sac(env).learn(200, callback=Interrupted(tmp_path / "run", 60))
    env.close()
    with pytest.warns(UserWarning, match=r"[Nn]ot exact if it matters: .*Generator\.numbers"):
        resume_exact(tmp_path / "run", env=kind([now_and_then])).env.close()


def test_that_of_an_environment_for_evaluation_is_named(tmp_path):
    def evaluation():
        return EvalCallback(DummyVecEnv([each_step]), eval_freq=50, n_eval_episodes=1, verbose=0, warn=False)

    with (
        pytest.warns(UserWarning, match=r"EvalCallback\.eval_env: not exact if it matters: Generator\.numbers"),
        pytest.raises(StoppedOnRequest),
    ):
        sac().learn(200, callback=[Interrupted(tmp_path / "run", 60), evaluation()])


def test_code_is_not_named():
    scale = np.ones(3)
    env = gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: 0.1 * reward)
    env = gym.wrappers.TransformObservation(env, lambda obs: obs * scale, env.observation_space)
    env = gym.wrappers.RescaleAction(gym.wrappers.FlattenObservation(gym.wrappers.NormalizeObservation(env)), -1, 1)
    venv = DummyVecEnv([lambda: env])
    venv.reset()
    assert why_not_exact(venv) is None
    assert left_out_of(venv, capture_env(venv)) == []


GLOBAL = np.random.default_rng(0)


class HiddenGoal(gym.Wrapper):
    """Drawn from a generator of the module when an episode begins, and seen in rewards."""

    def reset(self, **kwargs):
        self.goal = GLOBAL.random()
        return self.env.reset(**kwargs)

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, reward + self.goal, *rest


def test_what_is_drawn_at_the_beginning_of_an_episode_is_in_the_test():
    env = DummyVecEnv([lambda: HiddenGoal(gym.make("Pendulum-v1"))])
    env.reset()
    assert "HiddenGoal" in why_not_exact(env)


class Tasks(gym.Env):
    """Environments inside, which pickle makes anew."""

    def __init__(self):
        pytest.importorskip("mujoco")
        self.tasks = [gym.make("InvertedPendulum-v5") for _ in range(2)]
        self.observation_space, self.action_space = self.tasks[0].observation_space, self.tasks[0].action_space
        self.which = 0

    def reset(self, *, seed=None, options=None):
        return self.tasks[self.which].reset(seed=seed)

    def step(self, action):
        return self.tasks[self.which].step(action)


def test_environments_that_pickle_makes_anew_are_named():
    env = DummyVecEnv([Tasks])
    env.reset()
    assert "what cannot be pickled: Tasks.tasks" in why_not_exact(env)


@pytest.mark.parametrize("kind", [DummyVecEnv, SubprocVecEnv])
def test_a_run_that_is_not_exact_keeps_the_statistics_around_its_environment(kind, tmp_path):
    def make():
        return VecNormalize(kind([statistics_inside]))

    model = sac(make())
    with pytest.warns(UserWarning, match="not exact"), pytest.raises(StoppedOnRequest):
        model.learn(200, callback=Interrupted(tmp_path / "run", 120))
    before = model.get_vec_normalize_env()
    inside = before.venv.env_method("statistics")
    with pytest.warns(UserWarning, match="[Nn]ot exact"):
        after = resume_exact(tmp_path / "run", env=make()).get_vec_normalize_env()
    # Those of 120 steps and more, and not only those since then.
    assert after.obs_rms.count - before.obs_rms.count == pytest.approx(200 - 120, abs=2)
    assert after.ret_rms.count > before.ret_rms.count
    (n,), ((count, _),) = [each[0] for each in inside], after.venv.env_method("statistics")
    assert count - n == pytest.approx(200 - 120, abs=2)
    before.close()
    after.close()


class Statistics(gym.wrappers.NormalizeObservation):
    """Running statistics of gymnasium."""

    def statistics(self):
        return self.obs_rms.count, self.obs_rms.mean


def statistics_inside():
    return Statistics(each_step())


def test_wrappers_alone_leave_the_environment():
    env = DummyVecEnv([lambda: gym.wrappers.NormalizeObservation(gym.make("Pendulum-v1"))])
    env.reset()
    state = capture_env(env, wrappers_only=True)
    for _ in range(3):
        env.step(np.ones((1, 1), np.float32))
    angle, count = env.envs[0].unwrapped.state.copy(), env.envs[0].obs_rms.count
    restore_env(env, state)
    assert np.array_equal(env.envs[0].unwrapped.state, angle)
    assert env.envs[0].obs_rms.count == pytest.approx(count - 3)


def test_the_reason_names_the_layers():
    env = DummyVecEnv([each_step])
    env.reset()
    assert re.search("Generator of .*what cannot be pickled: Generator.numbers", why_not_exact(env))
