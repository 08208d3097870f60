"""DrQ-v2 (Yarats et al. 2021): continuous control from pixels, with a critic that can be wide and sparse."""

import io
import pathlib
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples, Schedule
from stable_baselines3.common.utils import polyak_update
from torch.nn import functional as F

from sb3_sparse.common.model_parts import ModelParts, Network
from sb3_sparse.common.sb3_models import policy_builder
from sb3_sparse.common.signatures import FullSignature
from sb3_sparse.common.validation import check_off_policy, non_negative, positive, refuse_at_load, whole_number
from sb3_sparse.drqv2.noise import noisy_actions
from sb3_sparse.drqv2.policies import DrQv2Policy, check_images
from sb3_sparse.networks.drq import DrQActor, DrQCritic
from sb3_sparse.networks.frozen import frozen
from sb3_sparse.networks.pieces import encode_in_pieces
from sb3_sparse.networks.random_shift import RandomShift
from sb3_sparse.replay.buffer import ComposedReplayBuffer
from sb3_sparse.replay.frame_buffer import FrameReplayBuffer, at_its_new_place
from sb3_sparse.replay.off_policy import EndsTrajectories

SelfDrQv2 = TypeVar("SelfDrQv2", bound="DrQv2")


class DrQv2(EndsTrajectories):
    """
    DrQ-v2: DDPG with two critics on images that are shifted at random, an encoder that the critic alone trains, rewards of
    several steps, and noise that shrinks.

    .. code-block:: python

        env = make_dmc_pixels("walker", "walk")
        DrQv2("CnnPolicy", env, policy_kwargs=dict(critic_width_scale=4, sparsity=0.8)).learn(500_000)

    A step is a decision of the agent: where environments repeat actions, it is several frames. A variant overrides the step
    of :meth:`train` that it changes: :meth:`_targets`, :meth:`_critic_losses`, :meth:`_actor_losses`.

    :param policy: ``"CnnPolicy"``, or a policy class.
    :param env: The environment, with images and continuous actions.
    :param learning_rate: Of Adam, for actor, critic and encoder, or a schedule of it.
    :param buffer_size: Transitions that are kept, each as one frame of 21 kB at 84 x 84 pixels.
    :param learning_starts: Steps with random actions before the first update.
    :param batch_size: Transitions of an update.
    :param tau: How far the target of the critic moves in an update.
    :param gamma: Discount factor.
    :param train_freq: Steps between updates. Several environments step at once, and that counts once, as in SB3.
    :param gradient_steps: Updates each time; -1 is as many as steps since the last time, of all environments. As published, an
        update for two decisions, are ``n`` environments with ``train_freq=1, gradient_steps=n // 2``.
    :param n_steps: Rewards of so many steps make a transition.
    :param exploration_initial_std: Standard deviation of the noise on actions at first.
    :param exploration_final_std: In the end.
    :param exploration_steps: After how many steps that is. The paper has 100,000 for easy tasks, 500,000 for medium ones and
        2,000,000 for hard ones.
    :param noise_clip: Where the noise is cut off in updates, which the critic's targets and the actor are trained with.
    :param shift_pad: Pixels that images are shifted by, at most. 0 leaves the shifts out.
    :param replay_buffer_class: By default single frames are kept, see :class:`FrameReplayBuffer`, if the channels are those of
        several frames. Buffers of this package, and SB3's ``NStepReplayBuffer``, take ``n_steps`` and ``gamma`` from here.
    :param replay_buffer_kwargs: Of the replay buffer. ``n_stack`` says how many frames an observation has, where its channels
        do not: by default three make a frame, or each is one if they are no multiple of three.
    :param kwargs: Of SB3's ``OffPolicyAlgorithm``: ``policy_kwargs``, ``tensorboard_log``, ``verbose``, ``seed``, and so on.
    :raises ValueError: If a value is out of range.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"CnnPolicy": DrQv2Policy}
    # What made the replay buffer of a saved agent, which goes on with it.
    fixed_keywords: ClassVar[frozenset[str]] = frozenset(("n_steps", "gamma", "replay_buffer_class", "replay_buffer_kwargs"))
    policy: DrQv2Policy
    actor: DrQActor
    critic: DrQCritic
    critic_target: DrQCritic
    __signature__ = FullSignature()

    def __init__(
        self,
        policy: str | type[DrQv2Policy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 2_000,
        batch_size: int = 256,
        tau: float = 0.01,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 2,
        gradient_steps: int = 1,
        *,
        n_steps: int = 3,
        exploration_initial_std: float = 1.0,
        exploration_final_std: float = 0.1,
        exploration_steps: int = 500_000,
        noise_clip: float = 0.3,
        shift_pad: int = 4,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ):
        env = maybe_make_env(env, kwargs.get("verbose", 0))
        if isinstance(getattr(env, "observation_space", None), spaces.Dict):
            # SB3 would name a policy that there is not.
            check_images(env.observation_space)
        if kwargs.get("use_sde") or kwargs.get("use_sde_at_warmup"):
            raise ValueError("use_sde=True: DrQ-v2 explores by noise on its actions, see exploration_initial_std.")
        n_steps = whole_number("n_steps", n_steps, 1)
        self.exploration_initial_std, self.exploration_final_std = exploration_initial_std, exploration_final_std
        self.exploration_steps, self.noise_clip, self.shift_pad = exploration_steps, noise_clip, shift_pad
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            n_steps=n_steps,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
            support_multi_env=True,
            **kwargs,
        )
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        # Here, since `load` sets them without the constructor.
        check_off_policy(self)
        self.exploration_initial_std = non_negative("exploration_initial_std", self.exploration_initial_std)
        self.exploration_final_std = non_negative("exploration_final_std", self.exploration_final_std)
        self.exploration_steps = whole_number("exploration_steps", self.exploration_steps, 1)
        self.noise_clip = positive("noise_clip", self.noise_clip)
        self.shift_pad = whole_number("shift_pad", self.shift_pad, 0)
        # Before memory is taken for what it cannot learn from.
        check_images(self.observation_space, self.policy_kwargs.get("normalize_images", True))
        if self.replay_buffer_kwargs.get("n_steps", self.n_steps) != self.n_steps:
            raise ValueError(
                f"n_steps={self.n_steps}, and the replay buffer's is {self.replay_buffer_kwargs['n_steps']}: say n_steps "
                "once, as a keyword of DrQv2. A saved agent keeps its own: leave it out of load, or make a new agent."
            )
        self.replay_buffer_class, self.replay_buffer_kwargs = self._buffer()
        # SB3 warns of steps that a buffer class does not get from it. Ours has them already.
        n_steps = self.n_steps
        self.n_steps = 1 if self.replay_buffer_kwargs.get("n_steps") else n_steps
        super()._setup_model()
        self.n_steps = n_steps
        self.critic, self.critic_target, self.actor = self.policy.critic, self.policy.critic_target, self.policy.actor
        self.shift = RandomShift(self.shift_pad)
        self.policy.noise_std = self.exploration_std

    def _buffer(self) -> tuple[type[ReplayBuffer], dict[str, Any]]:
        """Class of the replay buffer, by default what keeps the least memory for these images, and its keywords."""
        kind, kwargs = self.replay_buffer_class, dict(self.replay_buffer_kwargs)
        if kind is None or issubclass(kind, (ComposedReplayBuffer, NStepReplayBuffer)):
            kwargs = {"n_steps": self.n_steps, "gamma": self.gamma, **kwargs}
        n_channels = self.observation_space.shape[0]  # type: ignore[index]
        n_stack = kwargs.get("n_stack", n_channels // 3 if n_channels % 3 == 0 else n_channels)
        if kind is None and n_stack == 1:
            kwargs.pop("n_stack", None)
            if "storage_path" in kwargs:
                raise ValueError(
                    f"storage_path={kwargs['storage_path']!r}: images of shape {self.observation_space.shape} are single "
                    "frames, which are kept in memory alone. Stack several (n_stack= of PixelObservations, VecFrameStack); "
                    "where they are stacked, replay_buffer_kwargs=dict(n_stack=...) says how many there are."
                )
            return ComposedReplayBuffer, kwargs
        if kind is None or issubclass(kind, FrameReplayBuffer):
            kwargs["n_stack"] = n_stack
        return kind or FrameReplayBuffer, kwargs

    @classmethod
    def load(cls: type[SelfDrQv2], path: str | pathlib.Path | io.BufferedIOBase, *args: Any, **kwargs: Any) -> SelfDrQv2:
        """
        An agent from a file.

        :param path: The file, or its path.
        :param args: Of SB3's ``load``.
        :param kwargs: Of SB3's ``load``: other settings than the saved ones. Not those that made the replay buffer; but
            ``replay_buffer_kwargs=dict(storage_path=...)`` says where the folder of its buffer is now.
        :raises ValueError: If there is such a one.
        """
        refuse_at_load(("replay_buffer_class",), kwargs, "its replay buffer")
        return super().load(path, *args, **at_its_new_place(path, kwargs))

    def fixed_settings(self) -> dict[str, Any]:
        """What made its replay buffer, as keywords of the constructor; a class only where it is not the default."""
        own = {"n_steps": self.n_steps, "gamma": self.gamma}
        rest = {name: value for name, value in self.replay_buffer_kwargs.items() if name not in own}
        settings: dict[str, Any] = own | ({"replay_buffer_kwargs": rest} if rest else {})
        if self.replay_buffer_class not in (FrameReplayBuffer, ComposedReplayBuffer):
            settings["replay_buffer_class"] = self.replay_buffer_class
        return settings

    @property
    def exploration_std(self) -> float:
        """Standard deviation of the noise on actions after the steps made so far."""
        progress = min(self.num_timesteps / self.exploration_steps, 1.0)
        return self.exploration_initial_std + progress * (self.exploration_final_std - self.exploration_initial_std)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        self.policy.noise_std = self.exploration_std
        self.logger.record("rollout/exploration_std", self.policy.noise_std)
        return super()._sample_action(learning_starts, action_noise, n_envs)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Update the networks; SB3 calls this."""
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        actor_losses, critic_losses = [], []
        for _ in range(gradient_steps):
            samples = self._sample(batch_size)
            features = self._encode(samples.observations)
            critic_loss = self._critic_losses(features, samples).mean()
            self._step(self.critic.optimizer, critic_loss)
            # Features from before the encoder's step, without its graph: the actor does not train the encoder.
            actor_loss = self._actor_losses(features.detach()).mean()
            self._step(self.actor.optimizer, actor_loss)
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            actor_losses.append(actor_loss.detach())
            critic_losses.append(critic_loss.detach())
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, losses in (("actor", actor_losses), ("critic", critic_losses)):
            if losses:
                self.logger.record(f"train/{name}_loss", th.stack(losses).mean().item())

    def _sample(self, batch_size: int) -> ReplayBufferSamples:
        """Transitions of the replay buffer; observations and next observations are shifted apart from each other."""
        assert self.replay_buffer is not None
        samples = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
        return samples._replace(
            observations=self.shift(samples.observations), next_observations=self.shift(samples.next_observations)
        )

    def _encode(self, images: th.Tensor) -> th.Tensor:
        """Features of a batch."""
        return encode_in_pieces(self.policy.encoder, self.policy.encode, images)

    def _targets(self, samples: ReplayBufferSamples) -> th.Tensor:
        """``(batch, 1)``: returns that the critic learns, by the online encoder and actor and the target critic."""
        discounts = self.gamma if samples.discounts is None else samples.discounts
        with th.no_grad():
            features = self._encode(samples.next_observations)
            actions = noisy_actions(self.actor(features), self.exploration_std, self.noise_clip)
            values = th.cat(self.critic_target(features, actions), dim=1).min(dim=1, keepdim=True).values
            return samples.rewards + (1 - samples.dones) * discounts * values

    def _critic_losses(self, features: th.Tensor, samples: ReplayBufferSamples) -> th.Tensor:
        """``(batch, 1)``: squared errors, added up over the heads."""
        targets = self._targets(samples)
        values = self.critic(features, samples.actions)
        return th.stack([F.mse_loss(value, targets, reduction="none") for value in values]).sum(dim=0)

    def _actor_losses(self, features: th.Tensor) -> th.Tensor:
        """``(batch, 1)``: how bad the critic finds the actor's actions, with noise."""
        actions = noisy_actions(self.actor(features), self.exploration_std, self.noise_clip)
        with frozen(self.critic):
            return -th.cat(self.critic(features, actions), dim=1).min(dim=1, keepdim=True).values

    @staticmethod
    def _step(optimizer: th.optim.Optimizer, loss: th.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def model_parts(self) -> ModelParts:
        """Its networks, for measurements and resets; see :class:`~sb3_sparse.common.model_parts.HasModelParts`."""
        policy = self.policy

        def encode(batch: Any) -> th.Tensor:
            return policy.encode(batch.observations)

        return ModelParts(
            {
                "encoder": Network(policy.encoder, encode, "encoder", optimizer=self.critic.optimizer, has_heads=False),
                "actor": Network(
                    self.actor,
                    lambda batch: self.actor(encode(batch)),
                    "actor",
                    optimizer=self.actor.optimizer,
                    layers=self.actor.chains(),
                ),
                "critic": Network(
                    self.critic,
                    lambda batch: self.critic(encode(batch), batch.actions),
                    "critic",
                    self.critic_target,
                    self.critic.optimizer,
                    layers=self.critic.chains(),
                ),
            },
            build_policy=policy_builder(self),
        )

    def per_sample_losses(self, network: str, batch: Any) -> th.Tensor:
        """
        What each sample of a batch is trained on, without shifts: for :class:`PlasticityCallback`.

        :param network: ``"encoder"`` and ``"critic"``, which are trained on the same, or ``"actor"``.
        :param batch: Samples of the replay buffer.
        :return: ``(batch,)``
        """
        features = self.policy.encode(batch.observations)
        if network == "actor":
            return self._actor_losses(features.detach()).flatten()
        return self._critic_losses(features, batch).flatten()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor", "critic", "critic_target", "shift"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []
