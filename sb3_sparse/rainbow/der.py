"""Data-Efficient Rainbow (van Hasselt et al. 2019): Rainbow with the settings for Atari after 100,000 steps."""

from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from sb3_sparse.rainbow.algo import Rainbow
from sb3_sparse.rainbow.policies import RainbowPolicy
from sb3_sparse.rainbow.simba import SparseSimBaRainbowPolicy


class DER(Rainbow):
    """
    :class:`Rainbow` with other defaults: those of the paper's Table 5, and of Dopamine where that is silent. An update in
    every step, transitions of ten steps, hardly any target updates, and no random actions.

    Dopamine's agent starts with less noise: ``sigma=0.1``, where the paper has 0.5.

    :param policy: ``"MlpPolicy"``, ``"CnnPolicy"``, ``"MultiInputPolicy"``, ``"SparseSimBaPolicy"``, or a policy class. For
        the paper's network pass ``policy_kwargs=dict(encoder="impala", width_scale=3, sparsity=0.8)``; Dopamine's has
        ``encoder="nature_same"``.
    :param env: The environment, with discrete actions.
    :param learning_rate: Learning rate, or a schedule of it.
    :param n_steps: Rewards of so many steps make a transition.
    :param beta: Of prioritised replay: how far weights make up for the draw.
    :param buffer_size: Transitions that are kept: all of 100,000 steps.
    :param learning_starts: Steps before the first update.
    :param train_freq: Steps between two updates.
    :param target_update_interval: Steps between two copies of the network to its target.
    :param max_grad_norm: Norm that gradients are clipped to; by default they are not.
    :param policy_kwargs: Of the policy; the optimizer is Adam with ``eps=1.5e-4`` unless they say otherwise, and SimBa's
        AdamW as it is.
    :param kwargs: Of :class:`Rainbow`.
    """

    def __init__(
        self,
        policy: str | type[RainbowPolicy] | type[SparseSimBaRainbowPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        *,
        n_steps: int = 10,
        beta: float | Schedule = 0.5,
        buffer_size: int = 100_000,
        learning_starts: int = 1_600,
        train_freq: int | tuple[int, str] = 1,
        target_update_interval: int = 2_000,
        max_grad_norm: float = float("inf"),
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        policy_kwargs = dict(policy_kwargs or {})
        kind = self.policy_aliases.get(policy) if isinstance(policy, str) else policy
        is_simba = isinstance(kind, type) and issubclass(kind, SparseSimBaRainbowPolicy)
        if policy_kwargs.get("optimizer_class", None if is_simba else th.optim.Adam) is th.optim.Adam:
            policy_kwargs["optimizer_kwargs"] = {"eps": 1.5e-4, **(policy_kwargs.get("optimizer_kwargs") or {})}
        super().__init__(
            policy,
            env,
            learning_rate,
            n_steps=n_steps,
            beta=beta,
            buffer_size=buffer_size,
            learning_starts=learning_starts,
            train_freq=train_freq,
            target_update_interval=target_update_interval,
            max_grad_norm=max_grad_norm,
            policy_kwargs=policy_kwargs,
            **kwargs,
        )
