"""A metric from outside of the package, made of public parts alone, as docs/extending/metric.md has it."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure

from sb3_sparse.common.sb3_models import sb3_model_parts
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


def make(algorithm=SAC, **kwargs):
    settings = dict(learning_starts=20, batch_size=16, buffer_size=200, seed=0, policy_kwargs=dict(net_arch=[8, 8]))
    return algorithm("MlpPolicy", ReachEnv(), device="cpu", **{**settings, **kwargs})


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
        (lambda: Metric(("q", "q"), saturated), r"columns=\('q', 'q'\): each name can stand there only once"),
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


@pytest.fixture
def register():
    """Registers metrics for one test."""
    before = set(METRICS)
    yield lambda name, columns, compute: register_metric(name, Metric(columns, compute))
    for name in set(METRICS) - before:
        unregister_metric(name)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], r"returned 2 numbers: expected a list with one number for each of its columns \['broken'\]"),
        ([], r"returned 0 numbers: expected"),
        (1.0, r"returned 1\.0: expected a list with one number"),
        (th.tensor(1.0), r"returned tensor\(1\.\): expected a list"),
        (np.float32(1), r"returned .*: expected a list"),
        (None, r"returned None: expected a list"),
        ("1", r"returned '1': expected a list"),
        ({"broken": 1.0}, r"returned \{'broken': 1\.0\}: expected a list"),
        ([None], r"returned None for its column 'broken': expected a number"),
        (["1"], r"returned '1' for its column 'broken': expected a number"),
        ([th.ones(2)], r"returned tensor\(\[1\., 1\.\]\) for its column 'broken': expected a number"),
    ],
)
def test_a_metric_that_returns_something_else_is_named(register, result, message):
    model = make().learn(40)
    register("wrong", ("broken",), lambda network: result)
    with pytest.raises(ValueError, match=r"metric 'wrong' of the critic " + message):
        measure(model, 16, metrics=["srank", "wrong"], networks="critic")


@pytest.mark.parametrize("result", [[1], (1.0,), th.ones(1), np.ones(1, np.float32), [th.tensor(1)], [np.int64(1)]])
def test_numbers_come_in_any_sequence(register, result):
    register("right", ("right",), lambda network: result)
    assert measure(make().learn(40), 16, metrics="right", networks="actor") == {"actor_right": 1.0}


def test_an_error_in_a_metric_names_it(register):
    register("raises", ("raises",), lambda network: 1 / 0)
    model = make()
    with pytest.raises(
        RuntimeError, match="metric 'raises' of the actor failed: ZeroDivisionError: division by zero"
    ) as caught:
        model.learn(40, callback=PlasticityCallback(20, 16, ["fau", "raises"]))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_metric_that_was_taken_back_before_training_is_named(register):
    register("gone", ("gone",), lambda network: [1.0])
    callback = PlasticityCallback(20, 16, ["gone", "fau"])
    unregister_metric("gone")
    with pytest.raises(ValueError, match="unknown metric 'gone'"):
        make().learn(40, callback=callback)


def test_two_results_of_one_name_are_refused(register):
    """A network and a column may be the same word as another network and another column."""

    class Named(SAC):
        def model_parts(self):
            known = sb3_model_parts(self)
            return replace(known, networks={**known.networks, "actor_first": known.networks["critic"]})

    register("one", ("first_x",), lambda network: [1.0])
    register("two", ("x",), lambda network: [2.0])
    model = make(Named).learn(40)
    message = "'first_x' of the 'actor' and 'x' of the 'actor_first' would both be actor_first_x"
    with pytest.raises(ValueError, match=message):
        measure(model, 16, ["one", "two"], ["actor", "actor_first"])
    with pytest.raises(ValueError, match=message):
        make(Named).learn(40, callback=PlasticityCallback(20, 16, ["one", "two"], ["actor", "actor_first"]))
    assert measure(model, 16, ["one", "two"], ["actor", "critic"]) == {
        "actor_first_x": 1.0,
        "actor_x": 2.0,
        "critic_first_x": 1.0,
        "critic_x": 2.0,
    }
