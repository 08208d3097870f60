import copy

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


def plain_update(norm, batch):
    """The same without a thought of outliers, in the order of operations that saved agents were trained with."""
    norm.obs_count += 1
    rate = norm.obs_count.reciprocal().clamp(min=1e-3)
    batch_var, delta = th.var_mean((batch - norm.obs_mean) - norm.obs_mean_rest, dim=0, correction=0)
    norm.obs_var.lerp_(batch_var, rate).addcmul_(delta.square(), rate * (1 - rate))
    step = norm.obs_mean_rest + rate * delta
    mean = norm.obs_mean + step
    norm.obs_mean_rest.copy_(step - (mean - norm.obs_mean))
    norm.obs_mean.copy_(mean)


def assert_equal(norm, other):
    assert all(th.equal(a, b) for a, b in zip(norm.moments, other.moments, strict=True))


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_batches_without_outliers_give_bit_equal_statistics(shape):
    norm, plain = RunningNorm(shape), RunningNorm(shape)
    for t in range(50):
        batch = th.randn(1 + 7 * (t % 5), *shape) * 10 ** th.randint(-6, 4, shape).float() + 100
        norm.update(batch)
        plain_update(plain, batch)
        assert_equal(norm, plain)
        x = batch * 3
        assert th.equal(norm(x), ((x - plain.obs_mean) - plain.obs_mean_rest) * (plain.obs_var + 1e-8).rsqrt())


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("outlier", [1e6, -1e10, 1e20, 3e38, np.inf, -np.inf, np.nan])
def test_outliers_do_not_count(outlier, warm):
    norm, expected = RunningNorm((3,)), RunningNorm((3,))
    for t in range(20):
        batch = th.randn(16, 3) * 2 + 5
        spoilt = batch.clone()
        # The whole row does not count, wherever in it the outlier is.
        if not warm or t > 5:
            spoilt[t % 3, t % 2] = outlier
            batch = th.cat([batch[: t % 3], batch[t % 3 + 1 :]])
        norm.update(spoilt)
        plain_update(expected, batch)
    for ours, theirs in zip(norm.moments, expected.moments, strict=True):
        assert th.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert norm(spoilt).isfinite().all() or np.isnan(outlier)


def test_a_batch_without_a_row_that_counts_changes_nothing():
    norm = RunningNorm((2,))
    norm.update(th.randn(8, 2) * 3 + 1)
    before = copy.deepcopy(norm)
    for batch in (th.empty(0, 2), th.full((4, 2), th.nan), th.tensor([[1.0, th.inf]])):
        norm.update(batch)
        assert_equal(norm, before)


@pytest.mark.parametrize("batch", [th.empty(0, 2), th.full((4, 2), th.nan), th.tensor([[1.0, th.inf]])])
def test_nor_does_one_that_comes_first(batch):
    """As of a sensor that says nothing at first: the statistics were NaN from then on."""
    norm, other, x = RunningNorm((2,)), RunningNorm((2,)), th.randn(8, 2) * 3 + 1
    norm.update(batch)
    assert_equal(norm, other)
    norm.update(x)
    other.update(x)
    assert_equal(norm, other)


def test_many_outliers_are_data_that_have_moved():
    norm = RunningNorm((1,))
    for scale in (1.0, 1e8, 1e12, 1e-3):
        for _ in range(20_000):
            norm.obs_count.clamp_(max=50)
            norm.update(th.randn(8, 1) * scale)
            if 0.2 < norm.obs_var.sqrt().item() / scale < 5:
                break
        assert 0.2 < norm.obs_var.sqrt().item() / scale < 5


@pytest.mark.parametrize("scale", [1e20, 3e38])
def test_data_beyond_what_float32_can_square_stay_finite_and_are_followed(scale):
    norm = RunningNorm((2,))
    for _ in range(100):
        norm.update((th.rand(16, 2) - 0.5) * scale)
    assert all(value.isfinite().all() for value in norm.moments)
    x = (th.rand(16, 2) - 0.5) * scale
    assert norm(x).isfinite().all()
    for _ in range(30_000):
        norm.update(th.randn(16, 2))
        if norm.obs_var.max() < 1e26:
            break
    assert norm.obs_var.max() < 1e26, "forgotten as fast as anything else"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("obs_mean", np.nan, "obs_mean: expected finite statistics"),
        ("obs_mean_rest", np.inf, "obs_mean_rest: expected finite"),
        ("obs_var", -1e-3, "obs_var: expected numbers of at least 0"),
        ("obs_count", -1.0, "obs_count: expected numbers of at least 0"),
    ],
)
def test_statistics_that_cannot_be_are_not_loaded(name, value, message):
    norm = RunningNorm((2,))
    norm.update(th.randn(4, 2))
    before = copy.deepcopy(norm)
    broken = copy.deepcopy(norm.state_dict())
    broken[name].fill_(value)
    with pytest.raises(RuntimeError, match=message):
        norm.load_state_dict(broken)
    assert_equal(norm, before)
