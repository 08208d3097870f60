"""Weight decay where sparse weights are weights, though they have one dimension."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from sb3_sparse.sparse.weight import SparseWeight


def weight_decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """
    Parameter groups in which weights decay, and biases and normalisations do not.

    The usual rule, "decay what has two dimensions or more", misses the weights of sparse layers, which have one.

    >>> import torch
    >>> optimizer = torch.optim.AdamW(weight_decay_groups(nn.Linear(3, 2), weight_decay=0.01), lr=1e-3)

    :param module: Any module, sparse or not.
    :param weight_decay: Of the weights.
    :return: Two groups, for any optimizer of torch.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, SparseWeight)]
    sparse = {parameter for layer in layers for name in layer.gathered for parameter in _stored(layer, name)}
    parameters = list(module.parameters())
    decays = {p: p.dim() > 1 or p in sparse for p in parameters}
    return [
        {"params": [p for p in parameters if decays[p]], "weight_decay": weight_decay},
        {"params": [p for p in parameters if not decays[p]], "weight_decay": 0.0},
    ]


def _stored(layer: nn.Module, name: str) -> Iterable[nn.Parameter | None]:
    """A parameter of a layer, or what torch computes it from: by parametrizations, or the older way, as ``name_orig``."""
    if is_parametrized(layer, name):
        return layer.parametrizations[name].parameters(recurse=False)  # type: ignore
    return [parameter for key, parameter in layer._parameters.items() if key == name or key.startswith(name + "_")]
