"""Safe files of agents that earlier versions saved, and of writers that are killed."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sb3_sparse.export import sb3_to_safe
from sb3_sparse.resume.safe import load_safe
from tests.compatibility import cases
from tests.export.agents import observations_of
from tests.resume.safe_agents import same


@pytest.mark.parametrize("name", cases.AGENTS)
def test_agents_of_earlier_versions(name, tmp_path):
    algorithm = cases.AGENTS[name].algorithm
    model = algorithm.load(cases.FILES / name, device="cpu")
    found = load_safe(sb3_to_safe(cases.FILES / f"{name}.zip", tmp_path / "agent", algorithm), device="cpu")
    assert same(found.get_parameters(), model.get_parameters())
    observations = observations_of(model.observation_space, 64, seed=5)
    actions = [each.predict(observations, deterministic=True)[0] for each in (model, found)]
    assert np.array_equal(*actions)


# Saves one of two agents after the other under the same name, and says so before each save.
WRITER = """
import sys
import torch as th
from stable_baselines3 import PPO
from sb3_sparse import save_safe
model = PPO("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [512, 512]}, n_steps=16, batch_size=8)
for n in range(10_000):
    for parameter in model.policy.parameters():
        parameter.data.fill_(float(n))
    model.num_timesteps = n
    print(n, flush=True)
    save_safe(model, sys.argv[1])
"""


@pytest.mark.full
def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    path, draw, found = tmp_path / "agent.safetensors", random.Random(0), []
    for _ in range(20):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) as writer:
            # The first is written, and the kill comes somewhere in or after the second or a later one.
            for _ in range(draw.randrange(2, 6)):
                line = writer.stdout.readline()
            time.sleep(draw.uniform(0, 0.03))
            writer.send_signal(signal.SIGKILL)
            # A fast machine has made more than one since.
            last = int((line + writer.stdout.read()).split()[-1])
        model = load_safe(path, device="cpu")
        assert model.num_timesteps in (last - 1, last)
        # All of one save.
        for parameter in model.policy.parameters():
            assert (parameter == model.num_timesteps).all()
        found.append(model.num_timesteps - last)
    # Some were killed before the new one was there.
    assert -1 in found
