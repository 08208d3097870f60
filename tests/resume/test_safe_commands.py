"""Safe files through the command."""

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.cli import main
from sb3_sparse.export.files import export_torch
from sb3_sparse.resume.safe import load_safe, save_safe
from sb3_sparse.resume.safe.agents import read_safe
from tests.resume.safe_agents import KINDS, same

pytest.importorskip("rl_zoo3")


@pytest.fixture(scope="module")
def normalized():
    env = VecNormalize(make_vec_env("Pendulum-v1", 1, seed=0), clip_obs=3.0)
    model = PPO("MlpPolicy", env, n_steps=64, seed=0)
    model.learn(256)
    return model


def test_export_writes_one_and_describes_it(tmp_path, capsys):
    model = KINDS["sac"]()
    model.learn(20)
    model.save(tmp_path / "agent.zip")
    main(["export", "--algo", "sac", "--model", str(tmp_path / "agent.zip"), "--to", "safetensors"])
    path = tmp_path / "agent.safetensors"
    assert capsys.readouterr().out.startswith(f"{path} (")
    found = load_safe(path, algorithm=SAC)
    assert same(found.get_parameters(), model.get_parameters())
    # What is written goes on with the replay buffer that it had, though the agent was loaded without one.
    assert found.buffer_size == model.buffer_size
    main(["describe", "--model", str(path)])
    out = capsys.readouterr().out
    assert "actor\n" in out
    assert "critic\n" in out
    with pytest.raises(SystemExit, match=r"agent\.safetensors holds an agent of SAC, expected one of TQC"):
        main(["export", "--algo", "tqc", "--model", str(path), "--to", "onnx"])


def test_describe_takes_an_agent_or_an_environment(tmp_path, capsys):
    for args in ([], ["--env", "Pendulum-v1", "--model", "a.safetensors"], ["--model", "a.zip"]):
        with pytest.raises(SystemExit):
            main(["describe", *args])
        assert "expected" in capsys.readouterr().err


def test_statistics_of_a_safe_file_are_exported_with_it(normalized, tmp_path, capsys):
    wrapper = normalized.get_vec_normalize_env()
    path = save_safe(normalized, tmp_path / "agent")
    main(["export", "--algo", "ppo", "--model", str(path), "--to", "torch"])
    assert f"observations are normalised by what {path} holds" in capsys.readouterr().out
    export_torch(normalized, tmp_path / "other.pt2", vec_normalize=wrapper)
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    actions = [
        th.export.load(tmp_path / name).module()(th.as_tensor(observations)).numpy() for name in ("agent.pt2", "other.pt2")
    ]
    assert np.array_equal(*actions)
    # And from a zip with the file of its wrapper.
    normalized.save(tmp_path / "zip.zip")
    wrapper.save(str(tmp_path / "statistics.pkl"))
    args = ["--algo", "ppo", "--model", f"{tmp_path}/zip.zip", "--vecnormalize", f"{tmp_path}/statistics.pkl"]
    main(["export", "--to", "safetensors", *args])
    again = read_safe(tmp_path / "zip.safetensors").vec_normalize
    assert same(again["obs_rms"].mean, wrapper.obs_rms.mean)


def test_enjoy_plays_it_as_sb3_does(normalized, tmp_path, capsys):
    path = save_safe(normalized, tmp_path / "agent")
    main(["enjoy", "-i", str(path), "--env", "Pendulum-v1", "--algo", "ppo", "-n", "400", "--no-render", "--seed", "3"])
    out = capsys.readouterr().out
    assert "2 Episodes" in out
    # The same by hand.
    env = VecNormalize(make_vec_env("Pendulum-v1", 1, seed=3), training=False, norm_reward=False)
    trained = normalized.get_vec_normalize_env()
    env.obs_rms, env.clip_obs = trained.obs_rms, trained.clip_obs
    observation, returns, total = env.reset(), [], 0.0
    for _ in range(400):
        observation, reward, done, infos = env.step(normalized.predict(observation, deterministic=True)[0])
        total += float(reward[0])
        if done[0]:
            returns.append(infos[0]["episode"]["r"])
    assert [line for line in out.splitlines() if line.startswith("Episode Reward")] == [
        f"Episode Reward: {value:.2f}" for value in returns
    ]


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["--env", "Pendulum-v1", "--algo", "sac"], r"agent\.safetensors holds an agent of PPO, expected one of SAC"),
        (
            ["--env", "CartPole-v1"],
            r"agent\.safetensors makes no agent of PPO: .*obs_rms of the shapes \(3,\), the environment needs \(4,\)",
        ),
        (["--env", "NoSuch-v1"], "unknown environment 'NoSuch-v1'"),
    ],
)
def test_what_enjoy_refuses(args, match, normalized, tmp_path):
    path = save_safe(normalized, tmp_path / "agent")
    with pytest.raises(SystemExit, match=match):
        main(["enjoy", "-i", str(path), "--no-render", *args])


def test_enjoy_names_a_file_that_is_not_there_or_damaged(tmp_path):
    with pytest.raises(SystemExit, match=r"nothing\.safetensors"):
        main(["enjoy", "-i", str(tmp_path / "nothing.safetensors"), "--env", "Pendulum-v1", "--no-render"])
    (tmp_path / "empty.safetensors").touch()
    with pytest.raises(SystemExit, match=r"empty\.safetensors cannot be read as a safe file: it is no safetensors file"):
        main(["enjoy", "-i", str(tmp_path / "empty.safetensors"), "--env", "Pendulum-v1", "--no-render"])
