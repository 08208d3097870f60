"""Resets that are interrupted anywhere: before or after, never between."""

import copy
import functools
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch as th
from sb3_contrib import CrossQ
from stable_baselines3 import DQN, PPO, SAC
from torch import nn

import sb3_sparse
from sb3_sparse import SparseLinear
from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.plasticity import ResetCallback, gradient_gram, record_activations, reset_model_
from sb3_sparse.plasticity import reset_model as reset_module
from sb3_sparse.plasticity.redo import redo_
from sb3_sparse.plasticity.resets import reset_full_, reset_last_layers_, shrink_perturb_
from sb3_sparse.sparse.surgery.redraw import draw_fresh
from sb3_sparse.sparse.surgery.swap import Swap
from tests.plasticity.test_reset_model import make_model

OURS = str(Path(sb3_sparse.__file__).parent)
SWAP = (str(Path(OURS) / "sparse" / "surgery" / "swap.py"), str(Path(OURS) / "common" / "interrupts.py"))


class Interrupter:
    """Raises KeyboardInterrupt, by itself or by the signal, at the n-th line that is executed in our code."""

    def __init__(self, at, by_signal, only=OURS):
        self.at, self.by_signal, self.only, self.lines, self.done = at, by_signal, only, 0, False

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(self.only):
            return None
        if event == "line" and not self.done:
            self.lines += 1
            if self.lines == self.at:
                self.done = True
                if self.by_signal:
                    signal.raise_signal(signal.SIGINT)
                else:
                    raise KeyboardInterrupt
        return self

    def run(self, function):
        """Whether it was interrupted."""
        sys.settrace(self)
        try:
            function()
            return False
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
            # An exception out of nowhere may have hit the very place where these are put back.
            th.set_grad_enabled(True)
            signal.signal(signal.SIGINT, signal.default_int_handler)


def optimizers_of(model):
    policy = model.policy
    owners = [policy, *(getattr(policy, name, None) for name in ("actor", "critic"))]
    found = [getattr(owner, "optimizer", None) for owner in owners]
    return [optimizer for optimizer in [*found, getattr(model, "ent_coef_optimizer", None)] if optimizer is not None]


def state_of(model):
    """All that a reset may change, and what it should leave behind as it was."""
    policy = model.policy
    named = {p: name for name, p in policy.named_parameters()}
    if getattr(model, "log_ent_coef", None) is not None:
        named[model.log_ent_coef] = "log_ent_coef"
    state = {"tensors": {**policy.state_dict(), **{name: p.detach() for p, name in named.items()}}}
    state["optimizers"] = [{named[p]: dict(remembered) for p, remembered in o.state.items()} for o in optimizers_of(model)]
    state = copy.deepcopy(state)
    layers = {name: layer for name, layer in policy.named_modules() if isinstance(layer, SparseLinear)}
    state["topologies"] = {name: layer.topology for name, layer in layers.items()}
    return state


def is_same(state, other):
    try:
        for part in ("tensors", "optimizers"):
            th.testing.assert_close(state[part], other[part], rtol=0, atol=0)
    except AssertionError:
        return False
    return state["topologies"] == other["topologies"]


RESETS = {
    "full": (SAC, dict(strategy="full", redraw_topology=True, include_temperature=True)),
    "full, fresh": (DQN, dict(strategy="full", redraw_topology=True, target="fresh")),
    "full, norms": (CrossQ, dict(strategy="full", redraw_topology=True)),
    "on-policy": (PPO, dict(strategy="full")),
    "last layers": (SAC, dict(strategy="last_layers", redraw_topology=True, n_layers=2)),
    "redo": (SAC, dict(strategy="redo", tau=0.5, reset_step=True, target="copy")),
    "shrink": (DQN, dict(strategy="shrink_perturb", target="copy")),
}


@pytest.fixture(scope="module")
def models():
    kwargs = {"width_scale": 0.05, "sparsity": 0.7}
    made = {a: make_model(a, policy_kwargs=kwargs, learning_starts=5, steps=12) for a in (SAC, DQN, CrossQ)}
    ppo = PPO("MlpPolicy", "CartPole-v1", seed=0, n_steps=16, batch_size=16, policy_kwargs=dict(net_arch=[8])).learn(16)
    # Holds the graph of the last batch, which cannot be copied.
    ppo.policy.action_dist.distribution = None
    return {**made, PPO: ppo}


@pytest.mark.parametrize("by_signal", [False, True], ids=["exception", "signal"])
@pytest.mark.parametrize("reset", RESETS)
def test_a_reset_is_made_as_a_whole_or_not_at_all(reset, by_signal, models, monkeypatch):
    algorithm, options = RESETS[reset]
    model = models[algorithm]
    # Building takes most of the time, and touches nothing of the model.
    fresh_policy = functools.cache(lambda seed: original(model, seed))
    original = reset_module.fresh_policy
    monkeypatch.setattr(reset_module, "fresh_policy", lambda _, seed: fresh_policy(seed))

    def reset_(model):
        # ReDo draws a batch.
        np.random.seed(0)
        reset_model_(model, seed=1, **options)

    before, after = state_of(model), copy.deepcopy(model)
    reset_(after)
    after = state_of(after)
    assert not is_same(before, after)

    def interrupted(at, only):
        trial, interrupter = copy.deepcopy(model), Interrupter(at, by_signal, only)
        was_interrupted = interrupter.run(lambda: reset_(trial))
        assert was_interrupted == (interrupter.lines >= at)
        state = state_of(trial)
        return interrupter.lines, is_same(state, before), is_same(state, after)

    n_lines = interrupted(10**9, OURS)[0]
    n_in_swap = interrupted(10**9, SWAP)[0]
    assert n_in_swap > 30
    # Every so many lines on the whole, and densely at the end, where things move.
    points = [(at, OURS) for at in range(1, n_lines + 1, max(1, n_lines // 12))]
    points += [(at, SWAP) for at in range(max(1, n_in_swap - 120), n_in_swap + 1, 6)]
    outcomes = [interrupted(*point)[1:] for point in points]
    assert all(is_before != is_after for is_before, is_after in outcomes)
    assert {is_after for _, is_after in outcomes} == {False, True} if by_signal else {False} <= {o[1] for o in outcomes}


def build():
    sparse = SparseLinear(6, 8, density=0.5, seed=1)
    return nn.Sequential(sparse, nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


MODULE_RESETS = {
    "full": lambda net, fresh, optimizer: reset_full_(net, fresh, optimizer, redraw_seed=5),
    "last layers": lambda net, fresh, optimizer: reset_last_layers_(net, fresh, optimizer, n_layers=2),
    "shrink": lambda net, fresh, optimizer: shrink_perturb_(net, fresh, optimizer),
    "redo": lambda net, fresh, optimizer: redo_(net, fresh, lambda: net(th.ones(4, 6)), optimizer, tau=0.9),
}


@pytest.mark.parametrize("reset", MODULE_RESETS.values(), ids=MODULE_RESETS)
def test_resets_of_modules_are_whole_too(reset):
    def state(net, optimizer):
        names = {p: name for name, p in net.named_parameters()}
        return copy.deepcopy((dict(net.state_dict()), {names[p]: dict(s) for p, s in optimizer.state.items()}))

    def trial(at):
        th.manual_seed(0)
        net = build()
        optimizer = th.optim.Adam(net.parameters())
        net(th.randn(8, 6)).sum().backward()
        optimizer.step()
        before, fresh = state(net, optimizer), draw_fresh(build, 1)
        interrupter = Interrupter(at, by_signal=False)
        interrupter.run(lambda: reset(net, fresh, optimizer))
        return interrupter.lines, before, state(net, optimizer)

    def same(one, other):
        try:
            th.testing.assert_close(one, other, rtol=0, atol=0)
            return True
        except AssertionError:
            return False

    n_lines, before, after = trial(10**9)
    assert not same(before, after)
    for at in range(1, n_lines + 1, max(1, n_lines // 100)):
        _, _, found = trial(at)
        assert same(found, before) != same(found, after)


def test_an_interrupted_look_leaves_no_hooks_and_modes_as_they_were():
    net, fresh = build(), draw_fresh(build, 1)
    net[3].eval()

    def interrupted(*_):
        raise KeyboardInterrupt

    def losses():
        return interrupted(net(th.ones(4, 6)))

    looks = (
        lambda: redo_(net, fresh, losses),
        lambda: record_activations(net, losses),
        lambda: gradient_gram(net, losses),
    )
    for look in looks:
        with pytest.raises(KeyboardInterrupt):
            look()
        assert not sum(len(module._forward_hooks) for module in net.modules())
        assert [module.training for module in net] == [True, True, True, False, True, True]


def test_a_failure_takes_everything_back():
    layer = SparseLinear(4, 3, density=0.5, seed=1)
    optimizer = th.optim.Adam(layer.parameters())
    layer(th.ones(2, 4)).sum().backward()
    optimizer.step()
    before, topology, remembered = copy.deepcopy(layer.state_dict()), layer.topology, optimizer.state[layer.values]
    swap = Swap()
    swap.set_topology(layer, type(topology).random(topology.shape, topology.nnz, 7))
    swap.set(layer.values, th.ones(6))
    swap.forget(optimizer, layer.values)
    swap.then(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        swap.apply()
    th.testing.assert_close(dict(layer.state_dict()), dict(before), rtol=0, atol=0)
    assert layer.topology == topology
    assert optimizer.state[layer.values] is remembered
    with pytest.raises(ValueError, match=r"values of shape \(5,\) for a tensor of shape \(6,\)"):
        swap.set(layer.values, th.ones(5))


def test_ctrl_c_comes_right_after():
    seen = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - where it is raised is what is tested
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
                seen.append("inner")
            seen.append("outer")
        seen.append("after")
    assert seen == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_in_another_thread_signals_are_left_alone():
    handlers = []

    def reset():
        with uninterrupted():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=reset)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]


def test_the_record_of_the_callback_goes_with_the_reset(models):
    """A run that goes on makes no reset twice, and leaves none out."""
    for at in range(1, 4000, 250):
        model = copy.deepcopy(models[DQN])
        before = state_of(model)
        callback = ResetCallback(at=[5], strategy="shrink_perturb", seed=0)
        model.reset_progress = {callback.record: 0}
        callback.model = model
        callback._handled = 0
        model._total_timesteps = 10**6
        Interrupter(at, by_signal=True).run(callback._reset_if_due)
        was_reset = not is_same(state_of(model), before)
        assert model.reset_progress[callback.record] == (model.num_timesteps if was_reset else 0)
        assert model.reset_progress.get("count", 0) == was_reset
