"""Policies of Rainbow: SB3's policies of DQN with another network."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn.policies import CnnPolicy, DQNPolicy, MultiInputPolicy

from sb3_sparse.common.validation import flag, non_negative
from sb3_sparse.networks.heads import Support
from sb3_sparse.rainbow.networks import RainbowNetwork


class RainbowPolicy(DQNPolicy):
    """
    Policy of :class:`Rainbow`, for vectors. The algorithm says which parts of the network there are.

    :param observation_space: Any space that SB3's DQN takes.
    :param action_space: Discrete actions.
    :param lr_schedule: Learning rate schedule.
    :param distributional: Whether the network predicts distributions over returns (C51).
    :param dueling: Whether values are learned apart from advantages.
    :param noisy: Whether hidden layers and head are noisy.
    :param n_atoms: Of the distributions, at least 2.
    :param v_min: Smallest return of the distributions.
    :param v_max: Largest return of the distributions.
    :param sigma: Size of the noise at first.
    :param kwargs: Of SB3's ``DQNPolicy``.
    :raises ValueError: If a value is out of range.
    """

    q_net: RainbowNetwork
    q_net_target: RainbowNetwork

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *args: Any,
        distributional: bool = False,
        dueling: bool = False,
        noisy: bool = False,
        n_atoms: int = 51,
        v_min: float = -10.0,
        v_max: float = 10.0,
        sigma: float = 0.5,
        **kwargs: Any,
    ):
        support = Support(n_atoms, v_min, v_max)
        # Before the constructor, which makes the networks.
        self.rainbow_kwargs: dict[str, Any] = {
            "distributional": flag("distributional", distributional),
            "dueling": flag("dueling", dueling),
            "noisy": flag("noisy", noisy),
            "n_atoms": support.n_atoms,
            "v_min": support.v_min,
            "v_max": support.v_max,
            "sigma": non_negative("sigma", sigma),
        }
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def make_q_net(self) -> RainbowNetwork:
        """Build a network; SB3 calls this, once more for the target."""
        net_args = self._update_features_extractor(self.net_args, features_extractor=None)
        return RainbowNetwork(**net_args, **self.rainbow_kwargs).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self.rainbow_kwargs}


class RainbowCnnPolicy(RainbowPolicy, CnnPolicy):
    """:class:`RainbowPolicy` for images."""


class RainbowMultiInputPolicy(RainbowPolicy, MultiInputPolicy):
    """:class:`RainbowPolicy` for Dict observations."""
