"""
Sparse SimBa policies for the algorithms of Stable-Baselines3 and sb3-contrib.

The mixin ``_SparseSimBaPolicy`` makes a policy of SB3 build the networks of ``policy_networks.py``. The classes
below it say which policy it is mixed into, one for each algorithm. The algorithms themselves are used unchanged.
"""

import difflib
import inspect
from collections.abc import Mapping
from numbers import Integral
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
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3

from sb3_sparse.networks import simba_sizes
from sb3_sparse.policy_networks import (
    WRONG_POLICY,
    HintsAtItsAlgorithm,
    ObservationNorm,
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
from sb3_sparse.sparse.distribution import check_sparsity, get_distribution

NetArch = list[int] | dict[str, list[int]]

DEFAULT_WIDTH_SCALE = 2.0
DEFAULT_DEPTH_SCALE = 1.0
# What NatureCNN's kernels need. Smaller images, such as the grids of MiniGrid, are flattened.
MIN_IMAGE_SIZE = 36


class _SparseSimBaPolicy(HintsAtItsAlgorithm):
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
    # Whose training passes show every replayed batch once: the statistics of observations follow those.
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
        _check_observations(observation_space)
        get_distribution(sparsity_distribution)
        mask_seed = _check_mask_seed(mask_seed)
        _check_flag("rescale", rescale)
        _check_flag("normalize_observations", normalize_observations)
        # Plain attributes, which a module may have before its own constructor ran; `_build` needs them.
        self.simba_kwargs = {
            "sparsity": sparsity,
            "width_scale": width_scale,
            "depth_scale": depth_scale,
            "net_arch": net_arch,
            "sparsity_distribution": sparsity_distribution,
            "mask_seed": mask_seed,
            "rescale": rescale,
            "normalize_observations": normalize_observations,
        }
        self._sparsity = _per_network(sparsity, list(self.network_classes))
        if features_extractor_class is None:
            features_extractor_class = _default_features_extractor(observation_space, normalize_images)
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
            net_arch=_resolve_net_arch(net_arch, width_scale, depth_scale, list(self.network_classes)),
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
        _check_flag("squash_log_std", squash_log_std)
        self.squash_log_std = squash_log_std
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Build an actor; SB3 calls this."""
        actor_kwargs = {**self.actor_kwargs, "squash_log_std": self.squash_log_std}
        return self._make_network("pi", actor_kwargs, features_extractor)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "squash_log_std": self.squash_log_std}


class SparseSimBaPolicy(_SquashedLogStdPolicy, sac.SACPolicy):
    __doc__ = f"Sparse SimBa policy for SAC.\n{_SparseSimBaPolicy.__doc__}"

    network_classes = {"pi": SimBaSACActor, "qf": SimBaContinuousCritic}
    obs_norm_feeder = "pi"


class SparseSimBaTQCPolicy(_SquashedLogStdPolicy, tqc.TQCPolicy):
    __doc__ = f"Sparse SimBa policy for TQC.\n{_SparseSimBaPolicy.__doc__}"

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
    an ``eps``, name a second argument too: ``optimizer_kwargs=dict(eps=1e-4, betas=(0.9, 0.999))``.
    {_SparseSimBaPolicy.__doc__}"""

    network_classes = {"qf": SimBaQuantileNetwork}

    def __init__(self, *args: Any, **kwargs: Any):
        if _is_qrdqn_default_optimizer(kwargs.get("optimizer_class"), kwargs.get("optimizer_kwargs")):
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


def _default_features_extractor(observation_space: spaces.Space, normalize_images: bool) -> type[BaseFeaturesExtractor]:
    if isinstance(observation_space, spaces.Dict):
        return CombinedExtractor
    is_image = is_image_space(observation_space, normalized_image=not normalize_images)
    if is_image and min(sorted(observation_space.shape or ())[-2:]) >= MIN_IMAGE_SIZE:
        return NatureCNN
    return FlattenExtractor


def _per_network(sparsity: Any, networks: list[str]) -> dict[str, float]:
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(networks, check_sparsity(sparsity))
    if set(sparsity) != set(networks):
        raise ValueError(f"sparsity={dict(sparsity)!r}: expected a number, or one for each of {networks}.")
    return {name: check_sparsity(value, f"sparsity[{name!r}]") for name, value in sparsity.items()}


def _resolve_net_arch(net_arch: Any, width_scale: float, depth_scale: float, networks: list[str]) -> NetArch:
    """Sizes as SB3 wants them: a list for policies with one network, a dict of lists for actor and critic."""
    if net_arch is None:
        sizes = simba_sizes(width_scale, depth_scale)
        return sizes if "pi" in networks else sizes["qf"]
    if (width_scale, depth_scale) != (DEFAULT_WIDTH_SCALE, DEFAULT_DEPTH_SCALE):
        raise ValueError(
            f"net_arch={net_arch!r} together with width_scale={width_scale}, depth_scale={depth_scale}: "
            "the scales multiply SimBa's default sizes, net_arch replaces them. Give one or the other."
        )
    if isinstance(net_arch, Mapping):
        if "pi" not in networks or set(net_arch) != set(networks):
            expected = "a dict with the lists 'pi' and 'qf'" if "pi" in networks else "a list"
            raise ValueError(f"net_arch={dict(net_arch)!r}: expected {expected}.")
        return {name: _check_blocks(blocks) for name, blocks in net_arch.items()}
    blocks = _check_blocks(net_arch)
    return {name: list(blocks) for name in networks} if "pi" in networks else blocks


def _check_blocks(blocks: Any) -> list[int]:
    if not isinstance(blocks, (list, tuple)) or not all(_is_integer(b) and b > 0 for b in blocks):
        raise ValueError(f"net_arch {blocks!r}: expected a list of positive widths, one entry per residual block.")
    if len(set(blocks)) > 1:
        raise ValueError(
            f"net_arch {blocks!r}: all residual blocks of a network are equally wide, e.g. {[blocks[0]] * len(blocks)}."
        )
    return [int(b) for b in blocks]


def _check_mask_seed(mask_seed: Any) -> int | None:
    if mask_seed is not None and not (_is_integer(mask_seed) and mask_seed >= 0):
        raise ValueError(f"mask_seed={mask_seed!r}: expected a non-negative integer, or None to follow SB3's seed=.")
    return None if mask_seed is None else int(mask_seed)


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: expected True or False.")


def _check_observations(space: spaces.Space) -> None:
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    if numbers := [key for key, part in parts.items() if isinstance(part, spaces.Box) and part.shape == ()]:
        where = f"the parts {numbers} of the observation are" if numbers != [""] else "the observation is"
        raise ValueError(
            f"{where} a Box of shape (), which SB3's replay buffer cannot hold: wrap the environment, in "
            "sb3_sparse.dmc.DMCWrapper if it is one of DeepMind Control, else in gymnasium.wrappers.FlattenObservation."
        )


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


def _is_qrdqn_default_optimizer(optimizer_class: Any, optimizer_kwargs: Any) -> bool:
    if optimizer_class is not th.optim.Adam or not optimizer_kwargs or set(optimizer_kwargs) != {"eps"}:
        return False
    batch_size = 0.01 / optimizer_kwargs["eps"]
    return abs(batch_size - round(batch_size)) < 1e-6 * batch_size
