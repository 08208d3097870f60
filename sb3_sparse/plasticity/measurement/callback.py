"""A callback that looks: it logs what happens inside the networks of any model while it trains."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.logger import Figure, HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat

from sb3_sparse.common.model_parts import NETWORKS, HasPlasticityObservations, check_networks
from sb3_sparse.common.sb3_models import all_callbacks, model_parts
from sb3_sparse.common.validation import flag, whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.plasticity.event_callbacks import hidden_rollouts, hidden_start
from sb3_sparse.plasticity.measurement.batches import DEFAULT_N_SAMPLES, batch_source
from sb3_sparse.plasticity.measurement.figures import interference_figure, spectrum_figure
from sb3_sparse.plasticity.measurement.measure import measure_probe, present_networks, what_is_left_out
from sb3_sparse.plasticity.measurement.named_metrics import RANKS, check_metrics, columns
from sb3_sparse.plasticity.measurement.probe import Probe
from sb3_sparse.plasticity.measurement.table import CsvTable

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

    .. code-block:: python

        SAC("MlpPolicy", "Pendulum-v1").learn(50_000, callback=PlasticityCallback(log_freq=5_000))

    Off-policy algorithms are measured on a batch of the replay buffer, on-policy ones on the rollout they just
    collected (on several, if one is small). Others are measured on observations of the last ``log_freq`` steps; then
    metrics of gradients need a method ``per_sample_losses(network, batch)`` of the algorithm.

    :param log_freq: Timesteps between two measurements.
    :param n_samples: Size of the batch. Ranks cannot exceed it.
    :param metrics: Names from :data:`~sb3_sparse.plasticity.METRICS`, or ``"all"``.
    :param networks: ``"actor"``, ``"critic"`` or both. Those that the model has are measured; the network of DQN and
        QR-DQN is a critic. Others, such as an ``"encoder"``, are measured where the algorithm names them by a method
        ``model_parts()``, see ``docs/extending/algorithm.md``; a subclass of SB3's needs no more than that.
    :param figures: Whether to draw images when there is a TensorBoard to show them.
    :param csv_path: The CSV file. By default ``plasticity.csv`` beside ``evaluations.npz`` if an ``EvalCallback``
        writes one, else in the folder of the logger if that writes files, else none.
    :param verbose: 1: say where the CSV file is.
    :raises ValueError: If a value is out of range or a name unknown.
    """

    def __init__(
        self,
        log_freq: int = 10_000,
        n_samples: int = DEFAULT_N_SAMPLES,
        metrics: str | Sequence[str] = DEFAULT_METRICS,
        networks: str | Sequence[str] = NETWORKS,
        figures: bool = True,
        csv_path: str | os.PathLike[str] | None = None,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        self.log_freq = whole_number("log_freq", log_freq, 1)
        self.n_samples = whole_number("n_samples", n_samples, 2)
        self.metrics = check_metrics(metrics)
        self.metrics_are_default = metrics is DEFAULT_METRICS
        self.wanted = check_networks(networks)
        self.figures = flag("figures", figures)
        if csv_path is not None and (not isinstance(csv_path, (str, os.PathLike)) or not os.fspath(csv_path)):
            raise ValueError(f"csv_path={csv_path!r}: expected the name of a CSV file.")
        self.csv_path = csv_path
        self.table: CsvTable | None = None
        self._next = 0
        self._began = 0
        self._n_logged = 0
        # None before the first training.
        self._has_begun: bool | None = None

    def _on_training_start(self) -> None:
        self.networks = present_networks(self.model, self.wanted, model_parts(self.model).networks)
        path = self.csv_path or _default_csv_path(self.logger, self.locals.get("callback"))
        self._check_path(path)
        names = columns(self.metrics, self.networks)
        self.table = None if path is None else CsvTable(path, names, self.num_timesteps)
        buffer = getattr(self.model, "replay_buffer", None)
        if buffer is not None and (capacity := buffer.buffer_size * buffer.n_envs) < self.n_samples:
            raise ValueError(
                f"n_samples={self.n_samples}: the replay buffer holds {capacity} transitions at most. Take fewer samples."
            )
        self._source = batch_source(self.model, self.n_samples, self.log_freq)
        # Of streaming algorithms that is known (docs/streaming.md): a word only if somebody asked for the metrics by name.
        expected = self.metrics_are_default and isinstance(self.model, HasPlasticityObservations)
        if not expected and (reason := what_is_left_out(self.model, self.metrics, self.networks)):
            warn_user(f"PlasticityCallback: {reason}")
        if self.table is not None and self.verbose:
            print(f"Plasticity metrics are written to {self.table.path}")
        self._began, self._n_logged, self._saw_rollout = self.num_timesteps, 0, False
        self._has_begun = False
        self._next = self._after(self.num_timesteps)

    def _begin(self) -> None:
        """Replace the table of an earlier run only now, when no callback has refused to start."""
        if self._has_begun is None:
            raise hidden_start("PlasticityCallback")
        if not self._has_begun:
            self._has_begun = True
            if self.table is not None:
                self.table.begin()

    def _check_path(self, path: str | os.PathLike[str] | None) -> None:
        for other in all_callbacks(self.locals.get("callback")):
            table = other.table if isinstance(other, PlasticityCallback) and other is not self else None
            if table is not None and path is not None and table.path.resolve() == Path(path).resolve():
                raise ValueError(f"two PlasticityCallbacks write to {path}: give one of them another csv_path.")

    def _on_training_end(self) -> None:
        if not self._n_logged:
            warn_user(
                f"PlasticityCallback has measured nothing in {self.num_timesteps - self._began} timesteps: "
                f"log_freq={self.log_freq}, and n_samples={self.n_samples} have to be collected before."
            )

    def get_state(self) -> Any:
        """Of a run that goes on in another process: what is gathered for the next batch."""
        return self._source.get_state()

    def set_state(self, state: Any) -> None:
        """The reverse."""
        self._source.set_state(state)

    def _after(self, timesteps: int) -> int:
        return (timesteps // self.log_freq + 1) * self.log_freq

    def _on_rollout_start(self) -> None:
        self._saw_rollout = True
        self._begin()

    def _on_step(self) -> bool:
        self._begin()
        if not self._source.at_rollout_end:
            self._look()
        elif not self._saw_rollout:
            raise hidden_rollouts("PlasticityCallback", "log_freq")
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
                self._n_logged += 1
                self._log(Probe(self.model, batch=batch, seed=self.num_timesteps))

    def _log(self, probe: Probe) -> None:
        values = measure_probe(probe, self.metrics, self.networks)
        for column, value in values.items():
            self.logger.record(f"plasticity/{column}", value)
        if self.table is not None:
            self._append(self.table, values)
        if self.figures and any(isinstance(output, TensorBoardOutputFormat) for output in self.logger.output_formats):
            try:
                self._draw(probe)
            except ImportError as error:
                self.figures = False
                warn_user(f"PlasticityCallback: {error}. Training goes on without figures.")
        # SB3 logs every few episodes or rollouts, under the step of then: the next measurement would take this one's place.
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _append(self, table: CsvTable, values: dict[str, float]) -> None:
        try:
            table.append(self.num_timesteps, values)
        except OSError as error:
            # The table keeps its rows: the next measurement writes them too.
            warn_user(f"PlasticityCallback: cannot write {table.path} ({error}). Training goes on.")

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
    for child in all_callbacks(callback):
        if isinstance(child, EvalCallback) and child.log_path is not None:
            return Path(child.log_path).parent
    return None


def _writes_file(output: KVWriter) -> bool:
    return not (isinstance(output, HumanOutputFormat) and output.file is sys.stdout)
