"""
Which networks a pass can be written for: what their layers are, and how what comes out becomes an action.

Whatever is not exactly what it should be is refused: torch's pass is right for everything.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.crossq.policies import CrossQPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from sb3_contrib.tqc.policies import TQCPolicy
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_sparse.networks.fused import LayerNorm
from sb3_sparse.networks.running_norm import EPS, LARGEST, RunningNorm
from sb3_sparse.networks.simba import ResidualBlock, SimBaEncoder
from sb3_sparse.simba import networks
from sb3_sparse.simba.observation_norm import ObservationNorm
from sb3_sparse.sparse import SparseLinear
from sb3_sparse.sparse.kernels.native.sample.forward import COLUMN_BITS
from sb3_sparse.sparse.weight import NONZEROS

# Kinds of modules that a network may have, and what they compute, as it was when this was imported.
_KINDS: tuple[type[nn.Module], ...] = (
    *(nn.Linear, SparseLinear, nn.LayerNorm, LayerNorm, nn.ReLU, nn.Tanh, nn.Flatten, FlattenExtractor),
    *(SimBaEncoder, ResidualBlock, nn.Sequential, nn.ModuleList, ObservationNorm, RunningNorm),
)
_FORWARD = {kind: kind.forward for kind in _KINDS}


class NotPlain(Exception):
    """
    There is no pass for a network.

    :param reason: Why.
    :param elsewhere: Whether it is only in another place, or of another type, for the time being.
    """

    def __init__(self, reason: str, elsewhere: bool = False):
        super().__init__(reason)
        self.elsewhere = elsewhere


def require(condition: bool, reason: str, elsewhere: bool = False) -> None:
    """
    :raises NotPlain: If the condition is not met.
    """
    if not condition:
        raise NotPlain(reason, elsewhere)


class Linear(NamedTuple):
    """A linear layer, dense or sparse."""

    weights: th.Tensor
    bias: th.Tensor
    topology: Any
    n_out: int
    n_in: int

    def instruction(self, y: np.ndarray, x: np.ndarray) -> tuple[Any, ...]:
        """``y = W x + b``."""
        pointers = (self.weights.data_ptr(), self.bias.data_ptr())
        if self.topology is None:
            return ("linear", y, *pointers, x, self.n_out, self.n_in)
        return ("sparse_linear", y, *pointers, self.topology.crow, self.topology.col, x, self.n_out)


class Norm(NamedTuple):
    """A layer normalisation."""

    weight: th.Tensor
    bias: th.Tensor
    eps: float

    def instruction(self, y: np.ndarray, x: np.ndarray) -> tuple[Any, ...]:
        """Of ``x``."""
        return (
            "layer_norm",
            y,
            x,
            self.weight.data_ptr(),
            self.bias.data_ptr(),
            np.array([self.eps], dtype=np.float32),
            len(x),
        )


class Layers(NamedTuple):
    """A SimBa network: stem, residual blocks of a norm and two layers, norm, heads side by side."""

    stem: Linear
    blocks: list[tuple[Norm, Linear, Linear]]
    norm: Norm
    heads: list[Linear]


class Form(NamedTuple):
    """How a policy of SB3 acts with one of our networks."""

    policy: type
    name: str
    """Of the network, as attribute of the policy."""
    parts: Callable[[Any], tuple[Any, list[Any]]]
    """Trunk and heads of a network."""
    action: Callable[[Any, np.ndarray, th.Tensor, bool], np.ndarray]
    """Called with the network, what its heads say, room for noise, and whether the action is deterministic."""

    # What this package and SB3 compute with, which nobody may have replaced by something else.
    policy_methods = ("_predict", "obs_to_tensor")
    network_methods = (
        *("__call__", "forward", "_predict", "get_action_dist_params"),
        *("extract_features", "_preprocess", "observe"),
    )

    def methods_of(self, policy: Any, network: Any) -> list[tuple[type, str, Any]]:
        """
        The methods that the pass stands for, by class and name.

        :raises NotPlain: If one is not the one that it should be.
        """
        base = next(kind for kind, form in FORMS.items() if form is self)
        expected = [(type(policy), name, getattr(self.policy, name)) for name in self.policy_methods]
        names = [name for name in self.network_methods if hasattr(base, name)]
        expected += [(type(network), name, _METHODS[base][name]) for name in names]
        for owner, name, method in expected:
            require(getattr(owner, name) is method, f"a method {name} of its own")
        return expected


def form_of(policy: Any) -> tuple[Form, Any]:
    """
    How a policy acts, and the network that it acts with.

    :raises NotPlain: If it is none of those that are known.
    """
    for kind, form in FORMS.items():
        network = policy._modules.get(form.name)
        if isinstance(policy, form.policy) and isinstance(network, kind):
            return form, network
    raise NotPlain(f"a {type(policy).__name__}")


def layers_of(form: Form, network: Any) -> Layers:
    """
    The layers of a network.

    :raises NotPlain: If it has others.
    """
    for module in network.modules():
        known = type(module) in _FORWARD and all(kind.forward is _FORWARD.get(kind) for kind in kinds_of(module))
        require(module is network or known, f"a {type(module).__name__} in it")
    require(bool(network.net_arch) and not getattr(network, "use_sde", False), "no SimBa trunk, or gSDE")
    trunk, heads = form.parts(network)
    require(type(trunk) is SimBaEncoder and type(trunk.blocks) is nn.Sequential, "another trunk than SimBa's")
    layers = Layers(
        _linear(trunk.stem),
        [_block(block) for block in trunk.blocks],
        _norm(trunk.norm),
        [_linear(head) for head in heads],
    )
    width = layers.stem.n_out
    sizes = [len(layers.norm.weight) == width]
    sizes += [head.n_in == width for head in layers.heads]
    for norm, first, second in layers.blocks:
        sizes.append((len(norm.weight), first.n_in, second.n_in, second.n_out) == (width, width, first.n_out, width))
    require(all(sizes), "layers that do not fit together")
    return layers


def kinds_of(module: nn.Module) -> list[type[nn.Module]]:
    """The classes whose ``forward`` a module may call: its own, and those that this may leave the rest to."""
    return [kind for kind in type(module).__mro__ if "forward" in vars(kind) and kind is not nn.Module]


def observation_instruction(policy: Any, network: Any, y: np.ndarray, x: np.ndarray) -> tuple[Any, ...]:
    """
    What turns an observation, in doubles, into what the stem gets.

    :raises NotPlain: If it is more than numbers that are normalised.
    """
    for space in (policy.observation_space, network.observation_space):
        require(type(space) is spaces.Box and not is_image_space(space), "observations that are no vector of numbers")
        require(space.shape is not None and math.prod(space.shape) == len(x), "layers that do not fit together")
    require(type(network.features_extractor) is FlattenExtractor, "a features extractor")
    norm = network.obs_norm
    if norm is None or not norm.keys:
        return ("cast", y, x, len(x))
    require(type(norm) is ObservationNorm and len(norm.norms) == 1, "another normalisation of observations")
    moments = [norm.norms[0]._buffers.get(name) for name in ("obs_mean", "obs_mean_rest", "obs_var")]
    require(all(moment is not None and moment.numel() == len(x) for moment in moments), "layers that do not fit together")
    pointers = [moment.data_ptr() for moment in moments]
    return ("running_norm", y, x, *pointers, np.array([EPS, LARGEST], dtype=np.float32), len(x))


def _linear(layer: Any) -> Linear:
    require(type(layer) in (nn.Linear, SparseLinear), f"a {type(layer).__name__} in it")
    is_sparse = type(layer) is SparseLinear
    weights, bias = (layer._parameters.get(name) for name in (NONZEROS if is_sparse else "weight", "bias"))
    require(weights is not None and bias is not None, "a layer without bias, or with computed weights")
    topology = layer.topology if is_sparse else None
    n_out, n_in = weights.shape if topology is None else topology.shape
    fits = bias.shape == (n_out,) and (topology is None or weights.shape == (topology.nnz,))
    require(fits, "weights and biases that do not fit together")
    require(topology is None or 8 * topology.col.itemsize == COLUMN_BITS, "a layer of more than 65536 inputs")
    return Linear(weights, bias, topology, n_out, n_in)


def _norm(norm: Any) -> Norm:
    require(type(norm) in (nn.LayerNorm, LayerNorm) and len(norm.normalized_shape) == 1, "another normalisation of layers")
    weight, bias = (norm._parameters.get(name) for name in ("weight", "bias"))
    require(weight is not None and bias is not None, "a normalisation without weight and bias, or with computed ones")
    require(norm.normalized_shape == weight.shape == bias.shape, "weights and biases that do not fit together")
    return Norm(weight, bias, norm.eps)


def _block(block: Any) -> tuple[Norm, Linear, Linear]:
    require(type(block) is ResidualBlock, f"a {type(block).__name__} in it")
    require(type(block.activation) is nn.ReLU, f"the activation {type(block.activation).__name__}")
    return _norm(block.norm), _linear(block.fc1), _linear(block.fc2)


def _gaussian_parts(actor: Any) -> tuple[Any, list[Any]]:
    require(type(actor.action_dist) is SquashedDiagGaussianDistribution, "another distribution of actions")
    return actor.latent_pi, [actor.mu, actor.log_std]


def _gaussian_action(actor: Any, outputs: np.ndarray, noise: th.Tensor, deterministic: bool) -> np.ndarray:
    mean, log_std = outputs.reshape(2, -1)
    if deterministic:
        return np.tanh(mean)
    squashed = actor.squash_log_std
    log_std = -10.0 + 6.0 * (1.0 + np.tanh(log_std)) if squashed else np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX)
    # The numbers that torch's distribution draws, of the same generator.
    noise.normal_()
    return np.tanh(mean + np.exp(log_std) * noise.numpy()[0])


def _sequential_parts(sequence: Any, *rest: type) -> tuple[Any, list[Any]]:
    """Trunk and head, one after the other, and perhaps something behind them."""
    require(type(sequence) is nn.Sequential and len(sequence) == 2 + len(rest), "other layers than trunk and head")
    require(all(type(layer) is kind for layer, kind in zip(sequence[2:], rest, strict=True)), "something behind the head")
    return sequence[0], [sequence[1]]


def _tanh_action(actor: Any, outputs: np.ndarray, noise: th.Tensor, deterministic: bool) -> np.ndarray:
    return np.tanh(outputs)


def _best_action(q_net: Any, outputs: np.ndarray, noise: th.Tensor, deterministic: bool) -> np.ndarray:
    return np.array(outputs.argmax(), dtype=np.int64)


def _best_mean_action(quantile_net: Any, outputs: np.ndarray, noise: th.Tensor, deterministic: bool) -> np.ndarray:
    quantiles = outputs.reshape(quantile_net.n_quantiles, quantile_net.n_actions)
    return np.array(quantiles.mean(axis=0).argmax(), dtype=np.int64)


FORMS: dict[type, Form] = {
    networks.SimBaSACActor: Form(SACPolicy, "actor", _gaussian_parts, _gaussian_action),
    networks.SimBaTQCActor: Form(TQCPolicy, "actor", _gaussian_parts, _gaussian_action),
    networks.SimBaCrossQActor: Form(CrossQPolicy, "actor", _gaussian_parts, _gaussian_action),
    networks.SimBaTD3Actor: Form(TD3Policy, "actor", lambda net: _sequential_parts(net.mu, nn.Tanh), _tanh_action),
    networks.SimBaQNetwork: Form(DQNPolicy, "q_net", lambda net: _sequential_parts(net.q_net), _best_action),
    networks.SimBaQuantileNetwork: Form(
        QRDQNPolicy, "quantile_net", lambda net: _sequential_parts(net.quantile_net), _best_mean_action
    ),
}
# As they were when this was imported.
_METHODS = {kind: {name: getattr(kind, name, None) for name in Form.network_methods} for kind in FORMS}
