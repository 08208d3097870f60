"""
The loss that each algorithm trains a network on, for every sample of a batch apart.

Their means are the losses of SB3's and sb3-contrib's ``train()``; targets are computed without gradients, as there.
They are known for the algorithms listed here, and for subclasses that train as these do. Any other algorithm may bring its
own (:class:`~sb3_sparse.common.model_parts.HasPerSampleLosses`).
"""

from typing import Any

import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.nn import functional as F

from sb3_sparse.common.model_parts import NETWORKS, HasPerSampleLosses
from sb3_sparse.common.sb3_models import ACTOR_CRITIC, policy_of
from sb3_sparse.common.validation import choice

_ON_POLICY = (A2C, PPO, TRPO, MaskablePPO)
_KNOWN = (SAC, TD3, TQC, CrossQ, DQN, QRDQN, *_ON_POLICY)


def has_own_losses(model: BaseAlgorithm) -> bool:
    """Whether the algorithm brings its own ``per_sample_losses``."""
    return isinstance(model, HasPerSampleLosses)


def has_losses(model: BaseAlgorithm, network: str = "critic") -> bool:
    """Whether :func:`per_sample_losses` knows the algorithm, and what it trains a network on."""
    return has_own_losses(model) or (_why_unknown(model) is None and network in NETWORKS)


def why_no_losses(model: BaseAlgorithm, network: str = "critic") -> str:
    """What to tell whoever asks for losses that are not known."""
    reason = _why_unknown(model)
    what = f"the losses of {type(model).__name__} are not known{reason}"
    if reason is None:
        what = f"what {type(model).__name__} trains its {network} on is not known"
    return f"{what}: give it a method per_sample_losses(network, batch) that returns one loss per sample."


def _why_unknown(model: BaseAlgorithm) -> str | None:
    known = next((algorithm for algorithm in _KNOWN if isinstance(model, algorithm)), None)
    if known is None:
        return ""
    if "train" in vars(model) or type(model).train is not known.train:  # type: ignore[attr-defined]
        return f" (it is a {known.__name__} with a train() of its own, which may minimise something else)"
    if known in _ON_POLICY and not isinstance(policy_of(model), ACTOR_CRITIC):
        return ""
    return None


def per_sample_losses(model: BaseAlgorithm, network: str, batch: Any) -> th.Tensor:
    """
    Losses of one network.

    :param model: A model of SB3 or sb3-contrib, or one with a method of this name.
    :param network: ``"actor"`` or ``"critic"``; of a model with its own losses what it calls its networks.
    :param batch: What the replay buffer or the rollout buffer samples.
    :return: ``(samples,)``, with a graph to the parameters of the network.
    :raises ValueError: If the algorithm is not known, or has no such network.
    """
    if isinstance(model, HasPerSampleLosses):
        return model.per_sample_losses(network, batch)
    if not has_losses(model, network):
        raise ValueError(why_no_losses(model, network))
    return sb3_per_sample_losses(model, network, batch)


def sb3_per_sample_losses(model: BaseAlgorithm, network: str, batch: Any) -> th.Tensor:
    """
    Losses of the algorithm that a model is a subclass of, for one whose own ``train`` minimises the same.

    :param model: One of the algorithms of this file, or a subclass.
    :param network: ``"actor"`` or ``"critic"``.
    :param batch: What the replay buffer or the rollout buffer samples.
    :return: ``(samples,)``, with a graph to the parameters of the network.
    :raises ValueError: If the network has another name, or the model is of another kind.
    """
    choice("network", network, NETWORKS)
    if not isinstance(model, _KNOWN):
        raise ValueError(f"{type(model).__name__} is none of {', '.join(kind.__name__ for kind in _KNOWN)}, and no subclass.")
    if isinstance(model, OnPolicyAlgorithm):
        losses = _on_policy_actor(model, batch) if network == "actor" else _on_policy_critic(model, batch)
    elif network == "actor":
        losses = _actor(model, batch)
    else:
        losses = _critic(model, batch)
    return losses.reshape(-1)


def _actor(model: Any, batch: Any) -> th.Tensor:
    if isinstance(model, TD3):
        return -model.critic.q1_forward(batch.observations, model.actor(batch.observations))
    if model.use_sde:
        # As before every update: the noise depends on the deviation, which is learned.
        model.actor.reset_noise()
    actions, log_prob = model.actor.action_log_prob(batch.observations)
    values = model.critic(batch.observations, actions)
    if isinstance(model, TQC):
        value = values.mean(dim=2).mean(dim=1, keepdim=True)
    else:
        value = th.cat(values, dim=1).min(dim=1, keepdim=True).values
    return _ent_coef(model) * log_prob.reshape(-1, 1) - value


def _critic(model: Any, batch: Any) -> th.Tensor:
    discounts = model.gamma if batch.discounts is None else batch.discounts
    with th.no_grad():
        targets = batch.rewards + (1 - batch.dones) * discounts * _next_values(model, batch)
    if isinstance(model, (DQN, QRDQN)):
        return _discrete_critic(model, batch, targets)
    values = model.critic(batch.observations, batch.actions)
    if isinstance(model, TQC):
        return _quantile_huber(values, targets[:, None]).mean(dim=(1, 2, 3))
    scale = 1.0 if isinstance(model, TD3) else 0.5
    return scale * sum(((value - targets) ** 2 for value in values), th.zeros_like(targets))


def _next_values(model: Any, batch: Any) -> th.Tensor:
    """Value of the next observations, ``(samples, 1)``, or quantiles of it, ``(samples, quantiles)``."""
    observations = batch.next_observations
    if isinstance(model, DQN):
        return model.q_net_target(observations).max(dim=1, keepdim=True).values
    if isinstance(model, QRDQN):
        quantiles = model.quantile_net_target(observations)
        greedy = quantiles.mean(dim=1, keepdim=True).argmax(dim=2, keepdim=True)
        return quantiles.gather(2, greedy.expand(-1, model.n_quantiles, 1)).squeeze(2)
    if isinstance(model, TD3):
        noise = th.randn_like(batch.actions) * model.target_policy_noise
        noise = noise.clamp(-model.target_noise_clip, model.target_noise_clip)
        actions = (model.actor_target(observations) + noise).clamp(-1, 1)
        return th.cat(model.critic_target(observations, actions), dim=1).min(dim=1, keepdim=True).values
    actions, log_prob = model.actor.action_log_prob(observations)
    entropy = _ent_coef(model) * log_prob.reshape(-1, 1)
    critic = model.critic if isinstance(model, CrossQ) else model.critic_target
    values = critic(observations, actions)
    if isinstance(model, TQC):
        kept = model.critic.quantiles_total - model.top_quantiles_to_drop_per_net * model.critic.n_critics
        return values.flatten(1).sort(dim=1).values[:, :kept] - entropy
    return th.cat(values, dim=1).min(dim=1, keepdim=True).values - entropy


def _discrete_critic(model: Any, batch: Any, targets: th.Tensor) -> th.Tensor:
    actions = batch.actions.long()
    if isinstance(model, DQN):
        values = model.q_net(batch.observations).gather(1, actions)
        return F.smooth_l1_loss(values, targets, reduction="none")
    quantiles = model.quantile_net(batch.observations)
    quantiles = quantiles.gather(2, actions[..., None].expand(-1, model.n_quantiles, 1)).squeeze(2)
    return _quantile_huber(quantiles, targets).sum(dim=1).mean(dim=1)


def _quantile_huber(quantiles: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """Huber quantile loss of every pair: ``(..., quantiles)`` and ``(..., targets)`` to ``(..., quantiles, targets)``."""
    n_quantiles = quantiles.shape[-1]
    levels = (th.arange(n_quantiles, device=quantiles.device) + 0.5) / n_quantiles
    delta = targets[..., None, :] - quantiles[..., :, None]
    huber = F.huber_loss(delta, th.zeros_like(delta), reduction="none")
    return (levels[:, None] - (delta.detach() < 0).float()).abs() * huber


def _ent_coef(model: Any) -> th.Tensor:
    return model.ent_coef_tensor if model.log_ent_coef is None else model.log_ent_coef.detach().exp()


def _on_policy_actor(model: Any, batch: Any) -> th.Tensor:
    """
    Policy gradient with the bonus for entropy: also the gradient of PPO's and TRPO's surrogate, as long as the policy
    is the one that collected the batch.
    """
    actions = batch.actions
    if isinstance(model.action_space, spaces.Discrete):
        actions = actions.long().flatten()
    masks = {"action_masks": batch.action_masks} if isinstance(model, MaskablePPO) else {}
    _, log_prob, entropy = model.policy.evaluate_actions(batch.observations, actions, **masks)
    advantages = batch.advantages
    if getattr(model, "normalize_advantage", False) and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    bonus = -log_prob if entropy is None else entropy
    return -advantages * log_prob - getattr(model, "ent_coef", 0.0) * bonus


def _on_policy_critic(model: Any, batch: Any) -> th.Tensor:
    return (model.policy.predict_values(batch.observations).flatten() - batch.returns) ** 2
