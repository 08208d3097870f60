"""rl-zoo3's experiment manager with our policies."""

import argparse
from pathlib import Path

import pytest
import yaml

from sb3_sparse import zoo
from sb3_sparse.dmc import register_dmc
from sb3_sparse.zoo.manager import DMC_WRAPPER

pytest.importorskip("rl_zoo3")

# Python that leaves a file where it is run.
TRAP = "__import__('pathlib').Path('trap').touch() or {}"


def test_our_policy_kwargs_are_not_run_in_training_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"policy": "sb3_sparse.SparseSimBaPolicy", "policy_kwargs": TRAP}
    Path("my.yml").write_text(yaml.safe_dump({"default": entry}))
    manager = zoo.experiment_manager()(argparse.Namespace(), "sac", "Pendulum-v1", log_folder=".", config="my.yml")
    with pytest.raises(ValueError, match="policy_kwargs="):
        manager.read_hyperparameters()
    assert not Path("trap").exists()


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
    assert hyperparams.get("env_wrapper") == saved.get("env_wrapper") == ([DMC_WRAPPER] * wrappers or None)
