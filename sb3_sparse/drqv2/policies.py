"""The policy of DrQ-v2: an encoder that the critic trains, an actor, and a critic that can be wider, and sparse."""

import copy
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, get_actor_critic_arch
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from sb3_sparse.common.signatures import FullSignature
from sb3_sparse.common.validation import choice, non_negative, positive, whole_number
from sb3_sparse.drqv2.features import DrQFeatures
from sb3_sparse.drqv2.noise import noisy_actions
from sb3_sparse.networks.drq import DrQActor, DrQCritic
from sb3_sparse.sparse.sparsity import Sparsity
from sb3_sparse.sparse.state.loading import LoadsWhole

SCOPES = ("heads", "critic")
# The networks by the names of `net_arch`, where SB3 has no name for an encoder.
_NETWORKS = ("encoder", "pi", "qf")


class DrQv2Policy(LoadsWhole, BasePolicy):
    """
    Policy of :class:`DrQv2`. Encoder and actor stay as they are when the critic grows.

    :param observation_space: Images of uint8, channels first; SB3 puts them there.
    :param action_space: A Box.
    :param lr_schedule: Learning rate schedule.
    :param net_arch: Hidden layers of actor and critic, ``dict(pi=[1024, 1024], qf=[1024, 1024])`` unless given.
    :param critic_width_scale: Multiplies the hidden layers of the critic, before they are pruned.
    :param sparsity: Fraction of the critic's weights that is removed, once, at random, in [0, 1); or one number for each
        network, ``{"encoder": 0.0, "pi": 0.5, "qf": 0.8}``.
    :param sparsity_scope: What of the critic is pruned: its ``"heads"``, the layers that grow, or all of it, ``"critic"``,
        its bottleneck too.
    :param sparsity_distribution: ``"erdos_renyi"`` or ``"uniform"``: how it is spread over the layers of a network.
    :param mask_seed: Fixes which weights exist, apart from the initial values. None: follows SB3's ``seed=``.
    :param rescale: Multiply the surviving initial weights of a layer by ``1 / sqrt(density)``.
    :param feature_dim: Width of the bottlenecks of actor and critic.
    :param n_critics: Heads of the critic.
    :param noise_std: Standard deviation of the noise on actions that are not deterministic. The algorithm changes it.
    :param features_extractor_class: The encoder, which is DrQ-v2's own unless given.
    :param features_extractor_kwargs: Of the encoder, such as ``dict(channels=16)``.
    :param normalize_images: SB3's: divide images by 255. False means that they are floats in [0, 1] already.
    :param optimizer_class: Of actor, and of critic and encoder.
    :param optimizer_kwargs: Of the optimizers, without the learning rate. Adam is fused, unless they say otherwise.
    :raises ValueError: If a value is out of range, or observations are no images.
    """

    encoder: BaseFeaturesExtractor
    actor: DrQActor
    critic: DrQCritic
    critic_target: DrQCritic
    __signature__ = FullSignature()

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        *,
        critic_width_scale: float = 1.0,
        sparsity: float | dict[str, float] = 0.0,
        sparsity_scope: str = "heads",
        sparsity_distribution: str = "erdos_renyi",
        mask_seed: int | None = None,
        rescale: bool = False,
        feature_dim: int = 50,
        n_critics: int = 2,
        noise_std: float = 1.0,
        features_extractor_class: type[BaseFeaturesExtractor] = DrQFeatures,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        check_images(observation_space, normalize_images)
        given = optimizer_kwargs or {}
        if optimizer_class is th.optim.Adam and not (given.get("foreach") or given.get("differentiable")):
            # A third of the time, and no memory that is asked for anew in each step.
            optimizer_kwargs = {"fused": True, **given}
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
        )
        self.net_arch = {"pi": [1024, 1024], "qf": [1024, 1024]} if net_arch is None else net_arch
        self.critic_width_scale = positive("critic_width_scale", critic_width_scale)
        self.feature_dim = whole_number("feature_dim", feature_dim, 1)
        self.n_critics = whole_number("n_critics", n_critics, 1)
        self.noise_std = non_negative("noise_std", noise_std)
        self.sparsity_scope = choice("sparsity_scope", sparsity_scope, SCOPES)
        if not isinstance(sparsity, dict):
            sparsity = {"encoder": 0.0, "pi": 0.0, "qf": sparsity}
        self.sparsity = Sparsity.per_network(
            _NETWORKS, sparsity, sparsity_distribution=sparsity_distribution, mask_seed=mask_seed, rescale=rescale
        )
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        actor_arch, critic_arch = get_actor_critic_arch(self.net_arch)
        critic_arch = [max(1, round(width * self.critic_width_scale)) for width in critic_arch]
        self.encoder = self.make_features_extractor()
        self.sparsity["encoder"].apply_(self.encoder, name="encoder")
        self.actor = self.make_actor(actor_arch)
        self.critic = self.make_critic(critic_arch)
        # The same, with the same weights living. Orthogonal weights of wide layers are slow to draw.
        self.critic_target = copy.deepcopy(self.critic)
        self.critic_target.train(False)
        self.to(self.device)
        for network, trained in ((self.actor, [self.actor]), (self.critic, [self.encoder, self.critic])):
            parameters = [parameter for module in trained for parameter in module.parameters()]
            network.optimizer = self.optimizer_class(
                parameters,
                lr=lr_schedule(1),  # type: ignore[call-arg]
                **self.optimizer_kwargs,
            )

    def make_actor(self, net_arch: list[int]) -> DrQActor:
        """
        Build the actor.

        :param net_arch: Widths of its hidden layers.
        """
        actor = DrQActor(self.encoder.features_dim, self._n_actions, net_arch, self.feature_dim)
        return self.sparsity["pi"].apply_(actor, name="actor")

    def make_critic(self, net_arch: list[int]) -> DrQCritic:
        """
        Build the critic, of which the target is a copy.

        :param net_arch: Widths of the hidden layers of each head.
        """
        critic = DrQCritic(self.encoder.features_dim, self._n_actions, net_arch, self.feature_dim, self.n_critics)
        exclude = ("trunk",) if self.sparsity_scope == "heads" else ()
        return self.sparsity["qf"].apply_(critic, exclude=exclude, name="critic")

    @property
    def _n_actions(self) -> int:
        return get_action_dim(self.action_space)

    def encode(self, obs: PyTorchObs) -> th.Tensor:
        """
        Features of images.

        :param obs: ``(batch, channels, height, width)``, as the environment gives them.
        :return: ``(batch, features_dim)``
        """
        return self.extract_features(obs, self.encoder)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """
        Actions.

        :param observation: ``(batch, channels, height, width)``
        :param deterministic: Without noise.
        :return: ``(batch, n_actions)``, in [-1, 1].
        """
        return self._predict(observation, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        means = self.actor(self.encode(observation))
        return means if deterministic else noisy_actions(means, self.noise_std)

    def set_training_mode(self, mode: bool) -> None:
        """
        Put all networks that are trained in training or evaluation mode.

        :param mode: True for training.
        """
        for network in (self.encoder, self.actor, self.critic):
            network.train(mode)
        self.training = mode

    def forget_sparsity(self) -> None:
        """What is saved from now on is a dense policy."""
        self.sparsity = {name: sparsity.dense() for name, sparsity in self.sparsity.items()}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "net_arch": self.net_arch,
            "critic_width_scale": self.critic_width_scale,
            **Sparsity.keywords_of(self.sparsity),
            "sparsity": {name: sparsity.amount for name, sparsity in self.sparsity.items()},
            "sparsity_scope": self.sparsity_scope,
            "feature_dim": self.feature_dim,
            "n_critics": self.n_critics,
            "noise_std": self.noise_std,
            "lr_schedule": self._dummy_schedule,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


def check_images(space: spaces.Space, normalize_images: bool = True) -> None:
    """
    Whether observations are images, channels first.

    :param space: Of one observation.
    :param normalize_images: Whether they are to be divided by 255.
    :raises ValueError: If not.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        raise ValueError(
            f"observation space {space}: DrQ-v2 learns from images, a Box of (channels, height, width). PixelObservations "
            "makes them of any environment that renders; SparseSimBaPolicy with SAC learns from vectors."
        )
    if normalize_images and space.dtype != "uint8":
        raise ValueError(
            f"images of {space.dtype}: expected uint8, 0 to 255. Convert them in the environment, which is a quarter of the "
            "memory too; or pass policy_kwargs=dict(normalize_images=False) if they are in [0, 1] already."
        )
    if normalize_images and not is_image_space(space):
        # SB3 leaves them as they are, where the encoder expects [0, 1].
        raise ValueError(
            f"images of uint8 from {space.low.min()} to {space.high.max()}: expected bounds of 0 and 255, by which SB3 knows "
            "images. Say spaces.Box(0, 255, shape, np.uint8) in the environment."
        )
    n_channels, height, width = space.shape
    if n_channels > min(height, width):
        raise ValueError(
            f"observation space of shape {space.shape}: expected channels first, (channels, height, width), fewer than rows "
            "and columns. SB3 puts them there by VecTransposeImage where it recognises an image."
        )
