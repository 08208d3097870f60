"""kill -9, and a new process that goes on."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.files.folder import BESIDE, checkpoints, newest_whole
from sb3_sparse.resume.signals import shield_workers
from tests.resume.cases import CASES, skip_without_packages
from tests.resume.comparing import compare_files, differences
from tests.resume.faults import in_child, status_of

ROOT = Path(__file__).parent.parent.parent


def process(*arguments: object) -> int:
    command = [sys.executable, "-W", "ignore", "-m", "tests.resume.program", *map(str, arguments)]
    # Nothing is measured: of two runs that begin anew, one on a busy machine, each may find another backend to be the fastest.
    # That a run goes on with those of its checkpoint is tested in test_exact.py.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SB3_SPARSE_BACKEND": "deterministic"}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


def outcome(folder: Path):
    return th.load(folder / "everything", weights_only=False)


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_killed_at_three_points_it_is_the_run_that_was_not_interrupted(name, tmp_path):
    skip_without_packages(name)
    case, undisturbed = CASES[name], tmp_path / "undisturbed"
    undisturbed.mkdir()
    assert process(undisturbed, name) == 0
    for i, at in enumerate((case.every + 20, case.total - case.total // 4, case.total - 5)):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert process(folder, name, at) == -signal.SIGKILL
        assert process(folder, name, "resume") == 0
        assert not differences(outcome(undisturbed), outcome(folder))
        compare_files(undisturbed, folder)


class KilledWhileSaving(ExactCheckpoint):
    """Its second checkpoint is interrupted at the n-th call by which it gets to the disk."""

    def __init__(self, *args, call: int, **kwargs):
        super().__init__(*args, **kwargs)
        self.left, self.n_saved = call, 0

    def save(self) -> None:
        if self.n_saved == 1:
            for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir"):
                setattr(os, name, self.counted(getattr(os, name)))
        super().save()
        self.n_saved += 1
        if self.n_saved == 2:
            # There were fewer calls.
            os._exit(0)

    def counted(self, function):
        def wrapper(*args, **kwargs):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper


def killed_at(call: int, folder: Path, name: str) -> bool:
    """
    Train in a child that is killed while it saves.

    :return: Whether it was, or there were fewer calls.
    """

    def killed():
        callback = KilledWhileSaving(folder / "run", every=60, keep=1, call=call)
        CASES[name].make(folder).learn(400, callback=callback)

    status = status_of(in_child(killed))
    assert status in (0, -signal.SIGKILL)
    return status != 0


# What has rows of a replay buffer, which begins anew, that of several environments with single frames, and none.
MANY = [pytest.param(name, marks=pytest.mark.full) for name in ("rainbow frames", "ppo")]


@pytest.mark.parametrize("name", ["sac wraps", *MANY])
def test_killed_while_saving_the_newest_whole_checkpoint_loads_and_nothing_is_left_behind(name, tmp_path, request):
    n_killed, step = 0, 1 if request.config.getoption("--full") else 7
    while killed_at(n_killed * step + 1, tmp_path / str(n_killed), name):
        folder = tmp_path / str(n_killed) / "run"
        n_killed += 1
        checkpoint = newest_whole(folder)
        for part in (*checkpoint.manifest["parts"], *checkpoint.manifest["rows"]):
            checkpoint.read(part)
        before = checkpoint.manifest["timesteps"]
        assert 60 <= before < 250
        if n_killed % 4 == 1:
            assert resume_exact(folder).num_timesteps >= 400
            assert not [path for path in folder.rglob("*") if path.name.startswith((BESIDE, ".lock"))]
            assert len(checkpoints(folder)) == 1
            needed = {Path(name).name for name in newest_whole(folder).manifest["rows"]}
            assert {path.name for path in folder.glob("rows/*")} == needed
    print(f"{name}: {n_killed} kills")
    assert n_killed * step >= 14


class Takes(gym.Env):
    """Seconds, for a step."""

    observation_space = gym.spaces.Box(-1, 1, (50_000,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, seconds):
        self.seconds = seconds

    def reset(self, *, seed=None, options=None):
        return np.zeros(50_000, np.float32), {}

    def step(self, action):
        time.sleep(self.seconds)
        return np.zeros(50_000, np.float32), 0.0, False, False, {}


# Within the patience for one that hangs, the other may not end on a busy machine.
@pytest.mark.parametrize(("seconds", "patience", "last"), [(0.2, 60, [0, 0]), (600, 1, [-signal.SIGTERM])])
def test_environments_whose_step_was_interrupted_can_be_closed(seconds, patience, last, monkeypatch):
    """SB3 waits for answers of which one was read already, and for those of an environment that hangs."""
    monkeypatch.setattr("sb3_sparse.resume.signals._SECONDS_TO_CLOSE", patience)
    env = SubprocVecEnv([partial(Takes, 0), partial(Takes, seconds)], start_method="spawn")
    env.reset()
    shield_workers([env])
    env.step_async(np.array([0, 0]))
    env.remotes[0].recv()
    env.close()
    found = [process.exitcode for process in env.processes]
    assert None not in found
    assert found[-len(last) :] == last
    env.close()
