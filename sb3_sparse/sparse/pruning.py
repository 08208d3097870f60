"""
Which layers of a module can be pruned, how sparse ones take their place, and the way back (``to_dense``).

What decides which weights survive is elsewhere: at random, ``sparsify_`` in ``sparsity.py``; by masks, ``masks.py``.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch as th
from torch import nn

from sb3_sparse.common.warn import warn_user
from sb3_sparse.sparse.layers import PrunableLayer, SparseConv2d, SparseLayer, SparseLinear, sparse_layers
from sb3_sparse.sparse.surgery.carry import (
    Exchange,
    carry_over,
    check_plain,
    check_sparse,
    exchange_in_optimizers,
    tensors_with_history,
)
from sb3_sparse.sparse.topology import Topology
from sb3_sparse.sparse.weight import SparseWeight

Module = TypeVar("Module", bound=nn.Module)
# The sparse layer for each kind of dense one.
_KINDS: dict[type[nn.Module], type[SparseWeight]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}

# What a module holds in its own ways.
_OF_TORCH = frozenset(vars(nn.Module()))
Exclude = Iterable[str] | Callable[[str, nn.Module], bool]


@runtime_checkable
class RemembersSparsity(Protocol):
    """A module that keeps the sparsity it was built with, such as a policy for its checkpoints."""

    def forget_sparsity(self) -> None:
        """:func:`to_dense` made all layers dense."""


def prune_(module: Module, topologies: Mapping[PrunableLayer, Topology], rescale: bool = False) -> Module:
    """
    Put sparse layers in the place of dense ones, in place. The weights that survive keep their values.

    Hooks and attributes stay on the layers; optimizers that are attributes of the module train the new parameters.

    :param module: Where the layers are. If it is itself such a layer, the sparse layer is only returned.
    :param topologies: For each of its :func:`prunable_layers` that is to be pruned, which of its weights survive.
    :param rescale: Multiply the surviving weights of a layer by ``1 / sqrt(density)``.
    """
    # All is made before the first layer is swapped, so that an error leaves the module as it was.
    swaps: dict[nn.Module, nn.Module] = {}
    exchanges: dict[th.Tensor, Exchange] = {}
    for layer, topology in topologies.items():
        sparse: Any = _KINDS[type(layer)].from_dense(layer, topology, rescale)
        for name in sparse.taken:
            if name in layer._parameters:
                # The same object: it is what it was, also for optimizers.
                sparse.register_parameter(name, layer._parameters[name])
        carry_over(layer, sparse)
        swaps[layer] = sparse
        for new, old in sparse.gathered.items():
            exchanges[layer._parameters[old]] = Exchange(sparse._parameters[new], topology.gather)  # type: ignore
    exchange_in_optimizers(module, exchanges)
    return replace_layers(module, swaps)


def to_dense(module: Module) -> Module:
    """
    A copy of a module in which every sparse layer is a plain torch layer that computes the same.

    Its state dict loads, and its pickle opens, without this package (as far as the rest of the module does). Optimizers
    that are attributes of the module, as in SB3's policies, are copied with it and train the dense weights on; the
    moments of weights that did not exist are zero.

    :param module: Any module; it is not changed.
    :raises ValueError: If a sparse layer has something that a dense one has no place for, or is of a class of its own.
    """
    for name, layer in sparse_layers(module).items():
        check_sparse(name, layer)
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in tensors_with_history(module)}
    dense = copy.deepcopy(module, memo)
    swaps: dict[nn.Module, nn.Module] = {}
    exchanges: dict[th.Tensor, Exchange] = {}
    for layer in sparse_layers(dense).values():
        plain = layer.to_dense()
        for name in layer.taken:
            if name in layer._parameters:
                plain.register_parameter(name, layer._parameters[name])
        carry_over(layer, plain)
        swaps[layer] = plain
        for old, new in layer.gathered.items():
            exchanges[layer._parameters[old]] = Exchange(plain._parameters[new], layer.topology.scatter)  # type: ignore
    for part in dense.modules():
        if isinstance(part, RemembersSparsity):
            part.forget_sparsity()
    exchange_in_optimizers(dense, exchanges)
    return replace_layers(dense, swaps)


def is_prunable(layer: nn.Module) -> bool:
    """Whether there is a sparse layer for layers of that class."""
    return type(layer) in _KINDS


def register_kind(dense: type[nn.Module], sparse: type[SparseWeight]) -> None:
    """
    Let a subclass of ``nn.Linear`` or ``nn.Conv2d`` be pruned, into a sparse layer of your own.

    :param dense: The class, whose weight has the shape that topologies are about.
    :param sparse: Has ``from_dense`` and ``to_dense``, and says by ``gathered`` and ``taken`` where its tensors come from.
    :raises ValueError: If the class is known already.
    """
    if dense in _KINDS:
        raise ValueError(f"{dense.__name__} is pruned into {_KINDS[dense].__name__} already.")
    _KINDS[dense] = sparse


def leading_names(module: nn.Module) -> dict[nn.Module, str]:
    """
    The name of every part; of what is in a target network, that of the part which it follows.

    SB3's target networks are called ``..._target``, and their weights are averages of those of the network of that name
    without it. A part of it may be known by another name first, as a features extractor that actor and critic share.

    :param module: Any module.
    """
    places: dict[str, nn.Module] = dict(module.named_modules(remove_duplicate=False))
    names = {part: name for name, part in module.named_modules()}
    followed = {part: name.replace("_target", "") for part, name in names.items()}
    return {part: names[places[name]] if name in places else name for part, name in followed.items()}


def prunable_layers(module: nn.Module, exclude: Exclude = ()) -> dict[str, PrunableLayer]:
    """
    The layers of a module that can be pruned, by name. Subclasses of the two kinds are left out, with a warning.

    :param module: Any module.
    :param exclude: Names of submodules to leave out (with everything inside them, wherever else that is used), or a function
        of a layer's name and the layer that says True for what to leave out. It is asked with every name of the layer. What
        a target network follows is left out there, too.
    :raises ValueError: If a name in ``exclude`` is not a submodule, a layer is sparse already, layers share a weight, or a
        weight is not simply a parameter.
    """
    is_excluded = exclude if callable(exclude) else _excluded_by_name(module, exclude)
    leading, known = leading_names(module), {name for name, _ in module.named_modules(remove_duplicate=False)}
    owners: dict[th.Tensor | None, list[str]] = {}
    for place, part in module.named_modules():
        for parameter in part._parameters.values():
            owners.setdefault(parameter, []).append(place)
    places: dict[nn.Module, list[str]] = {}
    for place, part in module.named_modules(remove_duplicate=False):
        places.setdefault(part, []).append(place)
    layers: dict[str, PrunableLayer] = {}
    left_alone = []
    for name, layer in module.named_modules():
        is_layer = isinstance(layer, PrunableLayer | SparseLayer)
        # Of a target network also as what it follows, where there is such a thing.
        asked = {*places[layer], leading[layer]} & known
        if not is_layer or any(is_excluded(place, layer) for place in asked):
            continue
        if isinstance(layer, SparseLayer):
            raise ValueError(f"{name or 'the module'} is sparse already: take to_dense(module) first, or name it in exclude=.")
        if isinstance(layer, PrunableLayer):
            kind = _KINDS.get(type(layer))
            everything = {*layer._parameters, *layer._buffers, *layer._modules}
            check_plain(name, layer, everything if kind is None else {*kind.gathered.values(), *kind.taken})
            if kind is None:
                # It may compute something else with its weight.
                left_alone.append(f"{name} ({type(layer).__name__})")
                continue
            if layer.weight.numel() == 0:
                raise ValueError(
                    f"{name or 'the layer'} has a weight of shape {tuple(layer.weight.shape)}: name it in exclude=."
                )
            if len(sharing := owners[layer.weight]) > 1:
                raise ValueError(
                    f"{' and '.join(sharing)} share one weight, which sparse layers cannot: untie them, or leave all of them "
                    "out."
                )
            layers[name] = layer
    if left_alone:
        warn_user(
            f"subclasses of nn.Linear and nn.Conv2d stay dense: {', '.join(left_alone)}. Name them in exclude= to say so."
        )
    return layers


def _excluded_by_name(module: nn.Module, exclude: Iterable[str]) -> Callable[[str, nn.Module], bool]:
    if isinstance(exclude, str):
        exclude = [exclude]
    # Once: it may be a generator.
    excluded = list(exclude) if isinstance(exclude, Iterable) else None
    if excluded is None or not all(isinstance(name, str) for name in excluded):
        raise ValueError(f"exclude={exclude!r}: expected names of submodules, or a function of a name and a layer.")
    names = {name for name, _ in module.named_modules(remove_duplicate=False)}
    if unknown := [name for name in excluded if name not in names]:
        raise ValueError(f"exclude={unknown}: not a submodule. Submodules are {sorted(names - {''})}.")
    return lambda name, layer: any(name == prefix or name.startswith(prefix + ".") for prefix in excluded)


def replace_layers(module: Module, swaps: Mapping[nn.Module, nn.Module]) -> Module:
    """
    Put layers in the place of others, wherever those are used.

    :param module: Where they are. If it is itself such a layer, the other one is only returned.
    :param swaps: The new layer for each old one.
    """
    # A layer that is used in several places stays one layer.
    for place, layer in list(module.named_modules(remove_duplicate=False)):
        if layer in swaps and place:
            parent, _, child = place.rpartition(".")
            setattr(module.get_submodule(parent), child, swaps[layer])
    for part in module.modules():
        for name, value in vars(part).items():
            # Such as a list of layers that are registered under names of their own.
            if name not in _OF_TORCH and isinstance(value, list | tuple | dict):
                vars(part)[name] = _exchanged(value, swaps, set())
    return swaps.get(module, module)  # type: ignore[return-value]


def _exchanged(value: Any, swaps: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """Layers that a plain collection holds, exchanged in it."""
    if isinstance(value, nn.Module):
        return swaps.get(value, value)
    if id(value) in seen:
        return value
    seen.add(id(value))
    if type(value) is tuple:
        new = tuple(_exchanged(each, swaps, seen) for each in value)
        return new if any(a is not b for a, b in zip(new, value, strict=True)) else value
    for place, each in list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()):
        if (other := _exchanged(each, swaps, seen)) is not each:
            value[place] = other
    return value
