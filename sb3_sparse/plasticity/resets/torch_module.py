"""
Resets of any torch module, in place: parameters stay the objects that the optimiser knows, only their values change.

New values come from a second module, drawn by the architecture's own initialisers
(:func:`~sb3_sparse.sparse.surgery.redraw.draw_fresh`). Optimiser state is forgotten for exactly the parameters that got new
values. A reset is prepared first and then made as a whole (:class:`~sb3_sparse.sparse.surgery.swap.Swap`). ``redo.py`` has
the reset of single units, ``sb3_model.py`` the resets of a Stable-Baselines3 model.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeVar

import torch as th
from torch import nn

from sb3_sparse.common.model_parts import leaves
from sb3_sparse.common.validation import fraction, whole_number
from sb3_sparse.sparse.layers import WeightLayer
from sb3_sparse.sparse.surgery.redraw import drawn_value, redraw_topology
from sb3_sparse.sparse.surgery.swap import Swap

Module = TypeVar("Module", bound=nn.Module)


def reset_full_(
    module: nn.Module,
    fresh: nn.Module,
    optimizer: th.optim.Optimizer | None = None,
    *,
    redraw_seed: int | None = None,
) -> None:
    """
    Give every parameter its fresh value, as if training had not begun (Nikishin et al. 2022); frozen ones keep theirs, here
    and in all other resets.

    Buffers of layers that have parameters (statistics of batch normalisation) start anew, too. Modules without
    parameters, such as :class:`RunningNorm`, keep theirs: they know the data, not the weights.

    :param module: Changed in place; the topologies of sparse layers stay.
    :param fresh: A module of the same structure, from :func:`draw_fresh`.
    :param optimizer: Forgets its state of every parameter of the module.
    :param redraw_seed: Draw new topologies with as many weights in each layer.
    :raises ValueError: If the two modules do not have the same structure.
    """
    swap = Swap()
    if redraw_seed is not None:
        redraw_topology(swap, module, redraw_seed)
    renew(swap, module, fresh, _learned(module, fresh_values(module, fresh, swap=swap)), optimizer)
    swap.apply()


def reset_last_layers_(
    module: nn.Module, fresh: nn.Module, optimizer: th.optim.Optimizer | None = None, *, n_layers: int = 1
) -> None:
    """
    Give the last layers their fresh values: the ``n_layers`` last with a weight, and what follows the first of them.

    :param module: Its layers are taken in the order in which they were registered.
    :param fresh: A module of the same structure, from :func:`draw_fresh`.
    :param optimizer: Forgets its state of the parameters that were reset.
    :param n_layers: How many linear or convolutional layers.
    :raises ValueError: If there are fewer layers, or the two modules do not have the same structure.
    """
    swap = Swap()
    values = fresh_values(module, fresh, last_layers([leaves(module)], n_layers))
    renew(swap, module, fresh, _learned(module, values), optimizer)
    swap.apply()


def shrink_perturb_(
    module: nn.Module,
    fresh: nn.Module,
    optimizer: th.optim.Optimizer | None = None,
    *,
    shrink: float = 0.5,
    perturb: float = 0.5,
) -> None:
    """
    ``w = shrink * w + perturb * w_fresh`` for every parameter, biases and norms included (Ash & Adams 2020).

    :param module: Changed in place; topologies and buffers stay.
    :param fresh: A module of the same structure, from :func:`draw_fresh`.
    :param optimizer: Forgets its state of every parameter of the module.
    :param shrink: In [0, 1].
    :param perturb: In [0, 1]. The defaults are those of Juliani & Ash (2024).
    :raises ValueError: If a factor is out of range, or the two modules do not have the same structure.
    """
    shrink, perturb = fraction("shrink", shrink), fraction("perturb", perturb)
    swap = Swap()
    blend(swap, module, _learned(module, fresh_values(module, fresh)), shrink, perturb, optimizer)
    swap.apply()


def _learned(module: nn.Module, values: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
    """Without those of frozen parameters, which could never leave a fresh value again."""
    return {name: value for name, value in values.items() if module.get_parameter(name).requires_grad}


def fresh_values(
    module: nn.Module, fresh: nn.Module, within: Collection[nn.Module] | None = None, swap: Swap | None = None
) -> dict[str, th.Tensor]:
    """
    For each parameter's name the value that ``fresh`` has for it, of a sparse layer at this module's topology.

    :param module: What is to be reset.
    :param fresh: A module of the same structure.
    :param within: Only the parameters that these modules own directly.
    :param swap: Knows the topologies that the layers will have, if they get new ones.
    :raises ValueError: If the structures differ.
    """
    twins = dict(fresh.named_modules(remove_duplicate=False))
    values = {}
    for prefix, ours in module.named_modules(remove_duplicate=False):
        if within is not None and ours not in within:
            continue
        for key, parameter in ours._parameters.items():
            if parameter is None:
                continue
            name = f"{prefix}.{key}" if prefix else key
            twin = twins.get(prefix)
            try:
                value = None if twin is None else drawn_value(ours, key, twin, swap)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            if value is None or value.shape != parameter.shape:
                found = "no such parameter" if value is None else f"shape {tuple(value.shape)}"
                raise ValueError(
                    f"{name}: expected {tuple(parameter.shape)} in the fresh module, found {found}. "
                    "Build it with the arguments that built the module."
                )
            values[name] = value
    return values


def renew(
    swap: Swap,
    module: nn.Module,
    source: nn.Module,
    values: Mapping[str, th.Tensor],
    optimizer: th.optim.Optimizer | None = None,
) -> None:
    """
    Prepare new values for the parameters named in ``values``, and for the buffers of the layers that own them.

    :param swap: Where it is prepared.
    :param module: What gets them.
    :param source: Where the buffers come from; what it will be itself, counts.
    :param values: New values by name.
    :param optimizer: Forgets its state of these parameters.
    """
    blend(swap, module, values, 0.0, 1.0, optimizer)
    twins = dict(source.named_modules(remove_duplicate=False))
    owners = {name.rpartition(".")[0] for name in values}
    for prefix, ours in module.named_modules(remove_duplicate=False):
        for key, buffer in ours._buffers.items() if prefix in owners else ():
            # Those that hold a topology go with it.
            if buffer is not None and key not in ("topology_seed", "topology_index"):
                value = twins[prefix]._buffers[key]
                assert value is not None
                swap.set(buffer, swap.value_of(value))


@th.no_grad()
def blend(
    swap: Swap,
    module: nn.Module,
    values: Mapping[str, th.Tensor],
    shrink: float,
    perturb: float,
    optimizer: th.optim.Optimizer | None = None,
) -> None:
    """Prepare ``shrink * parameter + perturb * value`` for the parameters named in ``values``."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        # A parameter that is used in two places has two names.
        if name in values and parameter not in swap:
            value = values[name].to(parameter)
            # Not by arithmetic, for which a weight that has diverged would stay what it is.
            swap.set(parameter, value if shrink == 0.0 and perturb == 1.0 else shrink * parameter + perturb * value)
            swap.forget(optimizer, parameter)


def last_layers(chains: Iterable[list[nn.Module]], n_layers: int) -> set[nn.Module]:
    """
    The last layers of each chain, with all that is inside them.

    :param chains: Modules in the order in which they are used. Parallel heads are chains with a common beginning.
    :param n_layers: How many of them that have a weight.
    :raises ValueError: If ``n_layers`` is not positive or a chain has fewer.
    """
    n_layers = whole_number("n_layers", n_layers, 1)
    last: set[nn.Module] = set()
    for chain in chains:
        places = list(_weight_places(chain))
        if len(places) < n_layers:
            raise ValueError(f"n_layers={n_layers}: the network has {len(places)} layers with a weight. Use a full reset.")
        # With what computes their weights, where these are parametrized.
        last.update(part for layer in chain[places[-n_layers] :] for part in layer.modules())
    return last


def _weight_places(chain: list[nn.Module]) -> Iterator[int]:
    return (place for place, module in enumerate(chain) if isinstance(module, WeightLayer))
