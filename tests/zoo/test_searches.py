"""Searches of hyperparameters: how they begin, what they hold on to, and how they end."""

import argparse
import gc
import os
import signal
import weakref
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import A2C

from sb3_sparse import zoo
from sb3_sparse.cli import main
from sb3_sparse.zoo.rl_zoo import part

pytest.importorskip("rl_zoo3")

SMALL = {"n_timesteps": 16, "policy": "MlpPolicy", "policy_kwargs": {"net_arch": [4]}}


def search_of(folder, algo="a2c", env_id="CartPole-v1", entry=SMALL, **settings):
    """The manager of a search."""
    (folder / "my.yml").write_text(yaml.safe_dump({"default": entry}))
    settings = {"log_folder": str(folder), "config": str(folder / "my.yml"), "optimize_hyperparameters": True, **settings}
    return zoo.experiment_manager()(argparse.Namespace(), algo, env_id, **settings)


def test_a_search_with_an_agent_is_refused(tmp_path, monkeypatch):
    """Mistake of ours, as of rl-zoo3: the agent was trained once, and nothing was searched."""
    monkeypatch.chdir(tmp_path)
    A2C("MlpPolicy", "CartPole-v1").save("agent.zip")
    arguments = ["--algo", "a2c", "--env", "CartPole-v1", "-i", "agent.zip", "-f", "logs", "-n", "5"]
    for command in (["tune", *arguments], ["train", "-optimize", *arguments]):
        with pytest.raises(SystemExit, match=rf"^sb3-sparse {command[0]}: --trained-agent agent\.zip: a search trains new"):
            main(command)
    assert not Path("logs").exists()


def test_a_search_lets_environments_of_trials_go(tmp_path):
    """Mistake of ours: those of every trial were kept, with their memory and the pipes to their processes."""
    with zoo.registered():
        manager = search_of(tmp_path)
        manager.setup_experiment()
        made = [weakref.ref(manager.create_envs(1, no_log=True)) for _ in range(3)]
    gc.collect()
    assert [env() for env in made] == [None] * 3


def processes_survive_ctrl_c(env):
    """Whether environments in processes of their own step and close after a Ctrl-C that all processes got."""
    env.reset()
    for process in env.unwrapped.processes:
        os.kill(process.pid, signal.SIGINT)
    env.step([env.action_space.sample()])
    # Where the main process was waiting for a step.
    env.step_async([env.action_space.sample()])
    env.close()
    return not any(process.is_alive() for process in env.unwrapped.processes)


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("command", ["tune", pytest.param("enjoy", marks=pytest.mark.full)])
def test_ctrl_c_is_for_the_main_process_alone(command, tmp_path):
    """Mistake of ours, as of rl-zoo3: the processes of environments ended of it, and closing them lost the whole search."""
    with zoo.registered(loads_only=command == "enjoy"):
        if command == "tune":
            env = search_of(tmp_path, vec_env_type="subproc").create_envs(1, no_log=True)
        else:
            subproc = {"vec_env_cls": part("exp_manager.SubprocVecEnv"), "should_render": False}
            env = part("enjoy.create_test_env")("CartPole-v1", hyperparams={}, **subproc)
        assert processes_survive_ctrl_c(env)
