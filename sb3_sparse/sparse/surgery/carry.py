"""
Swapping a layer for another kind of it, without losing what hangs on it: hooks, attributes, and what optimizers that live
inside the module know of its weight. What cannot be carried over is refused by name.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from types import MethodType
from typing import Any

import torch as th
from torch import nn
from torch.nn.utils import parametrize

from sb3_sparse.common.warn import warn_user
from sb3_sparse.sparse.layers import SparseConv2d, SparseLayer, SparseLinear

# Dictionaries and flags of nn.Module. Handles of hooks hold the dictionary: shared, they remove from the new layer too.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)
_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
# Names that torch's older reparametrizations leave behind, and how to get rid of each.
_MARKS = {
    "weight_g": "torch.nn.utils.weight_norm: call torch.nn.utils.remove_weight_norm",
    "weight_mask": "torch.nn.utils.prune: call torch.nn.utils.prune.remove",
    "weight_u": "torch.nn.utils.spectral_norm: call torch.nn.utils.remove_spectral_norm",
    "weight_orig": "a reparametrization of torch.nn.utils: remove it",
}


def check_plain(name: str, layer: nn.Module, known: Collection[str]) -> None:
    """
    :param name: Of the layer, for the message.
    :param layer: A linear or convolutional layer that is to be replaced.
    :param known: Names of its tensors that the sparse layer has a place for.
    :raises ValueError: If its weight is not simply a parameter, or has something on it that would be lost.
    """
    reason = None
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        reason = "has no weight yet: call the module once"
    elif "weight" not in layer._parameters and not parametrize.is_parametrized(layer) and not _marks(layer):
        reason = "has a weight that is no parameter: make it one, frozen if it is not to learn,"
    elif "forward" in vars(layer):
        reason = "has a forward of its own in the place of its class's, which computes with the dense weight: remove it"
    elif parametrize.is_parametrized(layer):
        reason = "has parametrizations: call torch.nn.utils.parametrize.remove_parametrizations on it"
    elif marks := _marks(layer):
        reason = f"has a weight that is computed by {_MARKS[marks[0]]} on it"
    elif extra := sorted({*layer._parameters, *layer._buffers, *layer._modules} - {*known}):
        places = " and ".join(sorted(known, reverse=True))
        reason = f"has {extra} beside {places}, which a sparse layer has no place for: remove them"
    elif any(getattr(layer, hooks, None) for hooks in _STATE_HOOKS):
        reason = "has hooks on its state dict, which know the dense weight: remove them"
    elif _has_hooks(layer.weight):
        reason = "has a hook on its weight, which expects dense gradients: remove it"
    if reason is not None:
        raise ValueError(f"{name or 'the layer'} {reason} first, or name the layer in exclude=.")


def _marks(layer: nn.Module) -> list[str]:
    return [mark for mark in _MARKS if mark in layer._parameters or mark in layer._buffers]


def check_sparse(name: str, layer: SparseLayer) -> None:
    """
    :param name: Of the layer, for the message.
    :param layer: A sparse layer that is to be replaced by a dense one.
    :raises ValueError: If something on it would be lost.
    """
    known = {*layer.gathered, *layer.taken, "topology_seed", "topology_index"}
    reason = None
    if "to_dense" not in vars(type(layer)):
        reason = f"is a {type(layer).__name__}, which may compute something else"
    elif "forward" in vars(layer):
        reason = "has a forward of its own in the place of its class's, which computes with the sparse weight"
    elif extra := sorted({*layer._parameters, *layer._buffers, *layer._modules} - known):
        reason = f"has {extra}, which a dense layer has no place for"
    elif any(getattr(layer, hooks, None) for hooks in _STATE_HOOKS):
        reason = "has hooks on its state dict, which know the sparse weight"
    elif _has_hooks(layer.values):
        reason = "has a hook on its values, which expects their gradients"
    if reason is not None:
        raise ValueError(f"{name or 'the layer'} {reason}: take that away before to_dense.")


def _has_hooks(tensor: Any) -> bool:
    return bool(tensor._backward_hooks) or bool(getattr(tensor, "_post_accumulate_grad_hooks", None))


def carry_over(old: nn.Module, new: nn.Module) -> None:
    """
    Hooks and attributes that somebody put on a layer, onto the one that takes its place.

    :param old: The layer that is replaced.
    :param new: The layer that replaces it.
    """
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(old, hooks))
    new.training = old.training
    for attribute in vars(old).keys() - vars(new).keys() - _own_attributes():
        value = vars(old)[attribute]
        # A method that somebody bound to the layer is one of the new layer now.
        is_bound = isinstance(value, MethodType) and value.__self__ is old
        vars(new)[attribute] = MethodType(value.__func__, new) if is_bound else value


@cache
def _own_attributes() -> frozenset[str]:
    """What layers have by themselves."""
    linear, convolution = nn.Linear(1, 1, device="meta"), nn.Conv2d(1, 1, 1, device="meta")
    ours = {name for kind in (SparseLinear, SparseConv2d) for base in kind.__mro__ for name in _named_in(base)}
    return frozenset({*vars(linear), *vars(convolution), *ours, "_topology", "_padding", "settings"})


def _named_in(kind: type) -> set[str]:
    return {*vars(kind), *inspect.get_annotations(kind)}


@dataclass(frozen=True)
class Exchange:
    """One parameter in the place of another, and what becomes of tensors that belong to it."""

    new: th.Tensor
    convert: Callable[[th.Tensor], th.Tensor]
    """From the shape of the old parameter to that of the new one."""


def exchange_in_optimizers(module: nn.Module, exchanges: Mapping[th.Tensor, Exchange]) -> None:
    """
    Let optimizers train the new parameters, in the same groups and with their moments, where they trained the old.

    :param module: Optimizers that are attributes of it, or of modules inside, as those of SB3's policies.
    :param exchanges: By the old parameter.
    """
    for optimizer in _optimizers(module):
        is_concerned = any(p in exchanges for group in optimizer.param_groups for p in group["params"])
        for group in optimizer.param_groups:
            group["params"] = [exchanges[p].new if p in exchanges else p for p in group["params"]]
        if isinstance(optimizer, th.optim.LBFGS):
            # It has a list of its own, counts it once, and remembers all weights as one vector, under the first of them.
            optimizer._params, optimizer._numel_cache = optimizer.param_groups[0]["params"], None
            if is_concerned and optimizer.state:
                warn_user("optimizer state of LBFGS is one vector of all weights, which are others now: it starts anew.")
                optimizer.state.clear()
        for old, exchange in exchanges.items():
            if old in optimizer.state:
                optimizer.state[exchange.new] = _converted(optimizer, old, exchange)
                del optimizer.state[old]


def _converted(optimizer: th.optim.Optimizer, old: th.Tensor, exchange: Exchange) -> dict[str, Any]:
    # There are several of that name; each has one kind of state for vectors, another for matrices.
    is_other = any(kind.__name__ == "Adafactor" for kind in type(optimizer).__mro__) and old.dim() != exchange.new.dim()
    converted = {}
    for key, value in optimizer.state[old].items():
        if isinstance(value, th.Tensor) and value.dim() > 0:
            if is_other or value.shape != old.shape:
                warn_user(
                    f"optimizer state {key!r} of shape {tuple(value.shape)} cannot become that of single weights of shape "
                    f"{tuple(exchange.new.shape)}: the optimizer starts anew for this layer."
                )
                return {}
            value = exchange.convert(value)
        converted[key] = value
    return converted


def _optimizers(module: nn.Module) -> list[th.optim.Optimizer]:
    found = [value for part in module.modules() for value in vars(part).values() if isinstance(value, th.optim.Optimizer)]
    return list({id(optimizer): optimizer for optimizer in found}.values())


def tensors_with_history(module: nn.Module) -> list[th.Tensor]:
    """
    Results of computations that a module or an object in it keeps, which ``copy.deepcopy`` refuses.

    SB3's policies keep their last action distribution.
    """
    found: list[th.Tensor] = []
    seen: set[int] = set()
    stack: list[Any] = [value for part in module.modules() for value in vars(part).values()]
    while stack:
        thing = stack.pop()
        if id(thing) in seen or isinstance(thing, (nn.Module, type, str, bytes, int, float)) or callable(thing):
            continue
        seen.add(id(thing))
        if isinstance(thing, th.Tensor):
            if not thing.is_leaf:
                found.append(thing)
        elif isinstance(thing, Mapping):
            stack.extend(thing.values())
        elif isinstance(thing, (list, tuple, set)):
            stack.extend(thing)
        elif not isinstance(thing, th.optim.Optimizer):
            stack.extend(getattr(thing, "__dict__", {}).values())
    return found
