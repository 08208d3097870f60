"""Callbacks about plasticity, for any algorithm of Stable-Baselines3: one that looks, and one that resets."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.logger import Figure, HumanOutputFormat, KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.common.validation import choice, flag, whole_number, whole_numbers
from sb3_sparse.plasticity.batches import batch_source, n_stored
from sb3_sparse.plasticity.figures import interference_figure, spectrum_figure
from sb3_sparse.plasticity.losses import has_losses, why_no_losses
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
from sb3_sparse.plasticity.reset_model import STRATEGIES, check_model, check_options, reset_model_
from sb3_sparse.plasticity.table import CsvTable
from sb3_sparse.sparse.topology import derive_seed

_HIDDEN_ROLLOUTS = (
    "{0} inside an event callback, such as EveryNTimesteps, does not see the rollouts of PPO and A2C: "
    "pass it to learn() directly. {1}= is its schedule."
)
DEFAULT_METRICS = (
    *("dormant_redo", "dormant_authors", "fau", "srank"),
    *("gradient_norm", "parameter_norm", "feature_norm", "interference"),
)
CSV_NAME = "plasticity.csv"
# Nikishin et al. (2022) for SAC on states.
DEFAULT_RESET_INTERVAL = 200_000
_STRATEGY_OF = {
    "n_layers": "last_layers",
    "shrink": "shrink_perturb",
    "perturb": "shrink_perturb",
    "tau": "redo",
    "batch_size": "redo",
    "reset_step": "redo",
}


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

    def _on_training_start(self) -> None:
        self.networks = present_networks(self.model, self.wanted, find_networks(self.model))
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
        expected = self.metrics_are_default and hasattr(self.model, "plasticity_observations")
        if (
            not expected
            and not has_losses(self.model)
            and (left_out := [name for name in self.metrics if METRICS[name].needs_losses])
        ):
            warnings.warn(f"PlasticityCallback: {why_no_losses(self.model)} Left out: {', '.join(left_out)}.", stacklevel=2)
        if self.table is not None and self.verbose:
            print(f"Plasticity metrics are written to {self.table.path}")
        self._began, self._n_logged, self._saw_rollout = self.num_timesteps, 0, False
        self._has_begun = False
        self._next = self._after(self.num_timesteps)

    def _begin(self) -> None:
        """Replace the table of an earlier run only now, when no callback has refused to start."""
        if not self._has_begun:
            self._has_begun = True
            if self.table is not None:
                self.table.begin()

    def _check_path(self, path: str | os.PathLike[str] | None) -> None:
        for other in _all_callbacks(self.locals.get("callback")):
            table = other.table if isinstance(other, PlasticityCallback) and other is not self else None
            if table is not None and path is not None and table.path.resolve() == Path(path).resolve():
                raise ValueError(f"two PlasticityCallbacks write to {path}: give one of them another csv_path.")

    def _on_training_end(self) -> None:
        if not self._n_logged:
            warnings.warn(
                f"PlasticityCallback has measured nothing in {self.num_timesteps - self._began} timesteps: "
                f"log_freq={self.log_freq}, and n_samples={self.n_samples} have to be collected before.",
                stacklevel=2,
            )

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
            raise ValueError(_HIDDEN_ROLLOUTS.format("PlasticityCallback", "log_freq"))
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
                warnings.warn(f"PlasticityCallback: {error}. Training goes on without figures.", stacklevel=2)
        # SB3 logs every few episodes or rollouts, under the step of then: the next measurement would take this one's place.
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _append(self, table: CsvTable, values: dict[str, float]) -> None:
        try:
            table.append(self.num_timesteps, values)
        except OSError as error:
            # The table keeps its rows: the next measurement writes them too.
            warnings.warn(f"PlasticityCallback: cannot write {table.path} ({error}). Training goes on.", stacklevel=2)

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


class ResetCallback(BaseCallback):
    """
    Resets networks during training, in place (:func:`~sb3_sparse.plasticity.reset_model.reset_model_`).

    A reset is due when the count of steps reaches or passes a multiple of the interval, so counts may jump, as they do
    with several environments or several gradient steps per training. It takes place once, before the next training;
    with PPO and A2C before the next rollout, which has to come from one policy. What falls on the very last step of a
    run is left out, since it would throw away what was learned: it is made up for if training goes on.

    How far resets have been handled is kept with the model (``model.reset_progress``), and so in its checkpoints: a
    resumed run makes no reset twice and leaves none out, also with a new callback object.

    .. code-block:: python

        model.learn(1_000_000, callback=ResetCallback(every_env_steps=200_000, strategy="full"))

    In the YAML of rl-zoo3::

        callback:
          - sb3_sparse.plasticity.ResetCallback:
              every_env_steps: 200000
              strategy: full

    :param every_env_steps: Reset whenever this many steps have been made in the environments together.
    :param every_grad_steps: Reset whenever this many gradient steps have been made. Off-policy algorithms only.
    :param at: Reset at these numbers of environment steps. If none of the three is given, every 200,000 environment
        steps (Nikishin et al. 2022).
    :param strategy: ``"full"``, ``"last_layers"``, ``"redo"`` or ``"shrink_perturb"``.
    :param networks: ``"actor"``, ``"critic"`` or both; None: all that the model has.
    :param target: ``"copy"``, ``"fresh"`` or ``"keep"``; None: what fits the strategy.
    :param redraw_topology: Draw new positions for the weights of sparse layers, too.
    :param include_temperature: Reset the learned entropy coefficient, too.
    :param seed: Fresh weights follow from it and from the step of the reset. None: from torch's global generator.
    :param verbose: 1 prints when resets will take place and when one does.
    :param kwargs: ``n_layers``, ``shrink``, ``perturb``, ``tau``, ``batch_size`` and ``reset_step`` of ``reset_model_``.
    :raises ValueError: If more than one of the three schedules is given, or an argument is out of range.
    :raises TypeError: When training begins, if the model cannot be reset this way.
    """

    def __init__(
        self,
        every_env_steps: int | None = None,
        every_grad_steps: int | None = None,
        at: Sequence[int] | None = None,
        strategy: str = "full",
        networks: str | Sequence[str] | None = None,
        target: str | None = None,
        redraw_topology: bool = False,
        include_temperature: bool = False,
        seed: int | None = None,
        verbose: int = 0,
        **kwargs: Any,
    ):
        super().__init__(verbose)
        given = {"every_env_steps": every_env_steps, "every_grad_steps": every_grad_steps, "at": at}
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise ValueError(f"ResetCallback takes one schedule, {' and '.join(named)} were given: leave out all but one.")
        self.interval: int | None = None
        self.at: list[int] = []
        if at is not None:
            self.at = sorted(set(whole_numbers("at", at, 1)))
            if not self.at:
                raise ValueError("at=[]: expected at least one number of environment steps.")
        else:
            name = named[0] if named else "every_env_steps"
            self.interval = whole_number(name, given[name] if named else DEFAULT_RESET_INTERVAL, 1)
        self.clock = "grad_steps" if every_grad_steps is not None else "env_steps"
        self.strategy = choice("strategy", strategy, STRATEGIES)
        for name in kwargs:
            if name not in _STRATEGY_OF:
                raise ValueError(f"ResetCallback has no keyword {name!r}. Those of the strategies are {list(_STRATEGY_OF)}.")
            if _STRATEGY_OF[name] != strategy:
                raise ValueError(f"{name}={kwargs[name]!r} goes with strategy={_STRATEGY_OF[name]!r}, not with {strategy!r}.")
        self.networks = None if networks is None else check_networks(networks)
        # Of its record of handled resets: several callbacks may reset one model.
        self.record = "/".join([self.clock, self.strategy, *(self.networks or ())])
        kwargs.update(target=target, redraw_topology=redraw_topology, include_temperature=include_temperature)
        checked = check_options(strategy, seed=seed, **kwargs)
        self.seed = checked.seed
        self.options = {name: getattr(checked, name) for name in kwargs}

    def positions(self, begin: int, end: int) -> list[int]:
        """The counts above ``begin`` and up to ``end`` at which a reset is due."""
        if self.interval is None:
            return [step for step in self.at if begin < step <= end]
        return list(range((begin // self.interval + 1) * self.interval, end + 1, self.interval))

    def _on_training_start(self) -> None:
        of_model = {name: self.options[name] for name in ("include_temperature", "n_layers") if name in self.options}
        check_model(self.model, self.strategy, self.networks, **of_model)
        if self.clock == "grad_steps" and not isinstance(self.model, OffPolicyAlgorithm):
            raise ValueError(
                f"every_grad_steps={self.interval}: {type(self.model).__name__} counts epochs, not gradient steps. "
                "Use every_env_steps."
            )
        self._saw_rollout = False
        now = self._now()
        # A model that starts anew at step 0 has a record from further on; one without a record has nothing to make up for.
        self._handled = min(self._progress().setdefault(self.record, now), now)
        self._announce(now)

    def _on_step(self) -> bool:
        if isinstance(self.model, OffPolicyAlgorithm):
            self._reset_if_due()
        elif not self._saw_rollout:
            raise ValueError(_HIDDEN_ROLLOUTS.format("ResetCallback", "every_env_steps"))
        return True

    def _on_rollout_start(self) -> None:
        self._saw_rollout = True
        if not isinstance(self.model, OffPolicyAlgorithm):
            self._reset_if_due()

    def _reset_if_due(self) -> None:
        now = self._now()
        if self.positions(self._handled, now):
            if self.model.num_timesteps >= self.model._total_timesteps:
                return
            if self.strategy == "redo" and not self._can_score_units():
                # Due at the next step again.
                return
            # With its record: a run that goes on makes no reset twice and leaves none out.
            with uninterrupted():
                self._reset(now)
                self._remember(now)
        else:
            self._remember(now)

    def _remember(self, now: int) -> None:
        self._handled = now
        self._progress()[self.record] = now

    def _can_score_units(self) -> bool:
        """Whether the replay buffer holds a batch. A resumed run begins with an empty one."""
        buffer: Any = self.model.replay_buffer  # type: ignore[attr-defined]
        return n_stored(buffer) >= min(self.options.get("batch_size", 256), buffer.buffer_size * buffer.n_envs)

    def _reset(self, now: int) -> None:
        seed = None if self.seed is None else derive_seed(self.seed, f"reset at {self.clock} {now}")
        reports = reset_model_(self.model, self.strategy, networks=self.networks, seed=seed, **self.options)
        progress = self._progress()
        progress["count"] = progress.get("count", 0) + 1
        self.logger.record("reset/count", progress["count"])
        for name, report in reports.items():
            self.logger.record(f"reset/{name}_recycled", sum(report.recycled.values()))
            self.logger.record(f"reset/{name}_dormant", report.dormant_ratio)
            self.logger.record(f"reset/{name}_unconnected", sum(report.unconnected.values()))
        if self.verbose:
            print(f"Reset {progress['count']} ({self.strategy}) at {now} {self.clock.replace('_', ' ')}")

    def _now(self) -> int:
        return self.model.num_timesteps if self.clock == "env_steps" else self.model._n_updates

    def _progress(self) -> dict[str, int]:
        if not hasattr(self.model, "reset_progress"):
            # SB3 saves every attribute of a model that it can write as JSON.
            self.model.reset_progress = {}  # type: ignore[attr-defined]
        return self.model.reset_progress  # type: ignore[attr-defined]

    def _announce(self, now: int) -> None:
        end = self._planned_end(now)
        if end is None:
            return
        unit = self.clock.replace("_", " ")
        # The last step itself is left out.
        planned = self.positions(self._handled, end - 1)
        if not planned:
            first = self.positions(now, max(end, *self.at) if self.at else end + (self.interval or 0))
            due = f"the first reset is due at {first[0]}" if first else f"all resets ({self.at}) lie before it"
            warnings.warn(
                f"ResetCallback will not reset anything: this run goes from {now} to {end} {unit} and {due}. "
                "Shorten the interval or train longer.",
                stacklevel=2,
            )
        elif self.verbose:
            print(f"Resets ({self.strategy}) at {', '.join(map(str, planned))} {unit}")

    def _planned_end(self, now: int) -> int | None:
        """The count at the end of the run; None where it cannot be known."""
        model = self.model
        total = model._total_timesteps
        if self.clock == "env_steps":
            return total
        assert isinstance(model, OffPolicyAlgorithm)
        env_steps = max(0, total - max(model.num_timesteps, model.learning_starts))
        if model.gradient_steps < 0:
            return now + env_steps
        frequency, unit = model.train_freq.frequency, model.train_freq.unit  # type: ignore[union-attr]
        if unit != TrainFrequencyUnit.STEP:
            return None
        return now + env_steps * model.gradient_steps // (frequency * model.n_envs)


def _default_csv_path(logger: Logger, callback: BaseCallback | None) -> Path | None:
    folder = _evaluation_folder(callback)
    if folder is None and any(_writes_file(output) for output in logger.output_formats):
        folder = None if logger.dir is None else Path(logger.dir)
    return None if folder is None else folder / CSV_NAME


def _all_callbacks(callback: BaseCallback | None) -> Iterator[BaseCallback | None]:
    for child in callback.callbacks if isinstance(callback, CallbackList) else [callback]:
        if isinstance(child, CallbackList):
            yield from _all_callbacks(child)
        else:
            yield child


def _evaluation_folder(callback: BaseCallback | None) -> Path | None:
    for child in _all_callbacks(callback):
        if isinstance(child, EvalCallback) and child.log_path is not None:
            return Path(child.log_path).parent
    return None


def _writes_file(output: KVWriter) -> bool:
    return not (isinstance(output, HumanOutputFormat) and output.file is sys.stdout)
