"""
Which backend runs a product: the fastest one, found by a short measurement the first time a kind of product is needed.

A kind is a device, dtype, number of threads, batch size (rounded up to a power of two), weight shape and number of
living weights. Choices are kept in memory and in a file of the user's cache folder, so that the next run on the machine
starts with them, and computes with the same backends.

Where a stopwatch cannot tell, for small products, on a busy machine and on devices that torch cannot wait for, and where it
is not asked (``SB3_SPARSE_BACKEND=deterministic``), ``rule.py`` decides.
"""

import logging
import os
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th

from sb3_sparse.sparse.kernels.backend import Backend
from sb3_sparse.sparse.kernels.backends import BACKENDS, OURS, available_backends
from sb3_sparse.sparse.kernels.choosing import choices
from sb3_sparse.sparse.kernels.choosing.measure import MAX_BATCH, Measurement, can_time, is_busy, measure
from sb3_sparse.sparse.kernels.choosing.rule import backend_by_rule
from sb3_sparse.sparse.topology import Topology

logger = logging.getLogger("sb3_sparse")

BACKEND_VARIABLE = "SB3_SPARSE_BACKEND"
"""Environment variable that names one backend for everything, or ``deterministic``, instead of the measured choice."""

_ENCODED_VARIABLE = os.environ.encodekey(BACKEND_VARIABLE)
AUTO, DETERMINISTIC = "auto", "deterministic"
# Smaller weights than this are not worth a measurement: a product takes microseconds on any path.
_MIN_NUMEL = 1024


def choose_backend(device: th.device, dtype: th.dtype, topology: Topology, batch: int = 256, training: bool = True) -> Backend:
    """
    The fastest backend for a weight of that topology. Never one that was measured to be slower than ``dense``.

    :param batch: Number of samples.
    :param training: Whether gradients are wanted, or the output alone.
    :raises ValueError: If the environment variable ``SB3_SPARSE_BACKEND`` names a backend that does not exist or
        cannot run here.
    """
    forced, key = _question(device, dtype, batch, training)
    if forced is not None:
        return forced
    chosen = _chosen.get(topology)
    if chosen is not None and key in chosen:
        return chosen[key]
    backend = BACKENDS[_decide(_Key(*key), topology)]
    _chosen.setdefault(topology, {})[key] = backend
    return backend


def peek_backend(
    device: th.device, dtype: th.dtype, topology: Topology, batch: int = 256, training: bool = True
) -> tuple[Backend, bool]:
    """
    The backend that :func:`choose_backend` has chosen or would choose, without measuring or writing anything.

    :param batch: Number of samples, if nothing was chosen yet.
    :param training: Likewise, whether gradients are wanted.
    :return: The backend, and whether that is settled: if not, it is what the rule says, and a measurement will decide.
    :raises ValueError: As :func:`choose_backend`.
    """
    forced, parts = _question(device, dtype, batch, training)
    if forced is not None:
        return forced, True
    chosen, key = _chosen.get(topology, {}), _Key(*parts)
    if key in chosen:
        return chosen[key], True
    # Of other batches: the last one that was used for the same, else for anything.
    used = [other for other in map(_Key._make, chosen) if other[:3] == key[:3] and other.threads == key.threads]
    used = [other for other in used if other.training == training] or used
    if used:
        return chosen[used[-1]], True
    candidates = available_backends(device, dtype)
    if _rule_decides(key, topology, candidates):
        return BACKENDS[backend_by_rule(device, dtype, topology, key.batch)], True
    known = choices.known_choice(_kind(key, topology), candidates)
    return BACKENDS[known or backend_by_rule(device, dtype, topology, key.batch)], known is not None


def kernels_allowed() -> bool:
    """Whether ``SB3_SPARSE_BACKEND`` leaves it to us what is computed by our kernels, or asks for them."""
    return (environment_variable() or AUTO) in (AUTO, DETERMINISTIC, "compiled", "blocked")


def register_backend(backend: Backend) -> None:
    """
    Add a backend of your own, for this process.

    It takes part in measurements of what it supports, is chosen where it is the fastest, and ``SB3_SPARSE_BACKEND`` can
    name it. The rule (``deterministic``) never does. What was chosen before is forgotten, and what the file says about
    products that it supports counts only if it was measured with it: by its name, so that a faster version of it needs
    another name, or an empty ``SB3_SPARSE_CACHE``.

    :param backend: See ``docs/kernels.md`` for how to write one.
    :raises TypeError: If it is no :class:`Backend`.
    :raises ValueError: If its name is taken, or no plain word.
    """
    if not isinstance(backend, Backend):
        raise TypeError(f"register_backend({backend!r}): expected an object of a subclass of Backend.")
    name = getattr(backend, "name", None)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"the name of a backend is {name!r}: expected a word of letters, digits and underscores.")
    if name in (*BACKENDS, AUTO, DETERMINISTIC):
        taken = [*BACKENDS, AUTO, DETERMINISTIC]
        raise ValueError(f"the name of a backend is {name!r}, which is taken: expected another one than {taken}.")
    BACKENDS[name] = backend
    clear_chosen()


def unregister_backend(name: str) -> None:
    """
    Take a registered backend back.

    :raises ValueError: If there is none of that name, or this package brings it.
    """
    if name in OURS or name not in BACKENDS:
        registered = [other for other in BACKENDS if other not in OURS]
        raise ValueError(f"cannot unregister the backend {name!r}: expected one that was registered, which are {registered}.")
    del BACKENDS[name]
    clear_chosen()


def take_choices(known: dict[str, str]) -> None:
    """
    Choose as another process did, as long as this one lives.

    :param known: Of :func:`~sb3_sparse.sparse.kernels.choosing.choices.choices_in_use`.
    """
    for kind, name in known.items():
        choices.use_choice(kind, name)
    clear_chosen()


def forget_choices() -> None:
    """Forget what is in memory; the file is read again."""
    clear_chosen()
    choices.forget_choices()


def clear_chosen() -> None:
    """Ask again what was chosen."""
    _chosen.clear()
    chosen_convolutions.clear()


class _Key(NamedTuple):
    """What a choice depends on, for one topology."""

    mode: str
    device: th.device
    dtype: th.dtype
    batch: int
    """Samples, rounded up to a power of two."""
    training: bool
    threads: int


# What `choose_backend` answered, for the next call: it is on the path of every single action.
_chosen: "weakref.WeakKeyDictionary[Topology, dict[tuple[str, th.device, th.dtype, int, bool, int], Backend]]" = (
    weakref.WeakKeyDictionary()
)

chosen_convolutions: "weakref.WeakKeyDictionary[Topology, dict[tuple[Any, ...], str]]" = weakref.WeakKeyDictionary()
"""The same of convolutions, for ``convolutions.py``."""


def _question(device: th.device, dtype: th.dtype, batch: int, training: bool) -> tuple[Backend | None, tuple[Any, ...]]:
    """What is asked for: a backend that the environment variable names, else the parts of a :class:`_Key`."""
    mode = environment_variable() or AUTO
    if mode not in (AUTO, DETERMINISTIC):
        return forced_backend(mode, device, dtype), ()
    # A plain tuple, which takes half of the time of a named one.
    return None, (mode, device, dtype, 1 << (batch - 1).bit_length() if batch else 0, training, th.get_num_threads())


def environment_variable() -> str | None:
    """What ``SB3_SPARSE_BACKEND`` says."""
    try:
        # Where a variable is not set, `os.environ.get` raises an error inside and catches it, on the path of every action.
        if os.environ._data.get(_ENCODED_VARIABLE) is None:  # type: ignore[attr-defined]
            return None
    except AttributeError:
        pass  # Not in this Python, or somebody put another dictionary there.
    return os.environ.get(BACKEND_VARIABLE)


def forced_backend(name: str, device: th.device, dtype: th.dtype) -> Backend:
    """
    The backend that the environment variable names.

    :raises ValueError: If it does not exist or cannot run there.
    """
    if name not in BACKENDS:
        raise ValueError(f"{BACKEND_VARIABLE}={name!r}: expected '{AUTO}', '{DETERMINISTIC}' or one of {sorted(BACKENDS)}.")
    if not BACKENDS[name].supports(device, dtype):
        raise ValueError(
            f"{BACKEND_VARIABLE}={name!r} cannot run {dtype} on {device}: "
            f"expected one of {available_backends(device, dtype)}, or unset it."
        )
    return BACKENDS[name]


def _rule_decides(key: _Key, topology: Topology, candidates: list[str]) -> bool:
    is_small = topology.numel < _MIN_NUMEL or key.batch == 0
    return key.mode == DETERMINISTIC or len(candidates) == 1 or is_small or not can_time(key.device)


def _decide(key: _Key, topology: Topology) -> str:
    candidates = available_backends(key.device, key.dtype)
    by_rule = backend_by_rule(key.device, key.dtype, topology, key.batch)
    if _rule_decides(key, topology, candidates):
        return by_rule
    backends = [BACKENDS[name] for name in candidates]
    return decide(
        _kind(key, topology),
        candidates,
        by_rule,
        lambda: measure(backends, key.device, key.dtype, topology, min(key.batch, MAX_BATCH), key.training),
    )


def decide(kind: str, candidates: list[str], by_rule: str, measured: Callable[[], Measurement]) -> str:
    """
    What was chosen for a kind, or what a measurement finds now.

    :param kind: The kind of product.
    :param candidates: Names of what can be chosen.
    :param by_rule: What to take where a stopwatch cannot tell.
    :param measured: Measures the candidates.
    """
    known = choices.known_choice(kind, candidates)
    if known is not None:
        return known
    if is_busy():
        logger.info("%s: took %s by the rule, as this machine is too busy for measurements", kind, by_rule)
        choices.use_choice(kind, by_rule)
        return by_rule
    measurement = measured()
    if not measurement.is_clear:
        logger.info("%s: took %s by the rule, as times scatter (%s)", kind, by_rule, measurement.times)
        choices.use_choice(kind, by_rule)
        return by_rule
    # What is equally fast here is the rule's: it knows more than a sample of the layer can show.
    stored = choices.store_choice(kind, measurement.best_or(by_rule), candidates)
    logger.info("%s: chose %s (%s)", kind, stored, measurement.times)
    return stored


def _kind(key: _Key, topology: Topology) -> str:
    place = f"cpu x{key.threads}" if key.device.type == "cpu" else key.device.type
    if key.device.type == "cuda":
        place = th.cuda.get_device_name(key.device)
    shape = f"{topology.rows}x{topology.columns}:{topology.nnz}"
    use = "training" if key.training else "forward"
    # What was chosen without them says nothing about registered backends, and the other way round.
    others = "".join(f" with {name}" for name in available_backends(key.device, key.dtype) if name not in OURS)
    return f"{place} {str(key.dtype).removeprefix('torch.')} batch {min(key.batch, MAX_BATCH)} {shape} {use}{others}"
