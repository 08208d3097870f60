import numpy as np
import pytest
import torch as th

from sb3_sparse.networks import RunningNorm


def test_statistics_follow_uniform_samples_of_a_growing_buffer():
    rng = np.random.default_rng(0)
    stream = rng.normal([100.0, -3.0, 0.0], [0.01, 5.0, 1.0], size=(20_000, 3)).astype(np.float32)
    stream[:, 2] += np.linspace(0, 2, len(stream))  # the distribution drifts, as a learning agent's does
    norm = RunningNorm((3,))
    for t in range(2_000, 20_000, 4):
        norm.update(th.as_tensor(stream[rng.integers(0, t, size=256)]))
    collected = stream.astype(np.float64)
    # Statistics lag behind the drift by about a thousand updates; the columns without drift do not.
    error = np.abs(norm.obs_mean.numpy() - collected.mean(0)) / collected.std(0)
    assert error[:2].max() < 0.02
    assert error[2] < 0.2
    assert norm.obs_var.sqrt().numpy() == pytest.approx(collected.std(0), rel=0.05)


def test_small_updates_of_a_large_mean_are_not_lost():
    # Each update moves the mean by 1e-5 of a float32's spacing there.
    norm = RunningNorm((1,))
    norm.update(th.full((16, 1), 1000.0))
    norm.obs_count.fill_(1e6)
    for _ in range(5_000):
        norm.update(th.full((16, 1), 1000.01))
    assert (norm.obs_mean + norm.obs_mean_rest - 1000.01).abs().item() < 2e-4


def test_moments_of_the_first_batches_are_exact():
    norm = RunningNorm((4,))
    batches = [th.randn(32, 4) * 3 + 7 for _ in range(5)]
    for batch in batches:
        norm.update(batch)
    everything = th.cat(batches)
    assert th.allclose(norm.obs_mean, everything.mean(0), atol=1e-5)
    assert th.allclose(norm.obs_var, everything.var(0, correction=0), rtol=1e-5)
    assert norm.obs_count == 5


def test_forward_normalises_and_never_learns():
    norm = RunningNorm((2, 3))
    x = th.randn(500, 2, 3) * 0.01 + 100
    assert th.equal(norm(x), x), "before the first update inputs pass through, up to rounding"
    norm.update(x)
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    y = norm.train()(x)
    norm.eval()(x + 1)
    assert all(th.equal(before[name], value) for name, value in norm.state_dict().items())
    assert y.mean().abs() < 1e-2
    assert y.std().item() == pytest.approx(1.0, rel=0.01)


def test_buffers_are_changed_in_place_and_named_for_sb3():
    norm = RunningNorm((2,))
    pointers = {name: value.data_ptr() for name, value in norm.state_dict().items()}
    norm.update(th.randn(8, 2))
    assert pointers == {name: value.data_ptr() for name, value in norm.state_dict().items()}
    assert not any("running_" in name for name in pointers)
    assert not list(norm.parameters())
