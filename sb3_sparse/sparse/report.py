"""What a module consists of, layer by layer: size, density, memory, and what multiplies with it."""

from dataclasses import dataclass, field

from torch import nn

from sb3_sparse.sparse.kernels import peek_backend
from sb3_sparse.sparse.kernels.choosing.chooser import chosen_convolutions
from sb3_sparse.sparse.kernels.convolution.cut import kept_bytes
from sb3_sparse.sparse.layers import PrunableLayer, SparseConv2d, SparseLayer


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
    layer; for a sparse convolution ``"shifted"`` (our kernels) or ``"dense"``, or ``"conv"`` before its first use."""

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
        if isinstance(layer, SparseLayer):
            topology = layer.topology
            # Noisy layers have deviations at the same positions.
            hidden += len(layer.gathered) * (topology.numel - topology.nnz)
            if isinstance(layer, SparseConv2d):
                # In use: which one is chosen depends on the size of the images.
                used = sorted(set(chosen_convolutions.get(topology, {}).values()))
                kept, backend = 8 * topology.nnz + kept_bytes(topology), ", ".join(used) or "conv"
            else:
                likely, is_settled = peek_backend(layer.values.device, layer.values.dtype, topology)
                kept = likely.memory(topology)
                backend = likely.name if is_settled else f"{likely.name} (not measured yet)"
            topology_bytes[topology] = topology.nbytes + kept
            layers.append(LayerReport(name, topology.shape, topology.nnz, topology.numel, backend))
        elif isinstance(layer, PrunableLayer):
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
