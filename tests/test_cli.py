"""The command, as a user runs it."""

import argparse
import inspect
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from sb3_contrib import CrossQ
from stable_baselines3 import SAC
from torch import nn

from sb3_sparse import SparseSimBaCrossQPolicy, cli, describe, policies, zoo
from sb3_sparse.dmc import register_dmc

ALGOS = pytest.importorskip("rl_zoo3").ALGOS

ALGORITHMS = ("sac", "ddpg", "td3", "tqc", "crossq", "dqn", "qrdqn")
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


# Python that leaves a file where it is run.
TRAP = "__import__('pathlib').Path('trap').touch() or {}"


@pytest.mark.parametrize("name", zoo.EVALUATED_BY_RL_ZOO)
def test_describe_runs_no_text_of_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"n_timesteps": 20, "policy": "MlpPolicy", name: TRAP}
    Path("my.yml").write_text(yaml.safe_dump({"default": entry}))
    with pytest.raises(ValueError, match=rf"{name}=.*Nothing else is run"):
        describe.main(["--algo", "sac", "--env", "Pendulum-v1", "-conf", "my.yml"])
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
    describe.main(["--algo", "sac", "--env", "Pendulum-v1", "-conf", "my.yml"])
    assert not Path("trap").exists()


@pytest.mark.parametrize("option", ["-params", "--env-kwargs"])
def test_describe_runs_no_option(option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        describe.main(["--algo", "sac", "--env", "Pendulum-v1", option, f"policy_kwargs:{TRAP}"])
    assert "policy_kwargs=" in capsys.readouterr().err
    assert not Path("trap").exists()


def test_our_policy_kwargs_are_not_run_in_training_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"policy": "sb3_sparse.SparseSimBaPolicy", "policy_kwargs": TRAP}
    Path("my.yml").write_text(yaml.safe_dump({"default": entry}))
    manager = zoo.experiment_manager()(argparse.Namespace(), "sac", "Pendulum-v1", log_folder=".", config="my.yml")
    with pytest.raises(ValueError, match="policy_kwargs="):
        manager.read_hyperparameters()
    assert not Path("trap").exists()


def test_the_strings_of_rl_zoos_own_files_are_read_as_it_evaluates_them():
    from rl_zoo3 import exp_manager

    strings = 0
    for path in (Path(exp_manager.__file__).parent / "hyperparams").glob("*.yml"):
        for entry in yaml.safe_load(path.read_text()).values():
            for name in zoo.EVALUATED_BY_RL_ZOO:
                if isinstance(text := entry.get(name), str):
                    strings += 1
                    assert zoo._read(name, text) == eval(text, dict(vars(exp_manager)))
    assert strings > 50


def tables_of_rl_zoo():
    import rl_zoo3.train
    from rl_zoo3 import hyperparams_opt

    tables = (ALGOS, hyperparams_opt.HYPERPARAMS_SAMPLER, hyperparams_opt.HYPERPARAMS_CONVERTER)
    return [dict(table) for table in tables] + [rl_zoo3.train.ExperimentManager, list(sys.argv)]


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("command", ["train", "tune", "enjoy", "describe"])
def test_a_command_leaves_nothing_behind(command, end, monkeypatch):
    import rl_zoo3.enjoy
    import rl_zoo3.train

    during = []

    def instead(*args):
        during.append(tables_of_rl_zoo())
        if end is not None:
            raise end

    monkeypatch.setattr(rl_zoo3.train, "train", instead)
    monkeypatch.setattr(rl_zoo3.enjoy, "enjoy", instead)
    monkeypatch.setattr(describe, "_describe", instead)
    before = tables_of_rl_zoo()
    with pytest.raises(end) if end else nullcontext():
        cli.main([command, "--algo", "sac", "--env", "Pendulum-v1"])
    assert tables_of_rl_zoo() == before
    (inside,) = during
    assert {"stream_ac", "stream_q", "stream_sarsa"} <= set(inside[0])
    assert {"stream_ac", "crossq"} <= set(inside[1]) & set(inside[2])
    assert inside[3] is not before[3]
    assert all(isinstance(algorithm, type) for algorithm in inside[0].values())


def test_enjoy_allocates_no_buffer(tmp_path):
    SAC("SparseSimBaPolicy", "Pendulum-v1", policy_kwargs={"width_scale": 0.1}).save(tmp_path / "sac")
    with zoo.registered(loads_only=True):
        assert ALGOS["sac"] is not SAC
        assert issubclass(ALGOS["sac"], SAC)
        model = ALGOS["sac"].load(tmp_path / "sac")
    assert type(model) is SAC
    assert model.buffer_size == 1
    assert ALGOS["sac"] is SAC


def test_the_search_leaves_rl_zoos_tables_as_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"policy": "sb3_sparse.SparseSimBaPolicy", "policy_kwargs": {"n_critics": 1}}
    Path("my.yml").write_text(yaml.safe_dump({"default": entry}))
    manager = zoo.experiment_manager()(argparse.Namespace(), "sac", "Pendulum-v1", log_folder=".", config="my.yml")
    before = tables_of_rl_zoo()
    manager.read_hyperparameters()
    with manager.search_space():
        assert tables_of_rl_zoo() != before
    assert tables_of_rl_zoo() == before


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
    assert result.returncode == 2
    assert "unknown environment 'Pendulm-v1'. Did you mean 'Pendulum-v1'?" in result.stderr


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
    assert hyperparams.get("env_wrapper") == saved.get("env_wrapper") == ([zoo.DMC_WRAPPER] * wrappers or None)


@pytest.mark.full
def test_a_task_without_an_entry_is_trained(tmp_path):
    pytest.importorskip("dm_control")
    out = run(
        *("train", "--algo", "td3", "--env", "dm_control/walker-run-v0", "-n", "40", "-f", "logs", "--eval-freq", "-1"),
        *("-params", "learning_starts:20", "batch_size:8", "policy_kwargs:dict(width_scale=0.05)"),
        cwd=tmp_path,
    )
    assert "has no env_wrapper in the file: using" in out.stdout
    assert (tmp_path / "logs/td3/dm_control-walker-run-v0_1/dm_control-walker-run-v0.zip").is_file()


@pytest.mark.full
def test_crossq_is_ours_on_the_command_line(tmp_path):
    arguments = ("--algo", "crossq", "--env", "Pendulum-v1", "-n", "40", "-params", "learning_starts:20", "batch_size:8")
    run("train", *arguments, "policy_kwargs:dict(width_scale=0.1)", "-f", "logs", "--eval-freq", "-1", cwd=tmp_path)
    assert isinstance(CrossQ.load(tmp_path / "logs/crossq/Pendulum-v1_1/Pendulum-v1.zip").policy, SparseSimBaCrossQPolicy)


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_search_proposes_keywords_of_the_algorithm(algo):
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    keywords = set(inspect.signature(ALGOS[algo]).parameters) | {"noise_type", "noise_std"}
    with zoo.registered():
        sampled = HYPERPARAMS_SAMPLER[algo](study.ask(), 1, 1, {"using_her_replay_buffer": False})
        trial = study.get_trials()[0]
        assert set(sampled) <= keywords
        assert set(HYPERPARAMS_CONVERTER[algo](dict(trial.params))) <= keywords


def test_rl_zoos_own_hyperparameters_are_announced(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_run_zoo", lambda command, args: None)
    cli.train(["--algo", "ppo", "--env", "CartPole-v1"])
    assert "has no hyperparameters for ppo: rl-zoo3's own are used" in capsys.readouterr().out
    cli.train(["--algo", "sac", "--env", "Pendulum-v1"])
    assert capsys.readouterr().out == ""


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
    # What rl-zoo3 takes out before the algorithm sees the rest.
    of_rl_zoo = {"n_timesteps", "env_wrapper", "noise_type", "noise_std"}
    keywords = set(inspect.signature(ALGOS[algo]).parameters)
    for entry in settings.values():
        assert set(entry) - of_rl_zoo <= keywords
        module, _, name = entry["policy"].rpartition(".")
        assert (module, name in known) == ("sb3_sparse", True)
    if algo in ("dqn", "qrdqn"):
        assert {"CartPole-v1", "LunarLander-v3"} <= set(settings)
        return
    assert {"dm_control/cartpole-swingup-v0", "Pendulum-v1"} <= set(settings)
    if algo == "crossq":
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
