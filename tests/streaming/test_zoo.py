"""Streaming algorithms in rl-zoo3 and the command, as a user runs them."""

import subprocess
import sys

import pytest
import yaml

from sb3_sparse import streaming, zoo
from sb3_sparse.cli.describe import describe
from sb3_sparse.zoo.search_spaces import STREAM_KAPPAS

pytest.importorskip("rl_zoo3")

ALGORITHMS = {"stream_ac": "StreamAC", "stream_q": "StreamQ", "stream_sarsa": "StreamSARSA"}


def test_train_and_enjoy(tmp_path):
    # One process for both: most of the time is taken by imports.
    train = ["train", "--algo", "stream_ac", "--env", "Walker2d-v5", "-n", "120", "--seed", "1", "-f", "logs"]
    train += ["-tb", "logs/tb", "--eval-freq", "60", "--eval-episodes", "1", "-params", "policy_kwargs:dict(sparsity=0.8)"]
    enjoy = ["enjoy", "--algo", "stream_ac", "--env", "Walker2d-v5", "-f", "logs", "-n", "300", "--no-render"]
    script = f"from sb3_sparse.cli import main; main({train}); main({enjoy})"
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Mean reward:" in result.stdout
    folder = tmp_path / "logs/stream_ac/Walker2d-v5_1"
    assert (folder / "evaluations.npz").is_file()
    assert list((tmp_path / "logs/tb").rglob("events.out.tfevents*"))
    assert streaming.StreamAC.load(folder / "best_model.zip").policy_kwargs == {"sparsity": 0.8}


def test_describe(capsys):
    zoo.register_algorithms()
    describe(["--algo", "stream_ac", "--env", "Walker2d-v5"])
    out = capsys.readouterr().out
    assert "512x512" in out
    assert "actor\n" in out
    assert "critic\n" in out


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_packaged_hyperparameters(algo):
    settings = yaml.safe_load(zoo.hyperparams_file(algo).read_text())
    assert {"default", "CartPole-v1", "atari"} <= set(settings)
    algorithm = getattr(streaming, ALGORITHMS[algo])
    for entry in settings.values():
        assert entry["policy"] in algorithm.policy_aliases
        assert "normalize" not in entry
        assert "n_envs" not in entry


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_the_search_proposes_what_the_algorithm_takes(algo):
    import optuna
    from rl_zoo3 import ALGOS
    from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER

    zoo.register_algorithms()
    names = STREAM_KAPPAS[algo]
    trial = optuna.trial.FixedTrial({"gamma": 0.98, "trace_lambda": 0.5, **dict.fromkeys(names, 2.5)})
    hyperparams = HYPERPARAMS_SAMPLER[algo](trial, 1, 1, {})
    assert hyperparams == HYPERPARAMS_CONVERTER[algo](trial.params)
    model = ALGOS[algo]("MlpPolicy", "CartPole-v1", **hyperparams)
    assert (model.trace_lambda, getattr(model, names[0])) == (0.5, 2.5)
