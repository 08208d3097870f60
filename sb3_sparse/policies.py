"""
Sparse SimBa policies for the algorithms of Stable-Baselines3 and sb3-contrib.

The mixin ``_SparseSimBaPolicy`` makes a policy of SB3 build the networks of ``policy_networks.py``. The classes
below it say which policy it is mixed into, one for each algorithm. The algorithms themselves are used unchanged.
"""

import difflib
import inspect
import sys
import warnings
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from sb3_contrib.crossq import policies as crossq
from sb3_contrib.qrdqn import policies as qrdqn
from sb3_contrib.tqc import policies as tqc
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3

from sb3_sparse.common.validation import choice, flag, positive, whole_number, whole_numbers
from sb3_sparse.networks import simba_sizes
from sb3_sparse.observations import ObservationNorm, check_observations, check_size, default_features_extractor
from sb3_sparse.policy_networks import (
    WRONG_POLICY,
    HintsAtItsAlgorithm,
    ShowsItsSteps,
    SimBaContinuousCritic,
    SimBaCrossQActor,
    SimBaCrossQCritic,
    SimBaNetwork,
    SimBaQNetwork,
    SimBaQuantileNetwork,
    SimBaSACActor,
    SimBaTD3Actor,
    SimBaTQCActor,
    SimBaTQCCritic,
)
from sb3_sparse.sparse.distribution import DISTRIBUTIONS, check_sparsity
from sb3_sparse.sparse.state.loading import LoadsWhole

NetArch = list[int] | dict[str, list[int]]

DEFAULT_WIDTH_SCALE = 2.0
DEFAULT_DEPTH_SCALE = 1.0


class _SparseSimBaPolicy(ShowsItsSteps, HintsAtItsAlgorithm, LoadsWhole):
    """
    Mixin for a policy of SB3 that builds sparse SimBa networks. Keywords not listed are SB3's own.

    :param observation_space: Any space that SB3 supports; the features extractor is chosen to fit it.
    :param action_space: Action space.
    :param lr_schedule: Learning rate schedule.
    :param sparsity: Fraction of the weights that is removed, once, at random, in [0, 1): one number, or one each
        for actor and critic, ``{"pi": 0.8, "qf": 0.9}``. 0 builds the dense SimBa.
    :param width_scale: Multiplies SimBa's default widths, actor 128 and critic 512.
    :param depth_scale: Multiplies SimBa's default depths, actor 1 block and critic 2.
    :param net_arch: Explicit sizes instead of the scales, one entry per residual block, all of a network equal:
        ``{"pi": [128], "qf": [512, 512]}``. A list alone stands for both networks (or the only one).
    :param sparsity_distribution: ``"erdos_renyi"`` or ``"uniform"``: how sparsity is spread over the layers.
    :param mask_seed: Fixes which weights exist, apart from the initial values. None: follows SB3's ``seed=``;
        agents made without one in the same process have the same weights living.
    :param rescale: Multiply the surviving initial weights of a layer by ``1 / sqrt(density)``.
    :param normalize_observations: Normalise vector observations by running statistics kept inside the policy.
        Pass False together with ``VecNormalize``.
    :param features_extractor_class: SB3's; by default chosen from the observation space: ``NatureCNN`` for images of
        36 x 36 pixels and more. It is not pruned.
    :param optimizer_class: AdamW by default, with weight decay 0.01 and torch's fused implementation.
    :param optimizer_kwargs: Arguments of the optimizer, without the learning rate.
    :raises ValueError: If a value is out of range or a keyword is unknown.
    """

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
        sparsity: float | dict[str, float] = 0.8,
        width_scale: float = DEFAULT_WIDTH_SCALE,
        depth_scale: float = DEFAULT_DEPTH_SCALE,
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
        _check_keywords(type(self), kwargs)
        check_observations(observation_space)
        check_size("the action", action_space)
        networks = list(self.network_classes)
        for name in ("n_critics", "n_quantiles"):
            if name in kwargs:
                kwargs[name] = whole_number(name, kwargs[name], minimum=1)
        width_scale, depth_scale = positive("width_scale", width_scale), positive("depth_scale", depth_scale)
        # Plain attributes, which a module may have before its own constructor ran; `_build` needs them. Plain numbers
        # too, whatever was given: they are saved.
        self._sparsity = _per_network(sparsity, networks)
        net_arch = None if net_arch is None else _check_net_arch(net_arch, networks)
        self.simba_kwargs = {
            "sparsity": dict(self._sparsity) if isinstance(sparsity, Mapping) else self._sparsity["qf"],
            "width_scale": width_scale,
            "depth_scale": depth_scale,
            "net_arch": net_arch,
            "sparsity_distribution": choice("sparsity_distribution", sparsity_distribution, DISTRIBUTIONS),
            "mask_seed": None if mask_seed is None else whole_number("mask_seed", mask_seed, minimum=0),
            "rescale": flag("rescale", rescale),
            "normalize_observations": flag("normalize_observations", normalize_observations),
        }
        if features_extractor_class is None:
            features_extractor_class = default_features_extractor(observation_space, normalize_images)
        if optimizer_class is th.optim.AdamW:
            given = optimizer_kwargs or {}
            optimizer_kwargs = {**self.adamw_kwargs, **given}
            if given.get("foreach") or given.get("differentiable"):
                # Torch allows one implementation at a time: the one that was asked for.
                optimizer_kwargs["fused"] = False
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=_resolve_net_arch(net_arch, width_scale, depth_scale, networks),
            features_extractor_class=features_extractor_class,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )

    def _make_network(
        self, network: str, net_kwargs: dict[str, Any], features_extractor: BaseFeaturesExtractor | None = None
    ) -> Any:
        if not hasattr(self, "obs_norm"):
            normalize = self.simba_kwargs["normalize_observations"]
            self.obs_norm = ObservationNorm(self.observation_space, self.normalize_images) if normalize else None
        net_kwargs = self._update_features_extractor(net_kwargs, features_extractor)
        for name in ("sparsity_distribution", "mask_seed", "rescale"):
            net_kwargs[name] = self.simba_kwargs[name]
        net_kwargs["sparsity"] = self._sparsity[network]
        net_kwargs["obs_norm"] = self.obs_norm
        net_kwargs["feeds_obs_norm"] = network == self.obs_norm_feeder
        return self.network_classes[network](**net_kwargs).to(self.device)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Build an actor; SB3 calls this."""
        return self._make_network("pi", self.actor_kwargs, features_extractor)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Build a critic; SB3 calls this, once more for the target."""
        return self._make_network("qf", self.critic_kwargs, features_extractor)

    def _norm_to_move(self) -> ObservationNorm | None:
        # Where there is an actor, the networks have the optimizers.
        norm = self._modules.get("obs_norm") if "pi" not in self.network_classes else None
        return norm if isinstance(norm, ObservationNorm) and norm.keys else None

    def set_training_mode(self, mode: bool) -> None:
        """Switch between training and evaluation mode; SB3 calls this."""
        super().set_training_mode(mode)
        if self.obs_norm is not None:
            self.obs_norm.training_mode_set(mode, sys._getframe(1))

    def forget_sparsity(self) -> None:
        """What is saved from now on is a dense policy."""
        self.simba_kwargs["sparsity"] = 0.0
        self._sparsity = dict.fromkeys(self._sparsity, 0.0)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = {**super()._get_constructor_parameters(), **self.simba_kwargs}
        if hasattr(self, "share_features_extractor"):
            # SB3 forgets it for SAC, TQC and CrossQ.
            data["share_features_extractor"] = self.share_features_extractor
        return data


class _SquashedLogStdPolicy(_SparseSimBaPolicy):
    """
    Mixin for the policies with a Gaussian actor.

    :param squash_log_std: Map the log standard deviation to [-10, 2] with a tanh as SimBa does, instead of
        clipping it to [-20, 2] as SB3 does.
    """

    def __init__(self, *args: Any, squash_log_std: bool = True, **kwargs: Any):
        self.squash_log_std = flag("squash_log_std", squash_log_std)
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Build an actor; SB3 calls this."""
        actor_kwargs = {**self.actor_kwargs, "squash_log_std": self.squash_log_std}
        return self._make_network("pi", actor_kwargs, features_extractor)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "squash_log_std": self.squash_log_std}


class SparseSimBaPolicy(_SquashedLogStdPolicy, sac.SACPolicy):
    __doc__ = f"Sparse SimBa policy for SAC.\n{_SquashedLogStdPolicy.__doc__}{_SparseSimBaPolicy.__doc__}"

    network_classes = {"pi": SimBaSACActor, "qf": SimBaContinuousCritic}
    obs_norm_feeder = "pi"


class SparseSimBaTQCPolicy(_SquashedLogStdPolicy, tqc.TQCPolicy):
    __doc__ = f"Sparse SimBa policy for TQC.\n{_SquashedLogStdPolicy.__doc__}{_SparseSimBaPolicy.__doc__}"

    network_classes = {"pi": SimBaTQCActor, "qf": SimBaTQCCritic}
    obs_norm_feeder = "pi"


class SparseSimBaCrossQPolicy(_SquashedLogStdPolicy, crossq.CrossQPolicy):
    __doc__ = f"""Sparse SimBa policy for CrossQ.

    SimBa's layer normalisation replaces CrossQ's batch renormalisation. With residual blocks (any ``net_arch`` but
    an empty one) no BatchRenorm layer is left, and the keywords about it (``batch_norm``, ``batch_norm_momentum``,
    ``batch_norm_eps``, ``renorm_warmup_steps``) have no effect. What remains of CrossQ is training without target
    networks on joint batches.
    {_SparseSimBaPolicy.__doc__}"""

    network_classes = {"pi": SimBaCrossQActor, "qf": SimBaCrossQCritic}
    # CrossQ's own default for Adam and AdamW.
    adamw_kwargs = {**_SparseSimBaPolicy.adamw_kwargs, "betas": (0.5, 0.999)}

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any):
        if isinstance(observation_space, spaces.Dict):
            raise ValueError(
                "CrossQ takes no Dict observations: its training concatenates observations as one tensor. Wrap the "
                "environment in gymnasium.wrappers.FlattenObservation, or use SAC or TQC."
            )
        super().__init__(observation_space, *args, **kwargs)


class SparseSimBaTD3Policy(_SparseSimBaPolicy, td3.TD3Policy):
    __doc__ = f"Sparse SimBa policy for TD3 and DDPG.\n{_SparseSimBaPolicy.__doc__}"

    network_classes = {"pi": SimBaTD3Actor, "qf": SimBaContinuousCritic}


class SparseSimBaDQNPolicy(_SparseSimBaPolicy, dqn.DQNPolicy):
    __doc__ = f"Sparse SimBa policy for DQN. Its one network has the size of SimBa's critic.\n{_SparseSimBaPolicy.__doc__}"

    network_classes = {"qf": SimBaQNetwork}

    def make_q_net(self) -> SimBaQNetwork:
        """Build a Q-network; SB3 calls this, once more for the target."""
        return self._make_network("qf", self.net_args)


class SparseSimBaQRDQNPolicy(_SparseSimBaPolicy, qrdqn.QRDQNPolicy):
    __doc__ = f"""Sparse SimBa policy for QR-DQN. Its one network has the size of SimBa's critic.

    QR-DQN hands every policy ``Adam`` with ``eps = 0.01 / batch_size`` when the user names no ``optimizer_class``,
    and drops the user's ``optimizer_kwargs`` then: give both or neither. This policy takes ``Adam`` with an ``eps``
    of 0.01 divided by some integer, and nothing else, for "none named" and uses AdamW. To really use Adam with such
    an ``eps``, name a second argument too: ``optimizer_kwargs=dict(eps=1e-4, betas=(0.9, 0.999))``. A warning says so
    where the ``eps`` is one that people write, such as 1e-5, and not one like 0.0003125, that only a division gives;
    ``optimizer_class=th.optim.AdamW`` is the same without a warning.
    {_SparseSimBaPolicy.__doc__}"""

    network_classes = {"qf": SimBaQuantileNetwork}

    def __init__(self, *args: Any, **kwargs: Any):
        if _may_be_default_of_qrdqn(kwargs.get("optimizer_class"), kwargs.get("optimizer_kwargs")):
            eps = kwargs["optimizer_kwargs"]["eps"]
            if _is_round(eps):
                warnings.warn(
                    f"Adam(eps={eps!r}) is what QR-DQN names where you name no optimizer: AdamW takes its place. If that is "
                    "what you want, say policy_kwargs=dict(optimizer_class=torch.optim.AdamW); if you named this Adam "
                    f"yourself, give it a second argument: optimizer_kwargs=dict(eps={eps!r}, betas=(0.9, 0.999)).",
                    stacklevel=2,
                )
            del kwargs["optimizer_class"], kwargs["optimizer_kwargs"]
        super().__init__(*args, **kwargs)

    def make_quantile_net(self) -> SimBaQuantileNetwork:
        """Build a quantile network; SB3 calls this, once more for the target."""
        return self._make_network("qf", self.net_args)


POLICIES: dict[type[BaseAlgorithm], type[BasePolicy]] = {
    SAC: SparseSimBaPolicy,
    TD3: SparseSimBaTD3Policy,  # DDPG shares the aliases of TD3
    DQN: SparseSimBaDQNPolicy,
    QRDQN: SparseSimBaQRDQNPolicy,
    TQC: SparseSimBaTQCPolicy,
    CrossQ: SparseSimBaCrossQPolicy,
}
POLICY_ALIAS = "SparseSimBaPolicy"


def register_aliases() -> None:
    """Let the string ``"SparseSimBaPolicy"`` name the right policy on each algorithm. Importing the package does it."""
    for algorithm, policy in POLICIES.items():
        algorithm.policy_aliases.setdefault(POLICY_ALIAS, policy)


def _per_network(sparsity: Any, networks: list[str]) -> dict[str, float]:
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(networks, check_sparsity(sparsity))
    if set(sparsity) != set(networks):
        raise ValueError(f"sparsity={dict(sparsity)!r}: expected a number, or one for each of {networks}.")
    return {name: check_sparsity(sparsity[name], f"sparsity[{name!r}]") for name in networks}


def _check_net_arch(net_arch: Any, networks: list[str]) -> NetArch:
    """The same with plain numbers."""
    if not isinstance(net_arch, Mapping):
        return _check_blocks("net_arch", net_arch)
    if "pi" not in networks or set(net_arch) != set(networks):
        expected = "a dict with the lists 'pi' and 'qf'" if "pi" in networks else "a list"
        raise ValueError(f"net_arch={dict(net_arch)!r}: expected {expected}.")
    return {name: _check_blocks(f"net_arch[{name!r}]", net_arch[name]) for name in networks}


def _check_blocks(name: str, blocks: Any) -> list[int]:
    widths = whole_numbers(name, blocks, minimum=1)
    if len(set(widths)) > 1:
        raise ValueError(
            f"{name}={blocks!r}: all residual blocks of a network are equally wide, e.g. {[widths[0]] * len(widths)}."
        )
    return widths


def _resolve_net_arch(net_arch: NetArch | None, width_scale: float, depth_scale: float, networks: list[str]) -> NetArch:
    """Sizes as SB3 wants them: a list for policies with one network, a dict of lists for actor and critic."""
    if net_arch is None:
        sizes = simba_sizes(width_scale, depth_scale)
        return sizes if "pi" in networks else sizes["qf"]
    if (width_scale, depth_scale) != (DEFAULT_WIDTH_SCALE, DEFAULT_DEPTH_SCALE):
        raise ValueError(
            f"net_arch={net_arch!r} together with width_scale={width_scale}, depth_scale={depth_scale}: "
            "the scales multiply SimBa's default sizes, net_arch replaces them. Give one or the other."
        )
    if isinstance(net_arch, dict):
        return {name: list(blocks) for name, blocks in net_arch.items()}
    return {name: list(net_arch) for name in networks} if "pi" in networks else list(net_arch)


def _check_keywords(policy_class: type, kwargs: dict[str, Any]) -> None:
    known = {
        name
        for base in policy_class.__mro__
        if "__init__" in vars(base) and base is not object
        for name, parameter in inspect.signature(base.__init__).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    } - {"self"}
    for name in kwargs:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            # SB3 passes this one itself, to the policies of some algorithms.
            hint = f" {WRONG_POLICY}" if name == "use_sde" else hint
            raise ValueError(f"{policy_class.__name__} has no keyword {name!r}.{hint} Keywords: {sorted(known)}.")


def _may_be_default_of_qrdqn(optimizer_class: Any, optimizer_kwargs: Any) -> bool:
    if optimizer_class is not th.optim.Adam or not isinstance(optimizer_kwargs, Mapping) or set(optimizer_kwargs) != {"eps"}:
        return False
    eps = optimizer_kwargs["eps"]
    # Exactly the number that QR-DQN computes; Adam's own 1e-8 would need a batch of a million.
    return isinstance(eps, float) and eps > 1e-7 and eps == 0.01 / round(0.01 / eps)


def _is_round(number: float) -> bool:
    """Whether it has two digits at most, as numbers that people write."""
    return len(Decimal(repr(number)).normalize().as_tuple().digits) <= 2
