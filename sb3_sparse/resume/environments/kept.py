"""
What environments hold, as the same objects: a test leaves a run as it was, also where others know these objects.

A state of ``layers.py`` is put into copies. A dictionary that an environment shares with a callback, another environment or a
variable of a module would be two afterwards. Here each object gets back what was in it, and the environment the objects.
"""

import copyreg
import io
import pickle
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import MethodType, SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_sparse.resume.environments.layers import UNPICKLABLE, captured_names
from sb3_sparse.resume.environments.native import is_native
from sb3_sparse.resume.state.plain import CONSTANTS, is_code
from sb3_sparse.resume.state.random_state import parts_of_space

# What is in an object, how to put it back, and how to put back what lies there by its hash.
_Content = tuple[Iterable[Any], Callable[[], None], Callable[[], None]]
_MISSING = object()


class Kept:
    """
    The objects that belong to the state of environments, and what is in each of them now.

    Objects that refer to each other form a group. A group with something that cannot be filled again stays the copy that it
    is: half of it would refer to copies, and half to originals.

    :param environments: The layers of each, and their state of this moment, of :func:`capture_layers`.
    """

    def __init__(self, environments: Sequence[tuple[Sequence[Any], bytes]]):
        # Whose attribute it is, and its place among what is known.
        self._attributes: list[tuple[Any, str, int]] = []
        self._refill: list[Callable[[], None]] = []
        self._refill_tables: list[Callable[[], None]] = []
        self._whole: list[tuple[Any, bytes]] = []
        # What is known stays alive, and with it its `id`.
        self._known: list[Any] = []
        self._places: dict[int, int] = {}
        self._groups: list[int] = []
        # Part of no group: each of these is in its place already.
        for layer in (each for layers, _ in environments for each in layers):
            self._know(layer)
            for value in vars(layer).values():
                if isinstance(value, gym.Space) or is_native(value):
                    self._know(value)
        self._n_fixed, whole = len(self._known), []
        for layers, state in environments:
            for owner, name in _attributes_of(layers, state):
                whole += self._walk(vars(owner)[name])
                if (place := self._places.get(id(vars(owner)[name]))) is not None:
                    self._attributes.append((owner, name, place))
        for value in whole:
            try:
                self._whole.append((value, self._written(value, joins=True)))
            except UNPICKLABLE:
                # Of something that leaves it out when it is written itself.
                continue

    def put_back(self) -> None:
        """After the state was put back: let each object hold what it held, and the environments the objects."""
        copies = set()
        for value, written in self._whole:
            if self._is_still(value, written):
                continue
            _fill(value, _Unpickler(io.BytesIO(written), self._known).load())
            if not self._is_still(value, written):
                copies.add(self._group(self._places[id(value)]))
        for refill in self._refill:
            refill()
        # A key has the hash of what it holds: it has to hold it before it enters, so what is inside comes first.
        for refill in reversed(self._refill_tables):
            refill()
        for owner, name, place in self._attributes:
            if self._group(place) not in copies:
                vars(owner)[name] = self._known[place]

    def _know(self, value: Any) -> None:
        if id(value) not in self._places:
            self._places[id(value)] = len(self._known)
            self._groups.append(len(self._known))
            self._known.append(value)

    def _group(self, place: int) -> int:
        while self._groups[place] != place:
            # Half the way is left for the next one who asks.
            self._groups[place] = place = self._groups[self._groups[place]]
        return place

    def _join(self, a: int, b: int) -> None:
        if min(a, b) >= self._n_fixed:
            self._groups[self._group(a)] = self._group(b)

    def _walk(self, root: Any) -> list[Any]:
        """Get to know what can be reached; what only pickle knows how to look into is returned."""
        whole, waiting = [], [(root, root)]
        while waiting:
            value, holder = waiting.pop()
            if isinstance(value, CONSTANTS) or _is_a_name(value):
                continue
            is_new = id(value) not in self._places
            self._know(value)
            self._join(self._places[id(value)], self._places[id(holder)])
            if not is_new:
                continue
            content = _content(value)
            if content is None:
                whole.append(value)
            else:
                inside, refill, refill_table = content
                waiting += [(each, value) for each in inside]
                self._refill.append(refill)
                self._refill_tables.append(refill_table)
        return whole

    def _is_still(self, value: Any, written: bytes) -> bool:
        try:
            return self._written(value) == written
        except UNPICKLABLE:
            return False

    def _written(self, value: Any, joins: bool = False) -> bytes:
        file = io.BytesIO()
        pickler = _Pickler(file, value, self._places)
        pickler.dump(value)
        for place in pickler.met if joins else ():
            self._join(place, self._places[id(value)])
        return file.getvalue()


def _attributes_of(layers: Sequence[Any], state: bytes) -> Iterable[tuple[Any, str]]:
    for layer, names, spaces in captured_names(layers, state):
        yield from ((layer, name) for name in names)
        for space in (vars(layer)[name] for name in spaces):
            yield from ((part, "_np_random") for part in parts_of_space(space))


class _Pickler(pickle.Pickler):
    """Writes an object, and of others that are known only which they are."""

    def __init__(self, file: io.BytesIO, top: Any, places: dict[int, int]):
        super().__init__(file, protocol=5)
        self._top, self._places = top, places
        self.met: set[int] = set()

    def persistent_id(self, value: Any) -> int | None:
        place = None if value is self._top else self._places.get(id(value))
        if place is not None:
            self.met.add(place)
        return place


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: list[Any]):
        super().__init__(file)
        self._known = known

    def persistent_load(self, place: int) -> Any:
        return self._known[place]


def _is_a_name(value: Any) -> bool:
    """Classes and functions, of which pickle writes nothing else."""
    return is_code(value) and not isinstance(value, (MethodType, partial)) and getattr(value, "__self__", None) is None


def _content(value: Any) -> _Content | None:
    """None of what only pickle knows how to look into, or what has no parts."""
    kind = type(value)
    if kind in (dict, OrderedDict, defaultdict, Counter):
        return _of_dict(value)
    if kind in (list, deque, set):
        return _of_collection(value)
    if kind is np.ndarray and value.dtype == object:
        return _of_objects(value)
    if kind is tuple or (isinstance(value, tuple) and hasattr(value, "_make")):
        return value, _nothing, _nothing
    if isinstance(value, MethodType):
        return [value.__self__], _nothing, _nothing
    if kind is partial:
        return [value.func, *value.args, *value.keywords.values()], _nothing, _nothing
    return _of_instance(value) if _is_written_by_attributes(kind) else None


def _nothing() -> None:
    """It cannot change."""


def _of_dict(value: Any) -> _Content:
    items = list(value.items())

    def refill() -> None:
        value.clear()
        for key, inner in items:
            value[key] = inner

    return [each for item in items for each in item], _nothing, refill


def _of_collection(value: Any) -> _Content:
    items = list(value)

    def refill() -> None:
        value.clear()
        (value.update if isinstance(value, set) else value.extend)(items)

    return (items, _nothing, refill) if isinstance(value, set) else (items, refill, _nothing)


def _of_objects(value: np.ndarray) -> _Content:
    items = list(value.flat)

    def refill() -> None:
        for i, inner in enumerate(items):
            value.flat[i] = inner

    return items, refill, _nothing


def _is_written_by_attributes(kind: type) -> bool:
    """Whether objects of a class hold all in attributes, lists and dictionaries besides what is in them, for pickle too."""
    if kind is SimpleNamespace:
        return True
    names = ("__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__getnewargs__", "__getnewargs_ex__")
    is_default = all(getattr(kind, name, None) is getattr(object, name, None) for name in names)
    return is_default and kind not in copyreg.dispatch_table


def _of_instance(value: Any) -> _Content:
    attributes = dict(vars(value)) if hasattr(value, "__dict__") else {}
    slots = {name: getattr(value, name, _MISSING) for name in copyreg._slotnames(type(value))}  # type: ignore[attr-defined]
    # Of a subclass, whose own methods may do something else.
    items: Any = dict(dict.items(value)) if isinstance(value, dict) else list.copy(value) if isinstance(value, list) else ()

    def refill() -> None:
        if hasattr(value, "__dict__"):
            vars(value).clear()
            vars(value).update(attributes)
        for name, inner in slots.items():
            # Not by the method of the class, which may forbid it.
            if inner is not _MISSING:
                object.__setattr__(value, name, inner)
            elif hasattr(value, name):
                object.__delattr__(value, name)
        if isinstance(value, list):
            list.__setitem__(value, slice(None), items)

    def refill_table() -> None:
        if isinstance(value, dict):
            dict.clear(value)
            dict.update(value, items)

    inside = [*attributes.values(), *(inner for inner in slots.values() if inner is not _MISSING)]
    within = [each for item in items.items() for each in item] if isinstance(items, dict) else items
    return [*inside, *within], refill, refill_table


def _fill(value: Any, copy: Any) -> None:
    """Let an object that is written as a whole be like a copy, where there is a way; the caller looks whether it is."""
    try:
        if isinstance(value, np.ndarray):
            value[...] = copy
        elif isinstance(value, np.random.Generator):
            value.bit_generator.state = copy.bit_generator.state
        elif isinstance(value, np.random.BitGenerator):
            value.state = copy.state
        elif isinstance(value, np.random.RandomState):
            value.set_state(copy.get_state())
        elif isinstance(value, random.Random):
            value.setstate(copy.getstate())
        elif isinstance(value, bytearray):
            value[:] = copy
        elif isinstance(value, th.Tensor):
            value.data.copy_(copy.data)
        elif isinstance(value, gym.Space):
            for ours, theirs in zip(parts_of_space(value), parts_of_space(copy), strict=True):
                ours._np_random = theirs._np_random
    except (ValueError, TypeError, RuntimeError, BufferError):
        # Of another shape by now, or not to be written to.
        return
