"""The compiled pass: equal to a dense network in float64 and to torch's pass, wherever it is taken, and torch's elsewhere."""

import multiprocessing
import os
import sys
import threading

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_sparse import SimBaPolicy, SparseSimBaPolicy
from sb3_sparse.simba.networks import SimBaSACActor
from sb3_sparse.sparse.kernels.native.sample import forward, program
from tests.envs import SpaceEnv
from tests.simba.acting import (
    ACTIONS,
    ALGORITHMS,
    CLOSE,
    GAUSSIAN,
    VECTOR,
    by_torch,
    in_doubles,
    make,
    network_of,
    observations,
    outputs_of,
)

EACH = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)


def scaled(model, action):
    return model.policy.scale_action(action) if isinstance(model.action_space, spaces.Box) else action


def check(model, observation):
    """Against a dense network in float64: its outputs, and what follows from them."""
    action, _ = model.predict(observation, deterministic=True)
    right = in_doubles(model, observation)
    np.testing.assert_array_equal(action.dtype, by_torch(model, observation).dtype)
    if isinstance(right, tuple):
        n = len(right[0])
        outputs = outputs_of(model).astype(np.float64)
        log_std = -10 + 6 * (1 + np.tanh(outputs[n:])) if model.actor.squash_log_std else np.clip(outputs[n:], -20, 2)
        np.testing.assert_allclose(log_std, right[1], rtol=1e-5, atol=1e-5)
        right = right[0]
    if isinstance(model.action_space, spaces.Discrete):
        # Values of some size, of which the best one is taken.
        np.testing.assert_allclose(outputs_of(model).reshape(right.shape), right, rtol=1e-5, atol=1e-5)
        values = right.mean(axis=0) if right.ndim == 2 else right
        assert action == values.argmax()
    else:
        np.testing.assert_allclose(scaled(model, action), right, **CLOSE)


@EACH
@pytest.mark.parametrize("sparsity", [0.0, 0.8, 0.95])
def test_equal_to_a_dense_network_in_float64_and_to_torch(algorithm, sparsity, passes):
    model = make(algorithm, sparsity=sparsity)
    for observation in observations():
        check(model, observation)
        np.testing.assert_allclose(model.predict(observation, deterministic=True)[0], by_torch(model, observation), **CLOSE)
    assert len(passes) >= 2 * len(observations())


@pytest.mark.parametrize(
    ("space", "dtype", "policy_kwargs"),
    [
        (spaces.Box(0, 1, (3, 4, 5)), np.float32, {"normalize_images": False}),
        (VECTOR, np.float64, {}),
        (VECTOR, np.float32, {"normalize_observations": False}),
        (VECTOR, np.float32, {"squash_log_std": False}),
        (VECTOR, np.float32, {"net_arch": {"pi": [24, 24, 24], "qf": [8]}}),
        (VECTOR, np.float32, {"net_arch": {"pi": [1], "qf": [8]}, "sparsity": {"pi": 0.0, "qf": 0.5}}),
        (spaces.Box(-np.inf, np.inf, (3, 5)), np.float32, {}),
        (spaces.Box(-np.inf, np.inf, (1,)), np.float32, {"sparsity": 0.3}),
        (spaces.Box(-np.inf, np.inf, (300,)), np.float64, {"width_scale": 1, "sparsity": 0.9}),
        (VECTOR, np.float32, {"share_features_extractor": True, "sparsity_distribution": "uniform", "rescale": True}),
    ],
)
def test_other_networks(space, dtype, policy_kwargs, passes):
    model = make(SAC, space, **policy_kwargs)
    for observation in observations(space, 5, dtype):
        check(model, observation)
    assert len(passes) >= 5


@pytest.mark.parametrize("algorithm", GAUSSIAN, ids=lambda algorithm: algorithm.__name__)
@pytest.mark.parametrize("n_actions", [1, 3, 21])
@pytest.mark.parametrize("squash_log_std", [True, False])
def test_actions_are_drawn_as_sb3_draws_them(algorithm, n_actions, squash_log_std, passes):
    # From sixteen numbers on torch's generator makes several at a time.
    space = spaces.Box(-1.0, 1.0, (n_actions,))
    model = make(algorithm, action_space=space, squash_log_std=squash_log_std)
    passes.clear()
    for observation in observations():
        th.manual_seed(5)
        action, _ = model.predict(observation)
        state = th.get_rng_state()
        th.manual_seed(5)
        np.testing.assert_allclose(action, by_torch(model, observation, deterministic=False), rtol=1e-5, atol=1e-5)
        assert th.equal(th.get_rng_state(), state)
        assert not np.allclose(action, by_torch(model, observation))
    assert len(passes) == len(observations())


@EACH
def test_shapes_and_types_are_sb3s(algorithm, passes):
    model = make(algorithm, steps=0)
    one = observations(n=1)
    for observation in (one[0], one, one[0].astype(np.float64), one.astype(np.float64)):
        state = (np.ones(2),)
        action, returned = model.policy.predict(observation, state, np.ones(1, bool), deterministic=True)
        right = by_torch(model, observation)
        assert (type(action), action.dtype, action.shape) == (type(right), right.dtype, right.shape)
        np.testing.assert_allclose(action, right, **CLOSE)
        assert returned is state
        assert action.flags.writeable
        action.fill(7)
        np.testing.assert_allclose(model.predict(observation, deterministic=True)[0], right, **CLOSE)
    assert len(passes) == 8


def test_observations_that_lie_otherwise_in_memory(passes):
    model, wide = make(), observations(n=22).T
    before = wide.copy()
    for observation in (wide[:, 3], wide[::-1, 3], np.asfortranarray(wide[:, 3:4].T)):
        np.testing.assert_allclose(model.predict(observation, deterministic=True)[0], by_torch(model, observation), **CLOSE)
    np.testing.assert_array_equal(wide, before)
    assert len(passes) >= 3


@pytest.mark.parametrize(
    "observation",
    [
        observations(),
        observations(n=0),
        list(map(float, observations()[0])),
        observations()[0].astype(np.int64),
        observations()[0].astype(np.float16),
        observations()[0].astype(">f4"),
        np.ma.masked_array(observations()[0]),
        observations()[0][:-1],
        observations()[0].reshape(11, 1),
        observations(n=1)[None],
        (observations()[0], {}),
        {"a": observations()[0]},
        None,
        np.full(11, np.nan, np.float32),
        np.full(11, np.inf, np.float64),
        np.full(11, -1e300),
        observations()[0] * np.float32(1e25),
    ],
    ids=lambda observation: (
        f"{type(observation).__name__}-{getattr(observation, 'shape', '')}-{getattr(observation, 'dtype', '')}"
    ),
)
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_no_single_vector_of_numbers_is_sb3s(observation, normalize):
    model = make(normalize_observations=normalize)
    results = []
    for predict in (model.policy.predict, lambda *args, **kwargs: (by_torch(model, args[0]), None)):
        try:
            results.append(predict(observation, deterministic=True)[0])
        except Exception as error:
            results.append(f"{type(error)} {error}")
    if all(isinstance(result, np.ndarray) for result in results):
        # What was infinite may be bounded by the normalisation, and is computed then.
        np.testing.assert_allclose(*results, **CLOSE)
    else:
        assert results[0] == results[1]


class Extractor(FlattenExtractor):
    pass


class OwnActor(SimBaSACActor):
    def make_trunk(self, in_features):
        return nn.Sequential(nn.Linear(in_features, self.net_arch[-1]), nn.ReLU())


class OwnParameters(SimBaSACActor):
    def get_action_dist_params(self, obs):
        mean, log_std, kwargs = super().get_action_dist_params(obs)
        return mean + 1, log_std, kwargs


class OwnTrunk(SparseSimBaPolicy):
    network_classes = {**SparseSimBaPolicy.network_classes, "pi": OwnActor}


class OwnDistribution(SparseSimBaPolicy):
    network_classes = {**SparseSimBaPolicy.network_classes, "pi": OwnParameters}


class OwnPredict(SparseSimBaPolicy):
    def _predict(self, observation, deterministic=False):
        return -super()._predict(observation, deterministic)


class OwnConversion(SparseSimBaPolicy):
    def obs_to_tensor(self, observation):
        tensor, is_vectorized = super().obs_to_tensor(observation)
        return 2 * tensor, is_vectorized


class Plain(SparseSimBaPolicy):
    """Nothing of its own that acting depends on."""


def own(policy_class, **kwargs):
    return SAC(policy_class, SpaceEnv(VECTOR, ACTIONS), seed=0, buffer_size=64, device="cpu", policy_kwargs=kwargs)


@pytest.mark.parametrize("policy_class", [OwnTrunk, OwnDistribution, OwnPredict, OwnConversion])
def test_what_somebody_changes_is_torchs(policy_class, passes):
    model = own(policy_class)
    for observation in observations():
        np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], by_torch(model, observation))
    assert not passes
    assert model.policy._pass is False


def test_a_subclass_that_changes_nothing_acts_by_the_pass(passes):
    model = own(Plain)
    model.predict(observations()[0])
    assert len(passes) == 1


@pytest.mark.parametrize(
    ("algorithm", "space", "policy_kwargs", "settings"),
    [
        (SAC, VECTOR, {"activation_fn": nn.Tanh}, {}),
        (SAC, VECTOR, {"net_arch": []}, {}),
        (SAC, VECTOR, {"features_extractor_class": Extractor}, {}),
        (SAC, VECTOR, {}, {"use_sde": True}),
        (SAC, VECTOR, {"compiled_acting": False}, {}),
        (SAC, spaces.Box(0, 255, (3, 8, 8), np.uint8), {}, {}),
        (SAC, spaces.Dict({"a": VECTOR, "b": VECTOR}), {}, {}),
        (TD3, spaces.MultiBinary(5), {}, {}),
        (DQN, spaces.Discrete(5), {}, {}),
    ],
)
def test_networks_without_a_pass_act_as_before(algorithm, space, policy_kwargs, settings, passes):
    model = make(algorithm, space, settings=settings, **policy_kwargs)
    space.seed(1)
    for observation in [space.sample() for _ in range(3)]:
        if model.use_sde:
            continue
        np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], by_torch(model, observation))
    assert not passes


@pytest.mark.parametrize("backend", ["dense", "csr"])
def test_another_backend_means_torchs_pass(backend, monkeypatch, passes):
    model, observation = make(steps=0), observations()[0]
    monkeypatch.setenv("SB3_SPARSE_BACKEND", backend)
    np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], by_torch(model, observation))
    assert not passes
    for ours in ("auto", "", "deterministic", "compiled", "blocked"):
        monkeypatch.setenv("SB3_SPARSE_BACKEND", ours)
        model.predict(observation)
    assert len(passes) == 5


def test_autocast_means_torchs_pass(passes):
    model, observation = make(steps=0, sparsity=0.0), observations()[0]
    # Which SB3 cannot make an array of.
    with th.autocast("cpu", dtype=th.bfloat16), pytest.raises(TypeError, match="BFloat16"):
        model.predict(observation)
    assert not passes


def test_without_compiled_code_acting_goes_on(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such target")

    model, observation = make(steps=0), observations()[0]
    monkeypatch.setattr(program, "compile_module", fail)
    kernels = program.KernelSet(forward.ForwardProgram.kernels.written)
    monkeypatch.setattr(forward.ForwardProgram, "kernels", kernels)
    with pytest.warns(UserWarning, match="no such target"):
        action, _ = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(action, by_torch(model, observation))
    model.predict(observation)


def modes(model):
    return [module.training for module in model.policy.modules()]


@EACH
def test_modes_are_as_sb3_leaves_them(algorithm, passes):
    model, observation = make(algorithm), observations()[0]
    network = network_of(model.policy)
    last = list(model.policy.modules())[-1]
    for change in (
        lambda: model.policy.set_training_mode(True),
        lambda: model.policy.train(),
        lambda: network.train(),
        lambda: last.train(),
        lambda: None,
    ):
        change()
        before = modes(model)
        # What SB3 does before every action.
        super(SimBaPolicy, model.policy).set_training_mode(False)
        right = modes(model)
        for module, mode in zip(model.policy.modules(), before, strict=True):
            module.training = mode
        model.predict(observation, deterministic=True)
        assert modes(model) == right
    assert passes


def test_modes_are_not_set_where_they_are_right(monkeypatch):
    model, observation = make(), observations()[0]
    model.predict(observation)
    calls = []
    monkeypatch.setattr(nn.Module, "train", lambda self, mode=True: calls.append(type(self)))
    model.predict(observation)
    model.policy.set_training_mode(False)
    assert not calls
    model.policy.set_training_mode(True)
    assert calls


def test_the_statistics_of_observations_do_not_move(passes):
    model = make()
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    for observation in observations():
        model.predict(observation)
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert len(passes) >= 20


@EACH
def test_the_same_seed_gives_the_same_run_twice(algorithm, passes):
    runs = [make(algorithm).policy.state_dict() for _ in range(2)]
    assert passes
    for name, value in runs[0].items():
        assert th.equal(value, runs[1][name]), name


def test_rollouts_act_by_the_pass(passes):
    # Without SB3's random actions at the beginning, and with them.
    make(steps=0)
    assert not passes
    make(steps=20, settings={"learning_starts": 0})
    assert len(passes) == 20


def test_threads_do_not_disturb_each_other():
    model = make(width_scale={"pi": 2, "qf": 0.1})
    batch = observations(n=64)
    right = [model.predict(observation, deterministic=True)[0] for observation in batch]
    wrong, interval = [], sys.getswitchinterval()

    def act(begin):
        for i in [*range(begin, len(batch)), *range(begin)] * 20:
            if not np.array_equal(model.predict(batch[i], deterministic=True)[0], right[i]):
                wrong.append(i)

    threads = [threading.Thread(target=act, args=(8 * k,)) for k in range(4)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_forked_children_act():
    model, observation = make(), observations()[0]
    right, _ = model.predict(observation, deterministic=True)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(model.predict(observation, deterministic=True)[0]))
    child.start()
    assert receiver.poll(60)
    np.testing.assert_array_equal(receiver.recv(), right)
    child.join()
    assert child.exitcode == 0


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="compiled_acting='yes': expected True or False"):
        make(compiled_acting="yes")
