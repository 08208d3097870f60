"""``sb3-sparse export``."""

import sys

import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, SAC

from sb3_sparse.cli import main
from sb3_sparse.cli.export import ALGORITHMS
from sb3_sparse.drqv2 import DrQv2
from sb3_sparse.export.loading import load_agent
from sb3_sparse.rainbow import DER, Rainbow
from tests.envs import SpaceEnv
from tests.export.agents import BOX, ON_POLICY, VECTOR, agent, assert_equal_actions, mlp, observations_of
from tests.export.test_module import normalized_env, trained_on
from tests.export.test_plain import SparsePolicy

N = 200


def export(*args):
    main(["export", *map(str, args)])


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        export(*args)
    return f"{stopped.value.code}\n{capsys.readouterr().err}"


@pytest.fixture
def saved(tmp_path):
    agent("sac").save(tmp_path / "agent.zip")
    return tmp_path / "agent.zip"


def test_onnx_is_written_beside_the_agent(saved, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    export("--algo", "sac", "--model", saved)
    path = saved.with_suffix(".onnx")
    said = capsys.readouterr()
    assert said.out.startswith(f"{path} (")
    assert said.out.endswith("compared with predict on 1,024 random observations\n")
    assert said.err == ""
    observations = observations_of(VECTOR, N, seed=0)
    found = onnxruntime.InferenceSession(path).run(None, {"observation": observations})[0]
    assert_equal_actions(found, agent("sac").predict(observations, deterministic=True)[0])


def test_the_agent_that_train_left_with_its_statistics(tmp_path, capsys):
    pytest.importorskip("rl_zoo3")
    env = normalized_env(clip_obs=1.0)
    model = trained_on(env)
    run = tmp_path / "logs/sac/Pendulum-v1_3"
    (run / "Pendulum-v1").mkdir(parents=True)
    model.save(run / "Pendulum-v1.zip")
    env.save(run / "Pendulum-v1/vecnormalize.pkl")
    export("--algo", "sac", "--env", "Pendulum-v1", "-f", tmp_path / "logs", "--to", "torch")
    assert f"observations are normalised by {run / 'Pendulum-v1/vecnormalize.pkl'}" in capsys.readouterr().out
    observations = observations_of(VECTOR, N, seed=0)
    program = th.export.load(run / "Pendulum-v1.pt2").module()
    expected, _ = model.predict(env.normalize_obs(observations), deterministic=True)
    assert_equal_actions(program(th.from_numpy(observations)).numpy(), expected)
    # Named, or left out.
    statistics = run / "Pendulum-v1/vecnormalize.pkl"
    for given, inputs in ((statistics, observations), ("none", env.normalize_obs(observations).astype(np.float64))):
        options = ("--to", "torch", "-o", tmp_path / "new/other.pt2", "--vecnormalize", given)
        export("--algo", "sac", "--model", run / "Pendulum-v1.zip", *options)
        program = th.export.load(tmp_path / "new/other.pt2").module()
        assert_equal_actions(program(th.from_numpy(inputs)).numpy(), expected)


def test_statistics_of_several_agents_are_not_guessed(saved, capsys):
    env = normalized_env()
    # Those of a run, and those directly beside the agent.
    (saved.parent / "Env").mkdir()
    (saved.parent / "Env/config.yml").write_text("{}")
    for folder in (saved.parent, saved.parent / "Env"):
        env.save(folder / "vecnormalize.pkl")
    said = fails(capsys, "--algo", "sac", "--model", saved, "--to", "torch")
    assert "which of" in said
    assert "Name it: --vecnormalize FILE, or none." in said


def test_an_agent_of_sb3(tmp_path, capsys):
    model = PPO(SparsePolicy, SpaceEnv(VECTOR, BOX), policy_kwargs={"net_arch": [8]}, batch_size=8, **ON_POLICY).learn(16)
    model.save(tmp_path / "agent")
    export("--algo", "ppo", "--model", tmp_path / "agent.zip", "--to", "sb3")
    loaded = PPO.load(tmp_path / "agent-dense.zip")
    observations = observations_of(VECTOR, N, seed=0)
    expected, found = (m.predict(observations, deterministic=True)[0] for m in (model, loaded))
    assert np.abs(expected - found).max() <= 1e-6
    said = fails(capsys, "--algo", "ppo", "--model", tmp_path / "agent.zip", "--to", "sb3", "--channels-last")
    assert "--to sb3: an agent of SB3 has no place for" in said


def test_what_goes_on_learning_has_its_buffer(tmp_path):
    model = mlp(SAC, VECTOR, BOX, buffer_size=123)
    model.save(tmp_path / "agent")
    loaded = load_agent(SAC, tmp_path / "agent.zip")
    assert len(loaded.replay_buffer.observations) == 1
    assert loaded.buffer_size == 123
    assert loaded.replay_buffer_class == model.replay_buffer_class


def test_mistakes_are_one_sentence(saved, tmp_path, capsys):
    assert "expected --model FILE, or --env ID, and not both." in fails(capsys, "--algo", "sac")
    assert "and not both" in fails(capsys, "--algo", "sac", "--env", "Pendulum-v1", "--model", saved)
    assert f"there is no file '{tmp_path / 'nothing.zip'}'" in fails(
        capsys, "--algo", "sac", "--model", tmp_path / "nothing.zip"
    )
    assert f"{saved} is no agent of TD3" in fails(capsys, "--algo", "td3", "--model", saved)
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(saved.read_bytes()[:500])
    assert f"{damaged} is no agent of SAC" in fails(capsys, "--algo", "sac", "--model", damaged)
    assert "is made of classes of this package" in fails(capsys, "--algo", "sac", "--model", saved, "--to", "sb3")
    assert "is the agent itself" in fails(capsys, "--algo", "sac", "--model", saved, "--to", "sb3", "-o", saved)
    assert "expected a name that ends in '.onnx'" in fails(capsys, "--algo", "sac", "--model", saved, "-o", tmp_path / "a.pt2")
    assert "there is no image in" in fails(capsys, "--algo", "sac", "--model", saved, "--channels-last")
    assert "damaged.zip' is no file of VecNormalize" in fails(
        capsys, "--algo", "sac", "--model", saved, "--vecnormalize", damaged
    )
    pytest.importorskip("rl_zoo3")
    assert "folder was not found" in fails(capsys, "--algo", "sac", "--env", "Pendulum-v1", "-f", tmp_path, "--exp-id", "1")
    assert {file.name for file in tmp_path.iterdir()} == {"agent.zip", "damaged.zip"}


def test_without_rl_zoo3(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rl_zoo3.utils", None)
    assert 'pip install "sb3-sparse[zoo]"' in fails(capsys, "--algo", "sac", "--env", "Pendulum-v1")


def test_every_algorithm_of_the_package_is_there():
    pytest.importorskip("rl_zoo3")
    from rl_zoo3 import ALGOS

    from sb3_sparse.zoo import register_algorithms

    register_algorithms()
    # Agents with a state, and those that are not networks of SB3's kind, cannot be exported.
    others = {"rainbow": Rainbow, "der": DER, "drqv2": DrQv2}
    assert set(ALGORITHMS) == {*ALGOS, *others} - {"ars", "ppo_lstm"}
    assert all({**others, **ALGOS}[name] is algorithm for name, algorithm in ALGORITHMS.items())
