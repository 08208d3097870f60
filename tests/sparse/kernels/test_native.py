"""
Every kernel of ``native/`` against numpy, called as the backends call it.

A batch lies feature by feature, ``(features, samples)``, here as in memory. What each kernel computes is one line of
:func:`reference`.
"""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from torch.nn import functional as F

from sb3_sparse.sparse import Topology
from sb3_sparse.sparse.kernels.backends import blocked as blocked_backend
from sb3_sparse.sparse.kernels.native import __main__ as command
from sb3_sparse.sparse.kernels.native import blocked, norm, rows
from sb3_sparse.sparse.kernels.native.code import LANES
from sb3_sparse.sparse.kernels.native.sample import forward, single
from sb3_sparse.sparse.kernels.norm import layer_norm
from sb3_sparse.streaming import kernels as streaming

PRODUCTS = ("multiply", "multiply_transposed", "sample_product")


def reference(product, weight, mask, x, g, bias):
    """The three products for a dense weight, which is zero where ``mask`` is."""
    if product == "multiply":
        return weight @ x + bias[:, None]
    if product == "multiply_transposed":
        return weight.T @ g
    return (g @ x.T)[mask]


def topologies():
    """Odd shapes, one row, one column, empty rows and columns, no weight, all, more columns than 16 bits count."""
    for shape, density in [((1, 1), 1.0), ((1, 40), 0.5), ((40, 1), 0.5), ((17, 130), 0.2), ((131, 9), 0.3), ((20, 20), 1.0)]:
        yield Topology.random(shape, round(density * shape[0] * shape[1]), seed=1)
    yield Topology.random((7, 5), 0, seed=1)
    # Rows of 0 to 29 weights: kernels take several at a time, and what is left over.
    yield Topology.from_mask(np.arange(30) < np.arange(30)[:, None])
    uneven = np.zeros((300, 140), dtype=bool)
    uneven[299, 139] = uneven[3, :] = uneven[100:110, 7] = True
    yield Topology.from_mask(uneven)
    yield Topology.random((3, 70_000), 500, seed=1)
    yield Topology.random((600, 300), 40_000, seed=2)


TOPOLOGIES = pytest.mark.parametrize("topology", list(topologies()), ids=str)


def unaligned(array):
    """A copy that begins behind, not at, a multiple of 64 bytes."""
    array = np.ascontiguousarray(array)
    room = np.zeros(array.nbytes + 128, dtype=np.uint8)
    begin = -room.ctypes.data % 64 + array.itemsize
    copy = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


class Case:
    """Random weights and samples for a topology."""

    def __init__(self, topology, samples):
        self.topology = topology
        generator = np.random.default_rng(0)

        def normal(*shape):
            return unaligned(generator.standard_normal(shape, dtype=np.float32))

        self.values, self.bias = normal(topology.nnz), normal(topology.rows)
        self.x, self.g = normal(topology.columns, samples), normal(topology.rows, samples)
        self.mask = topology.mask().numpy()
        self.crow, self.col = unaligned(topology.crow), unaligned(topology.col)

    def empty(self, product):
        """A place for the result, filled with what must not be left over."""
        samples = self.x.shape[1]
        shapes = {"multiply": (self.topology.rows, samples), "multiply_transposed": (self.topology.columns, samples)}
        return unaligned(np.full(shapes.get(product, (self.topology.nnz,)), 1e6, dtype=np.float32))

    def check(self, product, result, with_bias=True, active=slice(None)):
        """Rounding errors are proportional to the sum of absolute terms."""
        weight, bias = np.zeros(self.mask.shape), self.bias.astype(np.float64) * with_bias
        weight[self.mask] = self.values
        x, g = self.x.astype(np.float64), self.g.astype(np.float64)
        right = reference(product, weight, self.mask, x, g, bias)
        scale = reference(product, abs(weight), self.mask, abs(x), abs(g), abs(bias))
        np.testing.assert_array_less(abs(result - right)[active], 1e-6 * scale[active] + 1e-30)


def call(kernel, arrays, integers, first, last):
    kernel.call(*(0 if array is None else array.ctypes.data for array in arrays), *integers, first, last)


@TOPOLOGIES
@pytest.mark.parametrize("column_bits", [16, 32])
@pytest.mark.parametrize("product", PRODUCTS)
def test_one_sample(product, column_bits, topology):
    if topology.columns > 2**column_bits:
        pytest.skip("its columns are 32-bit numbers")
    case = Case(topology, 1)
    col = unaligned(topology.col.astype(f"uint{column_bits}"))
    kernel = single.kernel(product, column_bits)
    for bias in (case.bias, None):
        result = case.empty(product)
        if product == "multiply":
            call(kernel, (case.values, case.crow, col, case.x, bias, result), (), 0, topology.rows)
        elif product == "multiply_transposed":
            result[:] = 0  # it adds
            call(kernel, (case.values, case.crow, col, case.g, result), (), 0, topology.rows)
        else:
            call(kernel, (result, case.crow, col, case.g, case.x), (), 0, topology.rows)
        case.check(product, result, with_bias=bias is not None)


@pytest.mark.parametrize("column_bits", [16, 32])
def test_one_sample_is_added_up_in_the_order_of_always(column_bits):
    # What saved agents do depends on it, to the last bit.
    case = Case(Topology.from_mask(np.random.default_rng(1).random((200, 90)) < np.linspace(0, 1, 200)[:, None]), 1)
    x, bias = case.x[:, 0], case.bias
    col, result = unaligned(case.col.astype(f"uint{column_bits}")), case.empty("multiply")
    call(single.kernel("multiply", column_bits), (case.values, case.crow, col, case.x, bias, result), (), 0, 200)

    def multiply_add(a, b, c):  # rounded once: products of float32 are exact in float64
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))

    for i, (begin, end) in enumerate(itertools.pairwise(case.crow)):
        sums = [np.float32(0)] * 9
        for place, k in enumerate(range(begin, end)):
            part = place % 8 if place < (end - begin) // 8 * 8 else 8
            sums[part] = multiply_add(case.values[k], x[case.col[k]], sums[part])
        total = bias[i]
        for part in sums:
            total += part
        assert total == result[i, 0]


@TOPOLOGIES
@pytest.mark.parametrize("vectors", [1, 4, 16])
@pytest.mark.parametrize("product", PRODUCTS)
def test_rows(product, vectors, topology):
    tiles = 2 if topology.columns < 1000 else 1
    stride = vectors * LANES * tiles
    case = Case(topology, stride)
    index = topology.tensors()
    transposed = product == "multiply_transposed"
    crow, col = (index.t_crow.numpy(), index.t_col.numpy()) if transposed else (index.crow.numpy(), index.col.numpy())
    n_columns, n_rows = (topology.rows, topology.columns) if transposed else (topology.columns, topology.rows)
    # All columns at once, and in two blocks, of which the second one adds.
    in_first = [(col[begin:end] < n_columns // 2).sum() for begin, end in itertools.pairwise(crow)]
    middle = crow[:-1] + np.array(in_first, dtype=np.int32)
    for cuts in ((crow[:-1], crow[1:]), (crow[:-1], middle, crow[1:])):
        for bias in (None,) if transposed else (case.bias, None):
            result = case.empty(product)
            for block, (begin, end) in enumerate(itertools.pairwise(map(np.ascontiguousarray, cuts))):
                kernel = rows.kernel(product, vectors)
                if product == "sample_product":
                    arrays = (result, begin, end, col, case.g, case.x)
                    call(kernel, arrays, (stride, tiles, 0), 0, n_rows)
                    # And another time, to add: as for the rest of a batch that is no whole number of tiles.
                    call(kernel, arrays, (stride, tiles, 1), 0, n_rows)
                else:
                    batch = case.g if transposed else case.x
                    arrays = (case.values, index.t_order.numpy(), begin, end, col, batch, bias, result)
                    call(kernel, arrays, (stride, tiles, int(block > 0), topology.nnz - 1), 0, n_rows)
            case.check(product, result / 2 if product == "sample_product" else result, with_bias=bias is not None)


@TOPOLOGIES
@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("group", [1, 100])
def test_blocks(product, vectors, group, topology):
    tiles = 2 if topology.columns < 1000 else 1
    stride = vectors * LANES * tiles
    case = Case(topology, stride)
    transposed = product == "multiply_transposed"
    cut = blocked_backend._blocks(topology, "columns" if transposed else "rows")
    packed = blocked_backend._place_for_packed(topology, cut)
    sizes = (stride, tiles, cut.rows, cut.columns, cut.block_rows, group)
    kernel = blocked.kernel(product, vectors, 8 * topology.col.itemsize)
    n_blocks = -(-cut.rows // cut.block_rows)
    for bias in (None,) if transposed else (case.bias, None):
        result = case.empty(product)
        common = (packed, cut.counts, cut.local, cut.crow)
        if product == "sample_product":
            arrays = (result, *common, case.g, case.x)
        else:
            arrays = (case.values, *common, cut.edges, case.col, case.g if transposed else case.x, bias, result, None)
        call(kernel, arrays, sizes, 0, n_blocks)
        case.check(product, result, with_bias=bias is not None)


@TOPOLOGIES
@pytest.mark.parametrize("group", [1, 100])
def test_blocks_with_a_relu_end_as_the_product_and_torch_would(group, topology):
    case = Case(topology, LANES)
    if topology.nnz:
        # Torch's ReLU lets NaN pass, and its gradient where the result is NaN.
        case.values[0] = np.nan
    case.bias[::2] = -0.0
    gate = unaligned(np.random.default_rng(1).choice(np.float32([-1, -0.0, 0, 2, np.nan]), case.x.shape))

    def product(name, batch, bias, gate):
        cut = blocked_backend._blocks(topology, "columns" if "transposed" in name else "rows")
        place = blocked_backend._place_for_packed(topology, cut)
        arrays = (case.values, place, cut.counts, cut.local, cut.crow, cut.edges, case.col, batch, bias)
        result = case.empty(name.removesuffix("_relu").removesuffix("_gated"))
        sizes = (LANES, 1, cut.rows, cut.columns, cut.block_rows, group)
        kernel = blocked.kernel(name, 1, 8 * topology.col.itemsize)
        call(kernel, (*arrays, result, gate), sizes, 0, -(-cut.rows // cut.block_rows))
        return th.from_numpy(result)

    for bias in (case.bias, None):
        plain = product("multiply", case.x, bias, None)
        assert same_bits(product("multiply_relu", case.x, bias, None), plain.relu())
    plain = product("multiply_transposed", case.g, None, None)
    expected = th.ops.aten.threshold_backward(plain, th.from_numpy(gate), 0)
    assert same_bits(product("multiply_transposed_gated", case.g, None, gate), expected)


def same_bits(a, b):
    return th.equal(a.view(th.int32), b.contiguous().view(th.int32))


@pytest.mark.parametrize("vectors", [1, 4])
@pytest.mark.parametrize("samples", [0, 5, LANES, 100])
@pytest.mark.parametrize("features", [1, 3, 200])
def test_norms(features, samples, vectors):
    samples += vectors * LANES  # a tile at least
    generator = np.random.default_rng(0)

    def normal(*shape):
        return unaligned(generator.standard_normal(shape, dtype=np.float32))

    x, grad, weight, bias = normal(features, samples) + 3, normal(features, samples), normal(features), normal(features)
    y, dx, mean, inverse = (unaligned(np.full_like(like, 1e6)) for like in (x, x, x[0], x[0]))
    dweight, dbias = (unaligned(np.full_like(like, 1e6)) for like in (weight, bias))
    tiles = -(-samples // (vectors * LANES))
    epsilon = 0.01
    bits = int(np.float32(epsilon).view(np.int32))
    call(norm.kernel("normalize", vectors), (x, weight, bias, y, mean, inverse), (features, samples, bits), 0, tiles)
    call(norm.kernel("grad_input", vectors), (grad, x, weight, mean, inverse, dx), (features, samples), 0, tiles)
    call(norm.kernel("grad_parameters"), (grad, x, mean, inverse, dweight, dbias), (samples,), 0, features)

    x64, grad64 = x.astype(np.float64), grad.astype(np.float64)
    scale = 1 / np.sqrt(x64.var(axis=0) + epsilon)
    z, g = (x64 - x64.mean(axis=0)) * scale, grad64 * weight[:, None]
    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(y, z * weight[:, None] + bias[:, None], **close)
    np.testing.assert_allclose(mean, x64.mean(axis=0), **close)
    np.testing.assert_allclose(inverse, scale, **close)
    np.testing.assert_allclose(dx, scale * (g - g.mean(axis=0) - z * (g * z).mean(axis=0)), **close)
    np.testing.assert_allclose(dweight, (grad64 * z).sum(axis=1), atol=1e-4)
    np.testing.assert_allclose(dbias, grad64.sum(axis=1), atol=1e-4)


@pytest.mark.parametrize(("offset", "largest"), [(0.0, 2e-6), (1e4, 6e-3)])
def test_norms_of_many_features_lose_no_digit(offset, largest):
    """Mistake of ours: one sum of thousands of numbers was off by five to twenty times as much as torch's."""
    x = (offset + th.randn(4096, LANES, generator=th.Generator().manual_seed(0))).t().requires_grad_()
    weight, bias = th.ones(4096), th.zeros(4096)
    exact = x.detach().double().requires_grad_()
    grad = th.randn(4096, LANES, generator=th.Generator().manual_seed(1)).t()
    y, expected = layer_norm(x, weight, bias, 1e-6), F.layer_norm(exact, (4096,), eps=1e-6)
    y.backward(grad)
    expected.backward(grad.double())
    assert float((y.detach() - expected.detach()).abs().max()) < largest
    assert float((x.grad - exact.grad).abs().max()) < largest


@pytest.mark.parametrize("name", ["single", "rows"])
def test_a_range_of_rows_leaves_the_others_alone(name):
    case = Case(Topology.random((50, 40), 600, seed=3), 1 if name == "single" else LANES)
    result, (first, last) = case.empty("multiply"), (7, 31)
    if name == "single":
        call(single.kernel("multiply", 16), (case.values, case.crow, case.col, case.x, case.bias, result), (), first, last)
    else:
        col, crow = case.col.astype(np.int32), case.topology.crow
        arrays = (case.values, col, crow[:-1], crow[1:], col, case.x, case.bias, result)
        call(rows.kernel("multiply", 1), arrays, (LANES, 1, 0, 599), first, last)
    case.check("multiply", result, active=slice(first, last))
    assert (np.delete(result, slice(first, last), axis=0) == 1e6).all()


ALL = list(command.KERNELS)
ALL += [f"sb3_sparse.streaming.kernels.{name}" for name in streaming._KERNELS]
ALL += [f"sb3_sparse.sparse.kernels.native.sample.forward.{name}" for name in forward._KERNELS]


@pytest.mark.parametrize("name", ALL)
def test_every_kernel_can_be_read(name):
    written = command.show(name, "ir", vectors=1, column_bits=32)
    assert 'define void @"' in written
    # Arguments have names, which the optimiser keeps.
    names = {"single": "crow", "rows": "stride", "blocked": "packed", "norm": "stride"}.get(name.partition(".")[0], "")
    assert f'%"{names}' in written
    optimized = command.show(name, "optimized", vectors=1, column_bits=32)
    assert "define void @" in optimized
    assert optimized != written
    assert "ret" in command.show(name, "assembly", vectors=1, column_bits=32)


def test_the_command_prints_a_kernel_and_refuses_others():
    module = "sb3_sparse.sparse.kernels.native"
    done = subprocess.run(
        [sys.executable, "-m", module, "rows.multiply", "--vectors", "4", "--show", "ir"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "llvm.fma.v16f32" in done.stdout
    for name in ("rows.fastest", "fastest", "no_such_module.kernel", "sb3_sparse.streaming.kernels.fastest"):
        with pytest.raises(KeyError):
            command.show(name)
    wrong = subprocess.run([sys.executable, "-m", module, "fastest"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "no kernel 'fastest': expected one of single.multiply" in wrong.stderr


def test_the_kernel_of_the_documentation():
    page = (Path(__file__).parents[3] / "docs" / "kernels.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Definition(" in block]
    exec(compile(code, "docs/kernels.md", "exec"), {})  # it asserts what it says


def test_importing_the_package_compiles_nothing():
    code = "import sb3_sparse, sb3_sparse.sparse.kernels.native.compile as it; print(len(it._engines))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_vectors_of_torch_and_of_kernels_are_of_one_length():
    # Batches are padded by torch to what kernels read as whole vectors.
    packed = blocked_backend.BlockedBackend().pack(th.ones(3, 5))
    assert packed.shape == (5, LANES)
    assert packed[:, 3:].eq(0).all()
