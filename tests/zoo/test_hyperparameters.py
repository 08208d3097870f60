"""Hyperparameter files: the packaged ones, and how strings in them are read."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from sb3_sparse import policies, zoo
from sb3_sparse.zoo.hyperparameters import EVALUATED_BY_RL_ZOO, check_names, read_setting

ALGOS = pytest.importorskip("rl_zoo3").ALGOS

ALGORITHMS = ("sac", "ddpg", "td3", "tqc", "crossq", "dqn", "qrdqn")
DMC_HARD = [f"dm_control/{task}-v0" for task in ("humanoid-run", "humanoid-walk", "humanoid-stand")] + [
    f"dm_control/dog-{task}-v0" for task in ("run", "walk", "trot", "stand")
]


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


def test_the_strings_of_rl_zoos_own_files_are_read_as_it_evaluates_them():
    from rl_zoo3 import exp_manager

    strings = 0
    for path in (Path(exp_manager.__file__).parent / "hyperparams").glob("*.yml"):
        for entry in yaml.safe_load(path.read_text()).values():
            for name in EVALUATED_BY_RL_ZOO:
                if isinstance(text := entry.get(name), str):
                    strings += 1
                    assert read_setting(name, text) == eval(text, dict(vars(exp_manager)))
    assert strings > 50


def test_what_rl_zoo3_takes_itself_is_no_unknown_hyperparameter():
    taken = dict.fromkeys(["callback", "env_wrapper", "vec_env_wrapper"]) | {"monitor_kwargs": {}, "env_kwargs": {}}
    taken |= {"n_timesteps": 20, "n_envs": 2, "normalize": {"norm_obs": False}, "frame_stack": 2}
    taken |= {"noise_type": "normal", "noise_std": 0.1, "train_freq": [1, "step"], "learning_rate": "lin_1e-3"}
    model = zoo.untrained_agent("td3", "Pendulum-v1", hyperparams={**taken, "policy_kwargs": {"width_scale": 0.1}})
    assert model.action_noise is not None
    assert model.n_envs == 2
    # A keyword of a parent's constructor.
    zoo.untrained_agent("stream_ac", "Pendulum-v1", hyperparams={"stats_window_size": 7})
    zoo.untrained_agent("ppo", "CartPole-v1", hyperparams={"clip_range": "lin_0.1"})


def test_the_packaged_and_rl_zoo3s_own_entries_have_known_hyperparameters_only():
    own = Path(importlib.import_module("rl_zoo3").__file__).parent / "hyperparams"
    taken = {"n_timesteps", "n_envs", "normalize", "frame_stack", "callback", "env_wrapper", "vec_env_wrapper", "env_kwargs"}
    n_entries = 0
    for algo, algorithm in zoo.algorithms().items():
        for path in {zoo.hyperparams_file(algo), own / f"{algo}.yml"} - {None}:
            for entry in (yaml.safe_load(path.read_text()) if path.is_file() else {}).values():
                check_names(algorithm, {name: value for name, value in entry.items() if name not in taken})
                n_entries += 1
    assert n_entries > 100
