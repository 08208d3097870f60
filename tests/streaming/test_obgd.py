"""ObGD against its formulas, in float64."""

import copy

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_sparse.streaming import AdaptiveObGD, ObGD


def make(shapes=((3, 2), (3,)), optimizer_class=ObGD, **kwargs):
    th.manual_seed(0)
    params = [nn.Parameter(th.randn(shape, dtype=th.float64)) for shape in shapes]
    return params, optimizer_class(params, **kwargs)


def flat(tensors):
    return np.concatenate([t.detach().numpy().ravel() for t in tensors])


@pytest.mark.parametrize("lr", [1.0, 1e-4])
@pytest.mark.parametrize("kappa", [2.0, 3.0])
def test_steps_follow_the_formula(lr, kappa):
    params, optimizer = make(lr=lr, gamma=0.9, trace_lambda=0.7, kappa=kappa)
    rng = np.random.default_rng(0)
    theta, z = flat(params), np.zeros(9)
    for i in range(20):
        g, delta, reset = rng.standard_normal(9), 3 * rng.standard_normal(), i % 7 == 6
        for p, part in zip(params, np.split(g, [6]), strict=True):
            p.grad = th.from_numpy(part.reshape(p.shape))
        # A batch of one is one number.
        optimizer.step(th.tensor([[delta]], dtype=th.float64) if i % 2 else delta, reset)
        z = 0.9 * 0.7 * z + g
        bound = lr * kappa * max(abs(delta), 1.0) * np.abs(z).sum()
        theta += lr / max(bound, 1.0) * delta * z
        np.testing.assert_allclose(flat(params), theta, rtol=1e-12)
        assert optimizer.trace_l1 == pytest.approx(np.abs(z).sum())
        if reset:
            z[:] = 0.0
    np.testing.assert_allclose(flat([optimizer.state[p]["trace"] for p in params]), z, rtol=1e-12)


def test_a_step_moves_at_most_one_over_kappa():
    params, optimizer = make(kappa=2.0)
    for p in params:
        p.grad = 1e6 * th.ones_like(p)
    before = flat(params)
    optimizer.step(1e3)
    assert np.abs(flat(params) - before).sum() == pytest.approx(1 / 2.0)


def test_the_learning_rate_cancels_out_where_the_bound_binds():
    results = []
    for lr in (1.0, 0.1):
        params, optimizer = make(lr=lr)
        for p in params:
            p.grad = 100 * th.ones_like(p)
        optimizer.step(0.5)
        results.append(flat(params))
    np.testing.assert_allclose(*results, rtol=1e-14)


def test_a_parameter_without_gradient_keeps_its_decaying_trace():
    params, optimizer = make(gamma=0.5, trace_lambda=0.5)
    params[0].grad = th.ones_like(params[0])
    params[1].grad = th.ones_like(params[1])
    optimizer.step(0.1)
    params[1].grad = None
    optimizer.step(0.1)
    assert th.equal(optimizer.state[params[1]]["trace"], 0.25 * th.ones_like(params[1]))


def test_adaptive_steps_follow_the_formula():
    params, optimizer = make(optimizer_class=AdaptiveObGD, gamma=0.9, trace_lambda=0.7, kappa=2.0)
    rng = np.random.default_rng(0)
    theta, z, v = flat(params), np.zeros(9), np.zeros(9)
    for t in range(1, 20):
        g, delta = rng.standard_normal(9), 3 * rng.standard_normal()
        for p, part in zip(params, np.split(g, [6]), strict=True):
            p.grad = th.from_numpy(part.reshape(p.shape))
        optimizer.step(delta)
        z = 0.63 * z + g
        v = 0.999 * v + 0.001 * (delta * z) ** 2
        direction = z / np.sqrt(v / (1 - 0.999**t) + 1e-8)
        theta += delta * direction / max(2.0 * max(abs(delta), 1.0) * np.abs(direction).sum(), 1.0)
        np.testing.assert_allclose(flat(params), theta, rtol=1e-10)


def test_the_first_adaptive_step_is_the_same_for_every_coordinate():
    params, optimizer = make(shapes=((2,),), optimizer_class=AdaptiveObGD, kappa=2.0)
    params[0].grad = th.tensor([3.0, -7.0], dtype=th.float64)
    before = flat(params)
    optimizer.step(0.25)
    np.testing.assert_allclose(flat(params) - before, [0.0625, -0.0625], rtol=1e-6)


@pytest.mark.parametrize("optimizer_class", [ObGD, AdaptiveObGD])
def test_a_state_dict_holds_all_there_is(optimizer_class):
    def step(params, optimizer, seed):
        rng = np.random.default_rng(seed)
        for p in params:
            p.grad = th.from_numpy(rng.standard_normal(p.shape))
        optimizer.step(0.3)

    params, optimizer = make(optimizer_class=optimizer_class)
    for seed in range(5):
        step(params, optimizer, seed)
    others, other = make(optimizer_class=optimizer_class)
    for p, q in zip(params, others, strict=True):
        q.data.copy_(p.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(params, optimizer, 9)
    step(others, other, 9)
    assert all(th.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize(
    "kwargs", [dict(lr=-1), dict(gamma=1.1), dict(trace_lambda=-0.1), dict(kappa=0.0), dict(kappa="2")], ids=str
)
def test_bad_values_are_named(kwargs):
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        make(**kwargs)
    with pytest.raises(ValueError, match="beta2=1"):
        make(optimizer_class=AdaptiveObGD, beta2=1.0)


def test_one_group_only():
    with pytest.raises(ValueError, match="2 parameter groups"):
        ObGD([{"params": [nn.Parameter(th.ones(1))]}, {"params": [nn.Parameter(th.ones(1))]}])
