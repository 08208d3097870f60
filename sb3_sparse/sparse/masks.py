"""Pruning by masks that come from somewhere else: a file, another library, a criterion of your own."""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch as th
from torch import nn

from sb3_sparse.common.validation import flag
from sb3_sparse.sparse.layers import PrunableLayer
from sb3_sparse.sparse.pruning import prunable_layers, prune_
from sb3_sparse.sparse.topology import Topology

Module = TypeVar("Module", bound=nn.Module)


def sparsify_by_masks_(
    module: Module, masks: Mapping[str, th.Tensor | np.ndarray | Topology], *, rescale: bool = False
) -> Module:
    """
    Prune a module in place, at given positions: as :func:`sparsify_`, which draws them.

    >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    >>> network = sparsify_by_masks_(network, {"0": th.eye(4, 3)})
    >>> network[0].topology.nnz
    3

    From a file of ``numpy.savez(path, **masks)``: ``sparsify_by_masks_(network, numpy.load(path))``; of
    ``torch.save(masks, path)``: ``sparsify_by_masks_(network, torch.load(path))``.

    :param module: Any module.
    :param masks: For the names of layers (as ``named_modules`` has them, also with ``.weight`` at the end) a tensor or
        array of the weight's shape, in which what is True, or 1, survives, and what is False, or 0, does not. Layers
        without a mask stay as they are.
    :param rescale: Multiply the surviving weights of a layer by ``1 / sqrt(density)``.
    :return: The module. If it is itself a layer (of the name ``""``), the sparse layer is only returned.
    :raises ValueError: If there is no layer of a name that could be pruned, or a mask has another shape or other values.
    """
    rescale = flag("rescale", rescale)
    places = dict(module.named_modules())
    wanted = {name if name in places else _layer_of(name): mask for name, mask in masks.items()}
    layers = prunable_layers(module, lambda name, layer: name not in wanted)
    if missing := [name for name in wanted if name not in layers]:
        names = [name for name, layer in module.named_modules() if isinstance(layer, PrunableLayer)]
        raise ValueError(f"masks for {missing}: no layers that can be pruned. Those of the module are {names}.")
    topologies = {layer: _topology(name, wanted[name], tuple(layer.weight.shape)) for name, layer in layers.items()}
    return prune_(module, topologies, rescale)


def _layer_of(weight: str) -> str:
    """The layer of a weight by the names of both."""
    return "" if weight == "weight" else weight.removesuffix(".weight")


def _topology(name: str, mask: th.Tensor | np.ndarray | Topology, shape: tuple[int, ...]) -> Topology:
    if isinstance(mask, Topology):
        if mask.shape != shape:
            raise ValueError(f"the topology of {name!r} has the shape {mask.shape}, and the weight {shape}.")
        return mask
    array = np.asarray(mask.detach().cpu() if isinstance(mask, th.Tensor) else mask)
    if array.shape != shape:
        raise ValueError(f"the mask of {name!r} has the shape {array.shape}, and the weight {shape}.")
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"the mask of {name!r} holds other values than True and False, or 1 and 0. Of scores, say which survive: "
            "scores > threshold."
        )
    return Topology.from_mask(array)
