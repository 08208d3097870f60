"""Agents that SB3's ``load`` does not make: their networks or optimizers were replaced after they were built."""

import pytest
import torch as th
from stable_baselines3 import DQN

from sb3_sparse import sparsify_
from sb3_sparse.resume import resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from tests.resume.cases import dqn, sac
from tests.resume.comparing import differences, everything
from tests.resume.test_exact import Interrupted, scramble


def pruned():
    model = sac()
    sparsify_(model.actor, 0.5)
    model.actor.optimizer = th.optim.Adam(model.actor.parameters(), 1e-3)
    return model


def compiled():
    model = sac()
    model.actor.latent_pi = th.compile(model.actor.latent_pi, backend="eager")
    return model


def other_optimizer():
    model = sac()
    model.actor.optimizer = th.optim.SGD(model.actor.parameters(), 1e-3)
    return model


@pytest.mark.parametrize("make", [pruned, compiled, other_optimizer])
def test_it_is_said_when_training_begins_and_model_goes_on(make, tmp_path):
    expected = everything(make().learn(200))
    with (
        pytest.warns(UserWarning, match=r"resume_exact cannot make this agent by itself .*model="),
        pytest.raises(StoppedOnRequest),
    ):
        make().learn(200, callback=Interrupted(tmp_path / "run", 80))
    scramble()
    assert not differences(expected, everything(resume_exact(tmp_path / "run", model=make())))


@pytest.mark.parametrize("make", [pruned, other_optimizer])
def test_without_it_the_error_says_what_to_do(make, tmp_path):
    with pytest.warns(UserWarning, match="cannot make this agent"), pytest.raises(StoppedOnRequest):
        make().learn(200, callback=Interrupted(tmp_path / "run", 80))
    with pytest.raises(ValueError, match=r"checkpoint-000001.*SAC.load makes another agent.*pass model="):
        resume_exact(tmp_path / "run")


def test_another_model_is_refused(tmp_path):
    with pytest.raises(StoppedOnRequest):
        sac().learn(200, callback=Interrupted(tmp_path / "run", 80))
    with pytest.raises(ValueError, match=r"model: the weights of .* do not fit"):
        resume_exact(tmp_path / "run", model=pruned())
    with pytest.raises(ValueError, match="model: a DQN given"):
        resume_exact(tmp_path / "run", env=sac().get_env(), model=dqn(DQN))
