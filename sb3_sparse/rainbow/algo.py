"""Rainbow (Hessel et al. 2018): what makes DQN better, each part with a switch of its own."""

import io
import pathlib
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from torch.nn import functional as F

from sb3_sparse.common.model_parts import ModelParts
from sb3_sparse.common.sb3_models import sb3_model_parts
from sb3_sparse.common.signatures import FullSignature
from sb3_sparse.common.validation import flag, refuse_at_load, whole_number
from sb3_sparse.common.warn import warn_user
from sb3_sparse.networks.noisy import noise_added
from sb3_sparse.rainbow.networks import RainbowParts
from sb3_sparse.rainbow.policies import RainbowCnnPolicy, RainbowMultiInputPolicy, RainbowPolicy
from sb3_sparse.rainbow.settings import OF_BUFFER, OF_NETWORK, check_buffer_kwargs, check_settings
from sb3_sparse.rainbow.simba import SparseSimBaRainbowPolicy
from sb3_sparse.replay.buffer import ComposedReplayBuffer
from sb3_sparse.replay.frame_buffer import at_its_new_place
from sb3_sparse.replay.off_policy import EndsTrajectories
from sb3_sparse.replay.owner import check_buffer
from sb3_sparse.replay.prioritized import PrioritizedReplayBuffer
from sb3_sparse.simba.policies import POLICY_ALIAS


class Losses(NamedTuple):
    """What a batch is trained on, sample by sample."""

    losses: th.Tensor
    """``(batch, 1)``"""
    priorities: th.Tensor
    """``(batch, 1)``: magnitudes, for prioritised replay; no gradient."""
    clipped: th.Tensor | None = None
    """``()``: the share of the targets' mass that is clipped to the ends of the support, where that was looked at."""


# Whether returns fit between v_min and v_max is looked at in each of so many updates, and warned of after so many, where the
# running mean of the share that does not is so large.
_CLIPPING_EVERY, _CLIPPING_PATIENCE, _CLIPPING_LIMIT = 10, 1_000, 0.1

# What a replay buffer was made with; another one means something else by its transitions or priorities.
_SAME_IN_BUFFERS = ("n_steps", "gamma", "alpha", "handle_timeout_termination", "n_envs", "observation_space", "action_space")


SelfRainbow = TypeVar("SelfRainbow", bound="Rainbow")


class Rainbow(EndsTrajectories, DQN):
    """
    SB3's DQN with six parts, each switched by a keyword; without any it is DQN, bit by bit.

    ``Rainbow(..., distributional=True, dueling=False, double=False, noisy=False, prioritized=False, n_steps=1)`` is C51,
    ``dueling`` and ``double`` alone are dueling double DQN, and so on. A variant overrides the step of :meth:`train` that it
    changes: :meth:`_losses`, :meth:`_next_distribution`, :meth:`_update`.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, ``"SparseSimBaPolicy"``, or a policy class.
    :param env: The environment, with discrete actions.
    :param learning_rate: Learning rate, or a schedule of it.
    :param distributional: Learn distributions over returns (C51, Bellemare et al. 2017).
    :param dueling: Learn values apart from advantages (Wang et al. 2016).
    :param double: Let the online network choose the action that the target network values (van Hasselt et al. 2016).
    :param noisy: Explore by noise on the weights (Fortunato et al. 2018) instead of random actions, from the first step on.
    :param prioritized: Draw transitions by their losses (Schaul et al. 2016).
    :param n_steps: Rewards of so many steps make a transition.
    :param n_atoms: Of the distributions, at least 2.
    :param v_min: Smallest return of the distributions.
    :param v_max: Largest return of the distributions.
    :param sigma: Size of the noise at first.
    :param alpha: Of prioritised replay: 0 draws uniformly, 1 in proportion to the losses.
    :param beta: Of prioritised replay: how far weights make up for the draw, a number or a schedule.
    :param exploration_initial_eps: Probability of a random action at first. None: 0 with ``noisy``, else 1.
    :param exploration_final_eps: The probability in the end. None: 0 with ``noisy``, else 0.05.
    :param kwargs: Of SB3's DQN.
    :raises ValueError: If a value is out of range.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": RainbowPolicy,
        "CnnPolicy": RainbowCnnPolicy,
        "MultiInputPolicy": RainbowMultiInputPolicy,
        POLICY_ALIAS: SparseSimBaRainbowPolicy,
    }
    #: Keywords that :meth:`load` does not take: a saved agent has its own.
    fixed_keywords: ClassVar[frozenset[str]] = frozenset((*OF_NETWORK, *OF_BUFFER))
    q_net: RainbowParts
    q_net_target: RainbowParts
    policy: RainbowPolicy | SparseSimBaRainbowPolicy
    __signature__ = FullSignature()
    # Of files from before, which have none.
    _clipped_targets: float | None = None
    _warned_of_clipping: bool = False

    def __init__(
        self,
        policy: str | type[RainbowPolicy] | type[SparseSimBaRainbowPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        *,
        distributional: bool = True,
        dueling: bool = True,
        double: bool = True,
        noisy: bool = True,
        prioritized: bool = True,
        n_steps: int = 3,
        n_atoms: int = 51,
        v_min: float = -10.0,
        v_max: float = 10.0,
        sigma: float = 0.5,
        alpha: float = 0.5,
        beta: float | Schedule = 0.4,
        exploration_initial_eps: float | None = None,
        exploration_final_eps: float | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        gamma: float = 0.99,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        self.double, self.prioritized = flag("double", double), flag("prioritized", prioritized)
        noisy, n_steps = flag("noisy", noisy), whole_number("n_steps", n_steps, 1)
        network = dict(
            distributional=distributional, dueling=dueling, noisy=noisy, n_atoms=n_atoms, v_min=v_min, v_max=v_max, sigma=sigma
        )
        if taken := sorted(network.keys() & (policy_kwargs or {})):
            raise ValueError(f"policy_kwargs={policy_kwargs!r}: {taken} are keywords of {type(self).__name__} itself.")
        buffer_kwargs = dict(replay_buffer_kwargs or {})
        buffer_class = kwargs.pop("replay_buffer_class", None) or (PrioritizedReplayBuffer if prioritized else None)
        self._check_buffer_class(buffer_class)
        own = {"n_steps": n_steps, "gamma": gamma, **({"alpha": alpha, "beta": beta} if prioritized else {})}
        check_buffer_kwargs(type(self).__name__, buffer_class, buffer_kwargs, own)
        if issubclass(buffer_class or object, (ComposedReplayBuffer, NStepReplayBuffer)):
            buffer_kwargs |= own
        super().__init__(
            policy,
            env,
            learning_rate,
            gamma=gamma,
            n_steps=n_steps,
            exploration_initial_eps=_epsilon(exploration_initial_eps, 1.0, noisy),
            exploration_final_eps=_epsilon(exploration_final_eps, 0.05, noisy),
            policy_kwargs={**(policy_kwargs or {}), **network},
            replay_buffer_class=buffer_class,
            replay_buffer_kwargs=buffer_kwargs,
            _init_setup_model=_init_setup_model,
            **kwargs,
        )

    @property
    def noisy(self) -> bool:
        """Whether it explores by noise on the weights."""
        return bool(self.policy_kwargs["noisy"])

    def _setup_model(self) -> None:
        check_settings(self)
        self._check_buffer_class(self.replay_buffer_class)
        if self.replay_buffer_class is None and self.n_steps > 1 and isinstance(self.observation_space, spaces.Dict):
            # SB3 has none that adds rewards up for these.
            self.replay_buffer_class = ComposedReplayBuffer
            self.replay_buffer_kwargs = {**self.replay_buffer_kwargs, "n_steps": self.n_steps, "gamma": self.gamma}
        # SB3 warns of steps that a buffer class does not get from it. Ours has them already, and so has one that SB3 itself
        # has chosen before the agent was saved.
        n_steps = self.n_steps
        self.n_steps = 1 if self.replay_buffer_kwargs.get("n_steps") else n_steps
        super()._setup_model()
        self.n_steps = n_steps
        self._check_buffer()

    def _check_buffer(self) -> None:
        """Of an agent whose attributes may have been set by hand, or given to SB3's ``load`` as ``custom_objects``."""
        check_buffer(self, self.replay_buffer)

    def _check_buffer_class(self, buffer_class: type[ReplayBuffer] | None) -> None:
        if self.prioritized != issubclass(buffer_class or object, PrioritizedReplayBuffer):
            raise ValueError(
                f"prioritized={self.prioritized} with a replay buffer of the class {buffer_class and buffer_class.__name__}: "
                "expected a PrioritizedReplayBuffer or a subclass of it with prioritized=True, and only then."
            )

    @classmethod
    def load(cls: type[SelfRainbow], path: str | pathlib.Path | io.BufferedIOBase, *args: Any, **kwargs: Any) -> SelfRainbow:
        """
        An agent from a file.

        :param path: The file, or its path.
        :param args: Of SB3's ``load``.
        :param kwargs: Of SB3's ``load``: other settings than the saved ones. Not those that made the network or the replay
            buffer, which SB3 would write down and not use; but ``replay_buffer_kwargs=dict(storage_path=...)`` says where the
            folder of its buffer is now.
        :raises ValueError: If there is such a one.
        """
        found = at_its_new_place(path, kwargs)
        moved = {"replay_buffer_kwargs"} if found != kwargs else set()
        refuse_at_load(cls.fixed_keywords - moved, kwargs, "its network and its replay buffer")
        return super().load(path, *args, **found)

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        Go on with the transitions and priorities in a file, and with ``beta`` of this agent. As in SB3 the size is that of
        the buffer in the file; a warning says if it is another one.

        :param path: The file, or its path.
        :param truncate_last_traj: Of SB3, for HER.
        :raises ValueError: If the file holds a buffer of another kind, or one that was made with other settings
            (``n_steps``, ``gamma``, ``alpha``, ...) than the present one; then the present one stays.
        """
        before = self.replay_buffer
        super().load_replay_buffer(path, truncate_last_traj)
        loaded = self.replay_buffer
        assert loaded is not None
        try:
            self._check_loaded(path, loaded)
        except ValueError:
            self.replay_buffer = before
            raise
        size, expected = loaded.buffer_size * self.n_envs, max(self.buffer_size // self.n_envs, 1) * self.n_envs
        if size != expected:
            warn_user(
                f"{path}: a replay buffer for {size} transitions, where buffer_size={self.buffer_size} of this agent asks for "
                f"{expected}. As in SB3 the one in the file is taken, with its size."
            )
        if isinstance(loaded, PrioritizedReplayBuffer):
            # Of what is drawn from now on, and of nothing in the file. Who needs the memory may have set the buffer to None.
            beta = getattr(before, "beta", self.replay_buffer_kwargs.get("beta", loaded.beta))
            if not (callable(beta) or callable(loaded.beta)) and beta != loaded.beta:
                warn_user(f"{path}: a replay buffer with beta={loaded.beta!r}. This agent goes on with its own, {beta!r}.")
            loaded.beta = beta

    def _check_loaded(self, path: Any, loaded: ReplayBuffer) -> None:
        """See whether a buffer was made as this agent makes its own."""
        self._check_buffer_class(type(loaded))
        own = {name: getattr(self, name, None) for name in _SAME_IN_BUFFERS}
        own |= {"handle_timeout_termination": True, **self.replay_buffer_kwargs}
        for name in _SAME_IN_BUFFERS:
            # A buffer without steps has single ones; what else it does not have means nothing to it.
            ours, theirs = own[name], getattr(loaded, name, 1 if name == "n_steps" else own[name])
            if ours != theirs:
                raise ValueError(
                    f"{path}: a replay buffer with {name}={theirs!r}, this agent's has {ours!r}. Make the agent with that "
                    "of the buffer, or leave the buffer out."
                )

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Update the network; SB3 calls this."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        losses, clipped = [], []
        for _ in range(gradient_steps):
            samples = self._sample(batch_size)
            self.q_net.reset_noise()
            self.q_net_target.reset_noise()
            with noise_added(self.q_net, self.q_net_target), self.q_net.in_pieces(), self.q_net_target.in_pieces():
                found = self._losses(samples)
            # Before the weights are no numbers either.
            _check_finite(found.losses.detach())
            losses.append(self._update(found.losses, samples))
            if found.clipped is not None:
                clipped.append(found.clipped)
            if self.prioritized:
                self.replay_buffer.update_priorities(samples.indices, found.priorities)  # type: ignore[union-attr]
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", th.stack(losses).mean().item() if losses else np.nan)
        self._record_clipping(clipped)

    def _record_clipping(self, shares: list[th.Tensor]) -> None:
        """Log how much of the targets lies beyond the support; warn once where that stays large."""
        if shares:
            share, before = th.stack(shares).mean().item(), self._clipped_targets
            # A mean over about 100 measurements.
            self._clipped_targets = share if before is None else before + 0.01 * (share - before)
        if self._clipped_targets is None:
            return
        self.logger.record("train/clipped_targets", self._clipped_targets)
        is_large = self._clipped_targets > _CLIPPING_LIMIT and self._n_updates >= _CLIPPING_PATIENCE
        if is_large and not self._warned_of_clipping:
            self._warned_of_clipping = True
            support = self.q_net.support
            assert support is not None
            warn_user(
                f"v_min={support.v_min:g}, v_max={support.v_max:g}: {self._clipped_targets:.0%} of what the network is to "
                "learn lies beyond them and is clipped. Make the agent with bounds of the discounted return, such as the "
                "largest reward / (1 - gamma). It is logged as train/clipped_targets."
            )

    def _sample(self, batch_size: int) -> Any:
        assert self.replay_buffer is not None
        self._check_buffer()
        if self.prioritized:
            # The last rollout may go beyond the end of the training.
            remaining = max(self._current_progress_remaining, 0.0)
            self.replay_buffer.progress_remaining = remaining  # type: ignore[attr-defined]
        return self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)

    def _losses(self, samples: Any) -> Losses:
        """Losses of the samples; the noise that acts is the one that was drawn last."""
        discounts = (1 - samples.dones) * (self.gamma if samples.discounts is None else samples.discounts)
        if self.q_net.support is None:
            with th.no_grad():
                targets = samples.rewards + discounts * self._next_values(samples.next_observations)
            values = self.q_net(samples.observations).gather(1, samples.actions.long())
            losses = F.smooth_l1_loss(values, targets, reduction="none")
            return Losses(losses, (values - targets).detach().abs())
        with th.no_grad():
            following = self._next_distribution(samples.next_observations), samples.rewards.flatten(), discounts.flatten()
            projected = self.q_net.support.project(*following)
            clipped = None if self._n_updates % _CLIPPING_EVERY else self.q_net.support.clipped(*following)
        log_probabilities = self.q_net.log_probabilities(samples.observations)
        chosen = log_probabilities[th.arange(len(projected), device=projected.device), samples.actions.long().flatten()]
        losses = -(projected * chosen).sum(dim=1, keepdim=True)
        return Losses(losses, losses.detach(), clipped)

    def _next_values(self, next_observations: Any) -> th.Tensor:
        """``(batch, 1)``: what the target network expects of the best action."""
        values = self.q_net_target(next_observations)
        if not self.double:
            return values.max(dim=1, keepdim=True).values
        return values.gather(1, self.q_net(next_observations).argmax(dim=1, keepdim=True))

    def _next_distribution(self, next_observations: Any) -> th.Tensor:
        """``(batch, n_atoms)``: the target network's distribution of the best action."""
        probabilities = self.q_net_target.log_probabilities(next_observations).exp()
        assert self.q_net_target.support is not None
        values = self.q_net(next_observations) if self.double else self.q_net_target.support.mean(probabilities)
        return probabilities[th.arange(len(values), device=values.device), values.argmax(dim=1)]

    def _update(self, losses: th.Tensor, samples: Any) -> th.Tensor:
        """One step of the optimizer. Returns the loss, without its graph."""
        loss = (losses * samples.weights).mean() if self.prioritized else losses.mean()
        self.policy.optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm < float("inf"):
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.policy.optimizer.step()
        return loss.detach()

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # Noise explores from the first step on; random actions would only come between.
        return super()._sample_action(0 if self.noisy else learning_starts, action_noise, n_envs)

    def model_parts(self) -> ModelParts:
        """Its network, for measurements and resets; see :class:`~sb3_sparse.common.model_parts.HasModelParts`."""
        known = sb3_model_parts(self)
        return replace(known, networks={"critic": replace(known.networks["critic"], layers=self.q_net.chains())})

    def per_sample_losses(self, network: str, batch: Any) -> th.Tensor:
        """
        What each sample of a batch is trained on, with the noise as it is: for :class:`PlasticityCallback`.

        :param network: ``"critic"``.
        :param batch: Samples of the replay buffer. Those of a prioritised one have weights, which count as in training.
        :return: ``(batch,)``
        """
        losses = self._losses(batch).losses
        # Samples from somewhere else have none.
        weights = getattr(batch, "weights", None) if self.prioritized else None
        return (losses if weights is None else losses * weights).flatten()


def _check_finite(losses: th.Tensor) -> None:
    if not losses.isfinite().all():
        raise ValueError(
            f"{int((~losses.isfinite()).sum())} of {losses.numel()} losses are not finite: training has diverged, or rewards "
            "or observations are not finite. A smaller learning_rate or max_grad_norm, or smaller rewards, may help."
        )


def _epsilon(given: float | None, default: float, noisy: bool) -> float:
    if given is not None:
        return given
    return 0.0 if noisy else default
