"""A run that was interrupted is bit by bit the one that was not."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import configure

from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from tests.resume.cases import CASES
from tests.resume.comparing import differences, everything

# What a clock says.
OF_TIME = ("time/fps", "time/time_elapsed", "time/iterations")


# What not everybody has installed.
NEEDS = {"dqn atari": ("ale_py", "cv2"), **dict.fromkeys(("sac halfcheetah", "sac ant", "sac humanoid"), ("mujoco",))}
NEEDS |= dict.fromkeys(("sac walker", "sac reacher", "sac fish", "sac dog", "drqv2 pixels"), ("dm_control",))


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


def logged(folder: Path):
    with (folder / "progress.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in OF_TIME} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_one_that_was_not_interrupted(name, tmp_path):
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
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
    assert not differences(logged(undisturbed), logged(interrupted))
    plasticity = [folder / "plasticity.csv" for folder in (undisturbed, interrupted)]
    if plasticity[0].exists():
        assert plasticity[0].read_text() == plasticity[1].read_text()
    evaluations = [folder / "evaluations.npz" for folder in (undisturbed, interrupted)]
    if evaluations[0].exists():
        with np.load(evaluations[0]) as ours, np.load(evaluations[1]) as theirs:
            assert not differences(dict(ours), dict(theirs))
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
