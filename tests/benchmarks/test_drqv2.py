"""The benchmark of DrQ-v2: the plain learner that it compares with is a correct one, and all of its tables are made."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th

ROOT = Path(__file__).parent.parent.parent
SIZE = 24


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import drqv2

    return drqv2


@pytest.fixture
def pair(benchmark):
    """Our learner and the plain one with the same weights and transitions; the last episode is over."""
    ours = benchmark.ours(200, SIZE, 4, net_arch=[32, 32])
    plain = benchmark.plain(200, SIZE, 4, 32)
    with th.no_grad():
        for parameter in ours.critic_target.parameters():
            parameter += 0.01 * th.randn_like(parameter)
    pairs = zip(networks_of(plain), networks_of(ours), strict=True)
    for one, parameter in ((a, b) for network, net in pairs for a, b in matched(network, net)):
        one.data.copy_(parameter.data)
    return ours, plain


def networks_of(learner):
    if hasattr(learner, "policy"):
        return learner.policy.encoder, learner.actor, learner.critic, learner.critic_target
    return learner.encoder, learner.actor, learner.critic, learner.target


def matched(one, other):
    return zip(one.parameters(), other.parameters(), strict=True)


def test_plain_transitions_are_ours(pair):
    ours, plain = pair
    index = np.arange(200)
    found = ours.replay_buffer._at(index, np.zeros_like(index), None)
    buffer = plain.buffer
    assert buffer.count == 200
    assert np.array_equal(buffer.observations[:200], found.observations)
    assert np.array_equal(buffer.next_observations[:200], found.next_observations)
    np.testing.assert_array_equal(buffer.actions[:200], found.actions)
    np.testing.assert_allclose(buffer.rewards[:200], found.rewards, rtol=1e-5, atol=1e-5)
    # Time limits alone end episodes here.
    assert not found.dones.any()
    np.testing.assert_allclose(buffer.discounts[:200], found.discounts, rtol=1e-6)
    assert len(np.unique(buffer.discounts)) == 3


def test_plain_updates_are_ours(pair):
    ours, plain = pair
    before = [parameter.clone() for network in networks_of(ours) for parameter in network.parameters()]
    for seed in range(3):
        for update in (lambda: ours.train(1, 32), lambda: plain.update(32)):
            th.manual_seed(seed)
            np.random.seed(seed)
            update()
    after = [parameter for network in networks_of(ours) for parameter in network.parameters()]
    assert all(not th.equal(a, b) for a, b in zip(before, after, strict=True))
    for network, net in zip(networks_of(plain), networks_of(ours), strict=True):
        for one, parameter in matched(network, net):
            # Resampled pixels are a thousandth of a grey level off; Adam's first steps are all of size 1e-4.
            th.testing.assert_close(one, parameter, rtol=0, atol=2e-5)


def test_dry_run():
    arguments = ["--pairs", "1", "--batch", "4", "--size", "20", "--channels", "2", "--width", "0.1", "--transitions", "20"]
    command = [sys.executable, str(ROOT / "benchmarks/drqv2.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    for title in ("Heads", "Updates", "Parts of an update", "Acting, one observation"):
        assert f"\n### {title}" in result.stdout
    assert "nan" not in result.stdout


def test_the_clock_of_the_processor_is_for_one_thread():
    command = [sys.executable, str(ROOT / "benchmarks/drqv2.py"), "--clock", "processor", "--threads", "2"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert "use --clock wall with several threads" in result.stderr
