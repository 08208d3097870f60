"""Callbacks about plasticity."""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.logger import Figure, HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat

from sb3_sparse.plasticity.batches import batch_source
from sb3_sparse.plasticity.figures import interference_figure, spectrum_figure
from sb3_sparse.plasticity.losses import has_losses
from sb3_sparse.plasticity.measure import (
    METRICS,
    RANKS,
    check_metrics,
    check_networks,
    columns,
    measure_probe,
    present_networks,
)
from sb3_sparse.plasticity.probe import NETWORKS, Probe, find_networks
from sb3_sparse.plasticity.table import CsvTable

DEFAULT_METRICS = (
    *("dormant_redo", "dormant_authors", "fau", "srank"),
    *("gradient_norm", "parameter_norm", "feature_norm", "interference"),
)
CSV_NAME = "plasticity.csv"


class PlasticityCallback(BaseCallback):
    """
    Log what happens inside the networks of any model while it trains (paper, section 4).

    Values appear in SB3's logger as ``plasticity/critic_srank`` and so on, and in a CSV file; the interference matrix
    and the spectrum of the features as images in TensorBoard. Training is bit by bit the same as without the callback.

    >>> SAC("MlpPolicy", "Pendulum-v1").learn(50_000, callback=PlasticityCallback(log_freq=5_000))

    Off-policy algorithms are measured on a batch of the replay buffer, on-policy ones on the rollout they just
    collected (on several, if one is small). Others are measured on observations of the last ``log_freq`` steps; then
    metrics of gradients need a method ``per_sample_losses(network, batch)`` of the algorithm.

    :param log_freq: Timesteps between two measurements.
    :param n_samples: Size of the batch. Ranks cannot exceed it.
    :param metrics: Names from :data:`~sb3_sparse.plasticity.METRICS`, or ``"all"``.
    :param networks: ``"actor"``, ``"critic"`` or both. Those that the model has are measured; the network of DQN and
        QR-DQN is a critic.
    :param figures: Whether to draw images when there is a TensorBoard to show them.
    :param csv_path: The CSV file. By default ``plasticity.csv`` beside ``evaluations.npz`` if an ``EvalCallback``
        writes one, else in the folder of the logger if that writes files, else none.
    :param verbose: 1: say where the CSV file is.
    :raises ValueError: If a value is out of range or a name unknown.
    """

    def __init__(
        self,
        log_freq: int = 10_000,
        n_samples: int = 256,
        metrics: str | Sequence[str] = DEFAULT_METRICS,
        networks: str | Sequence[str] = NETWORKS,
        figures: bool = True,
        csv_path: str | None = None,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        for name, value, least in (("log_freq", log_freq, 1), ("n_samples", n_samples, 2)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}={value!r}: expected an integer of at least {least}.")
        self.log_freq = log_freq
        self.n_samples = n_samples
        self.metrics = check_metrics(metrics)
        self.wanted = check_networks(networks)
        self.figures = figures
        self.csv_path = csv_path
        self.table: CsvTable | None = None
        self._next = 0

    def _on_training_start(self) -> None:
        self.networks = present_networks(self.model, self.wanted, find_networks(self.model))
        names = columns(self.metrics, self.networks)
        path = self.csv_path or _default_csv_path(self.logger, self.locals.get("callback"))
        self.table = None if path is None else CsvTable(path, names, self.num_timesteps)
        if self.table is not None and self.verbose:
            print(f"Plasticity metrics are written to {self.table.path}")
        self._next = self._after(self.num_timesteps)
        self._source = batch_source(self.model, self.n_samples, self.log_freq)
        if not has_losses(self.model) and any(METRICS[name].needs_losses for name in self.metrics):
            warnings.warn(
                f"PlasticityCallback: the losses of {type(self.model).__name__} are not known, so metrics of gradients are "
                "left out. A method per_sample_losses(network, batch) of the algorithm would provide them.",
                stacklevel=2,
            )

    def _after(self, timesteps: int) -> int:
        return (timesteps // self.log_freq + 1) * self.log_freq

    def _on_step(self) -> bool:
        if not self._source.at_rollout_end:
            self._look()
        return True

    def _on_rollout_end(self) -> None:
        if self._source.at_rollout_end:
            self._look()

    def _look(self) -> None:
        self._source.observe(self.locals, self._next - self.num_timesteps)
        if self.num_timesteps >= self._next:
            self._next = self._after(self.num_timesteps)
            batch = self._source.batch(seed=self.num_timesteps)
            if batch is not None:
                self._log(Probe(self.model, batch=batch, seed=self.num_timesteps))

    def _log(self, probe: Probe) -> None:
        values = measure_probe(probe, self.metrics, self.networks)
        for column, value in values.items():
            self.logger.record(f"plasticity/{column}", value)
        if self.table is not None:
            self.table.append(self.num_timesteps, values)
        if self.figures and any(isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats):
            try:
                self._draw(probe)
            except ImportError as error:
                self.figures = False
                warnings.warn(f"PlasticityCallback: {error}. Training goes on without figures.", stacklevel=2)

    def _draw(self, probe: Probe) -> None:
        for name in self.networks:
            part, title = probe.network(name), f"{name}, {self.num_timesteps} timesteps"
            if "interference" in self.metrics and part.has_losses:
                self._record_figure(f"{name}_interference", interference_figure(part.interference.matrix, title))
            if RANKS.intersection(self.metrics):
                self._record_figure(f"{name}_spectrum", spectrum_figure([s.values for s in part.spectra], title))

    def _record_figure(self, name: str, figure: Any) -> None:
        exclude = ("stdout", "log", "json", "csv")
        self.logger.record(f"plasticity/{name}", Figure(figure, close=False), exclude=exclude)


def _default_csv_path(logger: Logger, callback: BaseCallback | None) -> Path | None:
    folder = _evaluation_folder(callback)
    if folder is None and any(_writes_file(output) for output in logger.output_formats):
        folder = None if logger.dir is None else Path(logger.dir)
    return None if folder is None else folder / CSV_NAME


def _evaluation_folder(callback: BaseCallback | None) -> Path | None:
    for child in callback.callbacks if isinstance(callback, CallbackList) else [callback]:
        if isinstance(child, EvalCallback) and child.log_path is not None:
            return Path(child.log_path).parent
    return None


def _writes_file(output: KVWriter) -> bool:
    return not (isinstance(output, HumanOutputFormat) and output.file is sys.stdout)
