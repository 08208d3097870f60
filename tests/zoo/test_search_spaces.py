"""What a hyperparameter search proposes."""

import argparse
import inspect
from pathlib import Path

import pytest
import yaml

from sb3_sparse import zoo
from sb3_sparse.zoo.search_spaces import sparse_converter, sparse_sampler
from tests.zoo.state import state_of_rl_zoo

ALGOS = pytest.importorskip("rl_zoo3").ALGOS

ALGORITHMS = ("sac", "ddpg", "td3", "tqc", "crossq", "dqn", "qrdqn")


def test_the_sampler_proposes_sparse_networks_and_keeps_the_rest():
    import optuna
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    trial = optuna.trial.FixedTrial(
        {"one_minus_gamma": 0.01, "batch_size_pow": 5, "learning_rate": 1e-3, "train_freq": 1, "tau": 0.01}
        | {"sparsity": 0.7, "width_scale": 0.5}
    )
    sampler = sparse_sampler(HYPERPARAMS_SAMPLER["sac"], {"n_critics": 1})
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
    keywords = set(inspect.signature(ALGOS[algo]).parameters) | {"noise_type", "noise_std"}
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
