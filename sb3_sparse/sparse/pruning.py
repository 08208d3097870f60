"""Turning any torch module sparse, back to dense, and into a table."""

import copy
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch as th
from torch import nn

from sb3_sparse.common.validation import flag, whole_number
from sb3_sparse.sparse.carry import (
    Exchange,
    carry_over,
    check_plain,
    check_sparse,
    exchange_in_optimizers,
    tensors_with_history,
)
from sb3_sparse.sparse.distribution import check_sparsity, get_distribution
from sb3_sparse.sparse.kernels import peek_backend
from sb3_sparse.sparse.layers import SparseConv2d, SparseLinear
from sb3_sparse.sparse.topology import Topology, derive_seed

Exclude = Iterable[str] | Callable[[str, nn.Module], bool]


@runtime_checkable
class RemembersSparsity(Protocol):
    """A module that keeps the sparsity it was built with, such as a policy for its checkpoints."""

    def forget_sparsity(self) -> None:
        """:func:`to_dense` made all layers dense."""


def sparsify_(
    module: nn.Module,
    sparsity: float,
    distribution: str = "erdos_renyi",
    *,
    exclude: Exclude = (),
    seed: int | None = None,
    rescale: bool = False,
) -> nn.Module:
    """
    Prune a module at random, in place: every ``nn.Linear`` and ``nn.Conv2d`` becomes a sparse layer.

    What is called ``..._target`` is pruned as the network of that name without it: SB3's target networks follow theirs
    weight by weight.

    The weights that survive keep their values, hooks and attributes of the layers stay on them. Layers that the
    distribution leaves dense stay as they are, and so do subclasses of the two, with a warning. Optimizers that are
    attributes of the module, as in SB3's policies, train the new parameters, with the moments of the weights that
    survive; others have to be made again, since their parameters are gone.

    >>> net = sparsify_(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512)), sparsity=0.9)

    :param module: Any module. If it is itself a layer, the sparse layer is only returned.
    :param sparsity: Fraction of the weights to remove, in [0, 1), over all layers together.
    :param distribution: How it is spread over the layers: ``"erdos_renyi"`` or ``"uniform"``.
    :param exclude: Names of submodules to leave out (with everything inside them), or a function of a layer's
        name and the layer that says True for what to leave out.
    :param seed: Draws the topologies; by default ``torch.initial_seed()``, from which nothing is drawn.
    :param rescale: Multiply the surviving weights of a layer by ``1 / sqrt(density)``.
    :return: The module.
    :raises ValueError: If an argument is out of range, a name in ``exclude`` is not a submodule, a layer is sparse
        already, layers share a weight, or a weight is computed (by parametrizations, ``weight_norm``, ...).
    """
    sparsity = check_sparsity(sparsity)
    allocate = get_distribution(distribution)
    rescale = flag("rescale", rescale)
    if seed is not None:
        seed = whole_number("seed", seed)
    if sparsity == 0.0:
        return module
    layers = dict(_prunable_layers(module, exclude))
    if not layers:
        warnings.warn(f"sparsify_ found no nn.Linear or nn.Conv2d in {type(module).__name__}: it is as it was.", stacklevel=2)
    densities = allocate({name: layer.weight.shape for name, layer in layers.items()}, sparsity)
    base_seed = th.initial_seed() if seed is None else seed
    # All is made before the first layer is swapped, so that an error leaves the module as it was.
    swaps: list[tuple[nn.Linear | nn.Conv2d, SparseLinear | SparseConv2d]] = []
    for name, layer in layers.items():
        nnz = round(densities[name] * layer.weight.numel())
        if nnz == layer.weight.numel():
            continue
        # A target network is pruned as the network that it follows, whose weights are averaged into its own.
        topology = Topology.random(layer.weight.shape, nnz, derive_seed(base_seed, name.replace("_target", "")))
        kind = SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d
        sparse = kind.from_dense(layer, topology, rescale)  # type: ignore[arg-type]
        # The same object: it is what it was, also for optimizers.
        sparse.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        carry_over(layer, sparse)
        swaps.append((layer, sparse))
    exchange_in_optimizers(module, {layer.weight: Exchange(sparse.values, sparse.topology.gather) for layer, sparse in swaps})
    return _replace(module, swaps)


def to_dense(module: nn.Module) -> nn.Module:
    """
    A copy of a module in which every sparse layer is a plain torch layer that computes the same.

    Its state dict loads, and its pickle opens, without this package (as far as the rest of the module does). Optimizers
    that are attributes of the module, as in SB3's policies, are copied with it and train the dense weights on; the
    moments of weights that did not exist are zero.

    :param module: Any module; it is not changed.
    :raises ValueError: If a sparse layer has something that a dense one has no place for, or is of a class of its own.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, (SparseLinear, SparseConv2d)):
            check_sparse(name, layer, (SparseLinear, SparseConv2d))
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in tensors_with_history(module)}
    dense = copy.deepcopy(module, memo)
    swaps = []
    for layer in dense.modules():
        if isinstance(layer, (SparseLinear, SparseConv2d)):
            plain = layer.to_dense()
            plain.bias = layer.bias
            carry_over(layer, plain)
            swaps.append((layer, plain))
        elif isinstance(layer, RemembersSparsity):
            layer.forget_sparsity()
    exchange_in_optimizers(dense, {layer.values: Exchange(plain.weight, layer.topology.scatter) for layer, plain in swaps})
    return _replace(dense, swaps)


@dataclass(frozen=True)
class LayerReport:
    """One row of a :class:`SparsityReport`."""

    name: str
    shape: tuple[int, ...]
    """Shape of the dense weight."""
    nnz: int
    """Weights that exist."""
    total: int
    """Weights of the dense layer."""
    backend: str
    """What multiplies with it: a backend's name (with "(not measured yet)" if it is not settled), ``"torch"`` for a dense
    layer, ``"conv"`` for a convolution."""

    @property
    def density(self) -> float:
        """Fraction of weights that exist."""
        return self.nnz / self.total


@dataclass(frozen=True)
class SparsityReport:
    """What :func:`sparsity_report` found. ``print`` it for a table."""

    layers: list[LayerReport]
    total_parameters: int
    """Parameters of the dense module, biases and norms included."""
    learnable_parameters: int
    """Parameters that exist."""
    parameter_bytes: int = field(repr=False)
    """Memory of the parameters that exist."""
    topology_bytes: int = field(repr=False)
    """Memory of the indices and of what backends keep, shared by layers of the same topology (online and target)."""

    @property
    def sparsity(self) -> float:
        """Fraction removed of the weights of all layers in the table."""
        total = sum(row.total for row in self.layers)
        return 1.0 - sum(row.nnz for row in self.layers) / total if total else 0.0

    def __str__(self) -> str:
        header = ("layer", "shape", "density", "nnz", "total", "backend")
        rows = [
            (row.name, "x".join(map(str, row.shape)), f"{row.density:.4f}", f"{row.nnz:,}", f"{row.total:,}", row.backend)
            for row in self.layers
        ]
        widths = [max(len(line[column]) for line in [header, *rows]) for column in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if column in (0, 5) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [header, *rows]
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        lines.append(
            f"{self.learnable_parameters:,} learnable of {self.total_parameters:,} parameters, "
            f"weight sparsity {self.sparsity:.4f}, "
            f"{self.parameter_bytes / 2**20:.1f} MiB of parameters + {self.topology_bytes / 2**20:.1f} MiB of indices"
        )
        return "\n".join(lines)


def sparsity_report(module: nn.Module) -> SparsityReport:
    """
    Density, size and backend of every linear and convolutional layer.

    Reading only: nothing is measured or written. The backend is the one that was chosen, in this process or by an earlier
    measurement on this machine for training with a batch of 256; if there is none, what would be taken without a
    measurement, followed by "(not measured yet)".

    :param module: Any module, sparse or not.
    """
    layers, topology_bytes, hidden = [], {}, 0
    for name, layer in module.named_modules():
        if isinstance(layer, (SparseLinear, SparseConv2d)):
            topology = layer.topology
            hidden += topology.numel - topology.nnz
            if isinstance(layer, SparseConv2d):
                kept, backend = 8 * topology.nnz, "conv"
            else:
                likely, is_settled = peek_backend(layer.values.device, layer.values.dtype, topology)
                kept = likely.memory(topology)
                backend = likely.name if is_settled else f"{likely.name} (not measured yet)"
            topology_bytes[topology] = topology.nbytes + kept
            layers.append(LayerReport(name, topology.shape, topology.nnz, topology.numel, backend))
        elif isinstance(layer, (nn.Linear, nn.Conv2d)):
            total = layer.weight.numel()
            layers.append(LayerReport(name, tuple(layer.weight.shape), total, total, "torch"))
    parameters = list(module.parameters())
    learnable = sum(p.numel() for p in parameters)
    return SparsityReport(
        layers=layers,
        total_parameters=learnable + hidden,
        learnable_parameters=learnable,
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        topology_bytes=sum(topology_bytes.values()),
    )


def _prunable_layers(module: nn.Module, exclude: Exclude) -> Iterable[tuple[str, nn.Linear | nn.Conv2d]]:
    is_excluded = exclude if callable(exclude) else _excluded_by_name(module, exclude)
    owners: dict[th.Tensor | None, list[tuple[str, nn.Module]]] = {}
    for place, part in module.named_modules():
        for parameter in part._parameters.values():
            owners.setdefault(parameter, []).append((place, part))
    left_alone = []
    for name, layer in module.named_modules():
        if isinstance(layer, (SparseLinear, SparseConv2d)) and not is_excluded(name, layer):
            raise ValueError(f"{name or 'the module'} is sparse already: take to_dense(module) first, or name it in exclude=.")
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and not is_excluded(name, layer):
            check_plain(name, layer)
            if type(layer) not in (nn.Linear, nn.Conv2d):
                # It may compute something else with its weight.
                left_alone.append(f"{name} ({type(layer).__name__})")
                continue
            if layer.weight.numel() == 0:
                raise ValueError(
                    f"{name or 'the layer'} has a weight of shape {tuple(layer.weight.shape)}: name it in exclude=."
                )
            shared = [place for place, part in owners[layer.weight] if not is_excluded(place, part)]
            if len(shared) > 1:
                raise ValueError(
                    f"{' and '.join(shared)} share one weight, which sparse layers cannot: name them in exclude=."
                )
            yield name, layer
    if left_alone:
        warnings.warn(
            f"subclasses of nn.Linear and nn.Conv2d stay dense: {', '.join(left_alone)}. Name them in exclude= to say so.",
            stacklevel=4,
        )


def _excluded_by_name(module: nn.Module, exclude: Iterable[str]) -> Callable[[str, nn.Module], bool]:
    if isinstance(exclude, str):
        exclude = [exclude]
    if not isinstance(exclude, Iterable) or not all(isinstance(name, str) for name in exclude):
        raise ValueError(f"exclude={exclude!r}: expected names of submodules, or a function of a name and a layer.")
    excluded = list(exclude)
    names = {name for name, _ in module.named_modules()}
    if unknown := [name for name in excluded if name not in names]:
        raise ValueError(f"exclude={unknown}: not a submodule. Submodules are {sorted(names - {''})}.")
    return lambda name, layer: any(name == prefix or name.startswith(prefix + ".") for prefix in excluded)


def _replace(module: nn.Module, swaps: Iterable[tuple[nn.Module, nn.Module]]) -> nn.Module:
    new_of = dict(swaps)
    # A layer that is used in several places stays one layer.
    for place, layer in list(module.named_modules(remove_duplicate=False)):
        if layer in new_of and place:
            parent, _, child = place.rpartition(".")
            setattr(module.get_submodule(parent), child, new_of[layer])
    return new_of.get(module, module)
