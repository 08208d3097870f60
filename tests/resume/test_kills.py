"""kill -9 aimed at the moment of saving: what is there is whole, and the next start leaves nothing lying about."""

import importlib
import io
import os
import random
import signal
import time
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, SAC

from sb3_sparse import cli
from sb3_sparse.resume import ExactCheckpoint, load_safe, resume_exact, save_safe
from sb3_sparse.resume.files.folder import BESIDE, checkpoints, newest_whole
from tests.resume.cases import CASES
from tests.resume.faults import in_child, kill_at, status_of


def hidden(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


def killed_after(child, ready, seconds):
    """Kill a child some time after something is there."""
    while not ready() and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL


# train --save-freq


def train(folder, save_freq=15):
    os.chdir(folder)
    small = ("learning_starts:30", "buffer_size:200", "policy:'MlpPolicy'", "policy_kwargs:dict(net_arch=[8])")
    with redirect_stdout(io.StringIO()):
        cli.main(
            [
                *("train", "--algo", "sac", "--env", "Pendulum-v1", "-n", "100", "--eval-freq", "-1", "-f", "logs"),
                *("--save-freq", str(save_freq), "--seed", "1", "-params", *small),
            ]
        )


@pytest.fixture
def _zoo():
    """Imported once, instead of by each of the children."""
    pytest.importorskip("rl_zoo3.train")
    importlib.import_module("sb3_sparse.cli.train_tune_enjoy")


def is_agent(path):
    return path.endswith(".zip") and "logs" in path


def all_agents_load(folder):
    agents = sorted((folder / "logs").rglob("[!.]*.zip"))
    for path in agents:
        assert all(parameter.isfinite().all() for parameter in SAC.load(path, device="cpu").policy.parameters())
    return agents


@pytest.mark.usefixtures("_zoo")
def test_killed_while_train_saves(tmp_path, request):
    full = request.config.getoption("--full")
    n_killed, n_left, n_agents, step = 0, 0, set(), 1 if full else 35
    while True:
        folder = tmp_path / str(n_killed)
        folder.mkdir()

        def killed(folder=folder, call=n_killed * step + 1):
            kill_at(call, is_agent)
            train(folder)

        status = status_of(in_child(killed))
        if status == 0:
            # There were fewer calls.
            break
        assert status == -signal.SIGKILL
        n_agents.add(len(all_agents_load(folder)))
        left = hidden(folder)
        n_left += bool(left)
        if left and n_left % 4 == 1:
            assert status_of(in_child(lambda folder=folder: train(folder, 100))) == 0
            assert not hidden(folder)
            assert (folder / "logs/sac/Pendulum-v1_2/Pendulum-v1.zip").exists()
        n_killed += 1
    print(f"{n_killed} kills")
    assert n_killed * step >= 50
    assert n_left * step > 25
    # From the first save to the last one.
    assert not full or n_agents == set(range(7))
    assert len(all_agents_load(folder)) == 7


@pytest.mark.full
@pytest.mark.usefixtures("_zoo")
def test_killed_at_any_time_while_train_saves(tmp_path):
    draw = random.Random(0)
    for i in range(20):
        folder = tmp_path / str(i)
        folder.mkdir()
        child = in_child(lambda folder=folder: train(folder, 2))
        killed_after(child, lambda folder=folder: list(folder.rglob("rl_model_*.zip")), draw.uniform(0, 0.3))
        assert all_agents_load(folder)
        if i % 5 == 0:
            assert status_of(in_child(lambda folder=folder: train(folder, 100))) == 0
            assert not hidden(folder)


# save_safe


@pytest.fixture(scope="module")
def agent():
    return PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [128, 128]}, n_steps=16, batch_size=8, device="cpu")


def save_often(agent, path, n_saves=10_000):
    """Agents whose weights are all the same number, the one of the save."""
    for n in range(n_saves):
        for parameter in agent.policy.parameters():
            parameter.data.fill_(float(n))
        agent.num_timesteps = n
        save_safe(agent, path)


def is_of_one_save(path):
    found = load_safe(path, device="cpu")
    assert all((parameter == found.num_timesteps).all() for parameter in found.policy.parameters())
    return found.num_timesteps


def next_save_leaves_nothing(agent, path):
    status = status_of(in_child(lambda: save_safe(agent, path)))
    assert status == 0
    assert os.listdir(path.parent) == [path.name]


def test_killed_while_save_safe_writes(agent, tmp_path, request):
    path = tmp_path / "agent.safetensors"
    n_killed, n_left, found, step = 0, 0, set(), 1 if request.config.getoption("--full") else 7
    while True:
        path.unlink(missing_ok=True)

        def killed(call=n_killed * step + 1):
            kill_at(call, lambda name: name.startswith(str(tmp_path)))
            save_often(agent, path, 11)

        status = status_of(in_child(killed))
        if status == 0:
            break
        assert status == -signal.SIGKILL
        if path.exists():
            found.add(is_of_one_save(path))
        n_left += len(os.listdir(tmp_path)) > path.exists()
        next_save_leaves_nothing(agent, path)
        n_killed += 1
    print(f"{n_killed} kills")
    assert n_killed * step >= 50
    assert n_left * step > 20
    assert len(found) >= 10 / step


@pytest.mark.parametrize("n_kills", [4, pytest.param(50, marks=pytest.mark.full)])
def test_killed_at_any_time_while_save_safe_writes(n_kills, agent, tmp_path):
    path, draw, n_left = tmp_path / "agent.safetensors", random.Random(0), 0
    for _ in range(n_kills):
        path.unlink(missing_ok=True)
        killed_after(in_child(lambda: save_often(agent, path)), path.exists, draw.uniform(0, 0.05))
        is_of_one_save(path)
        n_left += len(os.listdir(tmp_path)) > 1
        next_save_leaves_nothing(agent, path)
    assert n_kills < 50 or n_left > 5


# ExactCheckpoint, besides each of its calls, which test_processes.py kills at


@pytest.mark.parametrize("n_kills", [2, pytest.param(25, marks=pytest.mark.full)])
def test_killed_at_any_time_while_checkpoints_are_written(n_kills, tmp_path):
    case, draw, n_left = CASES["sac wraps"], random.Random(0), 0
    for i in range(n_kills):
        folder = tmp_path / str(i) / "run"
        (tmp_path / str(i)).mkdir()

        def run(folder=folder):
            case.make(folder.parent).learn(2000, callback=ExactCheckpoint(folder, every=2, keep=1))

        killed_after(in_child(run), lambda folder=folder: checkpoints(folder), draw.uniform(0, 0.5))
        checkpoint = newest_whole(folder)
        for name in (*checkpoint.manifest["parts"], *checkpoint.manifest["rows"]):
            checkpoint.read(name)
        n_left += bool(hidden(folder))

        def goes_on(folder=folder, at=checkpoint.manifest["timesteps"]):
            class Ends(ExactCheckpoint):
                def _on_step(self):
                    return self.model.num_timesteps < at + 10

            agent = resume_exact(folder, callback=Ends(folder, every=5, keep=1))
            assert agent.num_timesteps == at + 10
            assert np.isfinite(agent.replay_buffer.observations).all()
            assert all(th.isfinite(parameter).all() for parameter in agent.policy.parameters())

        assert status_of(in_child(goes_on)) == 0
        assert not [path for path in hidden(folder) if path.name.startswith((BESIDE, ".lock"))]
        assert len(checkpoints(folder)) == 1
    assert n_kills < 25 or n_left > 2
