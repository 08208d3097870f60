"""Signals that come while a command ends: what was trained is not lost."""

import json
import os
import signal
import subprocess
import sys

import pytest
from stable_baselines3 import PPO

from sb3_sparse.resume.signals import EXIT_STATUS

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")

SETTINGS = "CartPole-v1: {n_timesteps: 600, policy: MlpPolicy, n_steps: 64, n_epochs: 1}"
TRAINS = ("train", "--algo", "ppo", "--env", "CartPole-v1", "-conf", "my.yml", "--eval-freq", "-1")
# A signal to the process itself, where a method of SB3 or of Python begins.
PROGRAM = """
import importlib, json, os, signal, sys, time
stops, to, *sys.argv[1:] = sys.argv[1:]
def stop(place, number):
    owner, name = place.rsplit(".", 1)
    module, kind = owner.rsplit(".", 1)
    owner = getattr(importlib.import_module(module), kind)
    original = getattr(owner, name)
    def stopped(*args, **kwargs):
        setattr(owner, name, original)
        if to == "group":
            # As in a long call to torch, in which other processes end.
            signal.pthread_sigmask(signal.SIG_BLOCK, [number])
            os.killpg(0, number)
            time.sleep(1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        else:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)
    setattr(owner, name, stopped)
for place, number in json.loads(stops):
    stop(place, number)
from sb3_sparse.cli import main
main()
"""
STEP = "stable_baselines3.common.monitor.Monitor.step"
CLOSE = "stable_baselines3.common.vec_env.dummy_vec_env.DummyVecEnv.close"
PREDICT = "stable_baselines3.common.policies.ActorCriticPolicy.predict_values"
UPDATE = "stable_baselines3.ppo.ppo.PPO.train"
SAVE = "stable_baselines3.common.base_class.BaseAlgorithm.save"
WRITE = "zipfile.ZipFile.writestr"
SAVED = "rl_zoo3.exp_manager.ExperimentManager.save_trained_model"


@pytest.fixture
def stopped(tmp_path):
    """Trains, with a signal where places begin, and returns status and errors."""
    pytest.importorskip("rl_zoo3")
    (tmp_path / "my.yml").write_text(SETTINGS)

    def run(stops, *options, to="process", before=None):
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(stops), to, *TRAINS, *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
            preexec_fn=before,
            start_new_session=True,
        )
        return process.returncode, process.stderr

    return run


def trained(folder):
    return PPO.load(folder / "logs/ppo/CartPole-v1_1/CartPole-v1.zip").num_timesteps


ALSO = [pytest.param(places, marks=pytest.mark.full) for places in ((STEP, CLOSE), (SAVED,), (SAVE,))]


@pytest.mark.parametrize("places", [(CLOSE,), (WRITE,), (STEP, CLOSE, WRITE), *ALSO])
def test_ctrl_c_at_the_end(places, stopped, tmp_path):
    """Mistake of ours, as of rl-zoo3: all training was lost with the second Ctrl-C, and with one that came late."""
    status, said = stopped([(place, signal.SIGINT) for place in places])
    # Before the agent is written, it is what ends training.
    assert status == (0 if places[-1] == CLOSE else -signal.SIGINT), said
    assert trained(tmp_path) == (0 if STEP in places else 640)


OTHERS = [pytest.param(number, marks=pytest.mark.full) for number in (signal.SIGHUP, signal.SIGUSR1)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, *OTHERS])
@pytest.mark.parametrize("place", [CLOSE, pytest.param(SAVED, marks=pytest.mark.full)])
def test_exact_runs_save_what_has_come_to_its_end(place, number, stopped, tmp_path):
    """Mistake of ours: between the last step and the saved agent, a signal ended the process with neither."""
    status, said = stopped([(place, number)], "--exact-checkpoint-freq", "100000")
    assert status == 0, said
    assert trained(tmp_path) == 640


PAIRS = [pytest.param(numbers, marks=pytest.mark.full) for numbers in (("SIGHUP", "SIGTERM"), ("SIGINT", "SIGHUP"))]


@pytest.mark.parametrize("numbers", [("SIGTERM", "SIGHUP"), *PAIRS])
def test_a_session_that_is_ended_asks_twice(numbers, stopped, tmp_path):
    """Mistake of ours: the second one ended the run at once, without a checkpoint."""
    first, second = (getattr(signal, name) for name in numbers)
    status, said = stopped([(STEP, first), (PREDICT, second)], "--exact-checkpoint-freq", "100000")
    assert status == EXIT_STATUS, said
    assert list(tmp_path.glob("logs/ppo/CartPole-v1_1/exact/checkpoint-*"))


def test_ctrl_c_with_environments_in_processes_of_their_own(stopped, tmp_path):
    """Mistake of ours, as of rl-zoo3: they ended of it, so that closing them was an error, and the agent was lost."""
    (tmp_path / "my.yml").write_text(SETTINGS.replace("n_steps", "n_envs: 2, n_steps"))
    status, said = stopped([(UPDATE, signal.SIGINT)], "--vec-env", "subproc", to="group")
    assert status == 0, said
    assert trained(tmp_path) == 128


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_closes(ignored, stopped, tmp_path):
    """Mistake of ours: it ended a run without a checkpoint."""
    ignore = (lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if ignored else None
    status, said = stopped([(STEP, signal.SIGHUP)], "--exact-checkpoint-freq", "100000", before=ignore)
    assert status == (0 if ignored else EXIT_STATUS), said
    checkpoints = list(tmp_path.glob("logs/ppo/CartPole-v1_1/exact/checkpoint-*"))
    assert bool(checkpoints) is not ignored
    if ignored:
        assert trained(tmp_path) == 640
