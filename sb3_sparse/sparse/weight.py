"""What sparse layers have in common: the living weights, where they live, and that these two never part."""

import ctypes
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch as th
from torch import nn

from sb3_sparse.common.warn import warn_user
from sb3_sparse.sparse.kernels import scatter_dense
from sb3_sparse.sparse.readonly import ReadOnlyWeight, check_written
from sb3_sparse.sparse.state.identity import DamagedIdentity, is_near
from sb3_sparse.sparse.state.loading import LoadsWhole, all_or_nothing
from sb3_sparse.sparse.state.stored import holds_positions, loaded_topology, numbers_of, stored_topology, unwrapped
from sb3_sparse.sparse.topology import Topology

_NOT_REPLACED = (
    "the weight of a sparse layer cannot be replaced: copy into layer.values, or make a new layer from a dense one, "
    "SparseLinear.from_dense(dense, topology)."
)

#: Name of the parameter with the living weights.
NONZEROS = "nonzeros"
_NOTHING_SEEN = (None, 0, None, None)


class SparseWeight(LoadsWhole):
    """
    One trainable 1-D tensor ``values`` of the living weights, and a topology. Among parameters and in state dicts its name is
    ``nonzeros``: algorithms that look for parts of a value function by name, such as TRPO, would take "values" for one.

    The topology is not a parameter. What tells it from others is kept in the buffer ``topology_seed`` (``identity.py``),
    and of a topology that was given also the positions, in ``topology_index``. Whoever writes into the first, by loading,
    copying or broadcasting, means another topology: the layer takes it over, or refuses.
    """

    #: Which parameter of the dense layer each of its 1-D parameters is gathered from.
    gathered: ClassVar[dict[str, str]] = {NONZEROS: "weight"}
    #: Parameters and buffers of the dense layer that it has as they are.
    taken: ClassVar[tuple[str, ...]] = ("bias",)

    nonzeros: nn.Parameter
    bias: nn.Parameter | None
    topology_seed: th.Tensor
    topology_index: th.Tensor | None
    #: Whether initial values are those of the dense layer times ``1 / sqrt(density)``.
    rescale: bool = False
    # The dense weight that the values come from, for as long as somebody else holds it, and what they were divided by.
    _source: tuple["weakref.ref[th.Tensor] | None", float] = (None, 1.0)
    # The same, held: only of layers that `surgery/redraw.py` drew for a reset.
    dense_draw: th.Tensor | None = None
    # The buffer `topology_seed` that was last looked at; and on the CPU its address, its bytes, and the memory that they
    # are read from again, or else its version.
    _seen: tuple[th.Tensor | None, int, bytes | None, Any] = _NOTHING_SEEN
    # The last topology that was given. Who puts other buffers in the place of ours for a call may lose its positions.
    _given: Topology | None = None

    def __init__(self, weight: th.Tensor, bias: th.Tensor | None, topology: Topology, rescale: bool = False):
        super().__init__()
        if tuple(weight.shape) != topology.shape:
            raise ValueError(f"topology of shape {topology.shape} does not fit a weight of shape {tuple(weight.shape)}.")
        self.rescale, factor = rescale, math.sqrt(topology.density) if rescale and topology.nnz else 1.0
        with th.no_grad():
            values = weight.reshape(-1).index_select(0, topology.flat_index(weight.device))
            values = values if factor == 1.0 else values / factor
        self._source = (weakref.ref(weight), factor)
        self.nonzeros = nn.Parameter(values, requires_grad=weight.requires_grad)
        self.register_parameter("bias", copy_parameter(bias))
        self._take(topology)

    @property
    def topology(self) -> Topology:
        """Which weights exist. Changed together with the values, by :meth:`set_topology` or by loading a state dict."""
        if th.compiler.is_compiling():
            return self._topology
        buffer = self._buffers["topology_seed"]
        seen, address_or_version, content, memory = self._seen
        if buffer is seen and buffer is not None:
            if content is None:
                if buffer.is_inference() or buffer._version == address_or_version:
                    return self._topology
            elif buffer.data_ptr() == address_or_version and memory.raw == content:
                return self._topology
        self._look_again()
        return self._topology

    @topology.setter
    def topology(self, topology: Topology) -> None:
        raise AttributeError("values and topology of a sparse layer change together: use set_topology(topology, values).")

    @property
    def weight(self) -> th.Tensor:
        """
        The dense weight, zero where no weight lives: a copy, to look at and to compute with.

        Gradients flow to ``values``, as in a penalty on the weights. It cannot be written to.
        """
        dense = scatter_dense(self.values, self.topology, self.topology_seed)
        # The compiler cannot look into the subclass.
        is_plain = type(dense) is th.Tensor and not th.compiler.is_compiling()
        return dense.as_subclass(ReadOnlyWeight) if is_plain else dense

    @weight.setter
    def weight(self, weight: th.Tensor) -> None:
        raise AttributeError(_NOT_REPLACED)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As that of ``nn.Module``, which setting an attribute to a parameter calls."""
        if name == "weight":
            raise AttributeError(_NOT_REPLACED)
        super().register_parameter(NONZEROS if name == "values" else name, param)

    @property
    def values(self) -> nn.Parameter:
        """The living weights, ``(nnz,)``, row by row."""
        return self.nonzeros

    @values.setter
    def values(self, values: nn.Parameter) -> None:
        self.nonzeros = values

    @property
    def density(self) -> float:
        """Fraction of the weights that exist."""
        return self._topology.density

    @th.no_grad()
    def set_topology(self, topology: Topology, values: th.Tensor | None = None) -> None:
        """
        Put the values at other positions.

        :param topology: Of the same shape and the same number of weights.
        :param values: ``(nnz,)``, what they are there. None: the present ones, in their order. They mean something else
            then: draw them anew.
        :raises ValueError: If topology or values do not fit, or the layer computes its values (parametrizations).
        """
        old = self.topology
        if (topology.shape, topology.nnz) != (old.shape, old.nnz):
            raise ValueError(f"{topology} cannot replace {old}: shape and number of weights must stay the same.")
        if values is not None and values.shape != self.values.shape:
            raise ValueError(f"values of shape {tuple(values.shape)}: expected {tuple(self.values.shape)}.")
        if values is not None:
            check_written(self, NONZEROS)
        with all_or_nothing(self):
            if values is not None:
                self.values.copy_(values)
            self._take(topology)

    def _take(self, topology: Topology) -> None:
        device = self.values.device
        identity = th.tensor(topology.identity, dtype=th.float32, device="cpu").to(device)
        index = None if topology.seed is not None else topology.flat_index(device).int()
        # Whoever interrupts this finds a layer that looks at its buffer again.
        self._seen = _NOTHING_SEEN
        self._topology = topology
        self._given = topology if topology.seed is None else self._given
        self._put_buffer("topology_index", index)
        self._put_buffer("topology_seed", identity)
        self._remember(self.topology_seed)

    def _put_buffer(self, name: str, new: th.Tensor | None) -> None:
        old = self._buffers.get(name)
        if (
            new is None
            or old is None
            or type(old) is not th.Tensor
            or old.is_inference()
            or (old.shape, old.dtype, old.device) != (new.shape, new.dtype, new.device)
        ):
            self.register_buffer(name, new)
        else:
            # The same object, where others hold it (DistributedDataParallel).
            old.detach().copy_(new)

    def _remember(self, buffer: th.Tensor) -> None:
        is_cpu = buffer.device.type == "cpu" and type(buffer) is th.Tensor
        if is_cpu and buffer.dtype == th.float32 and buffer.is_contiguous():
            content = buffer.detach().numpy().tobytes()
            address = buffer.data_ptr()
            self._seen = (buffer, address, content, (ctypes.c_char * len(content)).from_address(address))
        else:
            self._seen = (buffer, 0 if buffer.is_inference() else buffer._version, None, None)

    def _look_again(self) -> None:
        """The buffer was replaced or written to: take over the topology that it stands for now."""
        buffer = self._buffers["topology_seed"]
        if buffer is None:
            raise ValueError("the buffer topology_seed of a sparse layer was removed: it says which weights exist.")
        # A transform of torch.func looks at it; nothing is written then.
        is_wrapped = unwrapped(buffer) is not buffer
        numbers = numbers_of(buffer)
        if numbers is None:
            # Without data (meta, fake): nothing to compare.
            return
        if is_near(numbers, self._topology.identity):
            if not is_wrapped:
                self._remember(buffer)
            return
        try:
            is_given = self._given is not None and is_near(numbers, self._given.identity)
            topology = self._given if is_given else stored_topology(self._topology, buffer, self._buffers["topology_index"])
        except DamagedIdentity as error:
            raise ValueError(
                f"the buffer topology_seed of {self} was written to, and stands for no topology now: {error} It says which "
                "weights exist: leave it out, or load a whole state dict of such a layer."
            ) from None
        if topology is None:
            _warn_of_blank("its buffer topology_seed was")
            topology = self._topology
        if not is_wrapped:
            self._take(topology)
        elif topology is not self._topology:
            raise ValueError(
                f"{self} is called with the topology of another layer, inside a transform of torch.func: stack and swap "
                "parameters only of layers with one topology, or take to_dense(module) of each."
            )

    def _apply(self, fn: Callable[[th.Tensor], th.Tensor], recurse: bool = True) -> "SparseWeight":
        topology = self.topology
        super()._apply(fn, recurse)
        # `half()` would cast the identity, `to_empty()` leaves it undefined: of all that `fn` does, it follows the device.
        buffer = self._buffers["topology_seed"]
        numbers = None if buffer is None else numbers_of(buffer)
        if buffer is None or buffer.dtype != th.float32 or numbers is None or not is_near(numbers, topology.identity):
            self._take(topology)
        else:
            self._remember(buffer)
        return self

    def _save_to_state_dict(self, *args: Any) -> None:
        # What was written into the buffer is a topology, or an error now rather than for whoever loads the file.
        topology = self.topology
        if topology.seed is None and not holds_positions(self._buffers["topology_index"], topology):
            # Averaged, which loses digits of integers.
            self._put_buffer("topology_index", topology.flat_index(self.values.device).int())
        super()._save_to_state_dict(*args)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Values are never loaded without the topology that they belong to, nor it without them."""
        if prefix + "values" in state_dict and prefix + NONZEROS not in state_dict:
            # As it was called in 0.1. Beside the new name it is an unexpected one.
            state_dict[prefix + NONZEROS] = state_dict.pop(prefix + "values")
        given = {key: state_dict[prefix + key] for key in (*self._parameters, *self._buffers) if prefix + key in state_dict}
        errors = self._misfits(given, prefix, prefix + "weight" in state_dict)
        has_identity = bool(given.keys() & {"topology_seed", "topology_index"})
        old = self.topology
        topology = None
        try:
            topology = loaded_topology(self._topology, given) if has_identity and not errors else None
        except ValueError as error:
            errors.append(f"{prefix}topology_seed: {error}")
        keys = self._value_keys()
        missing = [key for key in keys if prefix + key not in state_dict]
        if missing and topology is not None and topology != old:
            errors.append(f"{prefix}topology_seed without {prefix}{missing[0]}: positions and values belong together.")
        if errors:
            error_msgs.extend(errors)
            return
        if topology is None and len(missing) < len(keys):
            is_missing = "topology_seed" not in given
            missing_keys.extend([prefix + "topology_seed"] if is_missing else [])
            _warn_of_blank(f"{prefix}topology_seed of the state dict is{' missing, or' if is_missing else ''}")
        entries: dict[str, Any] = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        with all_or_nothing(self):
            if topology is not None and topology is not old:
                self._take(topology)
            entries[prefix + "topology_seed"] = self._identity_to_load(given, topology is None)
            if local_metadata.get("assign_to_params_buffers", False) and NONZEROS in given:
                # The layer's tensors become those of the state dict, perhaps from a device without data.
                place = given[NONZEROS].device
                entries[prefix + "topology_seed"] = entries[prefix + "topology_seed"].to(place)
                if self.topology_index is not None:
                    self.topology_index = self._topology.flat_index(place).int()
            if self.topology_index is None:
                entries.pop(prefix + "topology_index", None)
            else:
                entries[prefix + "topology_index"] = self.topology_index.clone()
            super()._load_from_state_dict(entries, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
            self._remember(self.topology_seed)

    def _misfits(self, given: Mapping[str, th.Tensor], prefix: str, has_weight: bool) -> list[str]:
        """Why what a state dict has for this layer cannot be loaded, apart from its topology."""
        errors = [
            f"size mismatch for {prefix}{key}: {tuple(given[key].shape)} in the state dict, {tuple(parameter.shape)} here."
            + (" Prune with the same sparsity or masks first." if key == NONZEROS else "")
            for key, parameter in self._parameters.items()
            if parameter is not None and key in given and given[key].shape != parameter.shape
        ]
        if NONZEROS not in given and has_weight:
            errors.append(
                f"{prefix}weight is the weight of a dense layer, this one is sparse: load it into the dense module, then "
                "call sparsify_."
            )
        return errors

    def _value_keys(self) -> list[str]:
        """Of what the values are: themselves, or what ``prune`` or a parametrization computes them from."""
        keys = [key for key in (*self._parameters, *self._buffers) if key.startswith(NONZEROS)]
        for name, computed in getattr(self, "parametrizations", {}).items():
            if name in self.gathered:
                keys += [f"parametrizations.{name}.{key}" for key in computed._parameters]
        return keys

    def _identity_to_load(self, given: Mapping[str, th.Tensor], is_blank: bool) -> th.Tensor:
        """What becomes of the buffer: who compares it with what was loaded finds that, as after any load."""
        identity, loaded = self._topology.identity, given.get("topology_seed")
        numbers = None if loaded is None or loaded.dim() == 0 else numbers_of(loaded)
        if numbers is not None:
            numbers = [a + b for a, b in zip(numbers, identity, strict=True)] if is_blank else numbers
            identity = numbers if is_near(numbers, identity) else identity
        made = th.tensor(identity, dtype=th.float32, device="cpu")
        return made if self.values.is_meta else made.to(self.values.device)

    def dense_source(self) -> th.Tensor | None:
        """The dense weight that the values were gathered from, rescaled as they were; None once it is gone."""
        source, factor = self._source
        weight = None if source is None else source()
        return None if weight is None else weight.detach() / factor

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_seen", "_source")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Pickled before 0.2, whole.
        if "values" in self._parameters:
            self._parameters = {NONZEROS if name == "values" else name: p for name, p in self._parameters.items()}
        if "topology" in self.__dict__:
            self._take(self.__dict__.pop("topology"))

    def __prepare_scriptable__(self) -> nn.Module:
        # Called by `torch.jit.script`, which compiles source text. It would put a layer that is returned into the module.
        raise RuntimeError(
            "torch.jit.script cannot compile a sparse layer: script a plain copy, sb3_sparse.to_dense(module), or use "
            "torch.jit.trace or torch.export."
        )

    @classmethod
    def from_dense(cls, dense: Any, topology: Topology, rescale: bool = False) -> "SparseWeight":
        """
        A sparse layer that keeps the weights of a dense one where the topology has one.

        :param dense: Of the kind that the class is the sparse layer of.
        :param topology: Of the shape of its weight.
        :param rescale: Multiply the weights by ``1 / sqrt(density)``.
        """
        raise NotImplementedError

    def to_dense(self) -> nn.Module:
        """A plain layer that computes the same."""
        raise NotImplementedError

    @th.no_grad()
    def reset_parameters(self) -> None:
        """
        New values: those that the dense layer draws by its ``reset_parameters``, where weights live; which do stays as it is.

        Loops that call it of all modules that have it, to begin anew or after ``to_empty``, find it here, too.

        :raises ValueError: If the layer computes them (parametrizations).
        """
        check_written(self, *self.gathered, *self.taken)
        dense: Any = self.to_dense()
        dense.reset_parameters()
        factor = math.sqrt(self.density) if self.rescale and self.values.numel() else 1.0
        for own, name in self.gathered.items():
            self._parameters[own].copy_(self.topology.gather(getattr(dense, name)) / factor)  # type: ignore[union-attr]
        for name in self.taken:
            if getattr(self, name) is not None:
                getattr(self, name).copy_(getattr(dense, name))


def copy_parameter(parameter: th.Tensor | None) -> nn.Parameter | None:
    """A parameter of its own with the same values."""
    return None if parameter is None else nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def _warn_of_blank(what: str) -> None:
    warn_user(f"{what} filled with numbers near zero, which stand for no topology: the layer keeps its own.")
