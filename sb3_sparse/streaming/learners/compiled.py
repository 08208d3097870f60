"""The fast learner: closed-form gradients of a stream network, in compiled kernels on flat buffers."""

import operator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn

from sb3_sparse.sparse import SparseLinear
from sb3_sparse.sparse.kernels import kernels_allowed
from sb3_sparse.streaming.kernels import Program
from sb3_sparse.streaming.learners.base import Learner, hooks_of
from sb3_sparse.streaming.networks import StreamNetwork
from sb3_sparse.streaming.obgd import ObGD, bounded_step_size

# Floats between the beginnings of two parameters are a multiple of this: a cache line.
_ALIGNMENT = 16


class _Layer(NamedTuple):
    """A linear layer: views of its part of the flat buffers, and where its weights live if it is sparse."""

    weights: np.ndarray
    bias: np.ndarray
    weight_traces: np.ndarray
    bias_traces: np.ndarray
    n_out: int
    n_in: int
    crow_and_col: tuple[np.ndarray, np.ndarray] | None


class CompiledLearner(Learner):
    """
    For an MLP :class:`StreamNetwork` on the CPU in float32, dense or sparse, with :class:`ObGD`.

    The parameters of the network and their traces in the optimiser's state become views of two flat buffers, so
    everybody else sees every update. Gradients are those of the network's formulas; ``.grad`` is not used.

    :param network: The network.
    :param optimizer: Its optimiser.
    """

    def __init__(self, network: nn.Module, optimizer: ObGD):
        super().__init__(network, optimizer)
        # What instructions read or write besides arrays of their own.
        self._decay = np.zeros(1, dtype=np.float32)
        self._scale = np.zeros(1, dtype=np.float32)
        self._l1 = np.zeros(1, dtype=np.float64)
        self._bind()

    @staticmethod
    def supports(network: nn.Module, optimizer: ObGD) -> bool:
        """Whether the network has exactly the form, place and type that the kernels are for."""
        if not kernels_allowed() or type(network) is not StreamNetwork or type(optimizer) is not ObGD:
            return False
        if th._C._len_torch_dispatch_stack():
            # A mode, such as one that counts operations, is there to see those of torch.
            return False
        trunk = list(network.trunk)
        linear, norms, activations = trunk[0::3], trunk[1::3], trunk[2::3]
        return (
            len(trunk) % 3 == 0
            and all(_is_linear(layer) for layer in [*linear, *network.heads])
            and all(type(norm) is nn.LayerNorm and not norm.elementwise_affine for norm in norms)
            and all(type(activation) is nn.LeakyReLU for activation in activations)
            and all(map(_is_bare, network.modules()))
            and all(map(_is_plain, network.parameters()))
            and {*network.parameters()} == {*optimizer.param_groups[0]["params"]}
        )

    def _bind(self) -> None:
        """Make parameters and traces views of flat buffers, and write the programs about these."""
        offsets, size = [], 0
        for p in self._parameters:
            offsets.append(size)
            size += -(-p.numel() // _ALIGNMENT) * _ALIGNMENT
        # Where kernels read and write, whatever torch's default device is.
        parameters, traces = (th.zeros(size, dtype=th.float32, device="cpu") for _ in range(2))
        views: dict[th.Tensor, tuple[np.ndarray, np.ndarray]] = {}
        self._traces = []
        # There for every parameter from here on; an optimiser may list them in another order than the network.
        self.optimizer.state_of("trace")
        for p, offset in zip(self._parameters, offsets, strict=True):
            flat = parameters[offset : offset + p.numel()]
            flat_trace = traces[offset : offset + p.numel()]
            flat.copy_(p.detach().reshape(-1))
            flat_trace.copy_(self.optimizer.state[p]["trace"].reshape(-1))
            p.data = flat.view(p.shape)
            self.optimizer.state[p]["trace"] = flat_trace.view(p.shape)
            self._traces.append(self.optimizer.state[p]["trace"])
            views[p] = (flat.numpy(), flat_trace.numpy())
        self._flat_traces = traces.numpy()
        self._addresses = [p.data_ptr() for p in self._parameters]
        self._trace_addresses = [z.data_ptr() for z in self._traces]
        self._write_programs(views, parameters.numpy())

    def _write_programs(self, views: dict[th.Tensor, tuple[np.ndarray, np.ndarray]], parameters: np.ndarray) -> None:
        network = self.network
        assert isinstance(network, StreamNetwork)
        trunk = list(network.trunk)
        hidden = [_layer(layer, views) for layer in trunk[0::3]]
        heads = [_layer(layer, views) for layer in network.heads]
        settings = [_settings(norm, activation) for norm, activation in zip(trunk[1::3], trunk[2::3], strict=True)]
        widths = [layer.n_out for layer in hidden]
        n_in = hidden[0].n_in if hidden else heads[0].n_in
        n_out = sum(head.n_out for head in heads)
        # Sample 0 is the one that is learned from, sample 1 is only looked at.
        self._inputs = np.zeros((2, n_in), dtype=np.float32)
        self._outputs = np.zeros((2, n_out), dtype=np.float32)
        normals = [np.zeros((2, width), dtype=np.float32) for width in widths]
        latents = [self._inputs, *(np.zeros((2, width), dtype=np.float32) for width in widths)]
        inverses = [np.zeros((2, 1), dtype=np.float32) for _ in widths]

        def forward(*samples: int) -> Program:
            program: list[tuple[Any, ...]] = []
            for i, layer in enumerate(hidden):
                program.append(_forward(layer, [normals[i][s] for s in samples], [latents[i][s] for s in samples]))
                program += [
                    ("normalize", latents[i + 1][s], normals[i][s], inverses[i][s], settings[i], widths[i]) for s in samples
                ]
            for head, begin in _with_offsets(heads):
                ys = [self._outputs[s, begin : begin + head.n_out] for s in samples]
                program.append(_forward(head, ys, [latents[-1][s] for s in samples]))
            return Program(program)

        self._look, self._look_and_keep, self._look_at_both = forward(1), forward(0), forward(0, 1)

        self._direction = np.zeros(n_out, dtype=np.float32)
        grads = [None, *(np.zeros(width, dtype=np.float32) for width in widths)]
        backward: list[tuple[Any, ...]] = [("clear", grad, len(grad)) for grad in grads if grad is not None]
        for head, begin in _with_offsets(heads):
            direction = self._direction[begin : begin + head.n_out]
            backward.append(self._learning(head, direction, latents[-1][0], grads[-1]))
        for i in reversed(range(len(hidden))):
            grad = grads[i + 1]
            backward.append(("normalize_backward", grad, normals[i][0], inverses[i][0], settings[i], widths[i]))
            backward.append(self._learning(hidden[i], grad, latents[i][0], grads[i]))
        self._accumulate = Program(backward)
        self._take_step = Program([("add_scaled", parameters, self._flat_traces, self._scale, len(parameters))])

    def _learning(self, layer: _Layer, grad: Any, x: np.ndarray, grad_x: np.ndarray | None) -> tuple[Any, ...]:
        """The instruction for the traces of a layer, and for the gradient of its input if that is wanted."""
        kind = "learn_linear" if layer.crow_and_col is None else "learn_sparse_linear"
        place = (layer.n_in,) if layer.crow_and_col is None else layer.crow_and_col
        common = (layer.weight_traces, layer.bias_traces, grad, x, self._decay, self._l1, layer.n_out, *place)
        return (kind, *common) if grad_x is None else (kind + "_and_input", *common, layer.weights, grad_x)

    def _fits(self) -> bool:
        """Whether the programs are still about the right memory, and still compute what autograd would."""
        return (
            super()._fits()
            and [p.data_ptr() for p in self._parameters] == self._addresses
            and not any([p._backward_hooks or p._post_accumulate_grad_hooks for p in self._parameters])
            and self._traces_are_bound()
        )

    def _traces_are_bound(self) -> bool:
        state = self.optimizer.state
        found = [state[p].get("trace") for p in self._parameters]
        return all(map(operator.is_, found, self._traces)) and [z.data_ptr() for z in self._traces] == self._trace_addresses

    def _forward(self, features: np.ndarray) -> np.ndarray:
        self._inputs[1] = features
        self._look.run()
        return self._outputs[1].copy()

    def _forward_and_keep(self, features: np.ndarray) -> np.ndarray:
        self._inputs[0] = features
        self._look_and_keep.run()
        return self._outputs[0].copy()

    def both_outputs(self, features: np.ndarray, next_features: np.ndarray) -> tuple[Any, Any]:
        """Both in one pass over the weights."""
        kept = self._kept_outputs(features)
        if kept is not None:
            return kept, self._forward(next_features)
        self._inputs[0] = features
        self._inputs[1] = next_features
        self._look_at_both.run()
        outputs, next_outputs = self._outputs.copy()
        self._keep(features, outputs)
        return outputs, next_outputs

    def _step(self, features: np.ndarray, direction: np.ndarray, delta: float, reset: bool) -> None:
        group = self.optimizer.param_groups[0]
        self._direction[:] = direction
        self._decay[0] = group["gamma"] * group["trace_lambda"]
        self._l1[0] = 0.0
        self._accumulate.run()
        self.trace_l1 = float(self._l1[0])
        self.step_size = bounded_step_size(group["lr"], group["kappa"], delta, self.trace_l1)
        self._scale[0] = self.step_size * delta
        self._take_step.run()
        if reset:
            self._flat_traces.fill(0.0)

    def reset_traces(self) -> None:
        """Clear the traces."""
        self._flat_traces.fill(0.0)


def why_not_compiled() -> str | None:
    """What LLVM says if it has no code for this processor; else None."""
    return Program.kernels.why_not_compiled()


def _is_bare(module: nn.Module) -> bool:
    """Whether torch would call nothing that the programs do not know."""
    return not any(hooks_of(module)) and "forward" not in vars(module)


def _is_plain(p: th.Tensor) -> bool:
    on_cpu = p.dtype == th.float32 and p.device.type == "cpu"
    return on_cpu and p.requires_grad and not p._backward_hooks and not p._post_accumulate_grad_hooks


def _is_linear(layer: Any) -> bool:
    # Columns are 16-bit numbers, half of what would be read otherwise.
    return type(layer) in (nn.Linear, SparseLinear) and layer.bias is not None and layer.in_features <= 2**16


def _layer(layer: Any, views: dict[th.Tensor, tuple[np.ndarray, np.ndarray]]) -> _Layer:
    weight, crow_and_col = layer.weight, None
    if isinstance(layer, SparseLinear):
        weight, crow_and_col = layer.values, (layer.topology.crow, layer.topology.col)
    (weights, weight_traces), (bias, bias_traces) = views[weight], views[layer.bias]
    return _Layer(weights, bias, weight_traces, bias_traces, layer.out_features, layer.in_features, crow_and_col)


def _settings(norm: Any, activation: Any) -> np.ndarray:
    return np.array([norm.eps, activation.negative_slope], dtype=np.float32)


def _with_offsets(heads: list[_Layer]) -> list[tuple[_Layer, int]]:
    """Each head, and where its outputs begin."""
    begins = np.cumsum([0, *(head.n_out for head in heads)])
    return list(zip(heads, map(int, begins), strict=False))


def _forward(layer: _Layer, ys: list[np.ndarray], xs: list[np.ndarray]) -> tuple[Any, ...]:
    kind = ("linear" if layer.crow_and_col is None else "sparse_linear") + ("_pair" if len(ys) == 2 else "")
    if layer.crow_and_col is None:
        return (kind, *ys, layer.weights, layer.bias, *xs, layer.n_out, layer.n_in)
    return (kind, *ys, layer.weights, layer.bias, *layer.crow_and_col, *xs, layer.n_out)
