"""Training from the command line."""

import json
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import pytest
import yaml
from sb3_contrib import CrossQ
from stable_baselines3 import SAC
from torch import nn

from sb3_sparse import SparseSimBaCrossQPolicy, zoo
from sb3_sparse.cli import main, train_tune_enjoy
from sb3_sparse.resume.safe import save_safe
from tests.cli.running import run

pytest.importorskip("rl_zoo3")


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
    out = run(
        *("evaluate", "--algo", "sac", "--env", "dm_control/cartpole-swingup-v0", "--episodes", "1", "--json", "r.json"),
        cwd=tmp_path,
    )
    assert f"{Path('logs/sac') / run_folder.name / run_folder.name[:-2]}.zip  SAC " in out.stdout
    (found,) = json.loads((tmp_path / "r.json").read_text())["evaluations"]
    assert found["lengths"] == [1000], "of the task, below the wrapper that repeats actions"


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
    # The newest run would be one without an agent.
    assert not list((tmp_path / "logs/sac").glob("Pendulum-v1_*"))
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


@pytest.fixture
def told(monkeypatch):
    """The arguments that rl-zoo3's commands get, which do nothing."""
    seen = []

    def prepare(command, args, env_id, exact=None, parser=None):
        return lambda: seen.append([command, *args])

    monkeypatch.setattr(train_tune_enjoy, "prepare_command", prepare)
    return seen


def test_rl_zoos_own_hyperparameters_are_announced(told, capsys):
    main(["train", "--algo", "ppo", "--env", "CartPole-v1"])
    assert "has no hyperparameters for ppo: rl-zoo3's own are used" in capsys.readouterr().out
    main(["train", "--algo", "sac", "--env", "Pendulum-v1"])
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "has no hyperparameters" not in capsys.readouterr().out
    assert len(told) == 2


def test_an_algorithm_that_there_is_not_is_said_to_be_none(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--algo", "sacc", "--env", "Pendulum-v1"])
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert said.out == ""
    assert "invalid choice: 'sacc'" in said.err


@pytest.mark.parametrize("command", ["train", "tune", "enjoy"])
def test_an_environment_that_there_is_not_is_one_sentence(command, told):
    with pytest.raises(
        SystemExit, match=f"sb3-sparse {command}: unknown environment 'Pendulm-v1'. Did you mean 'Pendulum-v1'"
    ):
        main([command, "--algo", "sac", "--env", "Pendulm-v1"])
    assert not told


@pytest.fixture
def package_of_a_user(tmp_path, monkeypatch):
    """A module that registers an environment, and another in place of gymnasium's Pendulum-v1."""
    lines = ["import gymnasium", "from gymnasium.envs.classic_control import PendulumEnv"]
    lines += ["class Mine(PendulumEnv):", "    pass"]
    lines += [f"gymnasium.register('{name}', Mine, max_episode_steps=9)" for name in ("FromPackage-v0", "Pendulum-v1")]
    (tmp_path / "package_of_a_user.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(gym.registry)
    # gymnasium warns of what is put in place of something else.
    monkeypatch.setattr(gym.logger, "min_level", gym.logger.ERROR)
    yield "package_of_a_user"
    sys.modules.pop("package_of_a_user", None)
    gym.registry.clear()
    gym.registry.update(before)


# The second is an abbreviation, which rl-zoo3 understands too.
@pytest.mark.parametrize("option", ["--gym-packages", "--gym-pack"])
def test_environments_of_a_package_are_the_users(option, package_of_a_user, told):
    # The second time, the package is imported already.
    for _ in range(2):
        main(["train", "--algo", "sac", "--env", "FromPackage-v0", option, package_of_a_user])
    assert len(told) == 2
    mine = sys.modules[package_of_a_user].Mine
    # Also what was registered in place of something else: the command, and the next, are to use it.
    for env_id in ("FromPackage-v0", "Pendulum-v1"):
        env = gym.make(env_id)
        assert isinstance(env.unwrapped, mine)
        env.close()


def test_training_uses_what_a_package_registered_in_place_of_another(package_of_a_user, tmp_path, capsys):
    main(
        [
            *("train", "--algo", "sac", "--env", "Pendulum-v1", "--gym-packages", package_of_a_user, "-f", str(tmp_path)),
            *("-n", "30", "--eval-freq", "-1", "-params", "policy_kwargs:dict(width_scale=0.1)"),
        ]
    )
    monitor = (tmp_path / "sac/Pendulum-v1_1/0.monitor.csv").read_text().splitlines()
    # Its episodes have 9 steps.
    assert [line.split(",")[1] for line in monitor[2:]] == ["9"] * 3
    assert isinstance(gym.make("Pendulum-v1").unwrapped, sys.modules[package_of_a_user].Mine)


WRONG = [
    (["-conf", "nope.yml"], r"hyperparameters of 'nope.yml': there is no such file"),
    (["-conf", "nope.py"], r"hyperparameters of 'nope.py': there is no such file"),
    (["-conf", "nope"], r"hyperparameters of 'nope': expected a file .yml, .yaml or .py, or a module that can be imported"),
    (["-conf", "nope.settings"], r"hyperparameters of 'nope.settings': No module named 'nope'"),
    (["-conf", "other.yml"], r"Hyperparameters not found for sac-Pendulum-v1 in other.yml"),
    (["-i", "nope.zip"], r"--trained-agent nope.zip: there is no such .zip file"),
    (
        ["-params", "policy_kwargs.sparsity:0.9"],
        r"unknown hyperparameter 'policy_kwargs.sparsity': SAC has .* -params \"policy_kwargs:dict\(sparsity=0.9\)\"\.",
    ),
    (["-params", "sparsity:0.9"], r"unknown hyperparameter 'sparsity': .* \"policy_kwargs:dict\(sparsity=0.9\)\"\."),
    (["-params", "learning_rat:0.9"], r"unknown hyperparameter 'learning_rat': .*Did you mean 'learning_rate'\?"),
]


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_a_mistake_in_the_settings_is_one_sentence(command, arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("other.yml").write_text("Other-v0: {policy: MlpPolicy}")
    with pytest.raises(SystemExit, match=f"^sb3-sparse (train|tune): {sentence}"):
        main([command, "--algo", "sac", "--env", "Pendulum-v1", "-f", "logs", *arguments])
    # Nothing was begun.
    assert not Path("logs").exists()


def test_describe_says_it_too(tmp_path):
    with pytest.raises(SystemExit, match=r"^sb3-sparse describe: unknown hyperparameter 'policy_kwargs.sparsity'"):
        main(["describe", "--env", "Pendulum-v1", "-params", "policy_kwargs.sparsity:0.9"])
    with pytest.raises(SystemExit, match=r"^sb3-sparse describe: hyperparameters of 'nope.yml': there is no such file"):
        main(["describe", "--env", "Pendulum-v1", "-conf", "nope.yml"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-f", "empty"], r"The empty.sac folder was not found. -f names"),
        (["--exp-id", "7"], r"The logs.sac.Pendulum-v1_7 folder was not found. -f names the log folder, --exp-id the run\."),
        # An abbreviation, which rl-zoo3 understands.
        (["--exp", "1"], r"No model found for sac on Pendulum-v1, path: logs.sac.Pendulum-v1_1.Pendulum-v1.zip"),
        (["--load-best"], r"No model found for sac on Pendulum-v1, path: logs.sac.Pendulum-v1_1.best_model.zip"),
        (["--load-checkpoint", "5"], r"No model found .*rl_model_5_steps.zip"),
        (["--load-last-checkpoint"], r"No checkpoint found for sac on Pendulum-v1"),
    ],
)
def test_an_agent_that_there_is_not_is_one_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("logs/sac/Pendulum-v1_1").mkdir(parents=True)
    with pytest.raises(SystemExit, match=f"^sb3-sparse enjoy: {sentence}"):
        main(["enjoy", "--algo", "sac", "--env", "Pendulum-v1", *arguments])


def test_errors_of_the_users_code_are_not_taken_for_mistakes_in_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("settings.py").write_text("raise ValueError('of the user')")
    with pytest.raises(ValueError, match=r"^of the user$"):
        main(["train", "--algo", "sac", "--env", "Pendulum-v1", "-conf", "settings.py"])

    def fails(*args, **kwargs):
        raise AssertionError("of the user")

    Path("logs/sac/Pendulum-v1_1").mkdir(parents=True)
    with zipfile.ZipFile("logs/sac/Pendulum-v1_1/Pendulum-v1.zip", "w"):
        pass
    monkeypatch.setattr("rl_zoo3.enjoy.create_test_env", fails)
    with pytest.raises(AssertionError, match=r"^of the user$"):
        main(["enjoy", "--algo", "sac", "--env", "Pendulum-v1", "--no-render"])


def test_a_progress_bar_on_a_terminal_only(told, monkeypatch):
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda value=is_terminal: value, raising=False)
        main(["train", "--algo", "sac", "--env", "Pendulum-v1"])
    assert "--progress" in told[0]
    assert "--progress" not in told[1]
    assert told[1][:2] == ["train", "-conf"]
    assert Path(told[1][2]).name == "sac.yml"
    main(["train", "--algo", "sac", "-conf", "mine.yml"])
    assert told[2] == ["train", "--algo", "sac", "-conf", "mine.yml"]
    main(["enjoy", "--algo", "sac", "--env", "Pendulum-v1"])
    main(["enjoy", "--algo", "sac", "--env", "Pendulum-v1", "--folder", "mine"])
    assert told[3] == ["enjoy", "-f", "logs", "--algo", "sac", "--env", "Pendulum-v1"]
    # The later one wins.
    assert told[4] == ["enjoy", "-f", "logs", "--algo", "sac", "--env", "Pendulum-v1", "--folder", "mine"]


def test_abbreviations_are_what_rl_zoo3_takes_them_for(told, capsys):
    """Mistake of ours: with `--alg sac`, SAC was trained with rl-zoo3's own hyperparameters, and an MLP."""
    main(["train", "--alg=sac", "--env", "Pendulum-v1"])
    assert told[0][:2] == ["train", "-conf"]
    assert Path(told[0][2]).name == "sac.yml"
    with pytest.raises(SystemExit, match="unknown environment 'Pendulm-v1'"):
        main(["train", "--al", "sac", "--env", "Pendulm-v1"])
    main(["train", "--alg", "sac", "--env", "Pendulum-v1", "--conf", "mine.yml"])
    assert told[1] == ["train", "--alg", "sac", "--env", "Pendulum-v1", "--conf", "mine.yml"]
    with pytest.raises(SystemExit):
        main(["train", "--e", "Pendulum-v1"])
    assert "ambiguous option: --e" in capsys.readouterr().err


def test_options_of_names_and_values_add_up(tmp_path):
    """Mistake of ours, as of rl-zoo3: the last one alone was taken."""
    (tmp_path / "my.yml").write_text("Pendulum-v1: {n_timesteps: 20, policy: MlpPolicy, learning_starts: 10, gamma: 0.9}")
    arguments = ("--algo", "sac", "--env", "Pendulum-v1", "-conf", "my.yml", "--eval-freq", "-1", "-f", "logs")
    run("train", *arguments, "-params", "gamma:0.5", "tau:0.1", "-params", "learning_starts:15", "gamma:0.6", cwd=tmp_path)
    model = SAC.load(tmp_path / "logs/sac/Pendulum-v1_1/Pendulum-v1.zip")
    assert (model.gamma, model.tau, model.learning_starts) == (0.6, 0.1, 15)


# Of rl-zoo3, which renders all the same what has no window.
@pytest.mark.filterwarnings("ignore:You tried to render a VecEnv:UserWarning")
def test_a_window_needs_a_display(tmp_path, monkeypatch):
    """Mistake of ours: GLFW ended the process by an assertion."""
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    sentence = "would be shown in a window, which needs a display.*--no-render"
    # Whoever makes it, and however it is wrapped.
    gym.register("Hidden-v0", lambda **kwargs: gym.wrappers.TimeLimit(gym.make("Hopper-v5", **kwargs), 20))
    small = {"policy": "MlpPolicy", "policy_kwargs": {"net_arch": [4]}, "learning_starts": 10}
    for env_id in ("Hidden-v0", "dm_control/cartpole-swingup-v0"):
        wrapper = {"env_wrapper": ["sb3_sparse.dmc.DMCWrapper"]} if env_id != "Hidden-v0" else {}
        model, _ = zoo.train_agent("sac", env_id, "logs", hyperparams={**small, **wrapper}, n_timesteps=15)
        play = ["enjoy", "--algo", "sac", "--env", env_id, "-n", "5"]
        with pytest.raises(SystemExit, match=f"sb3-sparse enjoy: .* {sentence}"):
            main(play)
        main([*play, "--no-render"])
        if not wrapper:
            main([*play, "--env-kwargs", "render_mode:None"])
            # In processes of their own.
            with pytest.raises(SystemExit, match=f"sb3-sparse enjoy: {env_id} {sentence}"):
                main([*play, "--n-envs", "2"])
            save_safe(model, "agent.safetensors")
            with pytest.raises(SystemExit, match=f"sb3-sparse enjoy: .* {sentence}"):
                main(["enjoy", "-i", "agent.safetensors", "--env", env_id])


def test_what_goes_wrong_in_training_keeps_its_traceback(monkeypatch):
    def explode():
        raise ValueError("in a callback")

    monkeypatch.setattr(train_tune_enjoy, "prepare_command", lambda *args, **kwargs: explode)
    with pytest.raises(ValueError, match="in a callback"):
        main(["train", "--algo", "sac", "--env", "Pendulum-v1"])


def test_without_rl_zoo3(monkeypatch):
    monkeypatch.setitem(sys.modules, "rl_zoo3.utils", None)
    with pytest.raises(SystemExit, match=r'sb3-sparse train: this needs rl-zoo3: pip install "sb3-sparse\[zoo\]"'):
        main(["train", "--algo", "sac", "--env", "Pendulum-v1"])
