"""
Sparse SimBa policies for the algorithms of Stable-Baselines3 and sb3-contrib, one for each.

The algorithms are used unchanged, and so are subclasses of them: they take the policy of the algorithm that they come
from. Each class here says which policy of SB3 the mixin of ``policy_mixin.py`` is for, and which networks it builds. For
another trunk, override ``make_trunk`` of a network (``network_mixin.py``) and name that network in ``network_classes``.
"""

from typing import Any

from gymnasium import spaces
from sb3_contrib import QRDQN, TQC, CrossQ
from sb3_contrib.crossq import policies as crossq
from sb3_contrib.qrdqn import policies as qrdqn
from sb3_contrib.tqc import policies as tqc
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn import policies as dqn
from stable_baselines3.sac import policies as sac
from stable_baselines3.td3 import policies as td3

from sb3_sparse.common.warn import warn_user
from sb3_sparse.simba.arguments import is_round, may_be_default_of_qrdqn
from sb3_sparse.simba.networks import (
    SimBaContinuousCritic,
    SimBaCrossQActor,
    SimBaCrossQCritic,
    SimBaQNetwork,
    SimBaQuantileNetwork,
    SimBaSACActor,
    SimBaTD3Actor,
    SimBaTQCActor,
    SimBaTQCCritic,
)
from sb3_sparse.simba.policy_mixin import GaussianSimBaPolicy, SimBaPolicy


class SparseSimBaPolicy(GaussianSimBaPolicy, sac.SACPolicy):
    """
    Sparse SimBa policy for SAC. Its keywords are those of :class:`SimBaPolicy` and :class:`GaussianSimBaPolicy`.

    >>> from stable_baselines3 import SAC
    >>> model = SAC(SparseSimBaPolicy, "Pendulum-v1", policy_kwargs=dict(width_scale=0.5, sparsity=0.9))
    """

    network_classes = {"pi": SimBaSACActor, "qf": SimBaContinuousCritic}
    obs_norm_feeder = "pi"


class SparseSimBaTQCPolicy(GaussianSimBaPolicy, tqc.TQCPolicy):
    """Sparse SimBa policy for TQC. Its keywords are those of :class:`SimBaPolicy` and :class:`GaussianSimBaPolicy`."""

    network_classes = {"pi": SimBaTQCActor, "qf": SimBaTQCCritic}
    obs_norm_feeder = "pi"


class SparseSimBaCrossQPolicy(GaussianSimBaPolicy, crossq.CrossQPolicy):
    """
    Sparse SimBa policy for CrossQ. Its keywords are those of :class:`SimBaPolicy` and :class:`GaussianSimBaPolicy`.

    SimBa's layer normalisation replaces CrossQ's batch renormalisation. With residual blocks (any ``net_arch`` but
    an empty one) no BatchRenorm layer is left, and the keywords about it (``batch_norm``, ``batch_norm_momentum``,
    ``batch_norm_eps``, ``renorm_warmup_steps``) have no effect. What remains of CrossQ is training without target
    networks on joint batches.
    """

    network_classes = {"pi": SimBaCrossQActor, "qf": SimBaCrossQCritic}
    # CrossQ's own default for Adam and AdamW.
    adamw_kwargs = {**SimBaPolicy.adamw_kwargs, "betas": (0.5, 0.999)}

    def __init__(self, observation_space: spaces.Space, *args: Any, **kwargs: Any):
        if isinstance(observation_space, spaces.Dict):
            raise ValueError(
                "CrossQ takes no Dict observations: its training concatenates observations as one tensor. Wrap the "
                "environment in gymnasium.wrappers.FlattenObservation, or use SAC or TQC."
            )
        super().__init__(observation_space, *args, **kwargs)


class SparseSimBaTD3Policy(SimBaPolicy, td3.TD3Policy):
    """Sparse SimBa policy for TD3 and DDPG. Its keywords are those of :class:`SimBaPolicy`."""

    network_classes = {"pi": SimBaTD3Actor, "qf": SimBaContinuousCritic}


class SparseSimBaDQNPolicy(SimBaPolicy, dqn.DQNPolicy):
    """
    Sparse SimBa policy for DQN. Its one network has the size of SimBa's critic.

    Its keywords are those of :class:`SimBaPolicy`.
    """

    network_classes = {"qf": SimBaQNetwork}

    def make_q_net(self) -> SimBaQNetwork:
        """Build a Q-network; SB3 calls this, once more for the target."""
        return self.make_network("qf", self.net_args)


class SparseSimBaQRDQNPolicy(SimBaPolicy, qrdqn.QRDQNPolicy):
    """
    Sparse SimBa policy for QR-DQN. Its one network has the size of SimBa's critic.

    Its keywords are those of :class:`SimBaPolicy`.

    QR-DQN hands every policy ``Adam`` with ``eps = 0.01 / batch_size`` when the user names no ``optimizer_class``,
    and drops the user's ``optimizer_kwargs`` then: give both or neither. This policy takes ``Adam`` with an ``eps``
    of 0.01 divided by some integer, and nothing else, for "none named" and uses AdamW. To really use Adam with such
    an ``eps``, name a second argument too: ``optimizer_kwargs=dict(eps=1e-4, betas=(0.9, 0.999))``. A warning says so
    where the ``eps`` is one that people write, such as 1e-5, and not one like 0.0003125, that only a division gives;
    ``optimizer_class=th.optim.AdamW`` is the same without a warning.
    """

    network_classes = {"qf": SimBaQuantileNetwork}

    def __init__(self, *args: Any, **kwargs: Any):
        if may_be_default_of_qrdqn(kwargs.get("optimizer_class"), kwargs.get("optimizer_kwargs")):
            eps = kwargs["optimizer_kwargs"]["eps"]
            if is_round(eps):
                warn_user(
                    f"Adam(eps={eps!r}) is what QR-DQN names where you name no optimizer: AdamW takes its place. If that is "
                    "what you want, say policy_kwargs=dict(optimizer_class=torch.optim.AdamW); if you named this Adam "
                    f"yourself, give it a second argument: optimizer_kwargs=dict(eps={eps!r}, betas=(0.9, 0.999))."
                )
            del kwargs["optimizer_class"], kwargs["optimizer_kwargs"]
        super().__init__(*args, **kwargs)

    def make_quantile_net(self) -> SimBaQuantileNetwork:
        """Build a quantile network; SB3 calls this, once more for the target."""
        return self.make_network("qf", self.net_args)


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
