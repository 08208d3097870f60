"""
What ``test_guard_pages.py`` runs in a process of its own: every kernel on arrays that end, or begin, directly at a page
that must not be touched. A kernel that reads or writes beside an array ends the process.

    python tests/sparse/guard_pages.py {batches,streaming} [prove]

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
from sb3_sparse.sparse.kernels.backends import BACKENDS, blocked, compiled
from sb3_sparse.sparse.topology import TopologyTensors
from sb3_sparse.streaming import kernels as streaming

_PAGE = mmap.PAGESIZE
_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_NO_ACCESS = 0


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

    compiled.empty_result = result
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
            expected = (x @ weight.T + 1, grad @ weight, (grad.T @ x).ravel()[plain.flat_index().numpy()])
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
                for result, right in zip(results, expected, strict=True):
                    np.testing.assert_allclose(result.numpy(), right, rtol=1e-3, atol=1e-3, err_msg=f"{plain} {name} {batch}")


def check_streaming(guard, batches=()):
    for n_out, n_in, density in [(1, 1, 1.0), (3, 5, 0.5), (17, 33, 0.2), (8, 64, 0.9), (40, 70, 0.0), (2, 100, 0.1)]:
        generator = np.random.default_rng(0)

        def normal(name, *shape, generator=generator):
            return guard.array(name, generator.standard_normal(shape, dtype=np.float32))

        mask = generator.random((n_out, n_in)) < density
        topology = Topology.from_mask(mask)
        crow, col = guard.array("crow", topology.crow), guard.array("col", topology.col)
        weights, values = normal("weights", n_out, n_in), normal("values", topology.nnz)
        sparse_weights = np.zeros((n_out, n_in), dtype=np.float32)
        sparse_weights[mask] = values
        bias, xs = normal("bias", n_out), [normal("x", n_in) for _ in range(2)]
        ys = [normal("y", n_out) for _ in range(4)]

        def run(*instructions):
            streaming.Program(instructions).run()

        def close(result, right):
            np.testing.assert_allclose(result, right, rtol=1e-3, atol=1e-4)

        for suffix, n in (("", 1), ("_pair", 2)):
            run(
                ("linear" + suffix, *ys[:n], weights, bias, *xs[:n], n_out, n_in),
                ("sparse_linear" + suffix, *ys[2 : 2 + n], values, bias, crow, col, *xs[:n], n_out),
            )
            for i in range(n):
                close(ys[i], weights @ xs[i] + bias)
                close(ys[2 + i], sparse_weights @ xs[i] + bias)

        settings = guard.array("settings", np.array([1e-5, 0.01], dtype=np.float32))
        y, normals, inverse = normal("y", n_in), normal("x", n_in), normal("inverse", 1)
        before = normals.copy()
        run(("normalize", y, normals, inverse, settings, n_in))
        right = (before - before.mean()) / np.sqrt(before.var() + 1e-5)
        close(normals, right)
        close(y, np.where(right > 0, right, 0.01 * right))
        close(inverse, 1 / np.sqrt(before.var() + 1e-5))
        grad = normal("grad", n_in)
        g = np.where(normals > 0, grad, 0.01 * grad)
        right = (g - g.mean() - normals * (g * normals).mean()) * inverse
        run(("normalize_backward", grad, normals, inverse, settings, n_in))
        np.testing.assert_allclose(grad, right, rtol=1e-3, atol=1e-3 * max(1.0, inverse[0]))

        decay, scale = guard.array("decay", np.float32([0.5])), guard.array("scale", np.float32([2.0]))
        for is_sparse in (False, True):
            for with_input in (False, True):
                traces = normal("traces", *(values.shape if is_sparse else weights.shape))
                bias_traces, grad, grad_x = normal("bias_traces", n_out), normal("grad", n_out), normal("grad_x", n_in)
                l1 = guard.array("l1", np.zeros(1))
                outer = np.outer(grad, xs[0])
                right = 0.5 * traces + (outer[mask] if is_sparse else outer)
                right_bias = 0.5 * bias_traces + grad
                right_x = grad_x + grad @ (sparse_weights if is_sparse else weights)
                name = ("learn_sparse_linear" if is_sparse else "learn_linear") + "_and_input" * with_input
                place = (crow, col) if is_sparse else (n_in,)
                rest = ((values if is_sparse else weights), grad_x) if with_input else ()
                run((name, traces, bias_traces, grad, xs[0], decay, l1, n_out, *place, *rest))
                close(traces, right)
                close(bias_traces, right_bias)
                close(l1, np.abs(right).sum() + np.abs(right_bias).sum())
                if with_input:
                    close(grad_x, right_x)

        parameters, traces = normal("parameters", n_out), normal("traces", n_out)
        right = parameters + 2.0 * traces
        run(("add_scaled", parameters, traces, scale, n_out))
        close(parameters, right)
        run(("clear", parameters, n_out))
        assert not parameters.any()


def prove(check, guard):
    check(guard, (1, 16, 20))
    for side in ("end", "begin"):
        for name in sorted(guard.names):
            child = os.fork()
            if child == 0:
                faulthandler.disable()
                guard.side, guard.short = side, name
                check(guard, (1, 16, 20))
                os._exit(0)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status not in (-signal.SIGSEGV, -signal.SIGBUS):
                print(side, name, status)


if __name__ == "__main__":
    faulthandler.enable()
    th.set_num_threads(1)
    check, guard = {"batches": check_batches, "streaming": check_streaming}[sys.argv[1]], Guard()
    guard_what_backends_allocate(guard)
    # Blocks of columns as narrow as larger batches have.
    compiled._block_bytes = lambda: 1 << 13
    if "prove" in sys.argv:
        prove(check, guard)
    else:
        for guard.side in ("end", "begin"):
            check(guard)
        print("all right:", *sorted(guard.names))
