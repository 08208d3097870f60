"""
What the policies of all algorithms share: their keywords, and how they build SimBa networks.

``SimBaPolicy`` is the mixin for a policy of SB3; ``policies.py`` mixes it into each.
"""

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_sparse.common.signatures import FullSignature
from sb3_sparse.common.validation import flag, whole_number
from sb3_sparse.simba.acting.mixin import ActsCompiled
from sb3_sparse.simba.arguments import DEFAULT_DEPTH_SCALE, DEFAULT_WIDTH_SCALE, NetArch, Sizes, check_keywords
from sb3_sparse.simba.misuse import HintsAtItsAlgorithm, building_algorithm, refuse_on_policy, warn_of_second_normalization
from sb3_sparse.simba.network_mixin import SimBaNetwork
from sb3_sparse.simba.observation_norm import ObservationNorm, ShowsItsSteps
from sb3_sparse.simba.spaces import check_actions, check_observations, default_features_extractor
from sb3_sparse.sparse.sparsity import Sparsity
from sb3_sparse.sparse.state.loading import LoadsWhole


class SimBaPolicy(ActsCompiled, ShowsItsSteps, HintsAtItsAlgorithm, LoadsWhole):
    """
    Mixin for a policy of SB3 that builds sparse SimBa networks. Keywords not listed are SB3's own.

    What is one number here may be one for each network: ``{"pi": 0.8, "qf": 0.9}`` for actor and critic, ``{"qf": 0.9}``
    for policies with a Q-network alone.

    :param observation_space: Any space that SB3 supports; the features extractor is chosen to fit it.
    :param action_space: Action space.
    :param lr_schedule: Learning rate schedule.
    :param sparsity: Fraction of the weights that is removed, once, at random, in [0, 1). 0 builds the dense SimBa.
    :param width_scale: Multiplies SimBa's default widths, actor 128 and critic 512.
    :param depth_scale: Multiplies SimBa's default depths, actor 1 block and critic 2.
    :param net_arch: Explicit sizes instead of the scales, one entry per residual block, all of a network equal:
        ``{"pi": [128], "qf": [512, 512]}``, or one list for all networks.
    :param sparsity_distribution: ``"erdos_renyi"`` or ``"uniform"``: how sparsity is spread over the layers.
    :param mask_seed: Fixes which weights exist, apart from the initial values. None: follows SB3's ``seed=``;
        agents made without one in the same process have the same weights living.
    :param rescale: Multiply the surviving initial weights of a layer by ``1 / sqrt(density)``.
    :param normalize_observations: Normalise vector observations by running statistics kept inside the policy.
        Pass False together with ``VecNormalize``.
    :param features_extractor_class: SB3's; by default chosen from the observation space: ``NatureCNN`` for images of
        36 x 36 pixels and more. It is not pruned.
    :param normalize_images: SB3's: divide images by 255. False means that they are floats already.
    :param optimizer_class: AdamW by default, with weight decay 0.01 and torch's fused implementation.
    :param optimizer_kwargs: Arguments of the optimizer, without the learning rate.
    :param compiled_acting: See :class:`ActsCompiled`.
    :raises ValueError: If a value is out of range, a keyword is unknown, or the policy is given to an on-policy algorithm.
    """

    __signature__ = FullSignature()
    # The sub-networks by their place in `net_arch`. Policies with one network have the entry "qf" alone.
    network_classes: ClassVar[dict[str, type[SimBaNetwork]]]
    # Whose training passes show every replayed batch once: the statistics of observations follow those, and the steps
    # of its optimizer.
    obs_norm_feeder: ClassVar[str] = "qf"
    adamw_kwargs: ClassVar[dict[str, Any]] = {"fused": True}

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        sparsity: float | Mapping[str, float] = 0.8,
        width_scale: float | Mapping[str, float] = DEFAULT_WIDTH_SCALE,
        depth_scale: float | Mapping[str, float] = DEFAULT_DEPTH_SCALE,
        net_arch: NetArch | None = None,
        sparsity_distribution: str = "erdos_renyi",
        mask_seed: int | None = None,
        rescale: bool = False,
        normalize_observations: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        algorithm = building_algorithm()
        refuse_on_policy(type(self), algorithm)
        check_keywords(type(self), kwargs)
        check_observations(observation_space)
        check_actions(action_space)
        networks = list(self.network_classes)
        counts = {name: kwargs[name] for name in ("n_critics", "n_quantiles") if name in kwargs}
        kwargs |= {name: whole_number(name, count, minimum=1) for name, count in counts.items()}
        # Plain attributes, which a module may have before its own constructor ran; `_build` needs them. Plain numbers
        # too, whatever was given: they are saved.
        self.sparsity = Sparsity.per_network(
            networks,
            sparsity,
            sparsity_distribution=sparsity_distribution,
            mask_seed=mask_seed,
            rescale=rescale,
        )
        sizes = Sizes.checked(networks, width_scale, depth_scale, net_arch)
        self.simba_kwargs: dict[str, Any] = {
            **sizes.keywords,
            "normalize_observations": flag("normalize_observations", normalize_observations),
        }
        if features_extractor_class is None:
            features_extractor_class = default_features_extractor(observation_space, normalize_images)
        if optimizer_class is th.optim.AdamW:
            optimizer_kwargs = self._of_adamw(optimizer_kwargs or {})
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            # A list for policies with one network, a dict of lists for actor and critic.
            net_arch=sizes.blocks if "pi" in networks else sizes.blocks["qf"],
            features_extractor_class=features_extractor_class,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )
        if self.obs_norm is not None and self.obs_norm.keys:
            warn_of_second_normalization(algorithm)

    def _of_adamw(self, given: Mapping[str, Any]) -> dict[str, Any]:
        kwargs = {**self.adamw_kwargs, **given}
        if given.get("foreach") or given.get("differentiable"):
            # Torch allows one implementation at a time: the one that was asked for.
            kwargs["fused"] = False
        return kwargs

    def make_obs_norm(self) -> ObservationNorm | None:
        """Build what normalises observations, once for all networks; None: nothing does. Override for another one."""
        if not self.simba_kwargs["normalize_observations"]:
            return None
        return ObservationNorm(self.observation_space, self.normalize_images)

    def make_network(
        self, network: str, net_kwargs: dict[str, Any], features_extractor: BaseFeaturesExtractor | None = None
    ) -> Any:
        """
        Build a network, for the methods of that kind that SB3 calls.

        :param network: Which: ``"pi"`` or ``"qf"``, see ``network_classes``.
        :param net_kwargs: SB3's arguments of the network.
        :param features_extractor: The one that is shared, if one is.
        """
        if not hasattr(self, "obs_norm"):
            self.obs_norm = self.make_obs_norm()
        net_kwargs = self._update_features_extractor(net_kwargs, features_extractor)
        net_kwargs |= self.sparsity[network].keywords
        net_kwargs["obs_norm"] = self.obs_norm
        net_kwargs["feeds_obs_norm"] = network == self.obs_norm_feeder
        return self.network_classes[network](**net_kwargs).to(self.device)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Build an actor; SB3 calls this."""
        return self.make_network("pi", self.actor_kwargs, features_extractor)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Build a critic; SB3 calls this, once more for the target."""
        return self.make_network("qf", self.critic_kwargs, features_extractor)

    def _norm_to_move(self) -> ObservationNorm | None:
        # Where there is an actor, the networks have the optimizers.
        norm = self._modules.get("obs_norm") if "pi" not in self.network_classes else None
        return norm if isinstance(norm, ObservationNorm) and norm.keys else None

    def set_training_mode(self, mode: bool) -> None:
        """Switch between training and evaluation mode; SB3 calls this."""
        if mode or _is_any_in_training(self):
            super().set_training_mode(mode)
        if self.obs_norm is not None:
            self.obs_norm.training_mode_set(mode, sys._getframe(1))

    def forget_sparsity(self) -> None:
        """What is saved from now on is a dense policy."""
        self.sparsity = {network: sparsity.dense() for network, sparsity in self.sparsity.items()}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = {**super()._get_constructor_parameters(), **Sparsity.keywords_of(self.sparsity), **self.simba_kwargs}
        if hasattr(self, "share_features_extractor"):
            # SB3 forgets it for SAC, TQC and CrossQ.
            data["share_features_extractor"] = self.share_features_extractor
        return data

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "sparsity" not in state:
            # Pickled by an earlier version, which kept the keywords.
            keywords = dict(state["simba_kwargs"])
            sparsity = Sparsity.per_network(list(self.network_classes), **Sparsity.take_keywords(keywords))
            state = {**state, "sparsity": sparsity, "simba_kwargs": keywords}
            del state["_sparsity"]
        super().__setstate__(state)


def _is_any_in_training(policy: nn.Module) -> bool:
    """Whether a module of a policy is in training mode. SB3 switches all of them before every action."""
    modules: list[Any] = [policy]
    for module in modules:
        if module is not None:
            if module.training:
                return True
            modules.extend(module._modules.values())
    return False


class GaussianSimBaPolicy(SimBaPolicy):
    """
    Mixin for the policies with a Gaussian actor; its other keywords are those of :class:`SimBaPolicy`.

    :param squash_log_std: Map the log standard deviation to [-10, 2] with a tanh as SimBa does, instead of
        clipping it to [-20, 2] as SB3 does.
    """

    def __init__(self, *args: Any, squash_log_std: bool = True, **kwargs: Any):
        self.squash_log_std = flag("squash_log_std", squash_log_std)
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Build an actor; SB3 calls this."""
        actor_kwargs = {**self.actor_kwargs, "squash_log_std": self.squash_log_std}
        return self.make_network("pi", actor_kwargs, features_extractor)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "squash_log_std": self.squash_log_std}
