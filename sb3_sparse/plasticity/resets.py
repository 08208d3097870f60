"""
Resets of any torch module, in place: parameters stay the objects that the optimiser knows, only their values change.

New values come from a second module, drawn by the architecture's own initialisers (:func:`draw_fresh`). Optimiser state is
forgotten for exactly the parameters that got new values. ``redo.py`` has the reset of single units, ``reset_model.py`` the
resets of a Stable-Baselines3 model.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

import torch as th
from torch import nn

from sb3_sparse.sparse import SparseConv2d, SparseLinear, Topology
from sb3_sparse.sparse.topology import derive_seed
from sb3_sparse.sparse.weight import keep_dense_draws

Module = TypeVar("Module", bound=nn.Module)
WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, SparseLinear, SparseConv2d)


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
    with th.random.fork_rng(devices=[]), th.device("cpu"), keep_dense_draws():
        th.default_generator.manual_seed(seed)
        return build()


def reset_full_(
    module: nn.Module,
    fresh: nn.Module,
    optimizer: th.optim.Optimizer | None = None,
    *,
    redraw_seed: int | None = None,
) -> None:
    """
    Give every parameter its fresh value, as if training had not begun (Nikishin et al. 2022).

    Buffers of layers that have parameters (statistics of batch normalisation) start anew, too. Modules without
    parameters, such as :class:`RunningNorm`, keep theirs: they know the data, not the weights.

    :param module: Changed in place; the topologies of sparse layers stay.
    :param fresh: A module of the same structure, from :func:`draw_fresh`.
    :param optimizer: Forgets its state of every parameter of the module.
    :param redraw_seed: Draw new topologies with as many weights in each layer.
    :raises ValueError: If the two modules do not have the same structure.
    """
    if redraw_seed is not None:
        redraw_topology_(module, redraw_seed)
    values = fresh_values(module, fresh)
    assign_(module, values)
    copy_buffers_(module, fresh, values)
    forget_state(optimizer, parameters_of(module, values))


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
    values = fresh_values(module, fresh, last_layers([leaves(module)], n_layers))
    assign_(module, values)
    copy_buffers_(module, fresh, values)
    forget_state(optimizer, parameters_of(module, values))


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
    check_factor("shrink", shrink)
    check_factor("perturb", perturb)
    blend_(module, fresh_values(module, fresh), shrink, perturb)
    forget_state(optimizer, module.parameters())


def fresh_values(module: nn.Module, fresh: nn.Module, within: Collection[nn.Module] | None = None) -> dict[str, th.Tensor]:
    """
    For each parameter's name the value that ``fresh`` has for it, of a sparse layer at this module's topology.

    :param module: What is to be reset.
    :param fresh: A module of the same structure.
    :param within: Only the parameters that these modules own directly.
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
            value = _fresh_value(ours, key, twins.get(prefix), name)
            if value is None or value.shape != parameter.shape:
                found = "no such parameter" if value is None else f"shape {tuple(value.shape)}"
                raise ValueError(
                    f"{name}: expected {tuple(parameter.shape)} in the fresh module, found {found}. "
                    "Build it with the arguments that built the module."
                )
            values[name] = value
    return values


def assign_(module: nn.Module, values: dict[str, th.Tensor]) -> None:
    """Copy values, by name, into the parameters of a module."""
    blend_(module, values, 0.0, 1.0)


@th.no_grad()
def blend_(module: nn.Module, values: dict[str, th.Tensor], shrink: float, perturb: float) -> None:
    """``shrink * parameter + perturb * value`` for the parameters named in ``values``."""
    done = set()
    for name, parameter in module.named_parameters(remove_duplicate=False):
        # A parameter that is used in two places has two names.
        if name in values and parameter not in done:
            done.add(parameter)
            value = values[name].to(parameter)
            # Not by arithmetic, for which a weight that has diverged would stay what it is.
            parameter.copy_(value if shrink == 0.0 and perturb == 1.0 else shrink * parameter + perturb * value)


@th.no_grad()
def copy_buffers_(module: nn.Module, fresh: nn.Module, names: Iterable[str]) -> None:
    """Copy the buffers of the layers that own the named parameters, except those that hold a topology."""
    twins = dict(fresh.named_modules(remove_duplicate=False))
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    for prefix, ours in module.named_modules(remove_duplicate=False):
        if prefix in owners:
            for key, buffer in ours._buffers.items():
                if buffer is not None and key not in ("topology_seed", "topology_index"):
                    value = twins[prefix]._buffers[key]
                    assert value is not None
                    buffer.copy_(value)


def redraw_topology_(module: nn.Module, seed: int, within: Collection[nn.Module] | None = None) -> None:
    """
    New topologies for the sparse layers, each with as many weights as before. The values have to be drawn anew.

    :param module: Changed in place.
    :param seed: The new positions follow from it and the name of the layer.
    :param within: Only these layers.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, (SparseLinear, SparseConv2d)) and (within is None or layer in within):
            old = layer.topology
            layer.set_topology(Topology.random(old.shape, old.nnz, derive_seed(seed, name)))


def copy_topology_(target: nn.Module, online: nn.Module) -> None:
    """Give the sparse layers of a target network the topologies of the online network."""
    layers = dict(online.named_modules())
    for name, layer in target.named_modules():
        if isinstance(layer, (SparseLinear, SparseConv2d)) and layer.topology is not layers[name].topology:
            layer.set_topology(layers[name].topology)


def forget_state(optimizer: th.optim.Optimizer | None, parameters: Iterable[nn.Parameter]) -> None:
    """
    Forget what an optimiser remembers of parameters, the step count included; it starts anew with its next step.

    Groups, learning rates and the state of all other parameters stay.
    """
    if optimizer is not None:
        for parameter in parameters:
            optimizer.state.pop(parameter, None)


def parameters_of(module: nn.Module, names: Collection[str]) -> list[nn.Parameter]:
    """The parameters with these names."""
    return [parameter for name, parameter in module.named_parameters(remove_duplicate=False) if name in names]


def leaves(module: nn.Module) -> list[nn.Module]:
    """The modules without submodules, in the order in which they were registered."""
    return [part for part in module.modules() if next(part.children(), None) is None]


def last_layers(chains: Iterable[list[nn.Module]], n_layers: int) -> set[nn.Module]:
    """
    The last layers of each chain.

    :param chains: Modules in the order in which they are used. Parallel heads are chains with a common beginning.
    :param n_layers: How many of them that have a weight.
    :raises ValueError: If ``n_layers`` is not positive or a chain has fewer.
    """
    check_positive("n_layers", n_layers)
    last: set[nn.Module] = set()
    for chain in chains:
        places = list(_weight_places(chain))
        if len(places) < n_layers:
            raise ValueError(f"n_layers={n_layers}: the network has {len(places)} layers with a weight. Use a full reset.")
        last.update(chain[places[-n_layers] :])
    return last


def check_factor(name: str, factor: float) -> None:
    """
    :raises ValueError: If it is not a number in [0, 1].
    """
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0.0 <= factor <= 1.0:
        raise ValueError(f"{name}={factor!r}: expected a number in [0, 1].")


def check_positive(name: str, value: int) -> None:
    """
    :raises ValueError: If it is not a positive integer.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: expected a positive integer.")


def _weight_places(chain: list[nn.Module]) -> Iterator[int]:
    return (place for place, module in enumerate(chain) if isinstance(module, WEIGHT_LAYERS))


def _fresh_value(ours: nn.Module, key: str, twin: nn.Module | None, name: str) -> th.Tensor | None:
    if twin is None:
        return None
    if not (isinstance(ours, (SparseLinear, SparseConv2d)) and key == "values"):
        value = twin._parameters.get(key)
        return None if value is None else value.detach()
    topology = ours.topology
    dense: th.Tensor | None
    if not isinstance(twin, (SparseLinear, SparseConv2d)):
        dense = twin._parameters.get("weight")
    elif twin.dense_draw is not None:
        dense = twin.dense_draw
    elif twin.topology == topology:
        return twin.values.detach()
    else:
        raise ValueError(
            f"{name}: the fresh layer has values at other positions only. Make the fresh module with draw_fresh()."
        )
    if dense is None or tuple(dense.shape) != topology.shape:
        return None
    return dense.detach().reshape(-1).index_select(0, topology.flat_index(dense.device))
