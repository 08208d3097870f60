"""rl-zoo3's experiment manager with our policies."""

import argparse
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_sparse import zoo
from sb3_sparse.cli import main
from sb3_sparse.dmc import register_dmc
from sb3_sparse.evaluation.saved import environment_of, find_saved
from sb3_sparse.resume.state.callbacks import check_callbacks
from sb3_sparse.zoo.manager import DMC_WRAPPER, PIXEL_WRAPPER
from sb3_sparse.zoo.rl_zoo import part

pytest.importorskip("rl_zoo3")

# Python that leaves a file where it is run.
TRAP = "__import__('pathlib').Path('trap').touch() or {}"


def test_our_policy_kwargs_are_not_run_in_training_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"policy": "sb3_sparse.SparseSimBaPolicy", "policy_kwargs": TRAP}
    Path("my.yml").write_text(yaml.safe_dump({"default": entry}))
    manager = zoo.experiment_manager()(argparse.Namespace(), "sac", "Pendulum-v1", log_folder=".", config="my.yml")
    with pytest.raises(ValueError, match="policy_kwargs="):
        manager.read_hyperparameters()
    assert not Path("trap").exists()


@pytest.mark.parametrize(("algo", "wrappers"), [("sac", 1), ("stream_ac", 1), ("a2c", 0)])
def test_deepmind_control_tasks_without_an_entry_are_wrapped(algo, wrappers, tmp_path):
    pytest.importorskip("dm_control")
    register_dmc()
    zoo.register_algorithms()
    hyperparams = {"policy": "MlpPolicy"} if algo == "a2c" else {}
    (tmp_path / "a2c.yml").write_text("default: {}")
    manager = zoo.experiment_manager()(
        argparse.Namespace(),
        algo,
        "dm_control/quadruped-run-v0",
        log_folder=str(tmp_path),
        config=str(zoo.hyperparams_file(algo) or tmp_path / "a2c.yml"),
        hyperparams=hyperparams,
    )
    hyperparams, saved = manager.read_hyperparameters()
    assert hyperparams.get("env_wrapper") == saved.get("env_wrapper") == ([DMC_WRAPPER] * wrappers or None)


def test_who_learns_from_pictures_gets_pictures_of_them(tmp_path):
    pytest.importorskip("dm_control")
    config = tmp_path / "my.yml"
    entry = {"policy": "CnnPolicy", "policy_kwargs": {"net_arch": [8]}, "n_timesteps": 9}
    config.write_text(yaml.safe_dump({"default": entry}))
    model = zoo.untrained_agent("drqv2", "dm_control/walker-walk-v0", config=config)
    assert (model.observation_space.shape, model.action_space.shape) == ((9, 84, 84), (6,))
    manager = zoo.experiment_manager()(
        argparse.Namespace(), "drqv2", "dm_control/walker-walk-v0", log_folder=str(tmp_path), config=str(config)
    )
    hyperparams, saved = manager.read_hyperparameters()
    assert hyperparams["env_wrapper"] == saved["env_wrapper"] == [PIXEL_WRAPPER]
    (keywords,) = PIXEL_WRAPPER.values()
    assert keywords["action_repeat"] == 2


ATARI = {"frameskip": 1, "repeat_action_probability": 0.0, "max_num_frames_per_episode": 100_000}


@pytest.mark.parametrize("algo", ["der", "rainbow", "dqn"])
def test_evaluations_are_in_the_environment_of_the_file(algo, tmp_path):
    pytest.importorskip("ale_py")
    zoo.make_known("ALE/Breakout-v5")
    settings = dict(log_folder=str(tmp_path), config=str(zoo.hyperparams_file("der")))
    with zoo.registered():
        manager = zoo.experiment_manager()(argparse.Namespace(), algo, "ALE/Breakout-v5", **settings)
        _, manager.env_wrapper, *_ = manager._preprocess_hyperparams(manager.read_hyperparameters()[0])
        assert manager.env_kwargs == manager.eval_env_kwargs == ATARI
        env = manager.create_envs(1, eval_env=True)
        # Not wrapped twice, and the Monitor inside: it sees whole games.
        names = []
        layer = env.unwrapped.envs[0]
        while layer is not layer.unwrapped:
            names.append(type(layer).__name__)
            layer = layer.env
        assert names == ["DopamineAtari", "Monitor", "OrderEnforcing", "PassiveEnvChecker"]
        assert env.observation_space.shape == (4, 84, 84)
        assert layer.unwrapped._frameskip == 1
        env.close()


def test_other_arguments_for_evaluations_are_those(tmp_path):
    pytest.importorskip("ale_py")
    zoo.make_known("ALE/Breakout-v5")
    settings = dict(log_folder=str(tmp_path), config=str(zoo.hyperparams_file("der")), eval_env_kwargs={**ATARI, "mode": 4})
    with zoo.registered():
        manager = zoo.experiment_manager()(argparse.Namespace(), "der", "ALE/Breakout-v5", **settings)
        manager._preprocess_hyperparams(manager.read_hyperparameters()[0])
    assert manager.eval_env_kwargs == {**ATARI, "mode": 4}


@pytest.mark.parametrize("searches", [False, True])
def test_trials_of_a_search_do_not_learn_from_each_others_steps(searches, tmp_path):
    config = tmp_path / "my.yml"
    keywords = f"dict(storage_path={str(tmp_path / 'store')!r})"
    entry = {"policy": "CnnPolicy", "n_timesteps": 9, "replay_buffer_kwargs": keywords}
    config.write_text(yaml.safe_dump({"default": entry}))
    settings = dict(log_folder=str(tmp_path), config=str(config), optimize_hyperparameters=searches)
    with zoo.registered():
        manager = zoo.experiment_manager()(argparse.Namespace(), "drqv2", "Pendulum-v1", **settings)
        hyperparams, _ = manager.read_hyperparameters()
        if searches:
            with pytest.raises(zoo.WrongSettingError, match=r"storage_path=.*in memory"):
                manager._preprocess_hyperparams(hyperparams)
        else:
            assert "storage_path" in manager._preprocess_hyperparams(hyperparams)[0]["replay_buffer_kwargs"]


def test_runs_that_begin_together_have_folders_of_their_own(tmp_path, monkeypatch):
    """Mistake of ours, as of rl-zoo3: both found the same next number, and one wrote over the other."""
    # As whoever looks before the others have made theirs.
    monkeypatch.setattr("rl_zoo3.exp_manager.get_latest_run_id", lambda *args: 0)
    small = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [4]}, "learning_starts": 10}
    folders = [
        zoo.train_agent("sac", "Pendulum-v1", tmp_path, seed=seed, hyperparams=small, n_timesteps=5)[1] for seed in (1, 2, 3)
    ]
    assert [folder.name for folder in folders] == ["Pendulum-v1_1", "Pendulum-v1_2", "Pendulum-v1_3"]
    for seed, folder in enumerate(folders, 1):
        assert SAC.load(folder / "Pendulum-v1.zip").seed == seed
        assert (folder / "Pendulum-v1/config.yml").is_file()


@pytest.mark.parametrize("has_monitor", [False, True])
def test_an_evaluation_does_not_wait_for_ends_that_nobody_sees(has_monitor, tmp_path):
    """Mistake of ours, as of rl-zoo3: with a time limit in the file, the first evaluation never ended."""
    wrappers = [{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 5}}]
    if has_monitor:
        wrappers.append("stable_baselines3.common.monitor.Monitor")
    hyperparams = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [4]}, "learning_starts": 100, "env_wrapper": wrappers}

    def train():
        options = {"n_timesteps": 20, "eval_freq": 10, "n_eval_episodes": 2}
        return zoo.train_agent("sac", "Pendulum-v1", tmp_path, hyperparams=hyperparams, **options)[1]

    if has_monitor:
        assert np.load(train() / "evaluations.npz")["ep_lengths"].tolist() == [[5, 5], [5, 5]]
    else:
        with pytest.raises(zoo.WrongSettingError, match=r"Monitor has seen none of them end.*the last one of env_wrapper"):
            train()


def test_nor_does_a_search(tmp_path, monkeypatch):
    """Mistake of ours: rl-zoo3 took it for a bad value, and tried 500 others."""
    monkeypatch.chdir(tmp_path)
    wrappers = [{"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 5}}]
    entry = {"policy": "MlpPolicy", "n_timesteps": 20, "learning_starts": 100, "env_wrapper": wrappers}
    Path("my.yml").write_text(yaml.safe_dump({"Pendulum-v1": entry}))
    options = ["--n-trials", "3", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    with pytest.raises(SystemExit, match=r"^sb3-sparse tune: evaluation: 101 episodes .*Monitor has seen none of them end"):
        main(["tune", "--algo", "sac", "--env", "Pendulum-v1", "-conf", "my.yml", *options])


def test_runs_go_on_that_began_with_evaluations_of_sb3():
    """Mistake of ours: checkpoints name callbacks, and one of ours had taken the place of SB3's."""
    env = DummyVecEnv([lambda: gym.make("Pendulum-v1")])
    with zoo.registered():
        ours = part("exp_manager.EvalCallback")(env)
    theirs = EvalCallback(env)
    assert type(ours) is not EvalCallback
    for one, other in ((ours, theirs), (theirs, ours)):
        check_callbacks([one], ([type(other).__name__], b""))


def manager_of(tmp_path, entry, **settings):
    (tmp_path / "my.yml").write_text(yaml.safe_dump({"default": entry}))
    settings = dict(log_folder=str(tmp_path), config=str(tmp_path / "my.yml"), **settings)
    return zoo.experiment_manager()(argparse.Namespace(), "sac", "Pendulum-v1", **settings)


@pytest.mark.parametrize("number", [0, 7])
def test_a_trial_is_trained_with_all_that_it_had(number, tmp_path, monkeypatch):
    """Trial 0 counts, and what -params says of a part of policy_kwargs does not take the place of the whole."""
    given = {"policy_kwargs": "dict(n_critics=1, sparsity_distribution='uniform')", "gamma": 0.9}
    asked = dict(storage=str(tmp_path / "study.log"), study_name="s", trial_id=number, hyperparams=given)
    entry = {"n_timesteps": 50, "policy": "SparseSimBaPolicy", "policy_kwargs": {"sparsity": 0.8}, "batch_size": 32}
    numbers = []

    class Study:
        class Trials:
            def __getitem__(self, number):
                numbers.append(number)
                values = dict(sparsity=0.93, width_scale=0.25, one_minus_gamma=0.02, learning_rate=1e-3, batch_size_pow=6)
                return argparse.Namespace(params=dict(values, train_freq=8, subsample_steps=4, tau=0.01))

        trials = Trials()

    monkeypatch.setattr("rl_zoo3.exp_manager.optuna.load_study", lambda **kwargs: Study())
    with zoo.registered():
        manager = manager_of(tmp_path, entry, **asked)
        hyperparams, saved = manager.read_hyperparameters()
    assert numbers == [number]
    expected = {"n_critics": 1, "sparsity_distribution": "uniform", "sparsity": 0.93, "width_scale": 0.25}
    assert {name: hyperparams["policy_kwargs"][name] for name in expected} == expected
    assert (hyperparams["gamma"], hyperparams["batch_size"]) == (0.9, 64)
    assert dict(saved["policy_kwargs"])["sparsity"] == 0.93
    assert list(saved) == sorted(saved)
    with zoo.registered(), pytest.raises(zoo.WrongSettingError, match=f"--trial-id {number}: say of which search"):
        manager_of(tmp_path, entry, trial_id=number, storage=str(tmp_path / "study.log")).read_hyperparameters()


def test_an_agent_that_goes_on_keeps_the_statistics_of_its_observations(tmp_path):
    """rl-zoo3 found them beside the agent, trained with them, and left them out of what it saved."""
    small = {"n_timesteps": 32, "policy": "MlpPolicy", "policy_kwargs": {"net_arch": [4]}, "n_steps": 16, "batch_size": 16}
    options = ["train", "--algo", "ppo", "--env", "Pendulum-v1", "-f", str(tmp_path), "--eval-freq", "-1", "-conf"]
    (tmp_path / "one.yml").write_text(yaml.safe_dump({"default": {**small, "normalize": "dict(norm_reward=False)"}}))
    (tmp_path / "two.yml").write_text(yaml.safe_dump({"default": small}))
    main([*options, str(tmp_path / "one.yml")])
    main([*options, str(tmp_path / "two.yml"), "-i", str(tmp_path / "ppo/Pendulum-v1_1/Pendulum-v1.zip")])
    first, second = (
        pickle.loads((tmp_path / f"ppo/Pendulum-v1_{i}/Pendulum-v1/vecnormalize.pkl").read_bytes()) for i in (1, 2)
    )
    assert second.obs_rms.count > first.obs_rms.count
    assert second.norm_reward is first.norm_reward is False
    env = environment_of(find_saved(tmp_path / "ppo/Pendulum-v1_2"))
    assert env.obs_rms.count == second.obs_rms.count
    # And so has who goes on from that one.
    main([*options, str(tmp_path / "two.yml"), "-i", str(tmp_path / "ppo/Pendulum-v1_2/Pendulum-v1.zip")])
    assert (tmp_path / "ppo/Pendulum-v1_3/Pendulum-v1/vecnormalize.pkl").is_file()


def test_a_file_for_exact_checkpoints_is_one_for_everybody(tmp_path, capsys):
    """Only train took the entry out: it was "no keyword" of an algorithm to all others."""
    entry = {"n_timesteps": 20, "policy": "MlpPolicy", "policy_kwargs": {"net_arch": [4]}, "exact_checkpoint_freq": 10}
    manager = manager_of(tmp_path, entry)
    with zoo.registered():
        hyperparams, _ = manager.read_hyperparameters()
    assert manager.exact_checkpoint_freq == 10
    assert "exact_checkpoint_freq" not in hyperparams
    main(["describe", "--algo", "sac", "--env", "Pendulum-v1", "-conf", str(tmp_path / "my.yml")])
    assert "actor" in capsys.readouterr().out
    _, folder = zoo.train_agent("sac", "Pendulum-v1", tmp_path, config=tmp_path / "my.yml")
    assert (folder / "Pendulum-v1.zip").is_file()
    with zoo.registered(), pytest.raises(ValueError, match="exact_checkpoint_freq=0"):
        manager_of(tmp_path, {**entry, "exact_checkpoint_freq": 0}).read_hyperparameters()
