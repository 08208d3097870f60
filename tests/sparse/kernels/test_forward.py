"""Every kernel of a forward pass against the lines of numpy that say what it computes."""

import numpy as np
import pytest
import torch as th

from sb3_sparse.networks.running_norm import EPS, LARGEST, RunningNorm
from sb3_sparse.sparse import Topology
from sb3_sparse.sparse.kernels.native.sample import forward
from tests.sparse.kernels.test_native import unaligned
from tests.streaming.test_kernels import SHAPES

EPSILON = 1e-6


def run(*instruction):
    forward.ForwardProgram([instruction]).run()


def close(result, right, **kwargs):
    np.testing.assert_allclose(result, right, **{"rtol": 1e-4, "atol": 1e-4, **kwargs})


class Checks:
    """
    All kernels for one size of layer.

    :param array: Makes the arrays that kernels get, from a name and a NumPy array: ``guard_pages.py`` puts them at the end
        of a page.
    :param density: Fraction of weights that live; None for a triangle, with rows of every length.
    """

    def __init__(self, array, n_out, n_in, density):
        self.array, self.n_out, self.n_in, self.density = array, n_out, n_in, density
        self.generator = np.random.default_rng(0)

    def normal(self, name, *shape, dtype=np.float32):
        return self.array(name, self.generator.standard_normal(shape).astype(dtype))

    def linear(self):
        x, bias, y = self.normal("x", self.n_in), self.normal("bias", self.n_out), self.normal("y", self.n_out)
        weights = self.normal("weights", self.n_out, self.n_in)
        run("linear", y, weights, bias, x, self.n_out, self.n_in)
        close(y, weights.astype(np.float64) @ x + bias, atol=1e-3)

        mask = self.generator.random((self.n_out, self.n_in)) < (self.density or 0.0)
        mask = mask if self.density is not None else np.arange(self.n_in) < np.arange(self.n_out)[:, None]
        topology = Topology.from_mask(mask)
        crow, col = self.array("crow", topology.crow), self.array("col", topology.col)
        values, y = self.normal("values", topology.nnz), self.normal("y", self.n_out)
        weights = np.zeros((self.n_out, self.n_in))
        weights[mask] = values
        run("sparse_linear", y, values, bias, crow, col, x, self.n_out)
        close(y, weights @ x + bias, atol=1e-3)

    def norms(self):
        n = self.n_in
        x, y = self.normal("x", n), self.normal("y", n)
        weight, bias = self.normal("weight", n), self.normal("layer_bias", n)
        settings = self.array("settings", np.float32([EPSILON]))
        run("layer_norm", y, x, weight, bias, settings, n)
        exact = x.astype(np.float64)
        right = (exact - exact.mean()) / np.sqrt(exact.var() + EPSILON) * weight + bias
        close(y, right)

        x = self.normal("wide_x", n, dtype=np.float64)
        run("cast", y, x, n)
        np.testing.assert_array_equal(y, x.astype(np.float32))
        mean, rest, var = self.normal("mean", n), self.normal("mean_rest", n), self.normal("var", n)
        np.square(var, out=var)
        run("running_norm", y, x, mean, rest, var, self.array("bounds", np.float32([EPS, LARGEST])), n)
        close(y, (x - mean - rest.astype(np.float64)) / np.sqrt(var.astype(np.float64) + EPS))

    def elementwise(self):
        n = self.n_out
        x, y = self.normal("x", n), self.normal("y", n)
        right = x + y
        run("add", y, x, n)
        np.testing.assert_array_equal(y, right)
        result = self.array("result", np.float32([7.0]))
        run("check_finite", result, x, n)
        assert result == 0.0
        right = np.maximum(x, 0)
        run("relu", x, n)
        np.testing.assert_array_equal(x, right)

    def all(self):
        self.linear()
        self.norms()
        self.elementwise()


@pytest.mark.parametrize(("n_out", "n_in", "density"), SHAPES)
def test_every_kernel(n_out, n_in, density, monkeypatch):
    used = set()
    define = forward.ForwardProgram.__init__

    def watched(self, instructions):
        used.update(name for name, *_ in instructions)
        define(self, instructions)

    monkeypatch.setattr(forward.ForwardProgram, "__init__", watched)
    Checks(lambda name, array: unaligned(array), n_out, n_in, density).all()
    assert used == set(forward._KERNELS)


@pytest.mark.parametrize("n", [1, 5, 16, 67])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_go_through(n, bad):
    x = np.linspace(-1, 1, n, dtype=np.float32)
    x[n // 2] = bad
    result = np.zeros(1, np.float32)
    run("check_finite", result, x, n)
    assert np.isnan(result)

    clipped = x.copy()
    run("relu", clipped, n)
    np.testing.assert_array_equal(clipped, th.relu(th.from_numpy(x)))

    norm, y = RunningNorm((n,)), np.zeros(n, np.float32)
    mean, rest, var, _ = (part.numpy() for part in norm.moments)
    run("running_norm", y, x.astype(np.float64), mean, rest, var, np.float32([EPS, LARGEST]), n)
    np.testing.assert_array_equal(y, norm(th.from_numpy(x)[None])[0])

    weight, bias = np.ones(n, np.float32), np.zeros(n, np.float32)
    run("layer_norm", y, x, weight, bias, np.float32([EPSILON]), n)
    assert np.isnan(y).all()


def test_an_outlier_is_bounded_as_by_the_module():
    norm, y = RunningNorm((3,)), np.zeros(3, np.float32)
    norm.obs_var.fill_(1e-8)
    x = np.float32([1e38, -1e38, 0.5])
    mean, rest, var, _ = (part.numpy() for part in norm.moments)
    run("running_norm", y, x.astype(np.float64), mean, rest, var, np.float32([EPS, LARGEST]), 3)
    np.testing.assert_allclose(y, norm(th.from_numpy(x)[None])[0], rtol=1e-6)
    assert y.max() == np.float32(LARGEST)


def test_the_mean_is_subtracted_in_two_steps():
    # In another order the rest would vanish: it is smaller than the distance of two floats there.
    y, x = np.zeros(1, np.float32), np.float64([2.0**24])
    run("running_norm", y, x, np.float32([2.0**24]), np.float32([0.25]), np.float32([1.0]), np.float32([0.0, LARGEST]), 1)
    assert y == -0.25
