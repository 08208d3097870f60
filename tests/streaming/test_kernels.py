"""Every kernel of the compiled learner against the lines of numpy that say what it computes."""

import itertools

import numpy as np
import pytest

from sb3_sparse.sparse import Topology
from sb3_sparse.streaming import kernels
from tests.sparse.kernels.test_native import unaligned

EPSILON, SLOPE, DECAY, SCALE = 1e-5, 0.01, 0.5, 2.0
# Rows that have none, all and some of the weights, as kernels take eight at a time; and columns of all 16 bits.
SHAPES = [
    (1, 1, 1.0),
    (3, 5, 0.5),
    (17, 33, 0.2),
    (8, 64, 0.9),
    (40, 70, 0.0),
    (2, 100, 0.1),
    (1, 300, 0.5),
    (31, 30, None),
    (2, 2**16, 0.001),
]


def linear(weights, bias, x):
    return weights @ x + bias


def normalize(x):
    """Normalised, LeakyReLU of that, and one over the standard deviation."""
    inverse = 1 / np.sqrt(x.var() + EPSILON)
    normal = (x - x.mean()) * inverse
    return normal, np.where(normal > 0, normal, SLOPE * normal), inverse


def normalize_backward(grad, normal, inverse):
    g = np.where(normal > 0, grad, SLOPE * grad)
    return (g - g.mean() - normal * (g * normal).mean()) * inverse


def learn(traces, bias_traces, grad, x):
    """Traces of weights and biases, and the sum of their absolute values."""
    traces, bias_traces = DECAY * traces + np.outer(grad, x), DECAY * bias_traces + grad
    return traces, bias_traces, np.abs(traces).sum() + np.abs(bias_traces).sum()


def grad_of_input(before, weights, grad):
    return before + grad @ weights


def add_scaled(parameters, traces):
    return parameters + SCALE * traces


def run(*instruction):
    kernels.Program([instruction]).run()


def close(result, right):
    np.testing.assert_allclose(result, right, rtol=1e-3, atol=1e-4)


class Checks:
    """
    All kernels for one size of layer.

    :param array: Makes the arrays that kernels get, from a name and a NumPy array: ``guard_pages.py`` puts them at the end
        of a page.
    :param density: Fraction of weights that live; None for a triangle, with rows of every length.
    """

    def __init__(self, array, n_out, n_in, density):
        self.array, self.n_out, self.n_in = array, n_out, n_in
        self.generator = np.random.default_rng(0)
        mask = self.generator.random((n_out, n_in)) < (density or 0.0)
        self.mask = mask if density is not None else np.arange(n_in) < np.arange(n_out)[:, None]
        topology = Topology.from_mask(self.mask)
        self.crow, self.col = array("crow", topology.crow), array("col", topology.col)
        self.weights, self.values = self.normal("weights", n_out, n_in), self.normal("values", topology.nnz)
        self.sparse_weights = np.zeros((n_out, n_in), dtype=np.float32)
        self.sparse_weights[self.mask] = self.values
        self.bias, self.xs = self.normal("bias", n_out), [self.normal("x", n_in) for _ in range(2)]

    def normal(self, name, *shape):
        return self.array(name, self.generator.standard_normal(shape, dtype=np.float32))

    def forward(self):
        for suffix, n in (("", 1), ("_pair", 2)):
            ys = [self.normal("y", self.n_out) for _ in range(2)]
            run("linear" + suffix, *ys[:n], self.weights, self.bias, *self.xs[:n], self.n_out, self.n_in)
            for y, x in zip(ys[:n], self.xs, strict=False):
                close(y, linear(self.weights, self.bias, x))
            run("sparse_linear" + suffix, *ys[:n], self.values, self.bias, self.crow, self.col, *self.xs[:n], self.n_out)
            for y, x in zip(ys[:n], self.xs, strict=False):
                close(y, linear(self.sparse_weights, self.bias, x))

    def normalization(self):
        settings = self.array("settings", np.array([EPSILON, SLOPE], dtype=np.float32))
        y, x, inverse = self.normal("y", self.n_in), self.normal("x", self.n_in), self.normal("inverse", 1)
        right = normalize(x.copy())
        run("normalize", y, x, inverse, settings, self.n_in)
        for result, expected in zip((x, y, inverse), right, strict=True):
            close(result, expected)
        grad = self.normal("grad", self.n_in)
        right = normalize_backward(grad.copy(), x, inverse)
        run("normalize_backward", grad, x, inverse, settings, self.n_in)
        np.testing.assert_allclose(grad, right, rtol=1e-3, atol=1e-3 * max(1.0, inverse[0]))

    def learning(self, is_sparse, with_input):
        weights = self.sparse_weights if is_sparse else self.weights
        traces = self.normal("traces", *(self.values.shape if is_sparse else weights.shape))
        dense_traces = np.zeros_like(weights)
        dense_traces[self.mask if is_sparse else ...] = traces
        bias_traces, grad = self.normal("bias_traces", self.n_out), self.normal("grad", self.n_out)
        grad_x, l1 = self.normal("grad_x", self.n_in), self.array("l1", np.ones(1))
        decay = self.array("decay", np.float32([DECAY]))
        # What does not live learns nothing.
        right, right_bias, _ = learn(dense_traces, bias_traces, grad, self.xs[0])
        right = right[self.mask] if is_sparse else right
        right_x = grad_of_input(grad_x, weights, grad)
        place = (self.crow, self.col) if is_sparse else (self.n_in,)
        rest = (self.values if is_sparse else weights, grad_x) if with_input else ()
        name = ("learn_sparse_linear" if is_sparse else "learn_linear") + "_and_input" * with_input
        run(name, traces, bias_traces, grad, self.xs[0], decay, l1, self.n_out, *place, *rest)
        close(traces, right)
        close(bias_traces, right_bias)
        close(l1, 1 + np.abs(right).sum() + np.abs(right_bias).sum())
        if with_input:
            close(grad_x, right_x)

    def step(self):
        parameters, traces = self.normal("parameters", self.n_out), self.normal("traces", self.n_out)
        right = add_scaled(parameters, traces)
        run("add_scaled", parameters, traces, self.array("scale", np.float32([SCALE])), self.n_out)
        close(parameters, right)
        run("clear", parameters, self.n_out)
        assert not parameters.any()

    def all(self):
        self.forward()
        self.normalization()
        for is_sparse, with_input in itertools.product((False, True), repeat=2):
            self.learning(is_sparse, with_input)
        self.step()


@pytest.mark.parametrize(("n_out", "n_in", "density"), SHAPES)
def test_every_kernel(n_out, n_in, density, monkeypatch):
    used = set()
    define = kernels.Program.__init__

    def watched(self, instructions):
        used.update(name for name, *_ in instructions)
        define(self, instructions)

    monkeypatch.setattr(kernels.Program, "__init__", watched)
    Checks(lambda name, array: unaligned(array), n_out, n_in, density).all()
    assert used == set(kernels._KERNELS)


def test_instructions_run_in_order_and_as_often_as_asked():
    x, traces, scale = np.zeros(5, np.float32), np.ones(5, np.float32), np.float32([0.5])
    step = ("add_scaled", x, traces, scale, 5)
    program = kernels.Program([step, step, ("clear", x, 2), step])
    program.run()
    np.testing.assert_array_equal(x, [0.5, 0.5, 1.5, 1.5, 1.5])
    kernels.Program([]).run()
    program.run()
    np.testing.assert_array_equal(x, [0.5, 0.5, 3, 3, 3])
