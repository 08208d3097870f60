"""Agents without a command line."""

import numpy as np
import pytest
import torch as th
import yaml
from stable_baselines3 import SAC

from sb3_sparse import SparseSimBaPolicy, zoo
from sb3_sparse.cli import main
from tests.zoo.state import state_of_rl_zoo

pytest.importorskip("rl_zoo3")

SMALL = {"learning_starts": 20, "batch_size": 8, "policy_kwargs": {"width_scale": 0.1, "n_critics": 1}}


def test_an_agent_is_that_of_the_command(tmp_path, capsys):
    before = state_of_rl_zoo()
    options = {"seed": 3, "n_timesteps": 60, "eval_freq": 30, "n_eval_episodes": 1}
    model, folder = zoo.train_agent("sac", "Pendulum-v1", tmp_path / "logs", hyperparams=SMALL, **options)
    assert state_of_rl_zoo() == before
    assert folder == tmp_path / "logs/sac/Pendulum-v1_1"
    assert (folder / "evaluations.npz").is_file()
    found = zoo.find_agent(tmp_path / "logs", "sac", "Pendulum-v1")
    assert found == folder / "Pendulum-v1.zip"
    arguments = ["--algo", "sac", "--env", "Pendulum-v1", "-f", str(tmp_path / "command"), "--seed", "3", "-n", "60"]
    arguments += ["--eval-freq", "30", "--eval-episodes", "1", "-params", "learning_starts:20", "batch_size:8"]
    main(["train", *arguments, "policy_kwargs:dict(width_scale=0.1,n_critics=1)"])
    by_command = SAC.load(zoo.find_agent(tmp_path / "command", "sac", "Pendulum-v1"))
    assert isinstance(model.policy, SparseSimBaPolicy)
    weights, others = model.policy.state_dict(), by_command.policy.state_dict()
    assert list(weights) == list(others)
    assert all(th.equal(weights[name], others[name]) for name in weights)
    returns = [np.load(path / "evaluations.npz")["results"] for path in (folder, tmp_path / "command/sac/Pendulum-v1_1")]
    np.testing.assert_array_equal(*returns)
    # What was saved is enjoyed as any other.
    capsys.readouterr()
    main(["enjoy", "--algo", "sac", "--env", "Pendulum-v1", "-f", str(tmp_path / "logs"), "-n", "210", "--no-render"])
    assert "Mean reward:" in capsys.readouterr().out


def test_the_untrained_agent_is_what_training_begins_with(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {**SMALL, "policy_kwargs": {**SMALL["policy_kwargs"]}}
    model = zoo.untrained_agent("sac", "Pendulum-v1", hyperparams=given, seed=3)
    # Before learning starts, nothing is learned.
    settings = {**SMALL, "learning_starts": 1000}
    trained, _ = zoo.train_agent("sac", "Pendulum-v1", tmp_path / "logs", hyperparams=settings, seed=3, n_timesteps=5)
    capsys.readouterr()
    weights, others = model.policy.state_dict(), trained.policy.state_dict()
    assert all(th.equal(weights[name], others[name]) for name in weights)
    assert model.buffer_size == 1
    assert given == SMALL
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    zoo.untrained_agent("stream_ac", "Pendulum-v1")
    assert capsys.readouterr().out == ""


def test_mistakes_are_named_before_anything_is_written(tmp_path):
    before = state_of_rl_zoo()
    with pytest.raises(ValueError, match=r"algo='sacc': expected one of \["):
        zoo.train_agent("sacc", "Pendulum-v1", tmp_path / "logs")
    with pytest.raises(ValueError, match=r"unknown environment 'Pendulm-v1'. Did you mean 'Pendulum-v1'"):
        zoo.train_agent("sac", "Pendulm-v1", tmp_path / "logs")
    with pytest.raises(ValueError, match=r"folder was not found|no model found|No model found"):
        zoo.find_agent(tmp_path, "sac", "Pendulum-v1", exp_id=1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="sparsity=2"):
        zoo.train_agent("sac", "Pendulum-v1", tmp_path / "logs", hyperparams={"policy_kwargs": {"sparsity": 2}})
    assert state_of_rl_zoo() == before


def test_a_file_of_ones_own(tmp_path):
    entry = {"n_timesteps": 30, "policy": "sb3_sparse.SparseSimBaPolicy", **SMALL}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"Pendulum-v1": entry}))
    stock = {"policy": "MlpPolicy", "policy_kwargs": {}}
    model = zoo.untrained_agent("td3", "Pendulum-v1", config=tmp_path / "mine.yml", hyperparams=stock)
    assert type(model).__name__ == "TD3"
    model, _ = zoo.train_agent("sac", "Pendulum-v1", tmp_path / "logs", config=tmp_path / "mine.yml")
    assert model.num_timesteps == 30
    assert model.batch_size == 8


def test_null_in_a_file_is_nothing_for_who_plays(tmp_path, capsys):
    """Mistake of ours, as of rl-zoo3: such a file trained an agent, which could be neither enjoyed nor evaluated."""
    nothing = dict.fromkeys(["env_wrapper", "vec_env_wrapper", "frame_stack", "env_kwargs", "normalize", "callback"])
    nothing["replay_buffer_class"] = None
    entry = {"n_timesteps": 20, "policy": "sb3_sparse.SparseSimBaPolicy", **SMALL, **nothing}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({"default": entry}))
    _, folder = zoo.train_agent("sac", "Pendulum-v1", tmp_path, config=tmp_path / "mine.yml")
    capsys.readouterr()
    main(["enjoy", "--algo", "sac", "--env", "Pendulum-v1", "-f", str(tmp_path), "-n", "210", "--no-render"])
    assert "Mean reward:" in capsys.readouterr().out
    main(["evaluate", str(folder), "-n", "1"])
    assert "Pendulum-v1" in capsys.readouterr().out
