"""Which weights of a layer exist: an exact number of positions, fixed by a seed, never changed."""

import itertools
import math
import weakref
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th

from sb3_sparse.common.validation import whole_number, whole_numbers
from sb3_sparse.sparse.state.identity import MAX_NUMBER, encode

MAX_SEED = MAX_NUMBER
# Of the columns of a topology, so many tell it from others in a hash table.
_HASHED_COLUMNS = 4096


class TopologyTensors(NamedTuple):
    """
    The positions of the ``nnz`` living weights of a ``(rows, columns)`` matrix, as int32 tensors on one device.

    Weights are stored row by row (CSR). ``t_*`` describe the same weights column by column, for products with
    the transpose; ``values[t_order]`` are the values in that order.
    """

    crow: th.Tensor
    """``(rows + 1,)``: row ``i`` holds the weights ``crow[i]:crow[i + 1]``."""
    col: th.Tensor
    """``(nnz,)``: column of each weight, ascending inside a row."""
    t_crow: th.Tensor
    """``(columns + 1,)``: like ``crow``, for the transpose."""
    t_col: th.Tensor
    """``(nnz,)``: row of each weight, column by column."""
    t_order: th.Tensor
    """``(nnz,)``: index into ``values`` of each weight, column by column."""


class Topology:
    """
    The positions of the living weights of one weight tensor. Immutable, so layers share it freely.

    Build one with :meth:`random` or :meth:`from_mask`. Two calls of :meth:`random` with equal arguments give the
    same object: an online network and its target hold one set of indices between them.

    :param shape: Shape of the weight tensor, ``(out, in)`` or ``(out, in, kernel, kernel)``. Indices refer to
        the matrix ``(out, everything else)``.
    :param flat_index: Sorted positions of the living weights in the flattened tensor.
    :param seed: The seed that the positions were drawn from, or None if they were given.
    :raises ValueError: If the positions are not ascending, or not inside the tensor.
    """

    _random_topologies: ClassVar["weakref.WeakValueDictionary[tuple[tuple[int, ...], int, int], Topology]"] = (
        weakref.WeakValueDictionary()
    )
    _by_handle: ClassVar["weakref.WeakValueDictionary[str, Topology]"] = weakref.WeakValueDictionary()
    _handles: ClassVar["itertools.count[int]"] = itertools.count()

    def __init__(self, shape: Sequence[int], flat_index: np.ndarray, seed: int | None = None):
        self.shape = _check_shape(shape)
        self.seed = seed
        self.nnz = len(flat_index)
        self.rows = self.shape[0]
        self.columns = math.prod(self.shape[1:])
        flat_index = np.asarray(flat_index)
        is_index = flat_index.ndim == 1 and flat_index.dtype.kind in "iu"
        if not is_index or (
            self.nnz and not (flat_index[0] >= 0 and flat_index[-1] < self.numel and (flat_index[1:] > flat_index[:-1]).all())
        ):
            raise ValueError(
                f"positions of {self.nnz} weights in a tensor of shape {self.shape}: expected ascending numbers in "
                f"[0, {self.numel}), each once. If they come from a checkpoint, it is damaged."
            )
        row, col = np.divmod(flat_index, self.columns)
        self._crow = np.zeros(self.rows + 1, dtype=np.int32)
        np.cumsum(np.bincount(row, minlength=self.rows), out=self._crow[1:])
        #: ``(rows + 1,)`` int32, read-only: row ``i`` holds the weights ``crow[i]:crow[i + 1]``.
        self.crow: np.ndarray = self._crow.view()
        #: ``(nnz,)``, read-only: column of each weight, ascending inside a row; uint16 where that is enough, else int32.
        self.col: np.ndarray = col.astype(np.uint16 if self.columns <= 2**16 else np.int32)
        # Native code reads at their addresses and trusts what it finds.
        self.crow.flags.writeable = self.col.flags.writeable = False
        #: Addresses of ``crow`` and ``col``, which take numpy a microsecond each to tell.
        self.addresses = (self.crow.ctypes.data, self.col.ctypes.data)
        self._tensors: dict[th.device, TopologyTensors] = {}
        self._flat_index: dict[th.device, th.Tensor] = {}
        #: Stands for this object inside graphs of torch. Not a number: torch would try graphs for any number.
        self.handle = f"topology {next(self._handles)}"
        self._by_handle[self.handle] = self

    @classmethod
    def of_handle(cls, handle: str) -> "Topology":
        """
        The topology with that :attr:`handle`.

        :raises ValueError: If it does not exist any more: graphs do not keep the layers alive that they came from.
        """
        topology = cls._by_handle.get(handle)
        if topology is None:
            raise ValueError(
                f"the topology {handle} of a compiled graph is gone together with its layer. Compile the module again."
            )
        return topology

    @classmethod
    def random(cls, shape: Sequence[int], nnz: int, seed: int) -> "Topology":
        """
        Draw ``nnz`` distinct positions uniformly, with at least one per row if ``nnz`` allows it.

        A pure function of its arguments: the same on every platform and in every version of this package.

        :param shape: Shape of the weight tensor, ``(out, in)`` or ``(out, in, kernel, kernel)``.
        :param nnz: How many weights exist, 0 to the size of the tensor.
        :param seed: An integer in [0, 2**24).
        :raises ValueError: If ``nnz`` or ``seed`` is out of range.
        """
        shape = _check_shape(shape)
        numel = math.prod(shape)
        nnz = whole_number("nnz", nnz, 0, numel)
        seed = whole_number("seed", seed, 0, MAX_SEED - 1)
        key = (shape, nnz, seed)
        topology = cls._random_topologies.get(key)
        if topology is None:
            topology = cls(shape, _draw_positions(shape[0], numel // shape[0], nnz, seed), seed)
            cls._random_topologies[key] = topology
        return topology

    @classmethod
    def from_mask(cls, mask: th.Tensor | np.ndarray) -> "Topology":
        """
        The topology of a given mask.

        :param mask: Tensor or array of the shape of the weight, of any type and layout; what is not zero (or False) exists.
        """
        array = as_array(mask)
        return cls(array.shape, np.flatnonzero(array))

    @property
    def kind(self) -> int:
        """0 if it was drawn from a seed, 1 if it was given."""
        return 0 if self.seed is not None else 1

    @cached_property
    def number(self) -> int:
        """What tells it from others of its kind, shape and number of weights: the seed, or a checksum of the positions."""
        return self.seed if self.seed is not None else positions_checksum(self._flat_positions())

    @cached_property
    def identity(self) -> list[float]:
        """What stands for it in a state dict, see ``identity.py``."""
        return encode(self.number, (self.kind, *self.shape, self.nnz))

    @property
    def numel(self) -> int:
        """Size of the dense weight tensor."""
        return self.rows * self.columns

    @property
    def nbytes(self) -> int:
        """Memory of ``crow`` and ``col``."""
        return self.crow.nbytes + self.col.nbytes

    @property
    def density(self) -> float:
        """Fraction of weights that exist."""
        return self.nnz / self.numel

    def tensors(self, device: th.device | str = "cpu") -> TopologyTensors:
        """
        Row-wise and column-wise indices on a device, computed once and kept.

        Not to be written to: kernels read them.
        """
        device = _canonical_device(device)
        tensors = self._tensors.get(device)
        if tensors is None:
            on_cpu = device.type == "cpu"
            with _made_to_be_kept():
                tensors = self._build_tensors() if on_cpu else TopologyTensors(*(t.to(device) for t in self.tensors()))
            self._tensors[device] = tensors
        return tensors

    def flat_index(self, device: th.device | str = "cpu", keep: bool = False) -> th.Tensor:
        """
        ``(nnz,)`` int64 positions in the flattened weight.

        :param keep: Whether to keep them for the next call, eight bytes per weight.
        """
        device = _canonical_device(device)
        # Where a tool records or replaces tensors, one that was made outside of it would not fit, nor one made inside here.
        keeps = th._C._len_torch_dispatch_stack() == 0
        index = self._flat_index.get(device) if keeps else None
        if index is None:
            with _made_to_be_kept():
                index = th.from_numpy(self._flat_positions()).to(device)
            if keep and keeps:
                self._flat_index[device] = index
        return index

    def gather(self, dense: th.Tensor, keep: bool = False) -> th.Tensor:
        """
        The entries ``(nnz,)`` of a tensor of the weight's shape where weights live.

        :param keep: Whether to keep the positions, see :meth:`flat_index`.
        """
        return dense.reshape(-1).index_select(0, self.flat_index(dense.device, keep))

    def scatter(self, values: th.Tensor, keep: bool = False) -> th.Tensor:
        """
        A tensor of the weight's shape with ``values`` where weights live, zero elsewhere: differentiable, a fresh one.

        :param keep: Whether to keep the positions, see :meth:`flat_index`.
        """
        dense = values.new_zeros(self.numel)
        return dense.index_copy_(0, self.flat_index(values.device, keep), values).view(self.shape)

    def mask(self) -> th.Tensor:
        """Boolean tensor of the weight's shape: True where a weight exists."""
        mask = th.zeros(self.numel, dtype=th.bool, device="cpu")
        mask[th.from_numpy(self._flat_positions())] = True
        return mask.view(self.shape)

    def fan_in(self) -> th.Tensor:
        """``(rows,)`` number of living inputs of each output unit."""
        return th.from_numpy(np.diff(self.crow))

    def fan_out(self) -> th.Tensor:
        """``(columns,)`` number of living outputs of each input."""
        return th.from_numpy(np.bincount(self.col, minlength=self.columns))

    def column_index(self, device: th.device | str = "cpu") -> th.Tensor:
        """``(nnz,)`` int64 column of each weight, computed anew."""
        return th.from_numpy(self.col.astype(np.int64)).to(device)

    def row_of_weights(self) -> np.ndarray:
        """``(nnz,)`` int32: row of each weight."""
        return np.repeat(np.arange(self.rows, dtype=np.int32), np.diff(self.crow))

    def column_order(self) -> np.ndarray:
        """``(nnz,)`` positions of the weights column by column, rows ascending."""
        # NumPy sorts 16-bit keys by radix, ten times faster than others.
        return np.argsort(self.col, kind="stable")

    def _flat_positions(self) -> np.ndarray:
        return self.row_of_weights().astype(np.int64) * self.columns + self.col

    def _build_tensors(self) -> TopologyTensors:
        order = self.column_order().astype(np.int32)
        t_crow = np.zeros(self.columns + 1, dtype=np.int32)
        np.cumsum(np.bincount(self.col, minlength=self.columns), out=t_crow[1:])
        arrays = (self._crow, self.col.astype(np.int32), t_crow, self.row_of_weights()[order], order)
        return TopologyTensors(*map(th.from_numpy, arrays))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topology):
            return NotImplemented
        if self is other:
            return True
        return self.shape == other.shape and np.array_equal(self.crow, other.crow) and np.array_equal(self.col, other.col)

    @cached_property
    def _hash(self) -> int:
        # Of a part, so that it is cheap. Positions in one hash table differ nearly everywhere or nowhere.
        some = self.col[:: max(1, self.nnz // _HASHED_COLUMNS)]
        return hash((self.shape, self.nnz, zlib.crc32(self.crow.tobytes()), zlib.crc32(some.astype(np.int32).tobytes())))

    def __hash__(self) -> int:
        return self._hash

    def __copy__(self) -> "Topology":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "Topology":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.seed is not None:
            return Topology.random, (self.shape, self.nnz, self.seed)
        return Topology, (self.shape, self._flat_positions())

    def __repr__(self) -> str:
        origin = "given" if self.seed is None else f"seed={self.seed}"
        return f"Topology({'x'.join(map(str, self.shape))}, nnz={self.nnz}, {origin})"


def _made_to_be_kept() -> th.inference_mode:
    """Where tensors are made that outlive the call: of inference mode they could not take part in training later."""
    return th.inference_mode(False)


def as_array(mask: th.Tensor | np.ndarray) -> np.ndarray:
    """
    A mask as NumPy has it.

    :param mask: A tensor of any type and layout, or what NumPy makes an array of.
    """
    if isinstance(mask, th.Tensor):
        # NumPy has no bfloat16, and no sparse tensors.
        mask = (mask.detach().to_dense() if mask.layout is not th.strided else mask.detach()).cpu()
        mask = mask.double() if mask.is_floating_point() else mask
    return np.asarray(mask)


def tensor_bytes(topology: Topology) -> int:
    """Memory of the tensors that :meth:`Topology.tensors` makes."""
    # Column, row and order of each weight, and where columns begin. Rows begin where the topology itself says.
    return 4 * (3 * topology.nnz + topology.columns + 1)


def positions_checksum(flat_index: np.ndarray) -> int:
    """A 24-bit checksum of positions in a flattened weight, the same on every platform."""
    return zlib.crc32(flat_index.astype("<i8").tobytes()) % MAX_NUMBER


def derive_seed(base: int, position: str) -> int:
    """
    A topology seed for one layer of a network.

    :param base: Seed of the whole network (any integer).
    :param position: Name of the layer inside the network.
    :return: An integer in [0, 2**24), the same on every platform.
    """
    entropy = (abs(int(base)), zlib.crc32(position.encode()))
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) % MAX_SEED


def _draw_positions(rows: int, columns: int, nnz: int, seed: int) -> np.ndarray:
    """Sorted flat positions: every entry gets a random key, the ``nnz`` smallest keys live."""
    numel = rows * columns
    if nnz == numel:
        return np.arange(numel)
    # Only the raw stream of a bit generator is guaranteed never to change (NumPy enhancement proposal 19).
    words = np.random.Philox(key=seed).random_raw((numel + 1) // 2)
    keys = words.astype("<u8", copy=False).view("<u4")[:numel]
    if nnz >= rows:
        # The smallest key of every row goes first: no output unit is left without an input. Where the plain
        # draw already gives every row a weight, as it nearly always does, this changes nothing.
        smallest = keys.reshape(rows, columns).argmin(axis=1) + np.arange(rows) * columns
        np.maximum(keys, 1, out=keys)
        keys[smallest] = 0
    if nnz == 0:
        return np.empty(0, dtype=np.int64)
    threshold = np.partition(keys, nnz - 1)[nnz - 1]
    below = np.flatnonzero(keys < threshold)
    ties = np.flatnonzero(keys == threshold)[: nnz - len(below)]
    return np.sort(np.concatenate([below, ties])) if len(ties) else below


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(whole_numbers("weight shape", shape))
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"weight shape {shape}: expected at least two dimensions, all of them positive.")
    if math.prod(shape) >= 2**31:
        raise ValueError(f"weight shape {shape}: more than 2**31 entries are not supported by the int32 indices.")
    return shape


def _canonical_device(device: th.device | str) -> th.device:
    device = th.device(device)
    if device.type == "cuda" and device.index is None:
        return th.device("cuda", th.cuda.current_device())
    return device
