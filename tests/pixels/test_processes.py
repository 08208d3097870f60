"""Copies and other processes: OpenGL goes into none of them."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from tests.pixels.tasks import cartpole


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_where_the_environment_was(copied):
    env = cartpole()
    env.reset(seed=0)
    env.step(np.ones(1))
    other = copied(env)
    for _ in range(2):
        ours, theirs = env.step(np.ones(1)), other.step(np.ones(1))
        assert np.array_equal(ours[0], theirs[0])
        assert ours[1:4] == theirs[1:4]
    env.close()
    # What it has of OpenGL is its own.
    other.step(np.ones(1))
    other.close()


def steps(env):
    env.seed(3)
    return [env.reset(), *(env.step(np.array([[a], [-a]]))[0] for a in (1.0, -1.0))]


@pytest.mark.parametrize("start_method", ["forkserver", pytest.param("spawn", marks=pytest.mark.full)])
def test_environments_in_other_processes_see_the_same(start_method):
    here, there = DummyVecEnv([cartpole] * 2), SubprocVecEnv([cartpole] * 2, start_method)
    # Here something is drawn before there is.
    for ours, theirs in zip(steps(here), steps(there), strict=True):
        assert np.array_equal(ours, theirs)
    here.close()
    there.close()


FORKED = """
import os, signal, sys
import numpy as np
from tests.pixels.tasks import cartpole

def in_a_fork(function):
    child = os.fork()
    if child == 0:
        # OpenGL that came with a fork may wait for ever.
        signal.alarm(60)
        function()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

def draws():
    np.save(sys.argv[1], env.reset(seed=0)[0])

def is_refused():
    for each in (env, cartpole()):
        try:
            each.reset(seed=0)
        except RuntimeError as error:
            print(error, flush=True)
        each.close()

env = cartpole()
in_a_fork(draws)
first = env.reset(seed=0)[0]
assert np.array_equal(np.load(sys.argv[1]), first)
env.render()
in_a_fork(is_refused)
assert np.array_equal(env.reset(seed=0)[0], first)
# Nobody closes it.
"""


def test_a_fork_works_before_the_first_picture_and_is_refused_afterwards(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path / "seen.npy")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    refused = result.stdout.strip().splitlines()
    assert len(refused) == 2
    for line in refused:
        assert "forked from one that had drawn" in line
        assert 'start_method="forkserver"' in line
    # At the end of a program, too, that closed nothing.
    assert "Error" not in result.stderr
    assert "ignored" not in result.stderr
