"""What a hyperparameter search proposes."""

import argparse
import inspect
from pathlib import Path

import pytest
import yaml

from sb3_sparse import zoo
from sb3_sparse.zoo.search_spaces import sparse_converter, sparse_sampler
from tests.zoo.state import state_of_rl_zoo

pytest.importorskip("rl_zoo3")

ALGORITHMS = ("sac", "ddpg", "td3", "tqc", "crossq", "dqn", "qrdqn", "rainbow", "der", "drqv2")


def test_the_sampler_proposes_sparse_networks_and_keeps_the_rest():
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    trial = optuna.trial.FixedTrial(
        {"one_minus_gamma": 0.01, "batch_size_pow": 5, "learning_rate": 1e-3, "train_freq": 1, "tau": 0.01}
        | {"sparsity": 0.7, "width_scale": 0.5}
    )
    sampler = sparse_sampler(HYPERPARAMS_SAMPLER["sac"], {"n_critics": 1}, "width_scale")
    hyperparams = sampler(trial, 1, 1, {"using_her_replay_buffer": False})
    assert hyperparams["policy_kwargs"] == {"n_critics": 1, "sparsity": 0.7, "width_scale": 0.5}
    assert hyperparams["batch_size"] == 32
    converter = sparse_converter(HYPERPARAMS_CONVERTER["sac"], {"n_critics": 1})
    assert converter(dict(trial.params)) == hyperparams


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_search_proposes_keywords_of_the_algorithm(algo):
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    keywords = set(inspect.signature(zoo.algorithms()[algo]).parameters) | {"noise_type", "noise_std"}
    with zoo.registered():
        sampled = HYPERPARAMS_SAMPLER[algo](study.ask(), 1, 1, {"using_her_replay_buffer": False})
        trial = study.get_trials()[0]
        assert set(sampled) <= keywords
        assert set(HYPERPARAMS_CONVERTER[algo](dict(trial.params))) <= keywords


def test_the_search_leaves_rl_zoos_tables_as_they_were(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"policy": "sb3_sparse.SparseSimBaPolicy", "policy_kwargs": {"n_critics": 1}}
    Path("my.yml").write_text(yaml.safe_dump({"default": entry}))
    manager = zoo.experiment_manager()(argparse.Namespace(), "sac", "Pendulum-v1", log_folder=".", config="my.yml")
    before = state_of_rl_zoo()
    manager.read_hyperparameters()
    with manager.search_space():
        assert state_of_rl_zoo() != before
    assert state_of_rl_zoo() == before


def test_the_search_of_drqv2_scales_the_critic_and_keeps_the_rest(tmp_path, monkeypatch):
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    monkeypatch.chdir(tmp_path)
    policy_kwargs = {"net_arch": [64, 64], "sparsity_scope": "critic", "critic_width_scale": 3, "sparsity": 0.1}
    Path("my.yml").write_text(yaml.safe_dump({"default": {"policy": "CnnPolicy", "policy_kwargs": policy_kwargs}}))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with zoo.registered():
        manager = zoo.experiment_manager()(argparse.Namespace(), "drqv2", "CartPole-v1", log_folder=".", config="my.yml")
        manager.read_hyperparameters()
        with manager.search_space():
            sampled = HYPERPARAMS_SAMPLER["drqv2"](study.ask(), 2, 1, {"using_her_replay_buffer": False})
            params = study.get_trials()[0].params
            assert HYPERPARAMS_CONVERTER["drqv2"](dict(params)) == sampled
    searched = {name: params[name] for name in ("sparsity", "critic_width_scale")}
    assert sampled["policy_kwargs"] == {**policy_kwargs, **searched}
    assert 0.5 <= searched["sparsity"] <= 0.95
    assert searched["critic_width_scale"] in (1.0, 2.0, 4.0)
    assert set(sampled) == {"learning_rate", "batch_size", "gamma", "tau", "n_steps", "exploration_final_std", "policy_kwargs"}


# The policy's keywords in the file, and which of them are searched.
RAINBOWS = {
    "a vector": ({"net_arch": [8], "mask_seed": 3}, {"sparsity"}),
    "an encoder": ({"encoder": "impala", "rescale": True, "width_scale": 3}, {"sparsity", "width_scale"}),
}


@pytest.mark.parametrize("case", RAINBOWS)
@pytest.mark.parametrize("algo", ["rainbow", "der"])
def test_the_search_of_rainbow_keeps_the_policys_keywords_and_comes_back_the_same(algo, case, tmp_path, monkeypatch):
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    monkeypatch.chdir(tmp_path)
    policy_kwargs, searched = RAINBOWS[case]
    entry = {"policy": "CnnPolicy" if "encoder" in policy_kwargs else "MlpPolicy", "policy_kwargs": policy_kwargs}
    Path("my.yml").write_text(yaml.safe_dump({"default": entry}))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with zoo.registered():
        manager = zoo.experiment_manager()(argparse.Namespace(), algo, "CartPole-v1", log_folder=".", config="my.yml")
        manager.read_hyperparameters()
        with manager.search_space():
            sampled = HYPERPARAMS_SAMPLER[algo](study.ask(), 2, 1, {"using_her_replay_buffer": False})
            params = study.get_trials()[0].params
            assert HYPERPARAMS_CONVERTER[algo](dict(params)) == sampled
    assert sampled["policy_kwargs"] == {**policy_kwargs, **{name: params[name] for name in searched}}
    assert searched <= params.keys()
    assert ("width_scale" in params) == ("width_scale" in searched)
    # Returns that distributions are over depend on it.
    assert "gamma" not in sampled
