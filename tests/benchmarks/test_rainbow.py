"""The benchmark of Rainbow: the plain learner that it compares with is a correct one, and all of its tables are made."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_sparse.networks.noisy import noisy_layers

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import rainbow

    return rainbow


@pytest.fixture
def pair(benchmark):
    """Our learner and the plain one with the same weights and transitions; the last episode is over."""
    ours = benchmark.ours(400, encoder="nature")
    plain = benchmark.plain(400, benchmark.rainbow_plain.nature_encoder, 3136)
    with th.no_grad():
        for parameter in ours.q_net_target.parameters():
            parameter += 0.01 * th.randn_like(parameter)
    for network, net in ((plain.online, ours.q_net), (plain.target, ours.q_net_target)):
        network.encoder.load_state_dict(net.features_extractor.network.state_dict())
        for one, layer in zip((network.hidden, network.advantage, network.value), noisy_layers(net), strict=True):
            for name, parameter in one.named_parameters():
                parameter.data.copy_(getattr(layer, name.removesuffix("_mu")).data)
    return ours, plain


def test_plain_transitions_are_ours(pair):
    ours, plain = pair
    index = np.arange(400)
    found = ours.replay_buffer._at(index, np.zeros_like(index), None)
    buffer = plain.buffer
    assert buffer.count == 400
    assert np.array_equal(buffer.observations[:400], found.observations)
    alive = buffer.discounts[:400] > 0
    assert 0 < alive.sum() < 400
    assert np.array_equal(buffer.next_observations[:400], found.next_observations)
    np.testing.assert_allclose(buffer.rewards[:400], found.rewards.flatten(), rtol=1e-5, atol=1e-5)
    discounts = (found.discounts * (1 - found.dones)).flatten()
    np.testing.assert_allclose(buffer.discounts[:400], discounts, rtol=1e-6)


def test_plain_updates_are_ours(pair):
    ours, plain = pair
    for seed in range(3):
        for update in (lambda: ours.train(1, 32), plain.update):
            th.manual_seed(seed)
            np.random.seed(seed)
            update()
    for a, b in zip(plain.online.encoder.parameters(), ours.q_net.features_extractor.network.parameters(), strict=True):
        th.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    layer, one = next(iter(noisy_layers(ours.q_net))), plain.online.hidden
    for name in ("weight", "bias"):
        th.testing.assert_close(getattr(one, f"{name}_mu"), getattr(layer, name), rtol=1e-4, atol=1e-6)
        th.testing.assert_close(getattr(one, f"{name}_sigma"), getattr(layer, f"{name}_sigma"), rtol=1e-4, atol=1e-6)
    tree = plain.buffer.tree
    weights = ours.replay_buffer.priorities._tree.weights[:400]
    np.testing.assert_allclose(tree.nodes[tree.n_leaves : tree.n_leaves + 400], weights, rtol=1e-4)
    assert 10 < (weights != 1).sum() <= 96


def test_plain_impala_is_ours(benchmark):
    encoder = benchmark.ours(20, encoder="impala").q_net.features_extractor.network
    plain = benchmark.rainbow_plain.impala_encoder(1)
    for one, parameter in zip(plain.parameters(), encoder.parameters(), strict=True):
        one.data.copy_(parameter.data)
    images = th.rand(2, 4, 84, 84)
    th.testing.assert_close(plain(images), encoder(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "titles"),
    [
        (["--rounds", "1"], ["NatureCNN", "NatureCNN, gradients", "Replay in an update", "Adding a step"]),
        pytest.param(["--impala", "--width", "1", "--rounds", "1"], ["IMPALA x1"], marks=pytest.mark.full),
        pytest.param(["--memory", "--transitions", "300"], ["Memory"], marks=pytest.mark.full),
    ],
)
def test_dry_run(arguments, titles):
    command = [sys.executable, str(ROOT / "benchmarks/rainbow.py"), "--quick", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert [title for title in titles if f"\n### {title}" not in result.stdout] == []
    assert "nan" not in result.stdout
    if "--memory" in arguments:
        sizes = [float(size) for size in re.findall(r"([\d.]+) MB", result.stdout)]
        assert sizes[0] == pytest.approx(300 * 2 * 28_224 / 1e6, rel=0.3)
