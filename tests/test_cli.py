"""The command, as a user runs it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from stable_baselines3 import SAC
from torch import nn

from sb3_sparse import cli, policies, zoo

pytest.importorskip("rl_zoo3")

ALGORITHMS = ("sac", "ddpg", "td3", "tqc", "dqn", "qrdqn")
DMC_HARD = [f"dm_control/{task}-v0" for task in ("humanoid-run", "humanoid-walk", "humanoid-stand")] + [
    f"dm_control/dog-{task}-v0" for task in ("run", "walk", "trot", "stand")
]


def run(*args, cwd, check=True):
    result = subprocess.run([sys.executable, "-m", "sb3_sparse.cli", *args], cwd=cwd, capture_output=True, text=True)
    if check:
        assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_train_and_enjoy(tmp_path):
    pytest.importorskip("dm_control")
    out = run(
        *("train", "--algo", "sac", "--env", "dm_control/cartpole-swingup-v0", "-n", "300", "--seed", "1"),
        *("-f", "logs", "-tb", "logs/tb", "--eval-freq", "150", "--eval-episodes", "1", "-P"),
        *("-params", "learning_starts:100", "policy_kwargs:dict(width_scale=0.1)"),
        cwd=tmp_path,
    )
    run_folder = tmp_path / "logs/sac/dm_control-cartpole-swingup-v0_1"
    assert (run_folder / "dm_control-cartpole-swingup-v0.zip").is_file()
    assert (run_folder / "evaluations.npz").is_file()
    assert list((tmp_path / "logs/tb").rglob("events.out.tfevents*"))
    assert "300/300" in out.stdout + out.stderr
    config = yaml.unsafe_load((run_folder / "dm_control-cartpole-swingup-v0/config.yml").read_text())
    assert dict(config)["policy"] == "sb3_sparse.SparseSimBaPolicy"
    out = run(
        *("enjoy", "--algo", "sac", "--env", "dm_control/cartpole-swingup-v0", "-f", "logs", "-n", "260", "--no-render"),
        cwd=tmp_path,
    )
    assert "Mean reward:" in out.stdout
    script = Path(__file__).parent.parent / "examples/evaluate.py"
    result = subprocess.run([sys.executable, script, "--episodes", "1"], cwd=tmp_path, capture_output=True, text=True)
    assert "Mean evaluation return over 1 episodes of dm_control/cartpole-swingup-v0: " in result.stdout, result.stderr


def test_tune_keeps_the_yamls_policy_kwargs(tmp_path):
    conf = tmp_path / "my.yml"
    entry = {
        "n_timesteps": 60,
        "policy": "sb3_sparse.SparseSimBaPolicy",
        "learning_starts": 30,
        "policy_kwargs": {"n_critics": 1, "mask_seed": 5, "sparsity_distribution": "uniform", "net_arch": [16]},
    }
    conf.write_text(yaml.safe_dump({"default": entry}))
    storage = tmp_path / "study.log"
    arguments = ("--algo", "sac", "--env", "Pendulum-v1", "-conf", str(conf), "--storage", str(storage), "--study-name", "s")
    run(
        *("tune", *arguments, "--n-trials", "2", "--n-evaluations", "1", "--no-optim-plots", "--eval-episodes", "1"),
        *("--seed", "0", "--n-startup-trials", "1"),
        cwd=tmp_path,
    )
    # rl-zoo3 takes trial 0 for none, hence the second.
    out = run("train", *arguments, "--trial-id", "1", "--n-timesteps", "40", "--eval-freq", "-1", "-f", "logs", cwd=tmp_path)
    config = next((tmp_path / "logs/sac").glob("Pendulum-v1_*/Pendulum-v1/config.yml"))
    kwargs = dict(yaml.unsafe_load(config.read_text()))["policy_kwargs"]
    assert {name: kwargs[name] for name in entry["policy_kwargs"]} == entry["policy_kwargs"], out.stdout
    assert 0.5 <= kwargs["sparsity"] <= 0.95
    assert "width_scale" not in kwargs


def test_policy_kwargs_of_a_yaml_may_be_a_string(tmp_path):
    conf = tmp_path / "my.yml"
    entry = {
        "n_timesteps": 20,
        "policy": "sb3_sparse.SparseSimBaPolicy",
        "policy_kwargs": "dict(n_critics=1, width_scale=0.1, activation_fn=nn.ELU)",
    }
    conf.write_text(yaml.safe_dump({"default": entry}))
    arguments = ("--algo", "sac", "--env", "Pendulum-v1", "-conf", str(conf), "--eval-freq", "-1", "-f", "logs")
    run("train", *arguments, cwd=tmp_path)
    model = SAC.load(tmp_path / "logs/sac/Pendulum-v1_1/Pendulum-v1.zip")
    assert isinstance(model.critic.qf0[0].blocks[0].activation, nn.ELU)


def test_the_sampler_proposes_sparse_networks_and_keeps_the_rest():
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    trial = optuna.trial.FixedTrial(
        {"one_minus_gamma": 0.01, "batch_size_pow": 5, "learning_rate": 1e-3, "train_freq": 1, "tau": 0.01}
        | {"sparsity": 0.7, "width_scale": 0.5}
    )
    sampler = zoo._sparse_sampler(HYPERPARAMS_SAMPLER["sac"], {"n_critics": 1})
    hyperparams = sampler(trial, 1, 1, {"using_her_replay_buffer": False})
    assert hyperparams["policy_kwargs"] == {"n_critics": 1, "sparsity": 0.7, "width_scale": 0.5}
    assert hyperparams["batch_size"] == 32
    converter = zoo._sparse_converter(HYPERPARAMS_CONVERTER["sac"], {"n_critics": 1})
    assert converter(dict(trial.params)) == hyperparams


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


def test_describe_any_policy_and_algorithm(tmp_path):
    out = run("describe", "--algo", "ppo", "--env", "CartPole-v1", cwd=tmp_path).stdout
    assert "policy\n" in out
    out = run("describe", "--algo", "qrdqn", "--env", "CartPole-v1", cwd=tmp_path).stdout
    assert "quantile_net\n" in out


def test_unknown_command_is_named(tmp_path):
    result = run("trian", cwd=tmp_path, check=False)
    assert result.returncode != 0
    assert "unknown command 'trian'" in result.stderr
    assert "usage: sb3-sparse" in run("--help", cwd=tmp_path).stdout


def test_a_progress_bar_on_a_terminal_only(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_run_zoo", lambda command, args: seen.append(args))
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda value=is_terminal: value, raising=False)
        cli.train(["--algo", "sac", "--env", "Pendulum-v1"])
    assert "--progress" in seen[0]
    assert "--progress" not in seen[1]
    assert seen[1][0] == "-conf"
    assert Path(seen[1][1]).name == "sac.yml"
    cli.train(["--algo", "sac", "-conf", "mine.yml"])
    assert seen[2] == ["--algo", "sac", "-conf", "mine.yml"]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_packaged_hyperparameters_are_complete_and_valid(algo):
    settings = yaml.safe_load(zoo.hyperparams_file(algo).read_text())
    assert "default" in settings
    known = {policy.__name__ for policy in policies.POLICIES.values()}
    for entry in settings.values():
        module, _, name = entry["policy"].rpartition(".")
        assert (module, name in known) == ("sb3_sparse", True)
    if algo in ("dqn", "qrdqn"):
        assert {"CartPole-v1", "LunarLander-v3"} <= set(settings)
        return
    assert set(DMC_HARD) <= set(settings)
    for task in DMC_HARD:
        entry = settings[task]
        paper = {"learning_rate": 1e-4, "batch_size": 256, "gamma": 0.99, "tau": 0.005, "gradient_steps": 2}
        assert {name: entry[name] for name in paper} == paper
        assert (entry["n_timesteps"], entry["learning_starts"], entry["buffer_size"]) == (500_000, 5_000, 1_000_000)
        assert entry["policy_kwargs"]["n_critics"] == 1
        assert entry["env_wrapper"] == [{"sb3_sparse.dmc.DMCWrapper": {"action_repeat": 2}}]
        if algo in ("sac", "tqc"):
            assert entry["target_entropy"] == -(21 if "humanoid" in task else 38) / 2
            assert entry["ent_coef"] == "auto_0.01"


def test_an_unknown_algorithm_has_no_packaged_file():
    assert zoo.hyperparams_file("ppo") is None
