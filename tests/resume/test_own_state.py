"""An environment and a callback that say their state themselves."""

import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper

from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.environments import worker
from sb3_sparse.resume.environments.vec_env import why_not_exact
from tests.resume.cases import sac
from tests.resume.comparing import differences, everything
from tests.resume.test_exact import Interrupted, scramble

PAGE = Path(__file__).parent.parent.parent / "docs/resume.md"


@pytest.fixture(scope="module")
def outside():
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "class Outside" in code]
    names = {}
    exec(code, names)
    return names["Outside"]


def test_the_example_of_the_page_is_exact(outside, tmp_path):
    def make():
        return sac(outside(gym.make("Pendulum-v1")))

    wanted = everything(make().learn(300))
    with pytest.raises(StoppedOnRequest):
        make().learn(300, callback=Interrupted(tmp_path / "run", 120))
    scramble()
    found = everything(resume_exact(tmp_path / "run", env=outside(gym.make("Pendulum-v1"))))
    assert not differences(wanted, found)


def test_without_its_methods_it_is_not(outside):
    forgetful = type("Forgetful", (outside,), {"get_state": None})
    env = DummyVecEnv([lambda: forgetful(gym.make("Pendulum-v1"))])
    env.reset()
    reason = why_not_exact(env)
    assert "of Forgetful of" in reason
    assert "Forgetful.weather" in reason


class Wrong(gym.Wrapper):
    """Says a state, and forgets half of it."""

    def __init__(self, env):
        super().__init__(env)
        self.a, self.b = 0, 0

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        self.a, self.b = self.a + 1, self.b + 2
        return obs, reward + self.a * self.b, *rest

    def get_state(self):
        return self.a

    def set_state(self, a):
        self.a = a


def test_a_state_that_is_not_all_is_found_out():
    env = make_vec_env(lambda: Wrong(gym.make("Pendulum-v1")))
    env.reset()
    assert "did not make the same steps again" in why_not_exact(env)


class Once(gym.Wrapper):
    """Says its state once."""

    asked = False

    def get_state(self):
        if self.asked:
            raise ValueError("asked twice")
        self.asked = True
        return 0

    def set_state(self, state):
        pass

    def n_kept(self):
        return len(worker._KEPT)


def test_a_test_that_fails_leaves_nothing_in_workers():
    """Mistake of ours: what was kept to be put back stayed there, with a second copy of all that an environment holds."""
    env = make_vec_env(lambda: Once(gym.make("Pendulum-v1")), 2, vec_env_cls=SubprocVecEnv)
    try:
        env.reset()
        assert "asked twice" in why_not_exact(env)
        assert env.env_method("n_kept") == [0, 0]
    finally:
        env.close()


class Drifting(VecEnvWrapper):
    """A wrapper of vectorised environments that nobody knows."""

    def __init__(self, venv):
        super().__init__(venv)
        self.drift = np.zeros(1)

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, rewards, dones, infos = self.venv.step_wait()
        self.drift += 0.1
        return obs, rewards + self.drift, dones, infos


def test_a_wrapper_that_nobody_knows_is_captured_by_its_attributes():
    env = Drifting(make_vec_env("Pendulum-v1", 2, seed=0))
    env.reset()
    before = env.drift.copy()
    assert why_not_exact(env) is None
    assert env.drift == before


class Remembering(BaseCallback):
    """Keeps what it has seen in an object of its own."""

    class Seen:
        def __init__(self):
            self.rewards = []

    def __init__(self):
        super().__init__()
        self.seen = self.Seen()

    def _on_step(self):
        self.seen.rewards.append(float(self.locals["rewards"][0]))
        return True

    def get_state(self):
        return self.seen.rewards

    def set_state(self, state):
        self.seen.rewards = state


def test_a_callback_says_its_state_itself(tmp_path):
    expected, callback = Remembering(), Remembering()
    sac().learn(200, callback=expected)
    with pytest.raises(StoppedOnRequest):
        sac().learn(200, callback=[Interrupted(tmp_path / "run", 120), callback])
    resume_exact(tmp_path / "run", callback=(found := Remembering()))
    assert found.seen.rewards == expected.seen.rewards
    assert found.n_calls == 200


def test_other_settings_of_a_callback_are_warned_about(tmp_path):
    def checkpoint(every):
        return CheckpointCallback(every, str(tmp_path / "saved"))

    with pytest.raises(StoppedOnRequest):
        sac().learn(200, callback=[Interrupted(tmp_path / "run", 120), checkpoint(50)])
    with pytest.warns(UserWarning, match="CheckpointCallback goes on with save_freq=70 instead of 50: not exact"):
        resume_exact(tmp_path / "run", callback=checkpoint(70))


def test_a_wrong_interval_is_refused(tmp_path):
    with pytest.raises(ValueError, match="every=0"):
        ExactCheckpoint(tmp_path, every=0)


class Physics(gym.Wrapper):
    """Methods of these names that mean something else, as MuJoCo's ``set_state(qpos, qvel)``."""

    def get_state(self):
        return np.zeros(2)

    def set_state(self, positions, velocities):
        raise AssertionError


def test_methods_that_take_other_things_are_others(tmp_path):
    def make():
        return sac(Physics(gym.make("Pendulum-v1")))

    wanted = everything(make().learn(300))
    with pytest.raises(StoppedOnRequest):
        make().learn(300, callback=Interrupted(tmp_path / "run", 120))
    found = everything(resume_exact(tmp_path / "run", env=Physics(gym.make("Pendulum-v1"))))
    assert not differences(wanted, found)
