"""``sb3-sparse describe``."""

from pathlib import Path

import pytest
import yaml

from sb3_sparse.cli import main
from sb3_sparse.cli.describe import describe
from sb3_sparse.zoo.hyperparameters import EVALUATED_BY_RL_ZOO
from tests.cli.running import run

pytest.importorskip("rl_zoo3")

# Python that leaves a file where it is run.
TRAP = "__import__('pathlib').Path('trap').touch() or {}"


def test_describe(tmp_path):
    pytest.importorskip("dm_control")
    out = run(
        *("describe", "--algo", "sac", "--env", "dm_control/humanoid-run-v0", "-params"),
        "policy_kwargs:dict(width_scale=1, sparsity=0.9, n_critics=1)",
        cwd=tmp_path,
    ).stdout
    assert "actor\n" in out
    assert "critic\n" in out
    assert "2048x512" in out
    assert "of 4,248,577 parameters" in out
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(("algo", "network"), [("ppo", "policy"), ("qrdqn", "quantile_net")])
def test_describe_any_policy_and_algorithm(algo, network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["describe", "--algo", algo, "--env", "CartPole-v1"])
    assert f"{network}\n" in capsys.readouterr().out


def test_describe_takes_what_makes_the_environment(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('Mine-v0', PendulumEnv, max_episode_steps=200)\n"
    )
    out = run(
        *("describe", "--env", "Mine-v0", "--gym-packages", "mine", "--env-kwargs", "g:5.0"),
        *("-params", "policy_kwargs:dict(width_scale=0.1)"),
        cwd=tmp_path,
    )
    assert "critic\n" in out.stdout
    result = run("describe", "--env", "Pendulm-v1", cwd=tmp_path, check=False)
    assert result.returncode == 1
    assert "unknown environment 'Pendulm-v1'. Did you mean 'Pendulum-v1'?" in result.stderr


@pytest.mark.parametrize("name", EVALUATED_BY_RL_ZOO)
def test_describe_runs_no_text_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"n_timesteps": 20, "policy": "MlpPolicy", name: TRAP}
    Path("my.yml").write_text(yaml.safe_dump({"default": entry}))
    with pytest.raises(ValueError, match=rf"{name}=.*Nothing else is run"):
        describe(["--algo", "sac", "--env", "Pendulum-v1", "-conf", "my.yml"])
    assert not Path("trap").exists()


def test_describe_calls_no_callback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {
        "n_timesteps": 20,
        "policy": "sb3_sparse.SparseSimBaPolicy",
        "policy_kwargs": "dict(width_scale=0.1, activation_fn=nn.ELU, optimizer_class=th.optim.Adam)",
        "callback": [{"subprocess.check_call": {"args": ["touch", "trap"]}}],
    }
    Path("my.yml").write_text(yaml.safe_dump({"default": entry}))
    describe(["--algo", "sac", "--env", "Pendulum-v1", "-conf", "my.yml"])
    assert not Path("trap").exists()


@pytest.mark.parametrize("option", ["-params", "--env-kwargs"])
def test_describe_runs_no_option(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        describe(["--algo", "sac", "--env", "Pendulum-v1", option, f"policy_kwargs:{TRAP}"])
    assert "policy_kwargs=" in capsys.readouterr().err
    assert not Path("trap").exists()


def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["describe", "--env", "Pendulum-v1", "-params", "policy_kwargs:dict(sparsity=1.5)"])
    assert str(stopped.value.code).startswith("sb3-sparse describe: sparsity=1.5")
    with pytest.raises(SystemExit) as stopped:
        main(["describe", "--env", "Pendulum-v1", "-conf", "nowhere.yml"])
    assert str(stopped.value.code).startswith("sb3-sparse describe: ")
    assert "nowhere.yml" in stopped.value.code
    assert not list(tmp_path.iterdir())
