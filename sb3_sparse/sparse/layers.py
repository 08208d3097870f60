"""Layers that store the weights which exist, and nothing else."""

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_sparse.sparse.kernels import scatter_dense, sparse_linear
from sb3_sparse.sparse.topology import MAX_SEED, Topology

_keep_dense_draw: ContextVar[bool] = ContextVar("_keep_dense_draw", default=False)


@contextmanager
def keep_dense_draws() -> Iterator[None]:
    """Sparse layers made inside keep the dense tensor that their values were gathered from, as ``dense_draw``."""
    token = _keep_dense_draw.set(True)
    try:
        yield
    finally:
        _keep_dense_draw.reset(token)


class _SparseWeight(nn.Module):
    """
    What sparse layers have in common: one trainable 1-D tensor ``values`` of the living weights, and a topology.

    The topology is not a parameter. A drawn one is rebuilt from its seed, kept in the state dict as the float32
    scalar ``topology_seed``; a given one is kept as ``topology_index``, the flat positions.
    """

    values: nn.Parameter
    bias: nn.Parameter | None
    topology: Topology
    topology_seed: th.Tensor | None
    topology_index: th.Tensor | None
    # Times the factor of `rescale`; only of layers made under `keep_dense_draws`.
    dense_draw: th.Tensor | None = None

    def __init__(self, weight: th.Tensor, bias: th.Tensor | None, topology: Topology, rescale: bool = False):
        super().__init__()
        if tuple(weight.shape) != topology.shape:
            raise ValueError(f"topology of shape {topology.shape} does not fit a weight of shape {tuple(weight.shape)}.")
        with th.no_grad():
            values = weight.reshape(-1).index_select(0, topology.flat_index(weight.device))
            if rescale and topology.nnz:
                values /= math.sqrt(topology.density)
            if _keep_dense_draw.get():
                factor = math.sqrt(topology.density) if rescale and topology.nnz else 1.0
                self.dense_draw = weight.detach() / factor
        self.topology = topology
        self.values = nn.Parameter(values, requires_grad=weight.requires_grad)
        self.register_parameter("bias", _copy(bias))
        seed = None if topology.seed is None else th.tensor(float(topology.seed), device=weight.device)
        index = None if topology.seed is not None else topology.flat_index(weight.device)
        self.register_buffer("topology_seed", seed)
        self.register_buffer("topology_index", index)

    @property
    def weight(self) -> th.Tensor:
        """The dense weight, zero where no weight lives: a copy for people and exporters, without gradient."""
        dense = self.values.new_zeros(self.topology.numel)
        dense[self.topology.flat_index(self.values.device)] = self.values.detach()
        return dense.view(self.topology.shape)

    @property
    def density(self) -> float:
        """Fraction of the weights that exist."""
        return self.topology.density

    def set_topology(self, topology: Topology) -> None:
        """
        Put the values, in their order, at other positions. They mean something else then: draw them anew.

        :param topology: Of the same shape and the same number of weights.
        :raises ValueError: If it is not.
        """
        if (topology.shape, topology.nnz) != (self.topology.shape, self.topology.nnz):
            raise ValueError(f"{topology} cannot replace {self.topology}: shape and number of weights must stay the same.")
        device, drawn = self.values.device, topology.seed is not None
        self.topology = topology
        self.topology_seed = th.tensor(float(topology.seed or 0), device=device) if drawn else None
        self.topology_index = None if drawn else topology.flat_index(device)

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> "_SparseWeight":
        # `half()` and `bfloat16()` would round the seed: it only follows the device.
        seed = self.topology_seed
        super()._apply(fn, recurse)
        if seed is not None and seed.is_meta:
            seed = th.tensor(float(self.topology.seed or 0))
        if seed is not None:
            self.topology_seed = seed.to(self.values.device)
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # A layer takes over the kind of topology that the checkpoint has, drawn or given.
        seed, index = state_dict.get(prefix + "topology_seed"), state_dict.get(prefix + "topology_index")
        if seed is not None and self.topology_seed is None:
            self.topology_seed, self.topology_index = th.zeros((), device=self.values.device), None
        elif index is not None and self.topology_index is None:
            self.topology_seed, self.topology_index = None, th.zeros_like(index, device=self.values.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if seed is not None:
            loaded = _seed_from_float(float(seed), prefix)
            if loaded != self.topology.seed:
                self.topology = Topology.random(self.topology.shape, self.topology.nnz, loaded)
        elif index is not None and len(index) == self.topology.nnz:
            self.topology = Topology(self.topology.shape, index.cpu().numpy())


class SparseLinear(_SparseWeight):
    """
    A linear layer with a fixed set of living weights: ``nn.Linear`` without the weights that are zero anyway.

    ``values`` and ``bias`` are its only parameters, so optimiser state, gradients, norms and checkpoints are as
    small as the layer really is, and a pruned weight cannot come back. Initial values are those of a dense layer
    at the living positions ("initialise, then mask").

    >>> layer = SparseLinear(512, 2048, density=0.1)
    >>> layer(th.randn(256, 512)).shape, layer.values.numel()
    (torch.Size([256, 2048]), 104858)

    :param in_features: Size of each input sample.
    :param out_features: Size of each output sample.
    :param density: Fraction of weights that exist, in [0, 1]; ``round(density * in * out)`` of them, exactly.
    :param topology: Which weights exist, instead of ``density``.
    :param bias: Whether to add a learned bias.
    :param seed: Draws the topology, an integer in [0, 2**24). By default it follows from the state of torch's
        generator, from which nothing is drawn for it.
    :param rescale: Multiply the initial values by ``1 / sqrt(density)``, which keeps the variance of the output.
    :raises ValueError: If not exactly one of ``density`` and ``topology`` is given, or a value is out of range.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        density: float | None = None,
        topology: Topology | None = None,
        bias: bool = True,
        seed: int | None = None,
        rescale: bool = False,
        device: th.device | str | None = None,
        dtype: th.dtype | None = None,
    ):
        if topology is None:
            topology = _draw_topology((out_features, in_features), density, seed, device)
        elif density is not None or seed is not None:
            raise ValueError("SparseLinear takes either topology=, or density= and seed=: leave one of them out.")
        dense = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        super().__init__(dense.weight, dense.bias, topology, rescale)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def from_dense(cls, dense: nn.Linear, topology: Topology, rescale: bool = False) -> "SparseLinear":
        """A sparse layer that keeps the weights of ``dense`` where the topology has one."""
        layer = cls.__new__(cls)
        _SparseWeight.__init__(layer, dense.weight, dense.bias, topology, rescale)
        layer.in_features, layer.out_features = dense.in_features, dense.out_features
        return layer

    def to_dense(self) -> nn.Linear:
        """A plain ``nn.Linear`` that computes the same."""
        dense = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        return _with_weights(dense, self)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(..., in_features)``
        :return: ``(..., out_features)``
        """
        return sparse_linear(x, self.values, self.topology, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"nnz={self.topology.nnz}, density={self.density:.4g}, bias={self.bias is not None}"
        )


class SparseConv2d(_SparseWeight):
    """
    A 2-D convolution with a fixed set of living weights.

    The kernel is spread over a dense one for each pass: parameters, optimiser state and checkpoints shrink with
    the density, the time of the convolution does not.

    :param dense: The convolution to take shape, settings and initial weights from.
    :param topology: Which weights exist; its shape is that of ``dense.weight``.
    :param rescale: Multiply the initial values by ``1 / sqrt(density)``.
    """

    def __init__(self, dense: nn.Conv2d, topology: Topology, rescale: bool = False):
        super().__init__(dense.weight, dense.bias, topology, rescale)
        self.settings: dict[str, Any] = {
            "in_channels": dense.in_channels,
            "out_channels": dense.out_channels,
            "kernel_size": dense.kernel_size,
            "stride": dense.stride,
            "padding": dense.padding,
            "dilation": dense.dilation,
            "groups": dense.groups,
            "padding_mode": dense.padding_mode,
        }
        # What nn.Conv2d itself pads with where the mode is not "zeros".
        self._padding = tuple(dense._reversed_padding_repeated_twice)

    @classmethod
    def from_dense(cls, dense: nn.Conv2d, topology: Topology, rescale: bool = False) -> "SparseConv2d":
        """A sparse convolution that keeps the weights of ``dense`` where the topology has one."""
        return cls(dense, topology, rescale)

    def to_dense(self) -> nn.Conv2d:
        """A plain ``nn.Conv2d`` that computes the same."""
        return _with_weights(nn.Conv2d(**self.settings, bias=self.bias is not None, device="meta"), self)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: ``(batch, in_channels, height, width)``
        :return: ``(batch, out_channels, height, width)``
        """
        weight = scatter_dense(self.values, self.topology)
        settings, padding = self.settings, self.settings["padding"]
        if settings["padding_mode"] != "zeros":
            x, padding = F.pad(x, self._padding, mode=settings["padding_mode"]), 0
        return F.conv2d(x, weight, self.bias, settings["stride"], padding, settings["dilation"], settings["groups"])

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.topology.shape))
        return f"kernel={shape}, nnz={self.topology.nnz}, density={self.density:.4g}, bias={self.bias is not None}"


def _copy(bias: th.Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


def _with_weights(dense: nn.Module, sparse: _SparseWeight) -> Any:
    dense.weight = nn.Parameter(sparse.weight, requires_grad=sparse.values.requires_grad)
    if sparse.bias is not None:
        dense.register_parameter("bias", _copy(sparse.bias))
    return dense.train(sparse.training)


def _draw_topology(
    shape: tuple[int, ...], density: float | None, seed: int | None, device: th.device | str | None
) -> Topology:
    if isinstance(density, bool) or not isinstance(density, Real) or not 0.0 <= density <= 1.0:
        raise ValueError(f"density={density!r}: expected the fraction of weights that exist, a number in [0, 1].")
    if seed is None:
        # Of the generator that the weights are drawn from, so that the next layer finds another state.
        place = th.device("cpu" if device is None else device)
        state = th.cuda.get_rng_state(place) if place.type == "cuda" else th.get_rng_state()
        seed = zlib.crc32(state.numpy().tobytes()) % MAX_SEED
    return Topology.random(shape, round(float(density) * math.prod(shape)), seed)


def _seed_from_float(value: float, prefix: str) -> int:
    # Tools that fill a state dict with random floats still get a valid layer: any finite number is a seed.
    if not math.isfinite(value):
        raise ValueError(f"{prefix}topology_seed={value}: expected a finite number. The checkpoint is damaged.")
    return int(abs(value)) % MAX_SEED
