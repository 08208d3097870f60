"""
A pass as it is written: for a network as it is at that moment, its parts, and where their numbers lie in memory.

Weights that change in place are followed by themselves. Everything else that can change is compared before each action.
"""

import itertools
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from torch import nn
from torch.nn.modules import module as global_hooks

from sb3_sparse.simba.acting.forms import form_of, kinds_of, layers_of, observation_instruction, require
from sb3_sparse.sparse import SparseLinear
from sb3_sparse.sparse.kernels.native.sample.forward import ForwardProgram

# Of modules: what a pass depends on, besides parts and tensors.
_SETTINGS = (
    *("eps", "normalized_shape", "squash_log_std", "action_dist", "observation_space", "use_sde", "net_arch"),
    *("keys", "n_quantiles", "n_actions", "obs_norm"),
)


class WrittenPass:
    """
    The pass of a policy as it is now, and what has to stay for that.

    :param policy: The policy.
    :raises NotPlain: If there is no such pass for it.
    """

    def __init__(self, policy: Any):
        form, network = form_of(policy)
        self._form, self._network, self._policy = form, network, vars(policy)
        self._tensors: list[th.Tensor] = []
        for tensor in itertools.chain(network.parameters(), network.buffers()):
            require(type(tensor) in (nn.Parameter, th.Tensor), f"a {type(tensor).__name__} among its tensors")
            elsewhere = tensor.device.type != "cpu" or tensor.dtype != th.float32
            require(not elsewhere, "tensors that are not float32 on the CPU", elsewhere=True)
            require(tensor.is_contiguous(), "a tensor that is not contiguous")
            self._tensors.append(tensor)
        # They hold the memory, so that no other tensor can come to lie there unnoticed.
        self._aliases = [tensor.detach() for tensor in self._tensors]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        modules = list(network.modules())
        self._places: list[Mapping[str, Any]] = [p for m in modules for p in (m._modules, m._parameters, m._buffers)]
        self._sizes = list(map(len, self._places))
        self._parts = [(place, name, part) for place in self._places for name, part in place.items()]
        self._parts += [(vars(m), name, vars(m)[name]) for m in (*modules, policy) for name in _SETTINGS if name in vars(m)]
        self._topologies = [(m, m.topology) for m in modules if isinstance(m, SparseLinear)]
        self._methods = [
            *form.methods_of(policy, network),
            *{(kind, "forward", kind.forward) for m in modules for kind in kinds_of(m)},
        ]
        self._patches = [(vars(m), "forward") for m in modules]
        self._patches += [(vars(network), name) for name in form.network_methods]
        self._patches += [(vars(policy), name) for name in form.policy_methods]
        require(not self._is_patched(), "a method that was replaced")
        # Of torch's dictionaries of hooks, which stay the same objects.
        self.hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.hooks += [global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks]
        self._layers = layers_of(form, network)
        # Written once here, to find out whether it can be.
        observed = np.zeros(self._layers.stem.n_in)
        self._observation_instruction = observation_instruction(policy, network, observed.astype(np.float32), observed)
        self._of_thread = threading.local()

    def fits(self) -> bool:
        """Whether policy and network are what they were, but for the numbers in their tensors."""
        return (
            self._policy["_modules"].get(self._form.name) is self._network
            and list(map(len, self._places)) == self._sizes
            and all([place.get(name) is part for place, name, part in self._parts])
            and self._is_in_place()
            and all([layer.topology is topology for layer, topology in self._topologies])
            and all([getattr(owner, name) is method for owner, name, method in self._methods])
            and not self._is_patched()
        )

    def _is_in_place(self) -> bool:
        try:
            # Torch can move the memory of a tensor and all its aliases: who sends one to another process shares it.
            return all(map(th.Tensor.is_set_to, self._tensors, self._aliases)) and (
                list(map(th.Tensor.data_ptr, self._tensors)) == self._addresses
            )
        except RuntimeError:
            # Torch cannot say it of tensors on all devices.
            return False

    def _is_patched(self) -> bool:
        return any([name in attributes for attributes, name in self._patches])

    def act(self, observation: np.ndarray, deterministic: bool) -> np.ndarray | None:
        """
        The action, as the network gives it.

        :param observation: The numbers of one observation.
        :param deterministic: Whether it is the most likely one; else it is drawn by torch's generator, as SB3 draws it.
        :return: Without batch dimension. None if a number became infinite or NaN.
        """
        try:
            room: _Room = self._of_thread.room
        except AttributeError:
            # Threads do not share what is written to.
            room = self._of_thread.room = self._make_room()
        room.observation[:] = observation.reshape(-1)
        room.program.run()
        if room.is_finite[0] != 0.0:
            return None
        return self._form.action(self._network, room.outputs, room.noise, deterministic)

    def _make_room(self) -> "_Room":
        stem, blocks, norm, heads = self._layers
        room = _Room(stem.n_in, [head.n_out for head in heads])
        features, x, normal, change = (np.zeros(n, dtype=np.float32) for n in (stem.n_in, *[stem.n_out] * 3))
        name, _, _, *rest = self._observation_instruction
        instructions = [(name, features, room.observation, *rest), stem.instruction(x, features)]
        for block_norm, first, second in blocks:
            hidden = np.zeros(first.n_out, dtype=np.float32)
            instructions += [
                block_norm.instruction(normal, x),
                first.instruction(hidden, normal),
                ("relu", hidden, first.n_out),
                second.instruction(change, hidden),
                ("add", x, change, stem.n_out),
            ]
        instructions.append(norm.instruction(normal, x))
        ends = itertools.accumulate(head.n_out for head in heads)
        instructions += [
            head.instruction(room.outputs[end - head.n_out : end], normal) for head, end in zip(heads, ends, strict=True)
        ]
        instructions.append(("check_finite", room.is_finite, room.outputs, len(room.outputs)))
        room.program = ForwardProgram(instructions)
        return room


class _Room:
    """
    What a pass reads and writes, of one thread.

    :param n_in: Numbers of an observation.
    :param n_out: Outputs of each head.
    """

    program: ForwardProgram

    def __init__(self, n_in: int, n_out: list[int]):
        # Of doubles, which hold single numbers too: the kernel makes float32 of them, as torch does, without NumPy's warnings.
        self.observation = np.zeros(n_in, dtype=np.float64)
        self.outputs = np.zeros(sum(n_out), dtype=np.float32)
        self.is_finite = np.zeros(1, dtype=np.float32)
        # Whatever surrounds the first action: what was made in inference mode could not be drawn into outside of it.
        with th.inference_mode(False):
            self.noise = th.zeros(1, n_out[0], dtype=th.float32, device="cpu")
