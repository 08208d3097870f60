"""A callback that resets networks during training, on a schedule."""

from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import TrainFrequencyUnit

from sb3_sparse.common.interrupts import uninterrupted
from sb3_sparse.common.model_parts import check_networks
from sb3_sparse.common.sb3_models import all_callbacks
from sb3_sparse.common.validation import choice, whole_number, whole_numbers
from sb3_sparse.common.warn import warn_user
from sb3_sparse.plasticity.event_callbacks import hidden_rollouts, hidden_start
from sb3_sparse.plasticity.resets.options import STRATEGIES, STRATEGY_OF, ResetOptions
from sb3_sparse.plasticity.resets.sb3_model import can_score_units, check_model, reset_model_
from sb3_sparse.sparse.topology import derive_seed

# Nikishin et al. (2022) for SAC on states.
DEFAULT_RESET_INTERVAL = 200_000


class ResetCallback(BaseCallback):
    """
    Resets networks during training, in place (:func:`~sb3_sparse.plasticity.reset_model_`).

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
    :param networks: ``"actor"``, ``"critic"``, or names that an algorithm of yours gives; None: all that the model has.
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
            if name not in STRATEGY_OF:
                raise ValueError(f"ResetCallback has no keyword {name!r}. Those of the strategies are {list(STRATEGY_OF)}.")
            if STRATEGY_OF[name] != strategy:
                raise ValueError(f"{name}={kwargs[name]!r} goes with strategy={STRATEGY_OF[name]!r}, not with {strategy!r}.")
        self.networks = None if networks is None else check_networks(networks)
        self.record = self._kind = "/".join([self.clock, self.strategy, *(self.networks or ())])
        # None before the first training.
        self._saw_rollout: bool | None = None
        kwargs.update(target=target, redraw_topology=redraw_topology, include_temperature=include_temperature)
        checked = ResetOptions(strategy, seed=seed, **kwargs)
        self.seed = checked.seed
        self.options = {name: getattr(checked, name) for name in kwargs}

    def positions(self, begin: int, end: int) -> list[int]:
        """The counts above ``begin`` and up to ``end`` at which a reset is due."""
        if self.interval is None:
            return [step for step in self.at if begin < step <= end]
        return list(range((begin // self.interval + 1) * self.interval, end + 1, self.interval))

    def _on_training_start(self) -> None:
        check_model(self.model, self.networks, ResetOptions(self.strategy, **self.options))
        if self.clock == "grad_steps" and not isinstance(self.model, OffPolicyAlgorithm):
            raise ValueError(
                f"every_grad_steps={self.interval}: {type(self.model).__name__} counts epochs, not gradient steps. "
                "Use every_env_steps."
            )
        self._saw_rollout = False
        # Of its record of handled resets: several callbacks may reset one model, some of them in the same way.
        alike = [each for each in all_callbacks(self.locals.get("callback")) if getattr(each, "_kind", None) == self._kind]
        place = alike.index(self) if self in alike else 0
        self.record = f"{self._kind}/{place + 1}" if place else self._kind
        now = self._now()
        # A model that starts anew at step 0 has a record from further on; one without a record has nothing to make up for.
        self._handled = min(self._progress().setdefault(self.record, now), now)
        self._announce(now)

    def _on_step(self) -> bool:
        if self._saw_rollout is None:
            raise hidden_start("ResetCallback")
        if isinstance(self.model, OffPolicyAlgorithm):
            self._reset_if_due()
        elif not self._saw_rollout:
            raise hidden_rollouts("ResetCallback", "every_env_steps")
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
            batch_size = self.options.get("batch_size", ResetOptions.batch_size)
            if self.strategy == "redo" and not can_score_units(self.model, batch_size):
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
            warn_user(
                f"ResetCallback will not reset anything: this run goes from {now} to {end} {unit} and {due}. "
                "Shorten the interval or train longer."
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
