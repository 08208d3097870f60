"""
What ``test_guard_pages.py`` runs in a process of its own: every kernel on arrays that end, or begin, directly at a page
that must not be touched. A kernel that reads or writes beside an array ends the process.

    python tests/sparse/kernels/guard_pages.py {batches,convolutions,norms,streaming,forward} [prove]

"prove" makes one array after the other too short by an element, each in a forked child which that has to end, and prints
those that it did not end.
"""

import ctypes
import faulthandler
import mmap
import os
import signal
import sys

import numpy as np
import torch as th

from sb3_sparse.sparse import Topology
from sb3_sparse.sparse.kernels import norm
from sb3_sparse.sparse.kernels.backends import BACKENDS, blocked, compiled
from sb3_sparse.sparse.kernels.convolution import Window, images, shifted
from sb3_sparse.sparse.kernels.convolution import cut as convolution_cut
from sb3_sparse.sparse.topology import TopologyTensors
from tests.sparse.kernels import test_forward as forward
from tests.sparse.kernels.test_convolutions import dense_convolution
from tests.sparse.kernels.test_native import PRODUCTS, reference
from tests.streaming import test_kernels as streaming

_PAGE = mmap.PAGESIZE
_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_NO_ACCESS = 0
_BATCHES_TO_PROVE = (1, 16, 20)


class Guard:
    """Arrays beside protected pages."""

    side = "end"
    """Where the protected page is, "end" or "begin"."""
    short = None
    """Name of arrays that are too short by an element there."""

    def __init__(self):
        self.names = set()

    def array(self, name, original):
        """A copy of an array."""
        self.names.add(name)
        original = np.ascontiguousarray(original)
        pages = -(-max(1, original.nbytes) // _PAGE)
        region = mmap.mmap(-1, (pages + 2) * _PAGE)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(region))
        for page in (0, pages + 1):
            if _mprotect(begin + page * _PAGE, _PAGE, _NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect")
        missing = original.itemsize * (name == self.short and original.size > 0)
        if self.side == "end":
            offset, usable = (pages + 1) * _PAGE - original.nbytes + missing, slice(0, original.nbytes - missing)
        else:
            offset, usable = _PAGE - missing, slice(missing, original.nbytes)
        copy = np.ndarray(original.shape, original.dtype, region, offset)
        there = np.ndarray(usable.stop - usable.start, np.uint8, region, offset + usable.start)
        there[:] = original.reshape(-1).view(np.uint8)[usable]
        return copy

    def tensor(self, name, original):
        """A copy of a tensor, in its memory layout."""
        original = original.detach()
        if original.dim() == 2 and not original.is_contiguous():
            return th.from_numpy(self.array(name, original.t().numpy())).t()
        return th.from_numpy(self.array(name, original.numpy()))


def guarded_topology(guard, topology):
    """A topology all of whose arrays, and what backends derive from them, are beside protected pages."""
    topology = Topology(topology.shape, topology.flat_index().numpy())
    tensors = topology._build_tensors()
    guarded = [guard.tensor(name, tensor) for name, tensor in zip(TopologyTensors._fields, tensors, strict=True)]
    topology._tensors[th.device("cpu")] = TopologyTensors(*guarded)
    for side in ("rows", "columns"):
        cut = blocked._blocks(topology, side)
        arrays = {name: guard.array(name, getattr(cut, name)) for name in ("counts", "local", "crow", "edges")}
        addresses = tuple(array.ctypes.data for array in arrays.values())
        blocked._kept[topology][side] = cut._replace(**arrays, addresses=addresses)
    topology.crow, topology.col = guard.array("crow", topology.crow), guard.array("col", topology.col)
    topology.addresses = (topology.crow.ctypes.data, topology.col.ctypes.data)
    return topology


def guard_what_backends_allocate(guard):
    """Results, padded batches and scratch."""

    def result(like, batch, features, original=compiled.empty_result):
        return guard.tensor("result", original(like, batch, features))

    compiled.empty_result = norm.empty_result = result
    place = blocked._place_for_packed
    blocked._place_for_packed = lambda *args: guard.array("packed", place(*args))
    for method in ("new_empty", "new_zeros"):
        make = getattr(th.Tensor, method)
        setattr(th.Tensor, method, lambda self, *size, make=make: guard.tensor("work", make(self, *size)))
    derive = compiled._blocks

    def edges(topology, side, stride):
        return [guard.tensor("ends", tensor) for tensor in derive(topology, side, stride)]

    compiled._blocks = edges


def topologies():
    """Odd shapes, empty rows and columns, a single weight, none, all."""
    for shape, density in [
        ((1, 1), 1.0),
        ((5, 3), 0.5),
        ((17, 130), 0.2),
        ((131, 9), 0.3),
        ((33, 257), 0.05),
        ((20, 20), 1.0),
    ]:
        yield Topology.random(shape, round(density * shape[0] * shape[1]), seed=1)
    yield Topology.random((7, 5), 0, seed=1)
    sparse = np.zeros((300, 140), dtype=bool)
    sparse[299, 139] = sparse[3, :] = sparse[100:110, 7] = True
    yield Topology.from_mask(sparse)
    yield Topology.random((3, 70_000), 500, seed=1)


def check_batches(guard, batches=range(1, 71)):
    for plain in topologies():
        topology = guarded_topology(guard, plain)
        weight = np.zeros(plain.numel, dtype=np.float32)
        generator = np.random.default_rng(0)
        values = generator.standard_normal(plain.nnz, dtype=np.float32)
        weight[plain.flat_index().numpy()] = values
        weight = weight.reshape(plain.shape)
        values = th.from_numpy(guard.array("values", values))
        bias = guard.tensor("bias", th.ones(plain.rows))
        for batch in batches if plain.columns < 1000 else (1, 16, 70):
            x = generator.standard_normal((batch, plain.columns), dtype=np.float32)
            grad = generator.standard_normal((batch, plain.rows), dtype=np.float32)
            mask, ones = plain.mask().numpy(), np.ones(plain.rows)
            forward, grad_input, grad_values = (reference(p, weight, mask, x.T, grad.T, ones) for p in PRODUCTS)
            expected = (forward.T, grad_input.T, grad_values, np.maximum(forward.T, 0), np.where(x > 0, grad_input.T, 0))
            for name in ("compiled", "blocked"):
                backend = BACKENDS[name]
                packed = guard.tensor("x", backend.pack(th.from_numpy(x)))
                packed_grad = guard.tensor("grad", backend.pack(th.from_numpy(grad)))
                results = (
                    backend.forward(packed, values, topology, bias, batch),
                    backend.grad_input(packed_grad, values, topology, batch),
                    backend.grad_values(packed_grad, packed, topology, batch),
                )
                backend.forward(packed, values, topology, None, batch)
                activation = guard.tensor("activation", packed.relu())
                gated = backend.grad_input_relu(packed_grad, values, topology, activation, batch)
                results += (backend.forward_relu(packed, values, topology, bias, batch), gated)
                for result, right in zip(results, expected, strict=True):
                    np.testing.assert_allclose(result.numpy(), right, rtol=1e-3, atol=1e-3, err_msg=f"{plain} {name} {batch}")


def guard_what_convolutions_allocate(guard):
    """The cut, packed values and images, and results."""
    cut = convolution_cut._cut

    def guarded_cut(*args):
        made = cut(*args)
        if made is None:
            return None
        names = ("starts", "stops", "offsets", "edges")
        arrays = tuple(guard.array(name, array) for name, array in zip(names, made.arrays, strict=True))
        return made._replace(arrays=arrays, addresses=tuple(array.ctypes.data for array in arrays))

    convolution_cut._cut = guarded_cut
    for name in ("by_image", "by_row"):
        pack = getattr(images, name)

        def packed(*args, pack=pack, **kwargs):
            return images.Images(guard.tensor("images", pack(*args, **kwargs).data))

        setattr(shifted, name, packed)
    strided, select = th.Tensor.new_empty_strided, th.Tensor.index_select

    def new_empty_strided(self, shape, strides):
        if len(shape) != 4:
            return strided(self, shape, strides)
        return guard.tensor("result", strided(self, shape, strides).permute(1, 2, 3, 0)).permute(3, 0, 1, 2)

    th.Tensor.new_empty_strided = new_empty_strided
    th.Tensor.index_select = lambda self, *args: guard.tensor("packed", select(self, *args))


CONVOLUTIONS = [
    # (channels, out channels, height, width, batch), window
    ((3, 5, 9, 8, 16), Window((3, 3), before=(1, 1), after=(1, 1))),
    ((3, 5, 9, 8, 17), Window((3, 3), before=(1, 1), after=(1, 1))),
    ((4, 2, 20, 21, 32), Window((8, 7), (4, 3))),
    ((4, 4, 7, 7, 16), Window((2, 3), dilation=(2, 2), groups=2)),
    ((1, 1, 1, 1, 16), Window((1, 1))),
    ((2, 3, 11, 12, 1), Window((3, 3), before=(1, 1), after=(1, 1))),
    ((2, 3, 11, 12, 5), Window((4, 4), (2, 2), before=(0, 1), after=(1, 2))),
]


def check_convolutions(guard, batches=()):
    for (channels, rows, height, width, batch), window in CONVOLUTIONS:
        weight_shape = (rows, channels // window.groups, *window.kernel)
        for density in (0.0, 0.4, 1.0):
            topology = Topology.random(weight_shape, round(density * int(np.prod(weight_shape))), seed=1)
            shape = (batch, channels, height, width)
            x, grad = th.randn(shape), th.randn(batch, rows, *window.out_size((height, width)))
            values, bias = th.randn(topology.nnz), guard.tensor("bias", th.randn(rows))
            products = shifted.Shifted(topology, window, shape)
            packed, packed_grad = products.pack(x), products.pack_gradient(grad)
            results = (
                products.forward(packed, values, bias),
                products.grad_input(packed_grad, values),
                products.grad_values(packed_grad, packed),
            )
            for result, right in zip(results, dense_convolution(x, values, topology, window, bias, grad), strict=True):
                th.testing.assert_close(result, right, rtol=1e-3, atol=1e-3)


def check_norms(guard, batches=range(16, 150)):
    generator = np.random.default_rng(0)
    for features in (1, 3, 20):
        norm_of_torch = th.nn.LayerNorm(features)
        weight, bias = (guard.tensor(p, th.rand(features)).requires_grad_() for p in ("norm weight", "norm bias"))
        norm_of_torch.weight, norm_of_torch.bias = (th.nn.Parameter(p.detach()) for p in (weight, bias))
        for batch in (b for b in batches if b >= 16):
            x, grad = (th.from_numpy(generator.standard_normal((features, batch), dtype=np.float32)).t() for _ in range(2))
            guarded = guard.tensor("norm x", x).requires_grad_()
            plain = x.clone().requires_grad_()
            norm_of_torch.zero_grad()
            weight.grad = bias.grad = None
            outputs = norm.layer_norm(guarded, weight, bias, norm_of_torch.eps), norm_of_torch(plain)
            outputs[0].backward(guard.tensor("norm grad", grad))
            outputs[1].backward(grad)
            ours = (outputs[0].detach(), guarded.grad, weight.grad, bias.grad)
            torchs = (outputs[1].detach(), plain.grad, norm_of_torch.weight.grad, norm_of_torch.bias.grad)
            for result, right in zip(ours, torchs, strict=True):
                np.testing.assert_allclose(result, right, rtol=1e-3, atol=1e-3, err_msg=f"{features} features, {batch}")


def check_streaming(guard, batches=()):
    for shape in streaming.SHAPES:
        streaming.Checks(guard.array, *shape).all()


def check_forward(guard, batches=()):
    for shape in streaming.SHAPES:
        forward.Checks(guard.array, *shape).all()


def prove(check, guard):
    check(guard, _BATCHES_TO_PROVE)
    for side in ("end", "begin"):
        for name in sorted(guard.names):
            child = os.fork()
            if child == 0:
                faulthandler.disable()
                guard.side, guard.short = side, name
                check(guard, _BATCHES_TO_PROVE)
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status not in (-signal.SIGSEGV, -signal.SIGBUS):
                print(side, name, status)


if __name__ == "__main__":
    faulthandler.enable()
    th.set_num_threads(1)
    checks = {
        "batches": check_batches,
        "convolutions": check_convolutions,
        "norms": check_norms,
        "streaming": check_streaming,
        "forward": check_forward,
    }
    check, guard = checks[sys.argv[1]], Guard()
    guard_what_backends_allocate(guard)
    if check is check_convolutions:
        guard_what_convolutions_allocate(guard)
    # Blocks of columns as narrow as larger batches have.
    compiled._block_bytes = lambda: 1 << 13
    if "prove" in sys.argv:
        prove(check, guard)
    else:
        for guard.side in ("end", "begin"):
            check(guard)
        print("all right:", *sorted(guard.names))
