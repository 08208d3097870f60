"""Searches of hyperparameters: how they begin, what they hold on to, and how they end."""

import argparse
import gc
import os
import signal
import weakref
from pathlib import Path

import gymnasium as gym
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


OFF_POLICY = {"one_minus_gamma": 0.03, "batch_size_pow": 4, "learning_rate": 1e-3, "train_freq": 4, "tau": 0.01}
TD3 = {**OFF_POLICY, "noise_std": 0.3, "net_arch": "small"}


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """Trial 7 of a search that was kept, with these values."""

    def store(params):
        study = argparse.Namespace(trials={7: argparse.Namespace(params=dict(params))})
        monkeypatch.setattr("rl_zoo3.exp_manager.optuna.load_study", lambda **kwargs: study)
        # rl-zoo3 makes the file, before it asks for the study in it.
        return {"storage": str(tmp_path / "study.log"), "study_name": "s", "trial_id": 7, "optimize_hyperparameters": False}

    return store


@pytest.fixture
def made_in_trial(monkeypatch):
    """The keywords of an agent that a trial of a search makes, which are drawn as told."""

    def make(manager, params):
        import optuna

        made = {}

        class Made(Exception):
            pass

        def algorithm(**kwargs):
            made.update(kwargs)
            raise Made

        with monkeypatch.context() as patched, manager.search_space():
            patched.setattr(manager, "create_envs", lambda *args, **kwargs: None)
            patched.setitem(part("utils.ALGOS"), manager.algo, algorithm)
            with pytest.raises(Made):
                manager.objective(optuna.trial.FixedTrial(params))
        return made

    return make


@pytest.mark.parametrize("algo", ["td3", "ddpg"])
@pytest.mark.parametrize("noise", [None, "normal", "ornstein-uhlenbeck"])
def test_no_noise_is_none(algo, noise, tmp_path, stored, made_in_trial):
    """Mistake of ours, as of rl-zoo3: where no noise was drawn, trials had that of the file, and could not be trained."""
    entry = {**SMALL, "noise_type": "normal", "noise_std": 0.1, "buffer_size": 100, "learning_starts": 10}
    with zoo.registered():
        manager = search_of(tmp_path, algo, "Pendulum-v1", entry)
        manager.setup_experiment()
        found = made_in_trial(manager, {**TD3, "noise_type": noise})["action_noise"]
    kinds = {None: "NoneType", "normal": "NormalActionNoise", "ornstein-uhlenbeck": "OrnsteinUhlenbeckActionNoise"}
    assert type(found).__name__ == kinds[noise]
    assert noise is None or found._sigma == 0.3
    settings = stored({**TD3, "noise_type": noise})
    with zoo.registered():
        model, _ = search_of(tmp_path, algo, "Pendulum-v1", entry, **settings, eval_freq=-1).setup_experiment()
    model.env.close()
    assert type(model.action_noise) is type(found)


def test_an_agent_that_goes_on_loses_its_noise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"n_timesteps": 5, "hyperparams": {"policy_kwargs": {"width_scale": 0.1}, "buffer_size": 100}}
    model, folder = zoo.train_agent("td3", "Pendulum-v1", tmp_path, **options)
    assert model.action_noise is not None
    options["hyperparams"]["noise_type"] = None
    model, _ = zoo.train_agent("td3", "Pendulum-v1", tmp_path, trained_agent=f"{folder}/Pendulum-v1.zip", **options)
    assert model.action_noise is None


@pytest.fixture
def env_with_goals():
    gym.register("BitFlipping-v0", "stable_baselines3.common.envs:BitFlippingEnv", kwargs={"continuous": True})
    yield "BitFlipping-v0"
    gym.registry.pop("BitFlipping-v0")


def test_a_trial_with_hindsight_is_trained(tmp_path, stored, env_with_goals):
    """Mistake of ours, as of rl-zoo3: what it had drawn of the buffer was no keyword of the algorithm."""
    entry = {**SMALL, "policy": "MultiInputPolicy", "learning_starts": 100, "buffer_size": 100}
    entry |= {"replay_buffer_class": "HerReplayBuffer", "replay_buffer_kwargs": "dict(copy_info_dict=True, n_sampled_goal=4)"}
    drawn = {**OFF_POLICY, "net_arch": "small", "n_sampled_goal": 2, "goal_selection_strategy": "final"}

    def buffer_of(**given):
        with zoo.registered():
            manager = search_of(tmp_path, "sac", env_with_goals, entry, **stored(drawn), eval_freq=-1, **given)
            model, saved = manager.setup_experiment()
        model.env.close()
        assert "n_sampled_goal" not in saved
        buffer = model.replay_buffer
        return buffer.n_sampled_goal, buffer.goal_selection_strategy.name, buffer.copy_info_dict

    assert buffer_of() == (2, "FINAL", True)
    # What is given beside the trial takes the place of the file's, and of the trial's.
    assert buffer_of(hyperparams={"replay_buffer_kwargs": {"n_sampled_goal": 3}}) == (3, "FINAL", False)


@pytest.mark.parametrize("kwargs", [{"n_steps": 3, "gamma": 0.99}, "dict(n_steps=3)"])
def test_a_buffer_of_several_steps_discounts_as_its_algorithm(kwargs, tmp_path, stored, made_in_trial):
    """Mistake of ours: the first trial ended the search, since the file's buffer discounted otherwise."""
    entry = {**SMALL, "learning_starts": 100, "buffer_size": 100, "replay_buffer_kwargs": kwargs, "gamma": 0.99}
    entry["replay_buffer_class"] = "FrameReplayBuffer"
    drawn = {**OFF_POLICY, "net_arch": "small"}
    with zoo.registered():
        manager = search_of(tmp_path, "sac", "Pendulum-v1", entry)
        manager._hyperparams, *_ = manager._preprocess_hyperparams(manager.read_hyperparameters()[0])
        in_search = made_in_trial(manager, drawn)["replay_buffer_kwargs"]
        found, _ = search_of(tmp_path, "sac", "Pendulum-v1", entry, **stored(drawn)).read_hyperparameters()
    assert in_search == found["replay_buffer_kwargs"] == {"n_steps": 3, "gamma": 0.97}
    # The file's own, for the trials that follow.
    assert manager._hyperparams["replay_buffer_kwargs"].get("gamma", 0.99) == 0.99


def test_what_is_given_beside_a_trial_stands_and_is_shown(tmp_path, stored, capsys):
    """Mistake of ours: a sparsity that was given was that of the trial, and what was printed was neither."""
    entry = {**SMALL, "policy": "SparseSimBaPolicy", "policy_kwargs": {"sparsity": 0.8, "n_critics": 1}}
    drawn = {**OFF_POLICY, "sparsity": 0.62, "width_scale": 0.25}
    given = {"policy_kwargs": "dict(sparsity=0.95, rescale=True)", "gamma": 0.5}
    with zoo.registered():
        found, saved = search_of(
            tmp_path, "sac", "Pendulum-v1", entry, **stored(drawn), hyperparams=given
        ).read_hyperparameters()
    assert found["policy_kwargs"] == saved["policy_kwargs"] == {"sparsity": 0.95, "width_scale": 0.25, "rescale": True}
    assert (found["gamma"], found["learning_rate"]) == (0.5, 1e-3)
    shown = capsys.readouterr().out.split("Trial 7 has: ")[1]
    assert "'sparsity': 0.95" in shown
    assert "0.62" not in shown
