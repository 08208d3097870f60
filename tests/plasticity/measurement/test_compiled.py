"""Models that ``torch.compile`` was at: measured and reset as they would be without."""

import pytest
import torch as th
from stable_baselines3 import A2C, DQN, PPO, SAC

from sb3_sparse.plasticity import PlasticityCallback, Probe, reset_model_
from tests.plasticity.measurement.test_probe import make


@pytest.fixture(autouse=True)
def forgotten():
    yield
    th.compiler.reset()


def compiled(model, how):
    """As docs/policies.md and SB3 have it. ``aot_eager`` makes graphs as inductor does, and no code of them."""
    if how == "policy":
        model.policy = th.compile(model.policy, backend="aot_eager")
    elif how == "critic":
        name = "critic" if hasattr(model, "critic") else "q_net"
        setattr(model, name, th.compile(getattr(model, name), backend="aot_eager"))
    else:
        network = getattr(model.policy, "critic", None) or getattr(model.policy, "q_net", model.policy)
        network.compile(backend="aot_eager")
    return model


CASES = [(SAC, "critic"), (SAC, "in place"), (DQN, "critic"), (DQN, "in place"), (PPO, "policy"), (A2C, "in place")]


# Torch's compiler looks at `.grad` of everything, and torch warns of that.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.mark.parametrize(("algorithm", "how"), CASES)
def test_training_goes_on_and_measures_the_same(algorithm, how, tmp_path):
    model = make(algorithm)
    batch = Probe(model, 30).batch
    names = list(Probe(model, batch=batch).networks)
    before = [Probe(model, batch=batch).network(name) for name in names]
    expected = [(each.interference.matrix, each.activations.linear) for each in before]
    compiled(model, how)
    for name, (matrix, linear) in zip(names, expected, strict=True):
        found = Probe(model, batch=batch).network(name)
        th.testing.assert_close(found.interference.matrix, matrix)
        assert [*map(plain, found.activations.linear)] == [*linear]
    callback = PlasticityCallback(40, n_samples=30, csv_path=tmp_path / "plasticity.csv", figures=False)
    model.learn(120, callback=callback)
    assert len((tmp_path / "plasticity.csv").read_text().splitlines()) >= 3


def plain(name):
    return name.removeprefix("_orig_mod.")


@pytest.mark.parametrize(("algorithm", "how"), CASES)
def test_resets_reach_what_was_compiled(algorithm, how):
    # All that a full reset draws follows from its seed.
    model, twin = compiled(make(algorithm), how), make(algorithm)
    before = {plain(name): parameter.clone() for name, parameter in model.policy.named_parameters()}
    for each in (model, twin):
        reset_model_(each, "full", seed=5)
    found = {plain(name): parameter for name, parameter in model.policy.named_parameters()}
    assert all(th.equal(parameter, found[name]) for name, parameter in twin.policy.named_parameters())
    assert not any(th.equal(before[name], found[name]) for name in found if name.endswith("weight"))
