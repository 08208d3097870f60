"""Networks drawn anew: fresh values by their own initialisers, and other topologies, online and target together."""

import math
from collections.abc import Callable, Collection
from typing import TypeVar

import torch as th
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sb3_sparse.sparse.layers import SparseLayer, sparse_layers
from sb3_sparse.sparse.surgery.swap import Swap
from sb3_sparse.sparse.topology import Topology, derive_seed
from sb3_sparse.sparse.weight import NONZEROS

Module = TypeVar("Module", bound=nn.Module)


def draw_fresh(build: Callable[[], Module], seed: int | None = None) -> Module:
    """
    Build a module on the CPU with weights drawn from ``seed``; torch's generators are left as they were.

    Sparse layers of the result also remember the dense tensor that their values were gathered from, so that their
    initial values are known at any topology: a reset that keeps the topology is bit-equal to a dense reset, masked.

    :param build: Makes the module as it was made the first time.
    :param seed: By default drawn from torch's global generator, and so reproducible by ``seed=`` of SB3.
    """
    if seed is None:
        seed = int(th.randint(2**31, ()))
    # Dense weights go away when their layers become sparse, if nobody holds them.
    held: list[nn.Parameter | None] = []
    hook = register_module_parameter_registration_hook(lambda module, name, parameter: held.append(parameter))
    try:
        with th.random.fork_rng(devices=[]), th.device("cpu"):
            th.default_generator.manual_seed(seed)
            module = build()
    finally:
        hook.remove()
    for layer in sparse_layers(module).values():
        layer.dense_draw = layer.dense_source()
    return module


def drawn_value(layer: nn.Module, key: str, fresh: nn.Module, swap: Swap | None = None) -> th.Tensor | None:
    """
    What a fresh layer has for a parameter, of a sparse layer at the topology that ours will have; None: nothing.

    :param layer: Our layer.
    :param key: Name of the parameter.
    :param fresh: The layer that was drawn, sparse (by :func:`draw_fresh`) or dense.
    :param swap: Knows the topologies that layers get.
    :raises ValueError: If the fresh layer has values at other positions only.
    """
    if not (isinstance(layer, SparseLayer) and key in layer.gathered):
        value = fresh._parameters.get(key)
        return None if value is None else value.detach()
    topology = layer.topology if swap is None else swap.topology_of(layer)
    if not isinstance(fresh, SparseLayer):
        dense = fresh._parameters.get(layer.gathered[key])
        if dense is None or tuple(dense.shape) != topology.shape:
            return None
        values = topology.gather(dense.detach())
        # As a layer that is pruned anew: the dense one knows nothing of it.
        return values / math.sqrt(topology.density) if layer.rescale and topology.nnz else values
    drawn = fresh._parameters.get(key)
    if drawn is None:
        return None
    values = drawn.detach()
    if fresh.topology == topology or (fresh.topology.shape, fresh.topology.nnz) != (topology.shape, topology.nnz):
        return values
    if fresh.dense_draw is None:
        raise ValueError("the fresh layer has values at other positions only. Make the fresh module with draw_fresh().")
    if key != NONZEROS or not th.equal(fresh.topology.gather(fresh.dense_draw), values):
        # Somebody gave the sparse layer other values than it was pruned with, each alike: one place is as good as another.
        # So are those of the deviations of a noisy layer.
        return values
    return topology.gather(fresh.dense_draw)


def redraw_topology(swap: Swap, module: nn.Module, seed: int, within: Collection[nn.Module] | None = None) -> None:
    """
    Prepare new topologies for the sparse layers, each with as many weights as before. The values have to be drawn anew; layers
    whose values are frozen are left out.

    :param swap: Where it is prepared.
    :param module: What gets them.
    :param seed: The new positions follow from it and the name of the layer.
    :param within: Only these layers.
    """
    for name, layer in sparse_layers(module).items():
        if layer.values.requires_grad and (within is None or layer in within):
            old = layer.topology
            swap.set_topology(layer, Topology.random(old.shape, old.nnz, derive_seed(seed, name)))


def copy_topology(swap: Swap, target: nn.Module, online: nn.Module) -> None:
    """Prepare for the sparse layers of a target network the topologies that the online network will have."""
    twins = sparse_layers(online)
    for name, layer in sparse_layers(target).items():
        topology = swap.topology_of(twins[name])
        if layer.topology is not topology:
            swap.set_topology(layer, topology)
