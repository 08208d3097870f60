"""Layers that store the weights which exist, and nothing else."""

import ctypes
import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch as th
from torch import nn
from torch.fx import Proxy
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from sb3_sparse.common.validation import flag, fraction, whole_number
from sb3_sparse.sparse.kernels import scatter_dense, sparse_linear
from sb3_sparse.sparse.kernels.convolution import Window, sparse_conv2d
from sb3_sparse.sparse.topology import MAX_SEED, Topology
from sb3_sparse.sparse.weight import NONZEROS, SparseWeight, copy_parameter


class SparseLinear(SparseWeight):
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
        generator, from which nothing is drawn for it (but for layers that are neither on the CPU nor on a GPU with CUDA).
    :param rescale: Multiply the initial values by ``1 / sqrt(density)``, which keeps the variance of the output.
    :param device: Where the layer is made, as for ``nn.Linear``.
    :param dtype: Of its parameters, as for ``nn.Linear``.
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
        in_features = whole_number("in_features", in_features, 1)
        out_features = whole_number("out_features", out_features, 1)
        bias, rescale = flag("bias", bias), flag("rescale", rescale)
        if topology is None and density is None:
            raise ValueError("density=None and topology=None: give the fraction of weights that exist, or which ones.")
        if topology is None:
            topology = _draw_topology((out_features, in_features), density, seed, device)
        elif not isinstance(topology, Topology):
            raise ValueError(f"topology={topology!r}: expected a Topology, e.g. Topology.random or Topology.from_mask.")
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
        SparseWeight.__init__(layer, dense.weight, dense.bias, topology, rescale)
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
        parameters: Mapping[str, Any] = self._parameters
        if NONZEROS in parameters and "bias" in parameters and not isinstance(x, Proxy):
            # As attributes they are looked for in other places first, which takes as long as a small product.
            values, bias = parameters[NONZEROS], parameters["bias"]
        else:
            # Computed from other parameters, as by `parametrize`, or plain tensors, as in replicas of `DataParallel`; or
            # `torch.fx` traces, which sees attributes only: what it does not see it takes for constants.
            values, bias = self.values, self.bias
        return sparse_linear(x, values, self.topology, bias, self._buffers["topology_seed"])

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"nnz={self._topology.nnz}, density={self.density:.4g}, bias={self.bias is not None}"
        )


def _setting(name: str) -> Any:
    """An attribute that ``nn.Conv2d`` has, too, and that may be changed."""
    return property(lambda layer: layer.settings[name], lambda layer, value: layer.settings.update({name: value}))


class SparseConv2d(SparseWeight):
    """
    A 2-D convolution with a fixed set of living weights.

    On the CPU (not in float64), only the living weights are multiplied where that was measured to be faster: each with shifted
    rows of the image. Elsewhere the kernel is spread over a dense one for each pass: parameters, optimiser state and
    checkpoints shrink with the density there, the time of the convolution does not.

    :param dense: The convolution to take shape, settings and initial weights from.
    :param topology: Which weights exist; its shape is that of ``dense.weight``.
    :param rescale: Multiply the initial values by ``1 / sqrt(density)``.
    """

    stride, padding, dilation = _setting("stride"), _setting("padding"), _setting("dilation")
    in_channels: int = property(lambda layer: layer.settings["in_channels"])  # type: ignore[assignment]
    out_channels: int = property(lambda layer: layer.settings["out_channels"])  # type: ignore[assignment]
    kernel_size: tuple[int, int] = property(lambda layer: layer.settings["kernel_size"])  # type: ignore[assignment]
    groups: int = property(lambda layer: layer.settings["groups"])  # type: ignore[assignment]
    padding_mode: str = property(lambda layer: layer.settings["padding_mode"])  # type: ignore[assignment]

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
        settings, window = self.settings, self._window
        if settings["padding_mode"] != "zeros":
            x = F.pad(x, self._padding, mode=settings["padding_mode"])
        return sparse_conv2d(x, self.values, self.topology, window, self.bias, self.topology_seed)

    @property
    def _window(self) -> Window:
        # Whatever torch takes: the settings of a convolution may be changed after it was made, to plain numbers too.
        settings, kernel = self.settings, (self._topology.shape[2], self._topology.shape[3])
        stride, dilation = _pair(settings["stride"]), _pair(settings["dilation"])
        padding = settings["padding"]
        if settings["padding_mode"] != "zeros" or padding == "valid":
            before = after = (0, 0)
        elif padding == "same":
            both = [reach * (size - 1) for reach, size in zip(dilation, kernel, strict=True)]
            before, after = (both[0] // 2, both[1] // 2), (both[0] - both[0] // 2, both[1] - both[1] // 2)
        else:
            before = after = _pair(padding)
        return Window(kernel, stride, before, after, dilation, settings["groups"])

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self._topology.shape))
        return f"kernel={shape}, nnz={self._topology.nnz}, density={self.density:.4g}, bias={self.bias is not None}"


def _pair(setting: int | tuple[int, int]) -> tuple[int, int]:
    return (setting, setting) if isinstance(setting, int) else (setting[0], setting[1])


SparseLayer = SparseLinear | SparseConv2d
"""Layers that this package makes."""
PrunableLayer = nn.Linear | nn.Conv2d
"""Layers of torch's that can be pruned: each becomes the sparse layer of the same name."""
WeightLayer = PrunableLayer | nn.Conv1d | nn.Conv3d | SparseLayer
"""Layers that multiply with a weight."""


def sparse_layers(module: nn.Module) -> dict[str, SparseLayer]:
    """
    The sparse layers of a module by name.

    :param module: Any module.
    """
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, SparseLayer)}


def _with_weights(dense: nn.Module, sparse: SparseWeight) -> Any:
    with th.no_grad():
        weight = scatter_dense(sparse.values, sparse.topology)
    dense.weight = nn.Parameter(weight, requires_grad=sparse.values.requires_grad)
    if sparse.bias is not None:
        dense.register_parameter("bias", copy_parameter(sparse.bias))
    return dense.train(sparse.training)


def _draw_topology(
    shape: tuple[int, ...], density: float | None, seed: int | None, device: th.device | str | None
) -> Topology:
    density = fraction("density", density)
    if seed is None:
        place = th.get_default_device() if device is None else th.device(device)
        if place.type not in ("cpu", "cuda"):
            # On "meta" no weights are drawn, and elsewhere by a generator of that place: the next layer would find the same.
            # Tools that watch tensors would take this for a computation.
            with _disable_current_modes():
                seed = int(th.randint(MAX_SEED, (), device="cpu"))
        else:
            # Of the generator that the weights are drawn from, so that the next layer finds another state.
            state = th.cuda.get_rng_state(place) if place.type == "cuda" else th.get_rng_state()
            # Read where it is, for the same reason.
            seed = zlib.crc32(ctypes.string_at(state.data_ptr(), state.numel())) % MAX_SEED
    return Topology.random(shape, round(density * math.prod(shape)), seed)
