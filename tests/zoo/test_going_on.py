"""Saved agents that are trained further, ``train -i``."""

import pickle
import shutil
from pathlib import Path

import gymnasium as gym
import pytest
import yaml
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3

from sb3_sparse.cli import main

pytest.importorskip("rl_zoo3")

SMALL = {"n_timesteps": 16, "policy": "MlpPolicy", "policy_kwargs": {"net_arch": [4]}, "n_steps": 16}
OF = {"a2c": A2C, "ppo": PPO, "ddpg": DDPG, "td3": TD3, "sac": SAC}


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains some steps by the command."""
    monkeypatch.chdir(tmp_path)

    def run(algo, env_id="Pendulum-v1", *options, **settings):
        Path("my.yml").write_text(yaml.safe_dump({"default": {**SMALL, **settings}}))
        main(["train", "--algo", algo, "--env", env_id, "-conf", "my.yml", "--eval-freq", "-1", *options])

    return run


def saved(algo):
    """An agent of SB3's, in a file."""
    OF[algo]("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [4]}).save("agent.zip")


def test_an_agent_of_another_algorithm_does_not_go_on(train):
    """Mistake of ours, as of rl-zoo3: an agent of A2C was trained as one of PPO, which is what --algo is by itself."""
    for algo, other in (("a2c", "ppo"), ("ppo", "a2c")):
        saved(other)
        sentence = f"cannot go on in Pendulum-v1 as {algo}: .* it holds an agent of {other.upper()}: .*--algo for"
        with pytest.raises(SystemExit, match=f"^sb3-sparse train: --trained-agent .* {sentence}"):
            train(algo, "Pendulum-v1", "-i", "agent.zip")
        assert not list(Path().glob("logs/*/*"))
    train("a2c", "Pendulum-v1", "-i", "agent.zip")
    assert Path("logs/a2c/Pendulum-v1_1/Pendulum-v1.zip").is_file()


@pytest.mark.parametrize("names", [("td3", "ddpg"), ("ddpg", "td3")])
def test_what_no_file_tells_apart_goes_on(names, train):
    saved(names[0])
    settings = {"learning_starts": 100, "n_steps": 1, "policy_kwargs": {}, "buffer_size": 100}
    train(names[1], "Pendulum-v1", "-i", "agent.zip", **settings)
    assert Path(f"logs/{names[1]}/Pendulum-v1_1/Pendulum-v1.zip").is_file()


def statistics(env_id, number=1):
    path = Path(f"logs/ppo/{env_id}_{number}/{env_id}/vecnormalize.pkl")
    return pickle.loads(path.read_bytes()).obs_rms


@pytest.fixture
def other_env():
    """The same as Pendulum-v1, under another name."""
    gym.register("OtherPendulum-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=200)
    yield "OtherPendulum-v0"
    gym.registry.pop("OtherPendulum-v0")


@pytest.mark.parametrize("is_copied", [False, True])
def test_the_statistics_of_observations_go_on_wherever_they_are(is_copied, train, other_env):
    """Mistake of ours, as of rl-zoo3: in another environment, or as a copy, an agent began with new ones without a word."""
    train("ppo", normalize=True, batch_size=16, n_timesteps=320)
    agent, env_id = "logs/ppo/Pendulum-v1_1/Pendulum-v1.zip", other_env
    if is_copied:
        Path("mine/agent").mkdir(parents=True)
        shutil.copy("logs/ppo/Pendulum-v1_1/Pendulum-v1/vecnormalize.pkl", "mine/agent")
        agent, env_id = str(shutil.copy(agent, "mine/agent.zip")), "Pendulum-v1"
    before = statistics("Pendulum-v1").count
    # Whether the file asks for some or not.
    for i, normalize in enumerate((True, False), 1 + is_copied):
        train("ppo", env_id, "-i", agent, normalize=normalize, batch_size=16)
        assert statistics(env_id, i).count == pytest.approx(before + 16, abs=3)


def test_statistics_that_do_not_fit_are_named(train):
    train("ppo", normalize=True, batch_size=16)
    with pytest.raises(SystemExit, match=r"Pendulum-v1.vecnormalize\.pkl, the statistics of .*, do not fit to CartPole-v1: "):
        train("ppo", "CartPole-v1", "-i", "logs/ppo/Pendulum-v1_1/Pendulum-v1.zip", batch_size=16)


def test_misspelt_hyperparameters_of_an_agent_that_goes_on_are_named(train):
    """Mistake of ours: SB3 made attributes of them, which nobody reads."""
    saved("a2c")
    with pytest.raises(SystemExit, match=r"unknown hyperparameter 'learning_rat': .*Did you mean 'learning_rate'\?"):
        train("a2c", "Pendulum-v1", "-i", "agent.zip", "-params", "learning_rat:0.5")
    assert not Path("logs").exists()
