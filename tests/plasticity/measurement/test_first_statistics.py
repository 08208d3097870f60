"""Before its first update an agent is measured on normalised observations, as after it."""

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import SAC

from sb3_sparse import RunningNorm
from sb3_sparse.plasticity import Probe, measure
from sb3_sparse.plasticity.measurement.batches import ObservedBatch, sample_batch
from tests.envs import SpaceEnv

FAR = spaces.Box(-500.0, 700.0, (6,), np.float32)
DICT = spaces.Dict({"far": FAR, "near": spaces.Box(-1.0, 1.0, (2,), np.float32)})


def untrained(algorithm, observations):
    actions = spaces.Discrete(3) if algorithm is QRDQN else spaces.Box(-1, 1, (2,), np.float32)
    kwargs = dict(learning_starts=100, buffer_size=100, seed=0, device="cpu", policy_kwargs={"width_scale": 0.1})
    return algorithm("SparseSimBaPolicy", SpaceEnv(observations, actions), **kwargs).learn(80)


def norms(model):
    return [module for module in model.policy.modules() if isinstance(module, RunningNorm)]


@pytest.mark.parametrize("algorithm", [SAC, QRDQN])
@pytest.mark.parametrize("observations", [FAR, DICT])
def test_an_untrained_agent_is_measured_as_one_that_has_seen_the_batch(algorithm, observations):
    model = untrained(algorithm, observations)
    batch = sample_batch(model, 32)
    twin = copy.deepcopy(model)
    parts = batch.observations.values() if isinstance(observations, spaces.Dict) else [batch.observations]
    for norm, part in zip(norms(twin), parts, strict=True):
        norm.update(part.float())
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    found = measure(model, batch=batch)
    assert found == measure(twin, batch=batch)
    assert all(float(norm.obs_count) == 0 for norm in norms(model))
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    # What it is about: raw, the observations are 500 times as large.
    for norm in norms(twin):
        norm.load_state_dict(RunningNorm(norm.obs_mean.shape).state_dict())
        norm.obs_count.fill_(1)
    assert found != measure(twin, batch=batch)


def test_an_actor_needs_no_actions_for_it():
    model = untrained(SAC, FAR)
    observations = sample_batch(model, 32).observations
    (features,) = Probe(model, batch=ObservedBatch(observations)).network("actor").features
    (norm,) = norms(model)
    norm.update(observations.float())
    th.testing.assert_close(features, Probe(model, batch=ObservedBatch(observations)).network("actor").features[0])


def test_an_agent_that_has_statistics_keeps_them():
    model = untrained(SAC, FAR)
    model.train(1, 16)
    (norm,) = norms(model)
    batch = sample_batch(model, 32)
    other = batch._replace(observations=batch.observations * 0 + 600.0)
    seen = []
    handle = norm.register_forward_hook(lambda module, args, output: seen.append(output))
    measure(model, batch=other, metrics=["srank"], networks=["actor"])
    handle.remove()
    assert all(th.equal(output, norm(other.observations.float())) for output in seen)
    assert float(norm.obs_count) == 1
