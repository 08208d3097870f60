"""A run that was interrupted is bit by bit the one that was not."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import configure

from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.sparse.kernels.choosing import chooser
from sb3_sparse.sparse.kernels.choosing.measure import Measurement
from tests.resume.cases import CASES, skip_without_packages
from tests.resume.comparing import compare_files, differences, everything

# One of each kind stays for every day; with `--full` all are run.
TAKE_LONG = frozenset(
    (
        *("sac schedule", "sac gsde often", "sac episodes", "sac 3 envs", "sac noise on 2", "sac normalised monitor"),
        *("sac ant", "sac humanoid", "sac reacher", "sac fish", "sac dog", "td3", "crossq", "dqn", "rainbow sparse"),
        *("stream ac discrete", "stream sarsa", "ppo plasticity", "drqv2 stored"),
    )
)


class Interrupted(ExactCheckpoint):
    """Ends the run with its first checkpoint."""

    def save(self) -> None:
        super().save()
        raise StoppedOnRequest


def run(case, folder: Path, callbacks):
    model = case.make(folder)
    model.set_logger(configure(str(folder), ["csv"]))
    model.learn(case.total, callback=callbacks, log_interval=2)
    return model


def scramble():
    """Another process has other random states, and drew other numbers since."""
    random.seed(123)
    np.random.seed(123)
    th.manual_seed(123)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full) if name in TAKE_LONG else name for name in CASES])
def test_a_resumed_run_is_the_one_that_was_not_interrupted(name, tmp_path):
    skip_without_packages(name)
    case, undisturbed, interrupted = CASES[name], tmp_path / "undisturbed", tmp_path / "interrupted"
    expected_model = run(case, undisturbed, case.callbacks(undisturbed))
    expected = everything(expected_model)
    expected_model.env.close()
    with pytest.raises(StoppedOnRequest):
        run(case, interrupted, [Interrupted(tmp_path / "run", case.every), *case.callbacks(interrupted)])
    scramble()
    model = resume_exact(tmp_path / "run", callback=case.callbacks(interrupted))
    assert not differences(expected, everything(model))
    assert model.num_timesteps >= case.total
    compare_files(undisturbed, interrupted)
    model.env.close()


@pytest.mark.parametrize("name", ["sac halfcheetah", "sac subproc", "rainbow", "stream ac", "ppo gsde"])
def test_training_with_checkpoints_is_training_without(name, tmp_path):
    case = CASES[name]
    expected = everything(run(case, tmp_path / "without", []))
    found = everything(run(case, tmp_path / "with", [ExactCheckpoint(tmp_path / "run", every=case.every // 3)]))
    assert not differences(expected, found)


@pytest.mark.parametrize("name", ["sac wraps", "rainbow frames", "dqn stored", "her"])
def test_it_can_be_interrupted_again_and_again(name, tmp_path):
    case, folder = CASES[name], tmp_path / "run"
    expected = everything(run(case, tmp_path / "undisturbed", []))
    every = case.every // 3
    with pytest.raises(StoppedOnRequest):
        run(case, tmp_path / "interrupted", [Interrupted(folder, every)])
    for _ in range(3):
        scramble()
        with pytest.raises(StoppedOnRequest):
            resume_exact(folder, callback=Interrupted(folder, every, keep=1))
    assert not differences(expected, everything(resume_exact(folder)))


def test_a_run_goes_on_with_the_backends_that_it_had(tmp_path, monkeypatch, request):
    request.addfinalizer(chooser.forget_choices)
    monkeypatch.delenv("SB3_SPARSE_BACKEND", raising=False)

    def found(folder: str, first: str, then: str) -> dict:
        """What a run is that finds a backend to be the fastest, and after an interruption, in another process, another one."""
        fastest = [first]
        monkeypatch.setattr(chooser, "is_busy", lambda: False)
        monkeypatch.setattr(
            chooser, "measure", lambda *args: Measurement(fastest[0], {fastest[0]: 1.0, "dense": 9.0}, True, "")
        )
        monkeypatch.setenv("SB3_SPARSE_CACHE", str(tmp_path / folder / "cache"))
        chooser.forget_choices()
        case = CASES["sac sparse"]
        with pytest.raises(StoppedOnRequest):
            run(case, tmp_path / folder, [Interrupted(tmp_path / folder / "run", case.every)])
        fastest[0] = then
        monkeypatch.setenv("SB3_SPARSE_CACHE", str(tmp_path / folder / "another cache"))
        chooser.forget_choices()
        return everything(resume_exact(tmp_path / folder / "run"))

    dense = found("dense", "dense", "dense")
    assert not differences(dense, found("dense at first", "dense", "compiled"))
    # They do differ.
    assert differences(dense, found("compiled", "compiled", "dense"))
