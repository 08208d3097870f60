"""Environments that are made again from a checkpoint, or say that they have to be passed."""

import gymnasium as gym
import pytest
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from sb3_sparse.resume import resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.environments.recipe import make, recipe
from tests.resume.cases import dqn, sac
from tests.resume.comparing import differences, everything
from tests.resume.test_exact import Interrupted, scramble


class Named(Monitor):
    """With an argument of its own."""

    def __init__(self, env, bonus, *args, **kwargs):
        super().__init__(env, *args, **kwargs)
        self.bonus = bonus

    def step(self, action):
        obs, reward, *rest = super().step(action)
        return obs, reward + self.bonus, *rest


def cartpole():
    return gym.make("CartPole-v1")


class Tells(gym.Wrapper):
    """Something to write down."""

    def step(self, action):
        *others, info = self.env.step(action)
        return *others, {**info, "more": 7}


KINDS = {
    "one": lambda folder: Monitor(Tells(cartpole()), str(folder / "x"), info_keywords=("more",)),
    "of a user": lambda folder: Named(cartpole(), 3, str(folder / "x")),
    "several": lambda folder: make_vec_env("CartPole-v1", 2, seed=3, monitor_dir=str(folder)),
    "in processes": lambda folder: make_vec_env("CartPole-v1", 2, seed=3, monitor_dir=str(folder), vec_env_cls=SubprocVecEnv),
    "around": lambda folder: VecMonitor(DummyVecEnv([cartpole]), str(folder / "x")),
}


def rows(folder):
    return load_results(str(folder)).drop(columns="t").to_numpy().tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_tables_of_monitors_go_on(kind, tmp_path):
    def model(name):
        (tmp_path / name).mkdir()
        return dqn(env=KINDS[kind](tmp_path / name), kind=DQN)

    expected = model("undisturbed").learn(300)
    interrupted = model("interrupted")
    with pytest.raises(StoppedOnRequest):
        interrupted.learn(300, callback=Interrupted(tmp_path / "run", 120))
    interrupted.env.close()
    scramble()
    found = resume_exact(tmp_path / "run")
    assert not differences(everything(expected), everything(found))
    ours, theirs = rows(tmp_path / "undisturbed"), rows(tmp_path / "interrupted")
    # Sorted by times.
    assert sorted(ours) == sorted(theirs)
    assert len(ours) > 5
    for each in (expected, found):
        each.env.close()


def test_a_table_stays_until_its_rows_are_put_back(tmp_path):
    env = Monitor(cartpole(), str(tmp_path / "x"))
    env.reset()
    while not any(env.step(0)[2:4]):
        pass
    before = (tmp_path / "x.monitor.csv").read_text()
    written = recipe(env)
    make(written).close()
    env.close()
    assert (tmp_path / "x.monitor.csv").read_text() == before
    (tmp_path / "x.monitor.csv").unlink()
    make(written).close()
    assert (tmp_path / "x.monitor.csv").read_text().endswith("r,l,t\n")


class Holding(gym.Wrapper):
    """Holds what pickle cannot copy, and does not say its arguments."""

    def __init__(self, env, scale=1.0):
        super().__init__(env)
        self.data, self.scale = env.unwrapped.data, scale

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, reward * self.scale + self.data.qpos[0], *rest


class Without(gym.Wrapper):
    """Has no arguments to say."""

    def __init__(self, env):
        super().__init__(env)
        self.data = env.unwrapped.data


class Recorded(Without, gym.utils.RecordConstructorArgs):
    """Says them."""

    def __init__(self, env, scale=1.0):
        gym.utils.RecordConstructorArgs.__init__(self, scale=scale)
        super().__init__(env)
        self.scale = scale


class Inherits(Recorded):
    """Says those of the class that it extends, and not its own."""

    def __init__(self, env, bonus=0.0, **kwargs):
        super().__init__(env, **kwargs)
        self.bonus = bonus


def inverted():
    pytest.importorskip("mujoco")
    return gym.make("InvertedPendulum-v5")


def test_a_wrapper_of_unknown_arguments_has_to_be_passed(tmp_path):
    def model():
        return sac(Holding(inverted(), 3.0))

    wanted = everything(model().learn(200))
    with pytest.raises(StoppedOnRequest):
        model().learn(200, callback=Interrupted(tmp_path / "run", 120))
    with pytest.raises(ValueError, match=r"Holding holds a MjData, and does not say all arguments.*: pass env="):
        resume_exact(tmp_path / "run")
    scramble()
    assert not differences(wanted, everything(resume_exact(tmp_path / "run", env=Holding(inverted(), 3.0))))


def test_wrappers_that_say_their_arguments_are_made_again():
    again = make(recipe(Without(inverted())))
    assert again.data is again.unwrapped.data
    again = make(recipe(Recorded(inverted(), 3.0)))
    assert (again.data is again.unwrapped.data, again.scale) == (True, 3.0)
    with pytest.raises(Exception, match="Inherits holds a MjData"):
        recipe(Inherits(inverted(), 2.0, scale=3.0))


@pytest.mark.parametrize("has_file", [True, False])
def test_another_environment_is_named(has_file, tmp_path):
    def env(with_file):
        return Monitor(cartpole(), str(tmp_path / "x") if with_file else None)

    before, after = env(has_file), env(not has_file)
    with pytest.raises(StoppedOnRequest):
        dqn(DQN, env=before).learn(200, callback=Interrupted(tmp_path / "run", 120))
    says = "is missing and cannot take" if has_file else "is a ResultsWriter, which the checkpoint's environment did not have"
    with pytest.raises(ValueError, match=rf"Monitor\.results_writer {says}.*Pass the environment that the run had"):
        resume_exact(tmp_path / "run", env=after)
    before.close()
    after.close()


def test_another_environment_for_evaluation_is_named(tmp_path):
    def evaluation(*wrappers):
        env = gym.make("Pendulum-v1")
        for wrapper in wrappers:
            env = wrapper(env)
        return EvalCallback(DummyVecEnv([lambda: Monitor(env)]), eval_freq=50, n_eval_episodes=1, verbose=0)

    with pytest.raises(StoppedOnRequest):
        sac().learn(200, callback=[Interrupted(tmp_path / "run", 60), evaluation()])
    with pytest.raises(ValueError, match=r"EvalCallback\.eval_env: the environment consists of .* the checkpoint's was"):
        resume_exact(tmp_path / "run", callback=evaluation(gym.wrappers.NormalizeObservation))
