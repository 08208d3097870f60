"""Pruning by masks that come from somewhere else: a file, another library, a criterion of your own."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch as th
from torch import nn

from sb3_sparse.common.validation import flag
from sb3_sparse.common.warn import warn_user
from sb3_sparse.sparse.pruning import is_prunable, leading_names, prunable_layers, prune_
from sb3_sparse.sparse.topology import Topology, as_array

Module = TypeVar("Module", bound=nn.Module)
_NO_LAYERS = "no layers that can be pruned. Those of the module are"


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
        without a mask stay as they are. What is called ``..._target`` gets the mask of the layer of that name without it.
    :param rescale: Multiply the surviving weights of a layer by ``1 / sqrt(density)``.
    :return: The module. If it is itself a layer (of the name ``""``), the sparse layer is only returned.
    :raises ValueError: If there is no layer of a name that could be pruned, it shares its weight, or a mask has another
        shape or other values.
    """
    rescale, wanted = flag("rescale", rescale), _by_layer(module, masks)
    layers = prunable_layers(module, lambda name, layer: layer not in wanted)
    if missing := [name for layer, (name, _) in wanted.items() if layer not in layers.values()]:
        raise ValueError(f"masks for {missing}: {_NO_LAYERS} {_names_of_layers(module)}.")
    topologies = {layer: _topology(name, wanted[layer][1], tuple(layer.weight.shape)) for name, layer in layers.items()}
    if empty := [name for name, layer in layers.items() if topologies[layer].nnz == 0]:
        warn_user(f"the masks of {empty} leave no weight: what these layers return does not depend on their input.")
    return prune_(module, topologies, rescale)


def _by_layer(module: nn.Module, masks: Mapping[str, Any]) -> dict[nn.Module, tuple[str, Any]]:
    """The mask of each layer, with the name that it was given for, those of target networks among them."""
    if not isinstance(masks, Mapping) or not masks:
        raise ValueError(f"masks={masks!r}: expected a dict of masks by the names of layers, at least one.")
    places = dict(module.named_modules(remove_duplicate=False))
    by_layer: dict[nn.Module, tuple[str, Any]] = {}
    for name, mask in masks.items():
        layer = name if name in places else _layer_of(name)
        if layer not in places:
            raise ValueError(f"masks for {[name]}: {_NO_LAYERS} {_names_of_layers(module)}.")
        if places[layer] in by_layer:
            raise ValueError(f"masks has two entries for the layer {layer!r}: leave one of them out.")
        by_layer[places[layer]] = (layer, mask)
    # A target network is pruned as the network that it follows, whose weights are averaged into its own.
    followers = {layer: places.get(name) for layer, name in leading_names(module).items() if layer not in by_layer}
    return by_layer | {layer: by_layer[online] for layer, online in followers.items() if online in by_layer}


def _names_of_layers(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if is_prunable(layer)]


def _layer_of(weight: str) -> str:
    """The layer of a weight by the names of both."""
    return "" if weight == "weight" else weight.removesuffix(".weight")


def _topology(name: str, mask: th.Tensor | np.ndarray | Topology, shape: tuple[int, ...]) -> Topology:
    if isinstance(mask, Topology):
        if mask.shape != shape:
            raise ValueError(f"the topology of {name!r} has the shape {mask.shape}, and the weight {shape}.")
        return mask
    array = as_array(mask)
    if array.shape != shape:
        raise ValueError(f"the mask of {name!r} has the shape {array.shape}, and the weight {shape}.")
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"the mask of {name!r} holds other values than True and False, or 1 and 0. Of scores, say which survive: "
            "scores > threshold."
        )
    return Topology.from_mask(array)
