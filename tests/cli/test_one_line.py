"""What users do wrong is one line, which names the command, what is wrong and what to do, and has no traceback."""

import os
import subprocess
import sys
import zipfile

import gymnasium as gym
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3 import PPO, SAC

from sb3_sparse import save_safe
from sb3_sparse.cli import main
from sb3_sparse.zoo import algorithms
from sb3_sparse.zoo.mistakes.settings import ACTIONS
from tests.cli.running import run

pytest.importorskip("rl_zoo3")

SAC_ON_PENDULUM = ("--algo", "sac", "--env", "Pendulum-v1")
TRAIN = ("train", *SAC_ON_PENDULUM, "-n", "3", "--eval-freq", "-1")
TUNE = ("tune", *SAC_ON_PENDULUM, "-n", "3", "--n-trials", "2", "--n-evaluations", "1", "--no-optim-plots")
ENJOY = ("enjoy", *SAC_ON_PENDULUM, "--no-render", "-n", "3")
DESCRIBE = ("describe", "--env", "Pendulum-v1")
EVALUATE = ("evaluate", "sac.zip", "--env", "Pendulum-v1", "-n", "1")
SAFE = ("enjoy", "-i", "sac.safetensors", "--env", "Pendulum-v1", "--no-render", "-n", "3")
EXPORT = ("export", "--algo", "sac", "--model", "sac.zip", "--to", "safetensors")

FILES = {
    "broken.yml": "Pendulum-v1: [1, 2\nb: {c: d\n",
    "empty.yml": "",
    "list.yml": "[1, 2]",
    "number.yml": "Pendulum-v1: 3",
    "no_steps.yml": "Pendulum-v1: {policy: MlpPolicy}",
    "no_policy.yml": "Pendulum-v1: {n_timesteps: 10}",
    "steps.yml": "Pendulum-v1: {policy: MlpPolicy, n_timesteps: many}",
    "wrapper.yml": "Pendulum-v1: {policy: MlpPolicy, n_timesteps: 10, env_wrapper: nope.Wrapper}",
    "evaluated.yml": "Pendulum-v1: {policy: MlpPolicy, n_timesteps: 10, policy_kwargs: 'dict(net_arch=[nope])'}",
    "unclosed.yml": "Pendulum-v1: {policy: MlpPolicy, n_timesteps: 10, policy_kwargs: 'dict(net_arch=['}",
    "nothing.py": "a = 1",
    "text": "text",
    "text.zip": "text",
    "text.pkl": "text",
    "text.safetensors": "text",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Agents and files that are none."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, content in FILES.items():
        (folder / name).write_text(content)
    (folder / "latin.yml").write_bytes(b"Pendulum-v1: {policy: \xff}")
    (folder / "folder").mkdir()
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs=dict(net_arch=[8]), device="cpu")
    model.save(folder / "sac.zip")
    save_safe(model, folder / "sac.safetensors")
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[8]), device="cpu").save(folder / "ppo.zip")
    whole = (folder / "sac.zip").read_bytes()
    (folder / "half.zip").write_bytes(whole[:500])
    with zipfile.ZipFile(folder / "sac.zip") as parts, zipfile.ZipFile(folder / "damaged.zip", "w") as damaged:
        for name in parts.namelist():
            damaged.writestr(name, b"text" if name.endswith(".pth") else parts.read(name))
    run = folder / "logs/sac/Pendulum-v1_1"
    (run / "Pendulum-v1").mkdir(parents=True)
    (run / "Pendulum-v1.zip").write_bytes(whole)
    (run / "best_model.zip").write_text("text")
    return folder


@pytest.fixture
def said(folder, monkeypatch, capsys):
    """Call the command, which fails; its one line."""
    monkeypatch.chdir(folder)

    def call(*args, status=1):
        with pytest.raises(SystemExit) as stopped:
            main(list(args))
        error = capsys.readouterr().err
        if isinstance(stopped.value.code, str):
            # As Python does when a program ends of it, with the status 1.
            error += f"{stopped.value.code}\n"
            assert status == 1
        else:
            assert stopped.value.code == status
        (line,) = error.splitlines()
        assert line.startswith(f"sb3-sparse {args[0]}: "), line
        assert "Traceback" not in line
        return line

    return call


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["-conf", "broken.yml"], "broken.yml is no YAML of plain data: line 2, column 2: expected ',' or ']'"),
        (["-conf", "latin.yml"], "latin.yml is no YAML of plain data: 'utf-8' codec"),
        (["-conf", "empty.yml"], "empty.yml holds nothing: expected entries such as 'Pendulum-v1'"),
        (["-conf", "list.yml"], "list.yml holds [1, 2]: expected entries"),
        (["-conf", "number.yml"], "number.yml: 'Pendulum-v1' is 3: expected entries"),
        (["-conf", "no_steps.yml"], "no_steps.yml has no 'n_timesteps' for Pendulum-v1: add it"),
        (["-conf", "no_policy.yml"], "no_policy.yml has no 'policy' for Pendulum-v1: add it"),
        (["-conf", "steps.yml"], "n_timesteps='many': expected a number of steps"),
        (["-conf", "wrapper.yml"], "env_wrapper: 'nope.Wrapper' cannot be imported (No module named 'nope')"),
        (["-conf", "nothing.py"], "hyperparameters of 'nothing.py': expected a dictionary 'hyperparams' in it"),
        (["-params", "policy_kwargs:3"], "policy_kwargs=3: expected dict(...)"),
        (["-params", "learning_rate:'fast'"], "learning_rate='fast': expected a number, or such as 'lin_0.001'"),
        (["-params", "n_envs:0"], "n_envs=0: expected a positive whole number"),
        (["-params", "frame_stack:'a'"], "frame_stack='a': expected a positive whole number"),
        (["-params", "policy:'MlPolicy'"], "SAC has none of this name. Did you mean 'MlpPolicy'?"),
        (["-params", "policy:3"], "policy=3: expected a name"),
        (["-params", "noise_type:'x'"], "noise_type='x': expected 'normal' or 'ornstein-uhlenbeck'"),
        (["-params", "noise_type:'normal'"], "noise_type='normal' needs noise_std"),
        (["-params", "normalize:dict(a=1)"], "VecNormalize has no a: it takes training, norm_obs"),
        (["-params", "policy_kwargs:dict(sparsity=2)"], "sparsity=2: expected a number in [0, 1)"),
        (["-params", "policy:'MlpPolicy'", "policy_kwargs:dict(nope=2)"], "unexpected keyword argument 'nope'"),
        (["-params", "learning_rate:-1"], "Invalid learning rate: -1.0"),
        (["--env-kwargs", "nope:1"], "Pendulum-v1 takes no such argument: PendulumEnv.__init__() got an unexpected keyword"),
        (["--gym-packages", "nope.inside"], "--gym-packages nope.inside: there is no module 'nope'. Modules in the current"),
        (["--env", "CartPole-v1"], "sac cannot act in CartPole-v1, whose actions are Discrete(2): it takes Box. dqn, "),
        (["--env", "Pendulm-v1"], "unknown environment 'Pendulm-v1'. Did you mean 'Pendulum-v1'?"),
    ],
)
@pytest.mark.parametrize("command", [TRAIN, DESCRIBE], ids=["train", "describe"])
def test_settings(command, args, expected, said):
    assert expected in said(*command, *args)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["-conf", "evaluated.yml"], "policy_kwargs='dict(net_arch=[nope])': name 'nope' is not defined"),
        (["-conf", "unclosed.yml"], "policy_kwargs='dict(net_arch=[' is no Python: '[' was never closed"),
        (["-i", "half.zip"], "--trained-agent half.zip is no .zip of an agent, or not all of it"),
        (["-i", "damaged.zip"], "--trained-agent damaged.zip cannot go on in Pendulum-v1 as sac: IndexError: "),
        (
            ["-i", "ppo.zip"],
            "--trained-agent ppo.zip cannot go on in Pendulum-v1 as sac: ValueError: it holds an agent of PPO: expected",
        ),
        (["-f", "/proc/nope"], "'/proc/nope': there is no such file or folder"),
        (["--storage", "text", "--study-name", "s", "--trial-id", "1"], "--storage text has no trial 1 of a study 's', or"),
        (["--track"], "please install W&B"),
    ],
)
def test_of_train_alone(args, expected, said, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert expected in said(*TRAIN, *args)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([*TRAIN, "-params", "learning_rate:abc"], "-params learning_rate:abc: 'abc' is no value of Python (NameError"),
        ([*TRAIN, "-params", "gamma:1", "batch_size:("], "-params batch_size:(: '(' is no value of Python (SyntaxError"),
        ([*TRAIN, "-params", "gamma"], "-params gamma: expected NAME:VALUE"),
        ([*ENJOY, "--env-kwargs", "g:abc"], "--env-kwargs g:abc: 'abc' is no value of Python"),
        (
            [*DESCRIBE, "-params", "gamma:abc"],
            "-params gamma='abc': the name 'abc' is not known; expected numbers, strings",
        ),
        ([*DESCRIBE, "-params", "gamma"], "-params gamma: expected NAME:VALUE"),
        ([*TRAIN, "-n", "x"], "argument -n/--n-timesteps: invalid int value: 'x'. See sb3-sparse train --help."),
        (["tune", "--sampler", "x"], "argument --sampler: invalid choice: 'x'"),
        ([*TRAIN, "--gym-packages"], "argument --gym-packages: expected at least one argument"),
        ([*TRAIN, "-f", "text"], "--log-folder text: "),
        ([*TRAIN, "-tb", "text/below"], "is a file, expected a folder"),
        ([*TRAIN, "--eval-episodes", "0"], "--eval-episodes 0: expected at least 1"),
        ([*TRAIN, "--device", "nope"], "--device nope: expected auto, cpu, cuda"),
        ([*ENJOY, "--n-envs", "0"], "--n-envs 0: expected at least 1"),
        ([*TRAIN, "--log-interval", "0"], "--log-interval 0: expected at least 1, -1 for"),
        ([*EVALUATE, "--device", "nope"], "--device nope: expected auto, cpu, cuda"),
        (["export"], "the following arguments are required: --algo"),
        (["plot"], "the following arguments are required: RUN"),
        (["report", "--nope"], "See sb3-sparse report --help."),
        (["sweep", "--jobs", "x"], "argument --jobs: invalid int value: 'x'"),
        (["completion", "fish"], "invalid choice: 'fish'"),
    ],
)
def test_options(args, expected, said):
    assert expected in said(*args, status=2)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([*ENJOY, "--load-best"], "logs/sac/Pendulum-v1_1/best_model.zip is no .zip of an agent, or not all of it"),
        ([*ENJOY, "--env-kwargs", "nope:1"], "Pendulum-v1 takes no such argument"),
        ([*ENJOY, "-i", "sac.zip"], "-i sac.zip: expected a .safetensors. Of what train left, -f names the log folder"),
        ([*SAFE, "-i", "missing.safetensors"], "'missing.safetensors': there is no such file or folder."),
        ([*SAFE, "-i", "text.safetensors"], "text.safetensors cannot be read as a safe file"),
        (
            [*SAFE, "--env", "CartPole-v1"],
            "sac.safetensors makes no agent of SAC: ValueError: Observation spaces do not match",
        ),
        ([*SAFE, "--env-kwargs", "nope:1"], "Pendulum-v1 takes no such argument"),
        ([*SAFE, "--seed", "-1"], "Seed must be between 0"),
        ([*DESCRIBE, "--seed", "-1"], "Seed must be"),
        ([*EVALUATE, "--env-kwargs", "nope:1"], "Pendulum-v1 takes no such argument"),
        ([*EVALUATE, "--env", "CartPole-v1"], "the agent sees Box([-1. -1. -8.]"),
        ([*EVALUATE, "--vecnormalize", "text.pkl"], "'text.pkl' is no file of VecNormalize"),
        ([*EVALUATE, "--json", "folder"], "cannot write 'folder' (it is a folder)"),
        (["evaluate", "damaged.zip", "--env", "Pendulum-v1"], "damaged.zip is no agent of SB3: IndexError"),
        (["evaluate", "half.zip", "--env", "Pendulum-v1"], "half.zip is no agent of SB3"),
        ([*EXPORT, "--model", "damaged.zip"], "damaged.zip is no agent of SAC: IndexError"),
        ([*EXPORT, "-o", "text/below.safetensors"], "cannot write 'text/below.safetensors' (its folder is a file)"),
        (["sweep", "broken.yml"], "broken.yml is no YAML of plain data: line 2, column 2"),
        (["sweep", "folder"], "folder has no plan.yml"),
        (["plot", "text"], "'text' is not a folder"),
        (["report", "folder"], "'folder' has no folder 'runs'"),
    ],
)
def test_files(args, expected, said):
    assert expected in said(*args)


@pytest.mark.parametrize("setting", ["target_entropy:'none'", "ent_coef:'auto_-1'"])
def test_a_search_says_what_training_says(setting, said):
    """Mistake of ours: it ended in a traceback, below that of Optuna, whose trial had failed."""
    small = ["-params", "policy:'MlpPolicy'", "policy_kwargs:dict(net_arch=[8])", setting]
    assert said(*TUNE, *small, "--storage", "study.log") == said(*TRAIN, *small).replace("train", "tune")
    # No trial was begun.
    assert not os.path.exists("study.log")


def test_a_search_in_which_every_trial_fails_says_why(folder, monkeypatch):
    """Mistake of ours, as of rl-zoo3: it ended in a traceback of Optuna, which had no best trial."""
    monkeypatch.chdir(folder)
    small = ["-params", "policy:'MlpPolicy'", "policy_kwargs:dict(net_arch=[8])", "--env-kwargs", "wrong:'step'"]
    gym.register("OfSomebody-v0", OfSomebody, max_episode_steps=5)
    try:
        with pytest.raises(
            SystemExit, match=r"^sb3-sparse tune: no trial .* came to its end\. The last error, .* ValueError: of somebody$"
        ):
            main([*TUNE, "--env", "OfSomebody-v0", *small])
    finally:
        del gym.registry["OfSomebody-v0"]


def test_statistics_beside_an_agent_that_are_none(said, folder):
    statistics = folder / "logs/sac/Pendulum-v1_1/Pendulum-v1/vecnormalize.pkl"
    statistics.write_text("text")
    try:
        assert "vecnormalize.pkl' is no file of VecNormalize" in said(*ENJOY)
    finally:
        statistics.unlink()


@pytest.mark.parametrize(
    ("env_id", "modules", "fix"),
    [
        ("LunarLander-v3", ["Box2D"], 'pip install "gymnasium[box2d]"'),
        pytest.param("Hopper-v5", ["mujoco"], 'pip install "gymnasium[mujoco]"', marks=pytest.mark.full),
        pytest.param("ALE/Pong-v5", ["ale_py"], 'pip install "sb3-sparse[atari]"', marks=pytest.mark.full),
        ("dm_control/cartpole-swingup-v0", ["shimmy", "dm_control", "dm_control.suite"], 'pip install "sb3-sparse[dmc]"'),
        pytest.param(
            "MinAtar/Breakout-v1", ["minatar", "minatar.gym"], 'pip install "sb3-sparse[minatar]"', marks=pytest.mark.full
        ),
    ],
)
def test_what_an_environment_needs_is_named_with_what_installs_it(env_id, modules, fix, tmp_path):
    """In a process in which they cannot be imported."""
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in modules)
    code = f"import sys; {blocked}from sb3_sparse.cli import main; main(sys.argv[1:])"
    for args in (["train", "--algo", "ppo", "-n", "3"], ["evaluate", str(tmp_path / "agent.zip"), "-n", "1"]):
        if args[0] == "evaluate":
            PPO("MlpPolicy", "CartPole-v1", policy_kwargs=dict(net_arch=[8]), device="cpu").save(args[1])
        done = subprocess.run(
            [sys.executable, "-c", code, *args, "--env", env_id], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"sb3-sparse {args[0]}: ")
        assert fix in line


class OfSomebody(PendulumEnv):
    """An environment of a user, with a mistake in it."""

    def __init__(self, wrong="nothing", **kwargs):
        self.wrong = wrong
        if wrong == "constructor":
            raise ValueError("of somebody")
        if wrong == "argument":
            PendulumEnv(nope=1)
        super().__init__(**kwargs)

    def step(self, action):
        if self.wrong == "step":
            raise ValueError("of somebody")
        return super().step(action)


@pytest.mark.parametrize("command", [TRAIN, EVALUATE, SAFE], ids=["train", "evaluate", "enjoy"])
@pytest.mark.parametrize(("wrong", "kind"), [("constructor", ValueError), ("argument", TypeError), ("step", ValueError)])
def test_errors_of_an_environment_keep_their_traceback(command, wrong, kind, folder, monkeypatch):
    monkeypatch.chdir(folder)
    gym.register("OfSomebody-v0", OfSomebody, max_episode_steps=5)
    try:
        with pytest.raises(kind, match=r"of somebody|'nope'"):
            main([*command, "--env", "OfSomebody-v0", "--env-kwargs", f"wrong:'{wrong}'"])
    finally:
        del gym.registry["OfSomebody-v0"]


class Actions(gym.Env):
    """An environment with certain actions."""

    observation_space = spaces.Box(-1, 1, (3,))

    def __init__(self, action_space):
        self.action_space = action_space


SPACES = [spaces.Box(-1, 1, (2,)), spaces.Discrete(2), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]


@pytest.mark.parametrize("algo", sorted(algorithms()))
def test_which_actions_an_algorithm_takes_is_what_its_constructor_says(algo):
    algorithm = algorithms()[algo]
    policy = "MlpLstmPolicy" if algo == "ppo_lstm" else next(iter(algorithm.policy_aliases))
    for space in SPACES:
        said = ""
        try:
            algorithm(policy, Actions(space), device="cpu")
        # Whatever it is that does not fit: the first thing that SB3 looks at are actions.
        except Exception as error:
            said = str(error)
        is_refused = "as action spaces but" in said
        assert is_refused == (not isinstance(space, ACTIONS[algo])), (space, said)


@pytest.mark.parametrize("option", ["-f", "-tb"])
def test_a_folder_that_may_not_be_written_to(option, said, monkeypatch):
    # The tests may be run by somebody who may do anything.
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("folder"))
    assert said(*TRAIN, option, "folder/below").endswith(
        "/folder': permission denied: change its permissions, or name another place."
    )


def test_a_run_that_did_not_begin_leaves_no_folder(said, folder):
    """Else the newest run would be one without an agent."""
    before = sorted((folder / "logs/sac").iterdir())
    said(*TRAIN, "--env-kwargs", "nope:1", "--exact-checkpoint-freq", "2")
    said(*TRAIN, "-params", "learning_rate:-1")
    assert sorted((folder / "logs/sac").iterdir()) == before


def test_in_a_process_of_its_own(folder):
    """As a user sees it: the status, and nothing else on the error stream."""
    done = run(*SAFE, "-i", "missing.safetensors", cwd=folder, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "sb3-sparse enjoy: 'missing.safetensors': there is no such file or folder.\n"
