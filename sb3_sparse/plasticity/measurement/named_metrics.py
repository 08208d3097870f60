"""
The metrics by name, and how one of yours gets a name.

A metric is a function of one network of a :class:`~sb3_sparse.plasticity.Probe` that returns numbers. What it computes them
from (activations, features, gradients) is there already and shared with the other metrics. Which networks there are, say
``common/sb3_models.py``, or a method ``model_parts()`` of an algorithm.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch as th
from torch import nn

from sb3_sparse.common import validation
from sb3_sparse.plasticity import metrics as functional
from sb3_sparse.plasticity.measurement.probe import NetworkProbe


@dataclass(frozen=True)
class Metric:
    """
    A metric by name: what :func:`measure` knows about it.

    >>> Metric(("largest_weight",), lambda network: [max(float(p.abs().max()) for p in network.module.parameters())])
    Metric(columns=('largest_weight',), ...)
    """

    columns: tuple[str, ...]
    """Names of its results, which follow that of the network in the log and in the table."""
    compute: Callable[[NetworkProbe], Sequence[float]]
    """One number for each column."""
    needs_losses: bool = False
    """Whether it looks at gradients, so that it is left out where the losses of an algorithm are not known."""

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise ValueError(f"columns={self.columns!r}: expected a tuple of names, e.g. ({self.columns!r},).")
        columns = tuple(validation.names("columns", self.columns))
        if len(columns) != len(self.columns):
            raise ValueError(f"columns={self.columns!r}: each name can stand there only once.")
        object.__setattr__(self, "columns", columns)
        if not callable(self.compute):
            raise ValueError(f"compute={self.compute!r}: expected a function of a network of a probe.")


def _ranks(part: NetworkProbe, *functions: Callable[[functional.Spectrum], float]) -> list[float]:
    return [_mean([function(spectrum) for spectrum in part.spectra]) for function in functions]


def _dormant(part: NetworkProbe, convention: str) -> list[float]:
    seen = part.activations
    layers = seen.activated if convention == "redo" else seen.linear
    if not layers:
        return [math.nan]
    return [functional.dormant_ratio(layers, None, convention, seen.structurally_dead).ratio]


def _structurally_dead(part: NetworkProbe) -> list[float]:
    seen = part.activations
    units = sum(output.shape[1] for output in seen.linear.values())
    dead = sum(int(seen.structurally_dead[name].sum()) for name in seen.linear if name in seen.structurally_dead)
    return [dead / units if units else math.nan]


def _fau(part: NetworkProbe, of_relu: bool = False) -> list[float]:
    layers = part.activations.rectified if of_relu else part.activations.activated
    return [functional.fraction_active_units(layers) if layers else math.nan]


def _living(module: nn.Module) -> Iterator[th.Tensor]:
    """All parameters, of layers masked by ``torch.nn.utils.prune`` what the masks leave."""
    masks: dict[nn.Parameter, th.Tensor] = {}
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            mask = getattr(layer, f"{name.removesuffix('_orig')}_mask", None)
            if name.endswith("_orig") and isinstance(mask, th.Tensor):
                masks[parameter] = mask
    for parameter in module.parameters():
        yield parameter * masks[parameter] if parameter in masks else parameter


METRICS = {
    "dormant_redo": Metric(("dormant_redo",), partial(_dormant, convention="redo")),
    "dormant_authors": Metric(("dormant_authors",), partial(_dormant, convention="authors")),
    "structurally_dead": Metric(("structurally_dead",), _structurally_dead),
    "fau": Metric(("fau",), _fau),
    "fau_relu": Metric(("fau_relu",), partial(_fau, of_relu=True)),
    "srank": Metric(
        ("srank", "srank_normalized"),
        lambda part: _ranks(part, functional.srank, partial(functional.srank, normalized=True)),
    ),
    "threshold_rank": Metric(("threshold_rank",), lambda part: _ranks(part, functional.threshold_rank)),
    "effective_rank": Metric(("effective_rank",), lambda part: _ranks(part, functional.effective_rank)),
    "stable_rank": Metric(("stable_rank",), lambda part: _ranks(part, functional.stable_rank)),
    "pca_rank": Metric(("pca_rank",), lambda part: _ranks(part, functional.pca_rank)),
    "gradient_norm": Metric(("gradient_norm",), lambda part: [functional.gradient_norm(part.gradients)], True),
    "parameter_norm": Metric(("parameter_norm",), lambda part: [functional.parameter_norm(_living(part.module))]),
    "feature_norm": Metric(("feature_norm",), lambda part: [_mean([functional.feature_norm(f) for f in part.features])]),
    "interference": Metric(
        ("interference_mean", "interference_abs", "interference_negative"),
        lambda part: [part.interference.mean, part.interference.mean_abs, part.interference.negative],
        True,
    ),
}

RANKS = {"srank", "threshold_rank", "effective_rank", "stable_rank", "pca_rank"}
_OURS = tuple(METRICS)


def register_metric(name: str, metric: Metric) -> None:
    """
    Give a metric a name by which ``measure(model, metrics=[name])`` and ``PlasticityCallback(metrics=[name])`` take it.

    :param name: What nothing else is called.
    :param metric: The metric.
    :raises ValueError: If the name, or one of the columns, is taken.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r}: expected the name of a metric.")
    if not isinstance(metric, Metric):
        raise ValueError(f"metric={metric!r}: expected Metric(columns, compute).")
    if name in METRICS or name == "all":
        raise ValueError(f"there is a metric {name!r} already: choose another name, or unregister_metric it if it is yours.")
    for other, known in METRICS.items():
        if taken := set(known.columns).intersection(metric.columns):
            raise ValueError(f"{name!r} and {other!r} would both write {sorted(taken)}: choose other columns.")
    METRICS[name] = metric


def unregister_metric(name: str) -> None:
    """
    Take back a name that :func:`register_metric` gave.

    :param name: Of a metric of yours.
    :raises ValueError: If there is no such metric, or it is one of this package.
    """
    if name not in METRICS or name in _OURS:
        raise ValueError(f"{name!r} was not registered by register_metric.")
    del METRICS[name]


def metric_results(name: str, network: NetworkProbe) -> dict[str, float]:
    """
    What one metric has to say about one network: numbers by column.

    :param name: From ``METRICS``.
    :param network: Of a probe.
    :raises ValueError: If there is not one number for each column.
    :raises RuntimeError: From an error in a metric that was registered.
    """
    metric, what = METRICS[name], f"metric {name!r} of the {network.name}"
    try:
        result = metric.compute(network)
    except Exception as error:
        if name in _OURS:
            raise
        raise RuntimeError(f"{what} failed: {type(error).__name__}: {error}") from error
    expected = f"expected a list with one number for each of its columns {list(metric.columns)}"
    if isinstance(result, (str, bytes, Mapping, Set)) or not isinstance(result, Iterable) or getattr(result, "ndim", 1) == 0:
        raise ValueError(f"{what} returned {result!r}: {expected}.")
    found = list(result)
    if len(found) != len(metric.columns):
        raise ValueError(f"{what} returned {len(found)} numbers: {expected}.")
    return {column: _number(entry, f"{what} returned", column) for column, entry in zip(metric.columns, found, strict=True)}


def _number(entry: Any, what: str, column: str) -> float:
    problem = ValueError(f"{what} {entry!r} for its column {column!r}: expected a number.")
    if isinstance(entry, (str, bytes)):
        raise problem
    try:
        return float(entry)
    except (TypeError, ValueError, RuntimeError) as error:
        raise problem from error


def columns(metrics: Sequence[str], networks: Sequence[str]) -> list[str]:
    """
    Names of the results of :func:`measure`, in their order.

    :param metrics: Names from ``METRICS``.
    :param networks: Names of networks.
    :raises ValueError: If a metric was unregistered since, or two results would have the same name.
    """
    writers: dict[str, str] = {}
    for network in networks:
        for name in check_metrics(metrics):
            for column in METRICS[name].columns:
                writer = f"{column!r} of the {network!r}"
                if (other := writers.setdefault(f"{network}_{column}", writer)) != writer:
                    raise ValueError(f"{other} and {writer} would both be {network}_{column}: rename one.")
    return list(writers)


def check_metrics(metrics: str | Sequence[str]) -> list[str]:
    """
    Names of metrics, each once.

    :param metrics: Names from ``METRICS``, or ``"all"``.
    :raises ValueError: If there is none, or one is unknown.
    """
    known = list(METRICS) if isinstance(metrics, str) and metrics == "all" else validation.names("metrics", metrics)
    for name in known:
        if name not in METRICS:
            hint = (
                " (name the convention: 'dormant_redo' or 'dormant_authors')" if name in ("dormant", "dormant_ratio") else ""
            )
            raise ValueError(f"unknown metric {name!r}{hint}: expected 'all' or some of {list(METRICS)}.")
    return known


def _mean(values: Sequence[float]) -> float:
    return float(th.tensor(values, dtype=th.float64).mean())
