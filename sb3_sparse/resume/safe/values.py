"""
Values as JSON and back, bit by bit: numbers, containers, arrays, tensors, spaces, and what :class:`Allowed` allows.

What JSON has itself stands as it is. Everything else is an object whose ``"kind"`` says what it is; arrays and tensors are
kept beside, and the JSON has their names. Nothing that is read is called but the few constructors of this file.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from enum import Enum
from types import FunctionType
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.resume.safe.allowed import Allowed, name_of
from sb3_sparse.resume.safe.spaces import is_space, space_from, space_parts

_MAX_DEPTH = 100
_GENERATORS = {name: getattr(np.random, name) for name in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")}
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset, "size": th.Size}
# What arrays may hold, so that no other type of numpy is ever asked for by a file.
_ARRAYS = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"]
_TORCH_DTYPES = {str(value): value for value in vars(th).values() if isinstance(value, th.dtype)}


class Writer:
    """
    Makes JSON of values, and collects their tensors.

    :param allowed: What may be named.
    """

    def __init__(self, allowed: Allowed):
        self.tensors: dict[str, th.Tensor] = {}
        self._allowed = allowed
        # The same memory is written once. The tensors are kept, so that no other one gets their address meanwhile.
        self._names: dict[tuple[Any, ...], str] = {}
        self._kept: list[th.Tensor] = []

    def write(self, value: Any, place: str, depth: int = 0) -> Any:
        """
        A value as JSON.

        :param value: The value.
        :param place: What it is, for errors and for the names of tensors: ``"policy_kwargs.net_arch"``.
        :param depth: How deep inside of others it is.
        :raises ValueError: If it cannot be written, with its place and what to do.
        """
        if depth > _MAX_DEPTH:
            raise ValueError(f"{place[:80]}: it is nested more than {_MAX_DEPTH} deep.")
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"kind": "float", "value": repr(value)}

        def inside(values: Iterable[Any]) -> list[Any]:
            return [self.write(each, f"{place}.{i}", depth + 1) for i, each in enumerate(values)]

        if type(value) is list:
            return inside(value)
        if type(value) in _SEQUENCES.values():
            kind = next(name for name, sequence in _SEQUENCES.items() if sequence is type(value))
            return {"kind": kind, "values": inside(sorted(value, key=repr) if kind.endswith("set") else value)}
        if type(value) is deque:
            return {"kind": "deque", "values": inside(value), "maxlen": value.maxlen}
        if type(value) in (dict, OrderedDict):
            return self._dict(value, place, depth)
        return self._leaf(value, place) or self._object(value, place, depth)

    def algorithm(self, kind: type[BaseAlgorithm]) -> dict[str, Any]:
        """
        What an agent is one of, as JSON.

        :raises ValueError: If it is not allowed.
        """
        if not self._allowed.has_algorithm(kind):
            raise ValueError(f"algorithm {_cannot(kind)}")
        return {"kind": "class", "name": name_of(kind)}

    def _dict(self, value: dict[Any, Any], place: str, depth: int) -> dict[str, Any]:
        kind = "dict" if type(value) is dict else "ordered_dict"
        written = [[self.write(k, place, depth + 1), self.write(v, f"{place}.{k}", depth + 1)] for k, v in value.items()]
        found = {"kind": kind, "items": dict(written) if all(type(k) is str for k in value) else written}
        if kind == "ordered_dict" and hasattr(value, "_metadata"):
            # Versions of the modules of a state dict.
            found["versions"] = self._dict(dict(value._metadata), f"{place}._metadata", depth + 1)
        return found

    def _leaf(self, value: Any, place: str) -> dict[str, Any] | None:
        if isinstance(value, th.Tensor):
            return {"kind": "tensor", "name": self._tensor(value, place)}
        if type(value) is np.ndarray and value.dtype.name in _ARRAYS:
            array = np.array(value, dtype=value.dtype.newbyteorder("="), order="C")
            return {"kind": "array", "name": self._tensor(th.from_numpy(array), place)}
        if isinstance(value, np.generic) and value.dtype.name in _ARRAYS:
            plain = value.item()
            text = repr(plain) if isinstance(plain, float) and not math.isfinite(plain) else plain
            return {"kind": "scalar", "dtype": value.dtype.name, "value": text}
        if isinstance(value, np.dtype) and value.name in _ARRAYS:
            return {"kind": "dtype", "value": value.name}
        if isinstance(value, (th.dtype, th.device)):
            return {"kind": "torch_dtype" if isinstance(value, th.dtype) else "device", "value": str(value)}
        return None

    def _object(self, value: Any, place: str, depth: int) -> dict[str, Any]:
        if isinstance(value, (type, FunctionType)):
            if self._allowed.has(value):
                return {"kind": "class", "name": name_of(value)}
        elif is_space(value):
            return {"kind": "space", "parts": self._dict(space_parts(value), place, depth + 1)}
        elif type(value) is np.random.Generator and type(value.bit_generator).__name__ in _GENERATORS:
            state = self._dict(dict(value.bit_generator.state), place, depth + 1)
            return {"kind": "generator", "name": type(value.bit_generator).__name__, "state": state}
        elif self._allowed.has_instances(type(value)):
            kind = name_of(type(value))
            if isinstance(value, Enum):
                return {"kind": "enum", "class": kind, "name": value.name}
            if isinstance(value, tuple) and hasattr(value, "_asdict"):
                return {"kind": "named_tuple", "class": kind, "fields": self._dict(value._asdict(), place, depth + 1)}
            if hasattr(value, "__dict__"):
                check_attributes(type(value), vars(value))
                return {"kind": "object", "class": kind, "attributes": self._dict(vars(value), place, depth + 1)}
        raise ValueError(f"{place} {_cannot(value)}")

    def _tensor(self, tensor: th.Tensor, place: str) -> str:
        if tensor.layout is not th.strided or tensor.is_quantized or tensor.is_complex() or tensor.is_meta:
            raise ValueError(f"{place} is a tensor with the layout {tensor.layout} and dtype {tensor.dtype}: only dense ones.")
        tensor = tensor.detach()
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and memory in self._names:
            return self._names[memory]
        name, n = place, 1
        while name in self.tensors:
            n += 1
            name = f"{place}#{n}"
        self._names[memory] = name
        self._kept.append(tensor)
        self.tensors[name] = tensor.cpu().contiguous().clone()
        return name


def _cannot(value: Any) -> str:
    fixes = "pass allow=[it] to save_safe and load_safe, see docs/safe_files.md"
    if isinstance(value, FunctionType):
        code = value.__code__
        what = f"is a function, {value.__qualname__} of {code.co_filename}, line {code.co_firstlineno}"
        if "<" in value.__qualname__:
            return (
                f"{what}, which cannot be written without pickle: take a class with __call__, such as SB3's LinearSchedule. "
                f"Your own: {fixes}."
            )
        return f"{what}, which is not on the list of allowed functions: {fixes}."
    if isinstance(value, type):
        return f"is {name_of(value)}, which is not on the list of allowed classes: {fixes}."
    return f"is a {name_of(type(value))}, which cannot be written without pickle: if it is made of plain values, {fixes}."


class Reader:
    """
    Makes values of JSON.

    :param tensors: By name.
    :param allowed: What may be named.
    """

    def __init__(self, tensors: dict[str, th.Tensor], allowed: Allowed):
        self._tensors = tensors
        self._allowed = allowed

    def read(self, written: Any) -> Any:
        """
        The value that :meth:`Writer.write` wrote.

        :raises ValueError: If it is none, or names what is not allowed.
        """
        if written is None or type(written) in (bool, int, float, str):
            return written
        if isinstance(written, list):
            return [self.read(each) for each in written]
        kind = written["kind"]
        if kind in _SEQUENCES:
            return _SEQUENCES[kind](self._list(written["values"]))
        if kind == "deque":
            return deque(self._list(written["values"]), maxlen=self.read(written["maxlen"]))
        if kind in ("dict", "ordered_dict"):
            return self._dict(written)
        return self._leaf(kind, written) if kind in _LEAVES else self._object(kind, written)

    def algorithm(self, written: Any) -> type[BaseAlgorithm]:
        """
        The algorithm that :meth:`Writer.algorithm` wrote.

        :raises ValueError: If it is none, or is not allowed.
        """
        if not isinstance(written, dict) or written.get("kind") != "class":
            raise ValueError("it names no algorithm.")
        return self._allowed.algorithm(written.get("name"))

    def _list(self, written: Any) -> list[Any]:
        if not isinstance(written, list):
            raise ValueError(f"it has {type(written).__name__} where a list is expected.")
        return self.read(written)

    def _dict(self, written: Any) -> dict[Any, Any]:
        items = written["items"]
        pairs = items.items() if isinstance(items, dict) else [(self.read(key), value) for key, value in items]
        found = {key: self.read(value) for key, value in pairs}
        if written["kind"] == "dict":
            return found
        ordered = OrderedDict(found)
        if "versions" in written:
            ordered._metadata = self._dict(written["versions"])  # type: ignore[attr-defined]
        return ordered

    def _leaf(self, kind: str, written: dict[str, Any]) -> Any:
        if kind == "float":
            value = float(written["value"])
            if math.isfinite(value):
                raise ValueError("it has a finite number among the infinite ones.")
            return value
        if kind == "tensor":
            return self._tensors[written["name"]]
        if kind == "array":
            # A copy: what two places have in common in a file, they do not have in common in a model.
            return self._tensors[written["name"]].numpy().copy()
        if kind in ("scalar", "dtype"):
            dtype = np.dtype(_one_of(_ARRAYS, written["dtype" if kind == "scalar" else "value"]))
            return dtype.type(written["value"]) if kind == "scalar" else dtype
        if kind == "torch_dtype":
            return _TORCH_DTYPES[_one_of(_TORCH_DTYPES, written["value"])]
        return th.device(written["value"])

    def _object(self, kind: str, written: dict[str, Any]) -> Any:
        if kind == "class":
            return self._allowed.named(written["name"])
        if kind == "space":
            return space_from(self._dict(written["parts"]))
        if kind == "generator":
            bits = _GENERATORS[_one_of(_GENERATORS, written["name"])](0)
            bits.state = self._dict(written["state"])
            return np.random.Generator(bits)
        if kind == "enum":
            return self._allowed.instance_class(written["class"])[written["name"]]  # type: ignore[index]
        if kind == "named_tuple":
            named = self._allowed.instance_class(written["class"])
            if not issubclass(named, tuple):
                raise ValueError(f"it names {written['class']!r}, which is no tuple with names.")
            return named(**self._dict(written["fields"]))
        if kind == "object":
            cls = self._allowed.instance_class(written["class"])
            made: Any = object.__new__(cls)
            attributes = self._dict(written["attributes"])
            check_attributes(cls, attributes)
            made.__dict__.update(attributes)
            return made
        raise ValueError(f"it has a value of an unknown kind {kind!r}.")


_LEAVES = ("float", "tensor", "array", "scalar", "dtype", "torch_dtype", "device")


def check_attributes(cls: type, attributes: Iterable[Any]) -> None:
    """
    See to it that no attribute takes the place of what belongs to the class: of a method, of a property.

    :param cls: The class of which an instance is to have them.
    :param attributes: Their names.
    :raises ValueError: If one does.
    """
    for name in attributes:
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("__"):
            raise ValueError(f"it has an attribute {name!r}, which is no name of one.")
        owner = next((kind for kind in cls.__mro__ if name in vars(kind)), None)
        if owner is not None and hasattr(vars(owner)[name], "__get__"):
            raise ValueError(f"it has an attribute {name!r}, which is a method of {cls.__name__}.")


def _one_of(known: Iterable[str], name: Any) -> str:
    if name not in list(known):
        raise ValueError(f"it names {name!r}: expected one of {sorted(known)}.")
    return name
