"""What happens inside a network during one forward pass: outputs of layers and activation functions, and the features."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.sparse import SparseConv2d, SparseLinear

_RELU = {F.relu, F.relu_, th.relu, th.relu_, th.Tensor.relu, th.Tensor.relu_}
_ACTIVATION_FUNCTIONS = {
    *_RELU,
    *(F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.prelu, F.rrelu),
    *(F.leaky_relu_, F.elu_, F.selu_, F.celu_, F.rrelu_, F.hardtanh_),
    *(F.hardtanh, F.hardswish, F.hardsigmoid, F.logsigmoid, F.sigmoid, F.tanh, F.threshold),
    *(F.hardshrink, F.softshrink, F.tanhshrink),
    *(th.tanh, th.tanh_, th.sigmoid, th.sigmoid_, th.selu, th.selu_, th.celu, th.celu_, th.prelu, th.rrelu, th.rrelu_),
    *(th.threshold, th.threshold_, th.hardshrink),
    *(th.Tensor.tanh, th.Tensor.tanh_, th.Tensor.sigmoid, th.Tensor.sigmoid_, th.Tensor.prelu, th.Tensor.hardshrink),
}
# A ReLU where they cut off at 0 below and nowhere above.
_CLAMPS = {
    *(th.clamp, th.clamp_, th.clip, th.clip_, th.Tensor.clamp, th.Tensor.clamp_, th.Tensor.clip, th.Tensor.clip_),
    *(th.clamp_min, th.clamp_min_, th.Tensor.clamp_min, th.Tensor.clamp_min_),
}
# And these, where one of the two is 0.
_MAXIMA = {th.maximum, th.Tensor.maximum}
# What comes of these depends on the shape of a tensor alone.
_SHAPED_LIKE = {
    *(th.zeros_like, th.ones_like, th.full_like, th.empty_like, th.rand_like, th.randn_like),
    *(th.Tensor.new_zeros, th.Tensor.new_ones, th.Tensor.new_full, th.Tensor.new_empty),
}
_LINEAR_CLASSES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, SparseLinear, SparseConv2d)


class Activations(NamedTuple):
    """
    One forward pass through a network, layers by name, in the order of the pass.

    Units are in dimension 1, ``(batch, units)`` or ``(batch, units, positions, ...)``: what linear layers give for sequences
    and sets, ``(batch, positions, units)``, is turned around.

    Heads, and what follows them, are in ``features`` only, as their input.
    """

    linear: dict[str, th.Tensor]
    """Outputs of the linear and convolutional layers, before any activation function (convention ``"authors"``)."""
    activated: dict[str, th.Tensor]
    """Outputs of the activation functions, under the name of the layer before (convention ``"redo"``)."""
    features: list[th.Tensor]
    """What the heads see: one matrix for each network, e.g. two for two critics."""
    structurally_dead: dict[str, th.Tensor]
    """Per name above a boolean ``(units,)``: which units have no living input. Names of dense layers are missing."""
    rectified: dict[str, th.Tensor]
    """Those of ``activated`` that a ReLU made."""


def record_activations(
    network: nn.Module, forward: Callable[[], Any], has_heads: bool = True, n_samples: int | None = None
) -> Activations:
    """
    Watch one forward pass, without gradients.

    A head is a linear layer of the network that no other linear layer of it follows. Activation functions are seen whether
    they are modules or functions of torch; one of your own, such as a hand-written Swish, has to be a module without children
    that calls one of those.

    >>> network = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    >>> seen = record_activations(network, lambda: network(th.randn(8, 3)))
    >>> {name: tuple(output.shape) for name, output in seen.activated.items()}
    {'0': (8, 16)}

    :param network: Layers outside it are not seen.
    :param forward: Makes the pass.
    :param has_heads: False for an encoder, which has no heads: its last layers count as all others do, and the features
        are what ``forward`` returns.
    :param n_samples: Size of the batch, by which features of an ensemble are known, ``(members, batch, features)``: one matrix
        for each of its members. None: samples come first.
    :raises ValueError: If no linear layer of ``network`` took part, a part of it is TorchScript that has layers or stands
        behind one, or samples are not where they are looked for.
    """
    scripted = {id(module): name for name, module in network.named_modules() if _is_scripted(module)}
    for module in network.modules():
        if id(module) in scripted and any(parameter.ndim > 1 for parameter in module.parameters()):
            raise _is_opaque(scripted[id(module)])
    recorder = _Recorder(n_samples)
    handles: list[RemovableHandle] = []
    try:
        with uninterrupted():
            if scripted:
                # It takes no hooks of its own.
                handles.append(register_module_forward_hook(recorder.scripted_hook(scripted)))
            handles.extend(
                module.register_forward_hook(recorder.layer_hook(name))
                for name, module in network.named_modules()
                if _is_linear(module)
            )
            for module in filter(_may_be_activation, network.modules()):
                handles += module.register_forward_pre_hook(recorder.enter), module.register_forward_hook(recorder.leave)
        with th.no_grad(), recorder:
            outputs = forward()
    finally:
        with uninterrupted():
            for handle in handles:
                handle.remove()
    return recorder.result() if has_heads else recorder.result_of_encoder(list(_tensors(outputs)))


def _is_scripted(module: nn.Module) -> bool:
    return isinstance(module, th.jit.ScriptModule)


def _is_opaque(name: str) -> ValueError:
    return ValueError(f"module {name!r} is TorchScript, which shows nothing of its pass: use the one it was made of.")


class _Layer:
    """A pass through a linear layer."""

    def __init__(self, name: str, module: nn.Module, inputs: th.Tensor, output: th.Tensor):
        self.name = name
        self.module = module
        self.inputs = inputs
        self.output = output
        # The activation after it may work in place.
        self.recorded = output.clone()
        self.is_head = True


class _Recorder(TorchFunctionMode):
    """
    Follows tensors from one linear layer to the next.

    ``sources`` holds for every tensor the linear layers that it comes from without another one in between.
    """

    def __init__(self, n_samples: int | None) -> None:
        super().__init__()
        self.n_samples = n_samples
        self.layers: list[_Layer] = []
        # How many layers and activations there were when each module that is being called began.
        self.entered: list[tuple[int, int]] = []
        self.activations: list[tuple[list[_Layer], bool, bool, th.Tensor]] = []
        # The tensors are kept, so that no later one takes over the id of an earlier one.
        self.sources: dict[int, tuple[th.Tensor, list[_Layer]]] = {}

    def layer_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: th.Tensor) -> None:
            layer = _Layer(name, module, args[0], output)
            for source in self._sources_of(args):
                source.is_head = False
            self.layers.append(layer)
            self.sources[id(output)] = output, [layer]

        return hook

    def scripted_hook(self, names: dict[int, str]) -> Callable[..., None]:
        """Refuses what stands behind a layer: that would be taken for a head, since nothing is seen to follow it."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if id(module) in names and self._sources_of(args):
                raise _is_opaque(names[id(module)])

        return hook

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.entered.append((len(self.layers), len(self.activations)))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """What an activation returns counts, not what it calls on the way: of x * sigmoid(x) not the sigmoid."""
        n_layers, first = self.entered.pop()
        inside = self.activations[first:]
        # One that calls layers, which others hold, is no activation.
        if inside and len(self.layers) == n_layers and isinstance(output, th.Tensor) and output.shape == inside[-1][-1].shape:
            sources, is_direct, is_relu, last = inside[-1]
            self.activations[first:] = [(sources, is_direct, is_relu and th.equal(last, output), output.clone())]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sources = self._sources_of((args, kwargs))
        is_direct = bool(args) and len(sources) == 1 and args[0] is sources[0].output
        result = func(*args, **kwargs)
        if sources and func not in _SHAPED_LIKE:
            for tensor in _tensors(result):
                self.sources[id(tensor)] = tensor, sources
            if (is_relu := func in _RELU or self._cuts_at_zero(func, args, kwargs)) or func in _ACTIVATION_FUNCTIONS:
                self.activations.append((sources, is_direct, is_relu, result.clone()))
        return result

    def _cuts_at_zero(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether this is a ReLU by another name: clamp(min=0), maximum(x, 0)."""
        if func in _MAXIMA:
            return any(self._is_zero(value) for value in (*args, *kwargs.values()))
        if func not in _CLAMPS:
            return False
        limits = [*args[1:], *kwargs.values()]
        lower = kwargs.get("min", args[1] if len(args) > 1 else None)
        others = [limit for limit in limits if limit is not None and limit is not lower]
        return lower is not None and not others and self._is_zero(lower)

    def _is_zero(self, value: Any) -> bool:
        """Whether it is 0 for all observations: the output of a layer may be 0 for those that are at hand."""
        return not self._sources_of(value) and not bool(th.as_tensor(value).any())

    def _sources_of(self, values: Any) -> list[_Layer]:
        sources: list[_Layer] = []
        for tensor in _tensors(values):
            for layer in self.sources.get(id(tensor), (tensor, []))[1]:
                if not any(layer is known for known in sources):
                    sources.append(layer)
        return sources

    def result_of_encoder(self, outputs: list[th.Tensor]) -> Activations:
        for layer in self.layers:
            layer.is_head = False
        if not outputs:
            raise ValueError("the pass through an encoder returned no tensor: expected the features.")
        return self.result()._replace(features=self._matrices(outputs))

    def result(self) -> Activations:
        if not self.layers:
            raise ValueError(
                "no linear or convolutional layer of the network took part in the pass: either it has none, as an encoder of "
                "vectors, or it is not the network of this pass."
            )
        linear: dict[str, th.Tensor] = {}
        activated: dict[str, th.Tensor] = {}
        dead: dict[str, th.Tensor] = {}
        rectified: dict[str, th.Tensor] = {}
        features: list[th.Tensor] = []
        for layer in self.layers:
            if layer.is_head:
                if not any(layer.inputs is seen for seen in features):
                    features.append(layer.inputs)
                continue
            _add(linear, dead, layer.name, _units_second(layer, layer.recorded), _without_inputs(layer.module))
        for sources, is_direct, is_relu, output in self.activations:
            if not any(source.is_head for source in sources):
                mask = _without_inputs(sources[-1].module) if is_direct else None
                output = _units_second(sources[-1], output)
                name = _add(activated, dead, sources[-1].name, output, mask)
                if is_relu:
                    rectified[name] = output
        return Activations(linear, activated, self._matrices(features), dead, rectified)

    def _matrices(self, features: list[th.Tensor]) -> list[th.Tensor]:
        found = []
        for x in map(th.Tensor.detach, features):
            if self.n_samples is None or len(x) % self.n_samples == 0:
                found.append(x.flatten(1))
            elif x.dim() > 2 and x.shape[1] == self.n_samples:
                found += [member.flatten(1) for member in x]
            else:
                raise ValueError(
                    f"a head sees features of shape {tuple(x.shape)}, of {self.n_samples} samples: expected (samples, ...), "
                    "or (members, samples, ...) of an ensemble."
                )
        return found


def _units_second(layer: _Layer, output: th.Tensor) -> th.Tensor:
    units = getattr(layer.module, "out_features", None)
    return output.movedim(-1, 1) if output.dim() > 2 and output.shape[-1] == layer.output.shape[-1] == units else output


def _add(
    outputs: dict[str, th.Tensor], dead: dict[str, th.Tensor], name: str, output: th.Tensor, mask: th.Tensor | None
) -> str:
    """Add an output under a name that is not taken, which is returned."""
    unique, number = name, 1
    while unique in outputs:
        number += 1
        unique = f"{name}#{number}"
    outputs[unique] = output
    if mask is not None:
        dead[unique] = mask
    return unique


def _is_linear(module: nn.Module) -> bool:
    # Linear layers of other libraries and their own kinds, such as noisy ones, say how many units they have.
    return isinstance(module, _LINEAR_CLASSES) or isinstance(getattr(module, "out_features", None), int)


def _may_be_activation(module: nn.Module) -> bool:
    is_leaf = next(module.children(), None) is None
    is_known = _is_scripted(module) or _is_linear(module) or type(module).__module__.startswith("torch.nn.modules.")
    return is_leaf and not is_known


def _without_inputs(module: nn.Module) -> th.Tensor | None:
    if isinstance(module, (SparseLinear, SparseConv2d)):
        return module.topology.fan_in() == 0
    mask = getattr(module, "weight_mask", None)  # torch.nn.utils.prune
    return None if mask is None else ~mask.flatten(1).bool().any(dim=1)


def _tensors(values: Any) -> Iterator[th.Tensor]:
    if isinstance(values, th.Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
