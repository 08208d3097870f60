"""Runs on pixels that are interrupted and go on, bit by bit."""

import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_sparse import resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.environments.vec_env import capture_env, restore_env, why_not_exact
from tests.pixels.tasks import cartpole
from tests.resume.cases import Case
from tests.resume.comparing import differences, everything
from tests.resume.test_exact import Interrupted, run, scramble

SMALL = dict(features_extractor_kwargs=dict(features_dim=8), net_arch=[8])


def short(**kwargs):
    """Episodes of 20 decisions."""
    return cartpole(task_kwargs={"time_limit": 0.4}, **kwargs)


def sac(env):
    return SAC("CnnPolicy", env, seed=0, learning_starts=10, buffer_size=200, batch_size=4, policy_kwargs=dict(SMALL))


@pytest.mark.parametrize("kind", [DummyVecEnv, pytest.param(SubprocVecEnv, marks=pytest.mark.full)])
def test_the_state_of_an_environment_is_all_of_it(kind):
    env = kind([short] * 2)
    env.seed(0)
    env.reset()
    assert why_not_exact(env) is None
    env.step(np.ones((2, 1)))
    state = capture_env(env)
    other = kind([short] * 2)
    other.reset()
    restore_env(other, state)
    for action in (np.ones((2, 1)), -np.ones((2, 1))):
        ours, theirs = env.step(action), other.step(action)
        assert np.array_equal(ours[0], theirs[0])
        assert np.array_equal(ours[1], theirs[1])
    env.close()
    other.close()


def test_a_resumed_run_is_the_one_that_was_not_interrupted(tmp_path):
    case = Case(lambda _: sac(short()), total=50, every=27)
    model = run(case, tmp_path / "undisturbed", [])
    expected = everything(model)
    model.env.close()
    with pytest.raises(StoppedOnRequest):
        run(case, tmp_path / "interrupted", [Interrupted(tmp_path / "run", case.every)])
    scramble()
    # The environment is made again, too.
    model = resume_exact(tmp_path / "run")
    assert not differences(expected, everything(model))
    assert model.num_timesteps == case.total
    model.env.close()
