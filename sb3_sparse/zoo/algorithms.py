"""Which algorithms rl-zoo3 knows: its own, and those of this package."""

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_sparse.drqv2 import DrQv2
from sb3_sparse.rainbow import DER, Rainbow
from sb3_sparse.streaming import StreamAC, StreamQ, StreamSARSA
from sb3_sparse.zoo.rl_zoo import part
from sb3_sparse.zoo.search_spaces import converters, samplers

OURS: dict[str, type[BaseAlgorithm]] = {
    "rainbow": Rainbow,
    "der": DER,
    "drqv2": DrQv2,
    "stream_ac": StreamAC,
    "stream_q": StreamQ,
    "stream_sarsa": StreamSARSA,
}


def algorithms() -> dict[str, type[BaseAlgorithm]]:
    """Every algorithm that a command can be given, by its name there."""
    known = part("utils.ALGOS")
    return {**known, **{name: algorithm for name, algorithm in OURS.items() if name not in known}}


def register_algorithms() -> None:
    """
    Let rl-zoo3 know the algorithms of this package, and a search space for CrossQ. Safe to call twice.

    Adds entries to rl-zoo3's own tables, for the rest of the process; changes none that is there. The commands of this
    package take theirs back, see :func:`sb3_sparse.zoo.registered`.
    """
    for table, entries in registrations():
        table.update(entries)


def registrations() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """rl-zoo3's tables, and what each of them lacks."""
    tables: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (part("utils.ALGOS"), OURS),
        (part("hyperparams_opt.HYPERPARAMS_SAMPLER"), samplers()),
        (part("hyperparams_opt.HYPERPARAMS_CONVERTER"), converters()),
    ]
    return [(table, {name: new for name, new in entries.items() if name not in table}) for table, entries in tables]


def loading_without_buffer(algorithm: type[OffPolicyAlgorithm]) -> type[OffPolicyAlgorithm]:
    """A subclass whose ``load`` allocates no replay buffer, also where rl-zoo3 does not ask for that."""

    def load(cls: type, *args: Any, **kwargs: Any) -> OffPolicyAlgorithm:
        return algorithm.load(*args, **{"buffer_size": 1, **kwargs})

    return type(algorithm.__name__, (algorithm,), {"__doc__": algorithm.__doc__, "load": classmethod(load)})
