"""A metric from outside of the package, made of public parts alone, as docs/extending/metric.md has it."""

import csv

import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure

from sb3_sparse.plasticity import (
    METRICS,
    Metric,
    PlasticityCallback,
    Probe,
    measure,
    register_metric,
    unregister_metric,
)
from tests.envs import ReachEnv


def saturated(network):
    """Share of outputs of activation functions that nearly all samples have in common, and the largest gradient."""
    spread = th.cat([output.std(dim=0).flatten() for output in network.activations.activated.values()])
    return [float((spread < 1e-3).double().mean()), max(float(gradient.abs().max()) for gradient in network.gradients)]


@pytest.fixture
def registered():
    register_metric("saturated", Metric(("saturated", "largest_gradient"), saturated, needs_losses=True))
    yield
    unregister_metric("saturated")


def make(**kwargs):
    settings = dict(learning_starts=20, batch_size=16, buffer_size=200, seed=0, policy_kwargs=dict(net_arch=[8, 8]))
    return SAC("MlpPolicy", ReachEnv(), device="cpu", **{**settings, **kwargs})


def test_a_metric_is_measured_by_its_name(registered):
    model = make().learn(40)
    values = measure(model, 16, metrics=["saturated", "srank"], networks=["critic"])
    assert list(values) == ["critic_saturated", "critic_largest_gradient", "critic_srank", "critic_srank_normalized"]
    critic = Probe(model, 16).network("critic")
    assert values["critic_largest_gradient"] == max(float(gradient.abs().max()) for gradient in critic.gradients)
    assert "actor_saturated" in measure(model, 16)


def test_the_callback_logs_it(registered, tmp_path):
    model = make()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(60, callback=PlasticityCallback(20, 16, ["fau", "saturated"]))
    with (tmp_path / "plasticity.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:4] == ["actor_fau", "actor_saturated", "actor_largest_gradient"]
    assert len(rows) == 3
    assert all(0 <= float(row[2]) <= 1 for row in rows)
    with (tmp_path / "progress.csv").open(newline="") as file:
        assert "plasticity/critic_largest_gradient" in next(csv.reader(file))


def test_training_is_the_same_with_a_metric_that_draws_random_numbers_and_changes_modes():
    def careless(network):
        network.module.train()
        return [float(th.rand(1))]

    register_metric("careless", Metric(("careless",), careless))
    try:
        watched = make(policy_kwargs=dict(net_arch=[8, 8])).learn(60, callback=PlasticityCallback(20, 16, "careless"))
    finally:
        unregister_metric("careless")
    alone = make().learn(60)
    assert all(map(th.equal, watched.policy.state_dict().values(), alone.policy.state_dict().values()))


def test_a_name_that_is_taken_back_is_unknown(registered):
    unregister_metric("saturated")
    with pytest.raises(ValueError, match="unknown metric 'saturated'"):
        PlasticityCallback(metrics=["saturated"])
    register_metric("saturated", Metric(("other",), saturated))
    assert METRICS["saturated"].columns == ("other",)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: register_metric("srank", Metric(("a",), saturated)), "there is a metric 'srank' already"),
        (lambda: register_metric("all", Metric(("a",), saturated)), "there is a metric 'all' already"),
        (lambda: register_metric("", Metric(("a",), saturated)), "name=''"),
        (lambda: register_metric("mine", saturated), r"expected Metric\(columns, compute\)"),
        (lambda: register_metric("mine", Metric(("fau",), saturated)), r"'mine' and 'fau' would both write \['fau'\]"),
        (lambda: Metric("mine", saturated), r"columns='mine': expected a tuple of names, e.g. \('mine',\)"),
        (lambda: Metric((), saturated), r"columns=\(\)"),
        (lambda: Metric(("mine",), 3), "compute=3: expected a function"),
        (lambda: unregister_metric("srank"), "'srank' was not registered by register_metric"),
        (lambda: unregister_metric("nothing"), "'nothing' was not registered by register_metric"),
    ],
)
def test_what_is_no_metric_is_refused(call, message):
    before = dict(METRICS)
    with pytest.raises(ValueError, match=message):
        call()
    assert before == METRICS


def test_a_metric_that_returns_too_much_is_named(registered):
    model = make().learn(40)
    register_metric("broken", Metric(("broken",), lambda network: [1.0, 2.0]))
    try:
        with pytest.raises(ValueError, match=r"returned 2 numbers for its columns \['broken'\]"):
            measure(model, 16, metrics="broken")
    finally:
        unregister_metric("broken")
