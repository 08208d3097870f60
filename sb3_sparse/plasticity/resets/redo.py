"""ReDo (Sokar et al. 2023): find the units of a network that hardly ever fire, and recycle them."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch as th
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.hooks import RemovableHandle

from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.common.model_parts import leaves
from sb3_sparse.common.validation import flag, number_in
from sb3_sparse.plasticity.metrics.activity import DORMANT_TAU
from sb3_sparse.plasticity.resets.torch_module import fresh_values
from sb3_sparse.sparse import SparseLinear
from sb3_sparse.sparse.surgery.swap import Swap

DEFAULT_TAU = DORMANT_TAU["redo"]
_LINEAR = (nn.Linear, SparseLinear)


@dataclass
class HiddenLayer:
    """Units between linear layers: ``incoming``, an activation function, and every layer that reads its output."""

    name: str
    incoming: nn.Linear | SparseLinear
    activation: nn.Module
    outgoing: list[nn.Linear | SparseLinear] = field(default_factory=list)
    norms: list[nn.Module] = field(default_factory=list)
    """Normalisation of the units, before or after the activation function."""

    @property
    def learns(self) -> bool:
        """Whether nothing about its units is frozen."""
        parts = (self.incoming, *self.norms, *self.outgoing)
        return all(parameter.requires_grad for part in parts for parameter in part.parameters())


@dataclass(frozen=True)
class ReDoReport:
    """What :func:`redo_` did, for each hidden layer by the name of its incoming layer."""

    units: dict[str, int]
    """Units with a living input; the others are left alone."""
    recycled: dict[str, int]
    """Units with a score of at most tau: all of them were recycled."""
    unconnected: dict[str, int]
    """Of the recycled units, those without a living input or output weight: they can never matter."""

    @property
    def dormant_ratio(self) -> float:
        """Share of the units of all layers together that were recycled."""
        return sum(self.recycled.values()) / max(1, sum(self.units.values()))


def redo_(
    module: nn.Module,
    fresh: nn.Module,
    forward: Callable[[], object],
    optimizer: th.optim.Optimizer | None = None,
    *,
    tau: float = DEFAULT_TAU,
    reset_step: bool = False,
    chains: Iterable[list[nn.Module]] | None = None,
    swap: Swap | None = None,
) -> ReDoReport:
    """
    Recycle dormant units, in place.

    The score of a unit is the mean absolute value behind its activation function, divided by the mean of that over
    its layer; a unit with a score of at most ``tau`` is dormant. Its incoming weights get fresh values, its bias
    becomes 0, parameters and statistics of a normalisation layer get fresh values at its place, its outgoing weights
    become 0. So it is with the deviations of noisy layers, but that of the bias gets a fresh value: the network computes
    what it did, whatever the noise.
    Of a sparse layer only weights that exist are touched. What the optimiser remembers of those entries becomes what it begins
    with: 0 for moments, others for Rprop, Adagrad and SB3's RMSpropTFLike.

    :param module: Its hidden layers are found by looking for a linear layer, an activation module, a linear layer,
        in the order of registration: MLPs and SimBa's residual blocks. Convolutions are left alone.
    :param fresh: A module of the same structure, from :func:`~sb3_sparse.plasticity.resets.draw_fresh`.
    :param forward: Runs the module on a batch; called once, without gradients and in evaluation mode.
    :param optimizer: Any whose state has tensors of the shape of the parameter, such as Adam's two moments, which begin at 0,
        or one of those above.
    :param tau: Threshold of the score, in [0, 1); 0 recycles units that never fire.
    :param reset_step: Also set Adam's step counts of the touched tensors to 0. Adam counts per tensor, not per
        entry, so this restarts the bias correction of untouched entries, too.
    :param chains: Modules in the order in which they are used, where registration does not tell.
    :param swap: Where the changes are prepared, to be made later. By default they are made at once.
    :return: How many units of which layer were recycled.
    :raises ValueError: If ``tau`` is out of range, no hidden layer is found, one is parametrized, or ``forward`` does not
        reach one.
    """
    prepared = Swap() if swap is None else swap
    tau, reset_step = number_in("tau", tau, 0, 1), flag("reset_step", reset_step)
    layers = hidden_layers(module, [leaves(module)] if chains is None else chains)
    if not layers:
        raise ValueError(
            "ReDo found no hidden layer: it looks for a linear layer, a module such as nn.ReLU and a linear layer. "
            "An activation that is called as a function cannot be seen: use its module."
        )
    dormant = {layer.name: score <= tau for layer, score in zip(layers, unit_scores(module, layers, forward), strict=True)}
    report = ReDoReport(
        units={layer.name: int((~_without_inputs(layer)).sum()) for layer in layers},
        recycled={name: int(units.sum()) for name, units in dormant.items()},
        unconnected={layer.name: int((dormant[layer.name] & _unconnected(layer)).sum()) for layer in layers},
    )
    touched = {part for layer in layers for part in (layer.incoming, *layer.norms)}
    values = fresh_values(module, fresh, touched)
    new = {parameter: values[name] for name, parameter in module.named_parameters(remove_duplicate=False) if name in values}
    recycler = _Recycler(prepared, optimizer, reset_step)
    names = {part: name for name, part in module.named_modules()}
    for layer in layers:
        units = dormant[layer.name]
        entries, weights = _entries(layer.incoming, units, by_row=True), _weights(layer.incoming)
        for parameter in layer.incoming.parameters(recurse=False):
            if any(parameter is weight for weight in weights):
                recycler.set(parameter, entries, new[parameter])
            else:
                recycler.set(parameter, units, None if parameter is layer.incoming.bias else new[parameter])
        for norm in layer.norms:
            for parameter in norm.parameters(recurse=False):
                recycler.set(parameter, units, new[parameter])
            # A silent unit has no variance: normalised with that, the new one would come out far too large.
            twin = fresh.get_submodule(names[norm])
            for key, statistic in norm.named_buffers(recurse=False):
                if statistic.shape == units.shape:
                    prepared.set(statistic, th.where(units, twin.get_buffer(key).to(statistic), statistic))
    # After all incoming weights, since a layer may be the outgoing one of this layer and the incoming one of the next.
    for layer in layers:
        for outgoing in layer.outgoing:
            for weight in _weights(outgoing):
                recycler.set(weight, _entries(outgoing, dormant[layer.name], by_row=False), None)
    if swap is None:
        prepared.apply()
    return report


def hidden_layers(module: nn.Module, chains: Iterable[list[nn.Module]]) -> list[HiddenLayer]:
    """
    The hidden layers of a network that learn, with every layer that reads them. With a frozen part a unit cannot be recycled.

    :param module: Gives the layers their names.
    :param chains: Modules in the order in which they are used. Parallel heads are chains with a common beginning.
    :raises ValueError: If one of them is parametrized.
    """
    names = {part: name for name, part in module.named_modules()}
    found: dict[nn.Module, HiddenLayer] = {}
    for chain in chains:
        incoming: nn.Module | None = None
        activation: nn.Module | None = None
        norms: list[nn.Module] = []
        for part in chain:
            if isinstance(part, _LINEAR):
                if isinstance(incoming, _LINEAR) and activation is not None and incoming.out_features == part.in_features:
                    layer = found.setdefault(incoming, HiddenLayer(names[incoming], incoming, activation, norms=norms))
                    if part not in layer.outgoing:
                        layer.outgoing.append(part)
                incoming, activation, norms = part, None, []
            elif type(part).__module__ == "torch.nn.modules.activation":
                activation = part
            elif next(part.parameters(), None) is not None:
                is_norm = all(p.ndim == 1 and len(p) == getattr(incoming, "out_features", 0) for p in part.parameters())
                # Something else with parameters, a convolution: what is behind it are not these units.
                incoming, norms = (incoming, [*norms, part]) if is_norm else (None, [])
    layers = [layer for layer in found.values() if layer.learns]
    for part in (part for layer in layers for part in (layer.incoming, *layer.norms, *layer.outgoing)):
        if is_parametrized(part):
            raise ValueError(
                f"ReDo cannot recycle units at {names[part]!r}: its weight is computed from others, by parametrizations. Take "
                "another strategy, or torch.nn.utils.parametrize.remove_parametrizations first."
            )
    return layers


def unit_scores(module: nn.Module, layers: list[HiddenLayer], forward: Callable[[], object]) -> list[th.Tensor]:
    """
    Mean absolute activation of each unit, relative to the mean of its layer.

    :param module: Its mode is put back afterwards.
    :param layers: From :func:`hidden_layers`.
    :param forward: Runs the module on a batch.
    :return: For each layer a tensor ``(units,)``. Zero everywhere for a layer that is silent; infinite for units without
        any living input.
    """
    sums: dict[int, list[th.Tensor]] = {index: [] for index in range(len(layers))}
    passes = [0] * len(layers)

    def keep(index: int) -> Callable[..., None]:
        return lambda _, __, output: sums[index].append(output.detach().abs().flatten(0, -2).mean(0))

    def count(index: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            passes[index] += 1

        return hook

    hooks: list[RemovableHandle] = []
    try:
        with uninterrupted():
            for index, layer in enumerate(layers):
                hooks.append(layer.activation.register_forward_hook(keep(index)))
                hooks.append(layer.incoming.register_forward_hook(count(index)))
        with th.no_grad(), _evaluation_mode(module):
            forward()
    finally:
        with uninterrupted():
            for hook in hooks:
                hook.remove()
    scores = []
    for layer, means, n_passes in zip(layers, sums.values(), passes, strict=True):
        if not means:
            raise ValueError(f"forward() does not reach {layer.name!r}: ReDo needs a batch through the whole module.")
        if len(means) != n_passes:
            raise ValueError(
                f"the activation module behind {layer.name!r} is called {len(means)} times, that layer {n_passes} times: "
                "several layers share it. ReDo needs a module for each."
            )
        mean = th.stack(means).mean(0)
        # A unit without any living input says nothing about the others, and new weights would not help it.
        alive = ~_without_inputs(layer).to(mean.device)
        scores.append(th.where(alive, mean / (mean[alive].mean() + 1e-9), math.inf))
    return scores


# State that does not begin at 0, by the optimizer's class and its own name, from the group of a parameter. The last is SB3's.
_STARTS: dict[tuple[str, str], Callable[[dict[str, Any]], float]] = {
    ("Adagrad", "sum"): lambda group: float(group["initial_accumulator_value"]),
    ("Rprop", "step_size"): lambda group: float(group["lr"]),
    ("RMSpropTFLike", "square_avg"): lambda group: 1.0,
}


class _Recycler:
    """Prepares new values for entries of parameters, and for what an optimiser remembers of exactly these entries."""

    def __init__(self, swap: Swap, optimizer: th.optim.Optimizer | None, reset_step: bool):
        self.swap = swap
        self.optimizer = optimizer
        self.reset_step = reset_step

    @th.no_grad()
    def set(self, parameter: nn.Parameter, entries: th.Tensor, new: th.Tensor | None) -> None:
        """``parameter[entries] = new[entries]``, or 0."""
        if not bool(entries.any()):
            return
        swap = self.swap
        swap.set(parameter, th.where(entries, 0.0 if new is None else new.to(parameter), swap.value_of(parameter)))
        state = {} if self.optimizer is None else self.optimizer.state.get(parameter, {})
        for key, remembered in state.items():
            if not isinstance(remembered, th.Tensor):
                continue
            if key == "step":
                if self.reset_step:
                    swap.set(remembered, th.zeros_like(remembered))
            elif remembered.shape == parameter.shape:
                start = self._start(parameter, key)
                swap.set(remembered, swap.value_of(remembered).masked_fill(entries, start))

    def _start(self, parameter: nn.Parameter, key: str) -> float:
        """What the optimizer begins with."""
        assert self.optimizer is not None
        known = (_STARTS.get((kind.__name__, key)) for kind in type(self.optimizer).__mro__)
        start = next((each for each in known if each is not None), None)
        if start is None:
            return 0.0
        return start(next(g for g in self.optimizer.param_groups if any(p is parameter for p in g["params"])))


def _weights(layer: nn.Linear | SparseLinear) -> list[nn.Parameter]:
    """The weight of a layer and, of a noisy one, its deviations."""
    if isinstance(layer, SparseLinear):
        return [getattr(layer, name) for name in layer.gathered]
    return [parameter for parameter in layer.parameters(recurse=False) if parameter.ndim == 2]


def _entries(layer: Any, units: th.Tensor, by_row: bool) -> th.Tensor:
    """A mask over the weight of a layer: the rows (incoming weights) or columns (outgoing weights) of units."""
    if isinstance(layer, SparseLinear):
        if by_row:
            return units.repeat_interleave(layer.topology.fan_in().to(units.device))
        return units[layer.topology.column_index(units.device)]
    mask = units[:, None] if by_row else units[None, :]
    return mask.expand_as(layer.weight)


def _without_inputs(layer: HiddenLayer) -> th.Tensor:
    """Units whose activation is a constant. Behind a normalisation layer that is not so."""
    if isinstance(layer.incoming, SparseLinear) and not layer.norms:
        return layer.incoming.topology.fan_in() == 0
    return th.zeros(layer.incoming.out_features, dtype=th.bool)


def _unconnected(layer: HiddenLayer) -> th.Tensor:
    """Units that have no living input weight or no living output weight."""

    def degree(part: nn.Linear | SparseLinear, by_row: bool) -> th.Tensor:
        if isinstance(part, SparseLinear):
            return part.topology.fan_in() if by_row else part.topology.fan_out()
        return th.full((part.out_features if by_row else part.in_features,), part.in_features if by_row else part.out_features)

    fan_out = th.stack([degree(part, by_row=False) for part in layer.outgoing]).sum(0)
    lonely = (degree(layer.incoming, by_row=True) == 0) | (fan_out == 0)
    return lonely.to(next(layer.incoming.parameters()).device)


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        with uninterrupted():
            for part, mode in modes:
                part.training = mode
