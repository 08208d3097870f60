"""``--exact-checkpoint-patience``: a signal, after which no point comes where a checkpoint would be exact."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stable_baselines3 import SAC

from sb3_sparse.resume.files.folder import checkpoints, newest_whole
from tests.cli.running import run

pytest.importorskip("rl_zoo3")

# Steps that take for ever, within a rollout that has begun, while there is a file STUCK.
ENVIRONMENT = """
import os, time
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv

class Stuck(PendulumEnv):
    n_steps = 0

    def step(self, action):
        self.n_steps += 1
        if self.n_steps == 150 and os.path.exists("STUCK"):
            open("REACHED", "w").close()
            time.sleep(3600)
        return super().step(action)

gym.register("Stuck-v0", Stuck, max_episode_steps=70)
"""
FOLDER = Path("logs/sac/Stuck-v0_1")
TRAIN = (
    *("train", "--algo", "sac", "--env", "Stuck-v0", "--gym-packages", "stuck", "-n", "200", "--eval-freq", "-1"),
    *("-f", "logs", "--exact-checkpoint-freq", "90", "--exact-checkpoint-patience", "1.5", "-params", "learning_starts:30"),
    *("buffer_size:500", "policy:'MlpPolicy'", "policy_kwargs:dict(net_arch=[8])", "train_freq:100"),
)


def test_a_run_whose_patience_ends_ends_with_the_newest_whole_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "stuck.py").write_text(ENVIRONMENT)
    (tmp_path / "STUCK").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    process = subprocess.Popen(
        [sys.executable, "-m", "sb3_sparse.cli", *TRAIN],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        while process.poll() is None and not (tmp_path / "REACHED").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)
        begin = time.monotonic()
        out, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert time.monotonic() - begin > 1.4
    assert process.returncode == 75, out
    newest = rf"{FOLDER}/exact is an earlier one"
    assert f"ended on request, no point for a checkpoint came in 1.5 seconds. The newest checkpoint in {newest}" in out
    assert [path.name.partition("-at-")[2] for path in checkpoints(tmp_path / FOLDER / "exact")] == ["100"]
    newest_whole(tmp_path / FOLDER / "exact").check_parts()
    assert not list((tmp_path / "logs").rglob("lock.json"))
    assert not (tmp_path / FOLDER / "Stuck-v0.zip").exists()
    (tmp_path / "STUCK").unlink()
    run("train", "--resume", str(FOLDER), cwd=tmp_path)
    assert SAC.load(tmp_path / FOLDER / "Stuck-v0.zip", device="cpu").num_timesteps == 200
