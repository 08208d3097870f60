"""All metrics of a model by name: what the callback logs, as a function."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.common import validation
from sb3_sparse.plasticity import metrics as functional
from sb3_sparse.plasticity.losses import has_losses, why_no_losses
from sb3_sparse.plasticity.probe import NETWORKS, NetworkProbe, Probe


def measure(
    model: BaseAlgorithm,
    n_samples: int = 256,
    metrics: str | Sequence[str] = "all",
    networks: str | Sequence[str] = NETWORKS,
    batch: Any = None,
    seed: int = 0,
) -> dict[str, float]:
    """
    Plasticity metrics of a model, e.g. ``{"critic_srank": 244.0, ...}``. The model is left as it is.

    >>> from stable_baselines3 import SAC
    >>> model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=300, learning_starts=300, seed=0).learn(300)
    >>> sorted(measure(model, networks=["critic"], metrics=["srank", "parameter_norm"]))
    ['critic_parameter_norm', 'critic_srank', 'critic_srank_normalized']

    :param model: A model of SB3, sb3-contrib or this package.
    :param n_samples: Size of the batch that is drawn from its buffer.
    :param metrics: Names from ``METRICS``, or ``"all"``.
    :param networks: ``"actor"``, ``"critic"`` or both; those that the model has are measured.
    :param batch: A batch instead of a drawn one, as the buffer of the model samples it.
    :param seed: Of the draw.
    :return: Numbers by ``network_metric``. Metrics of gradients are missing where the losses are not known; there is a
        warning if they were asked for by name.
    :raises ValueError: If a name is unknown, or the model has none of the networks.
    """
    names = check_metrics(metrics)
    wanted = check_networks(networks)
    probe = Probe(model, n_samples, batch, seed)
    if metrics != "all" and not has_losses(model) and (left_out := [name for name in names if METRICS[name].needs_losses]):
        warnings.warn(f"{why_no_losses(model)} Left out: {', '.join(left_out)}.", stacklevel=2)
    return measure_probe(probe, names, present_networks(model, wanted, probe.networks))


def measure_probe(probe: Probe, metrics: Sequence[str], networks: Sequence[str]) -> dict[str, float]:
    """
    Metrics of a probe.

    :param probe: What to measure.
    :param metrics: Names from ``METRICS``.
    :param networks: Networks that the probe has.
    """
    values = {}
    for network in networks:
        part = probe.network(network)
        for metric in map(METRICS.__getitem__, metrics):
            if part.has_losses or not metric.needs_losses:
                results = zip(metric.columns, metric.compute(part), strict=True)
                values.update({f"{network}_{column}": value for column, value in results})
    return values


class Metric(NamedTuple):
    """A metric by name: what :func:`measure` knows about it."""

    columns: tuple[str, ...]
    """Names of its results, after that of the network."""
    compute: Callable[[NetworkProbe], Sequence[float]]
    needs_losses: bool = False


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


def _fau(part: NetworkProbe) -> list[float]:
    layers = part.activations.activated
    return [functional.fraction_active_units(layers) if layers else math.nan]


METRICS = {
    "dormant_redo": Metric(("dormant_redo",), partial(_dormant, convention="redo")),
    "dormant_authors": Metric(("dormant_authors",), partial(_dormant, convention="authors")),
    "structurally_dead": Metric(("structurally_dead",), _structurally_dead),
    "fau": Metric(("fau",), _fau),
    "srank": Metric(
        ("srank", "srank_normalized"),
        lambda part: _ranks(part, functional.srank, partial(functional.srank, normalized=True)),
    ),
    "threshold_rank": Metric(("threshold_rank",), lambda part: _ranks(part, functional.threshold_rank)),
    "effective_rank": Metric(("effective_rank",), lambda part: _ranks(part, functional.effective_rank)),
    "stable_rank": Metric(("stable_rank",), lambda part: _ranks(part, functional.stable_rank)),
    "pca_rank": Metric(("pca_rank",), lambda part: _ranks(part, functional.pca_rank)),
    "gradient_norm": Metric(("gradient_norm",), lambda part: [functional.gradient_norm(part.gradients)], True),
    "parameter_norm": Metric(("parameter_norm",), lambda part: [functional.parameter_norm(part.module.parameters())]),
    "feature_norm": Metric(("feature_norm",), lambda part: [_mean([functional.feature_norm(f) for f in part.features])]),
    "interference": Metric(
        ("interference_mean", "interference_abs", "interference_negative"),
        lambda part: [part.interference.mean, part.interference.mean_abs, part.interference.negative],
        True,
    ),
}

RANKS = {"srank", "threshold_rank", "effective_rank", "stable_rank", "pca_rank"}


def columns(metrics: Sequence[str], networks: Sequence[str]) -> list[str]:
    """
    Names of the results of :func:`measure`, in their order.

    :param metrics: Names from ``METRICS``.
    :param networks: Names of networks.
    """
    return [f"{network}_{column}" for network in networks for name in metrics for column in METRICS[name].columns]


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


def check_networks(networks: str | Sequence[str]) -> list[str]:
    """
    Names of networks, each once.

    :param networks: ``"actor"``, ``"critic"`` or both.
    :raises ValueError: If there is none, or one is unknown.
    """
    found = validation.names("networks", networks)
    for name in found:
        if name not in NETWORKS:
            hint = f" ({name} goes by the name 'critic')" if name in ("q_net", "quantile_net") else ""
            raise ValueError(f"unknown network {name!r}{hint}: expected some of {list(NETWORKS)}.")
    return found


def present_networks(model: BaseAlgorithm, wanted: Sequence[str], present: Sequence[str] | dict[str, Any]) -> list[str]:
    """
    Those networks of ``wanted`` that there are.

    :param model: For the message.
    :param wanted: Names of networks.
    :param present: Names of networks that the model has.
    :raises ValueError: If there is none of them.
    """
    found = [name for name in wanted if name in present]
    if not found:
        raise ValueError(f"{type(model).__name__} has no network {', '.join(wanted)}, it has: {', '.join(present)}.")
    return found


def _mean(values: Sequence[float]) -> float:
    return float(th.tensor(values, dtype=th.float64).mean())
