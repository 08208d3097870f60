"""All metrics of a model by name: what the callback logs, as a function."""

from collections.abc import Collection, Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_sparse.common.model_parts import NETWORKS, check_networks
from sb3_sparse.common.warn import warn_user
from sb3_sparse.plasticity.measurement.batches import DEFAULT_N_SAMPLES
from sb3_sparse.plasticity.measurement.losses import has_losses, why_no_losses
from sb3_sparse.plasticity.measurement.named_metrics import METRICS, check_metrics, columns, metric_results
from sb3_sparse.plasticity.measurement.probe import Probe


def measure(
    model: BaseAlgorithm,
    n_samples: int = DEFAULT_N_SAMPLES,
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
    :param networks: ``"actor"``, ``"critic"`` or both; those that the model has are measured. An algorithm may have
        others of its own, such as ``"encoder"``, which have to be there.
    :param batch: A batch instead of a drawn one, as the buffer of the model samples it.
    :param seed: Of the draw.
    :return: Numbers by ``network_metric``. Metrics of gradients are missing where the losses are not known; there is a
        warning if they were asked for by name.
    :raises ValueError: If a name is unknown, or the model has none of the networks.
    """
    names = check_metrics(metrics)
    wanted = check_networks(networks)
    probe = Probe(model, n_samples, batch, seed)
    present = present_networks(model, wanted, probe.networks)
    if metrics != "all" and (reason := what_is_left_out(model, names, present)):
        warn_user(reason)
    return measure_probe(probe, names, present)


def what_is_left_out(model: BaseAlgorithm, metrics: Sequence[str], networks: Sequence[str]) -> str | None:
    """
    What to tell about metrics of gradients where losses are not known; None if all can be measured.

    :param model: The model.
    :param metrics: Names from ``METRICS``.
    :param networks: Names of networks that it has.
    """
    left_out = [name for name in metrics if METRICS[name].needs_losses]
    unknown = [network for network in networks if not has_losses(model, network)]
    if not left_out or not unknown:
        return None
    return f"{why_no_losses(model, unknown[0])} Left out: {', '.join(left_out)}."


def measure_probe(probe: Probe, metrics: Sequence[str], networks: Sequence[str]) -> dict[str, float]:
    """
    Metrics of a probe.

    :param probe: What to measure.
    :param metrics: Names from ``METRICS``.
    :param networks: Networks that the probe has.
    :raises ValueError: If two numbers would have the same name, or a metric is unknown or does not return its numbers.
    """
    # Refuses what would be lost.
    columns(metrics, networks)
    values = {}
    for network in networks:
        part = probe.network(network)
        for name in metrics:
            if part.has_losses or not METRICS[name].needs_losses:
                # For metrics from outside, which may run a network themselves.
                with part.looking():
                    results = metric_results(name, part)
                values.update({f"{network}_{column}": value for column, value in results.items()})
    return values


def present_networks(model: BaseAlgorithm, wanted: Sequence[str], present: Collection[str]) -> list[str]:
    """
    Those networks of ``wanted`` that there are.

    :param model: For the message.
    :param wanted: Names of networks.
    :param present: Names of networks that the model has.
    :raises ValueError: If there is none of them, or one is missing that is not an actor or a critic, which some
        algorithms do without.
    """
    found = [name for name in wanted if name in present]
    missing = [name for name in wanted if name not in present and (not found or name not in NETWORKS)]
    if missing:
        raise ValueError(
            f"{type(model).__name__} has no network {', '.join(missing)}, it has: {', '.join(present)}. Another part of "
            "it, such as an encoder, gets a name by a method model_parts(), see docs/extending/algorithm.md."
        )
    return found
