"""
The trunk of actors, critics and Q-networks: SimBa instead of SB3's MLP, pruned, with normalised observations.

``SimBaNetwork`` is the mixin for a network of SB3; ``networks.py`` mixes it into each.
"""

from typing import Any

import torch as th
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_sparse.networks import SimBaEncoder
from sb3_sparse.simba.misuse import HintsAtItsAlgorithm
from sb3_sparse.simba.observation_norm import ObservationNorm, ShowsItsSteps
from sb3_sparse.sparse.sparsity import Sparsity
from sb3_sparse.sparse.state.loading import LoadsWhole


class SimBaNetwork(ShowsItsSteps, HintsAtItsAlgorithm, LoadsWhole):
    """
    Mixin for a sub-network of SB3: SimBa trunk instead of the MLP, pruned, with normalised observations.

    The sparsity of trunk and heads is given, and saved, as the keywords of :meth:`Sparsity.from_keywords`. For another
    trunk, override :meth:`make_trunk` and name your class in ``network_classes`` of the policy.

    :param net_arch: One entry per residual block, all equal; empty for a linear network.
    :param obs_norm: Normalises observations; shared by all networks of a policy.
    :param feeds_obs_norm: Whether the batches that this network is trained on move the statistics of ``obs_norm``.
    """

    def __init__(
        self,
        *args: Any,
        net_arch: list[int],
        obs_norm: ObservationNorm | None = None,
        feeds_obs_norm: bool = False,
        **kwargs: Any,
    ):
        # Plain attributes, which a module may have before its own constructor ran.
        self.sparsity = Sparsity.from_keywords(**Sparsity.take_keywords(kwargs))
        self.feeds_obs_norm = feeds_obs_norm
        # SB3 sizes the heads by the last entry; its small MLP trunk is replaced below.
        super().__init__(*args, net_arch=net_arch[-1:], **kwargs)
        self.net_arch = net_arch
        # The norm comes first in the state dict: being shared with other networks, it must not be the last entry,
        # which partial loading (`exact_match=False`) may leave out.
        modules = dict(self._modules)
        self._modules.clear()
        self.obs_norm = obs_norm
        self._modules.update(modules)
        if net_arch:
            self.build_simba()
        # The norm of observations is not the network's alone.
        shared = ["features_extractor", *(["obs_norm"] if obs_norm is not None else [])]
        self.sparsity.apply_(self, exclude=shared)

    def build_simba(self) -> None:
        """Put :meth:`make_trunk` and SimBa's heads in the place of SB3's MLP. Each network says how."""
        raise NotImplementedError

    def make_trunk(self, in_features: int) -> nn.Module:
        """
        The layers below the heads. Override for another trunk; its layers are pruned together with the heads.

        :param in_features: Size of its input.
        :return: A module whose output has the size ``net_arch[-1]``.
        """
        return SimBaEncoder(in_features, self.net_arch[-1], len(self.net_arch), self.activation_fn)

    def _preprocess(self, obs: PyTorchObs) -> PyTorchObs:
        return preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)

    def _norm_to_move(self) -> ObservationNorm | None:
        return self.obs_norm if self.feeds_obs_norm and self.obs_norm is not None and self.obs_norm.keys else None

    def observe(self, obs: PyTorchObs) -> None:
        """
        Show a batch to the statistics if this may be a training pass of the network that feeds them. To be called at the
        beginning of every pass.

        :param obs: Observations, as the network gets them.
        """
        if not self.training or not th.is_grad_enabled() or th.jit.is_tracing():
            return
        if (norm := self._norm_to_move()) is not None:
            norm.observe(self._preprocess(obs))

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        """Preprocess and normalise observations, then extract features."""
        preprocessed = self._preprocess(obs)
        return features_extractor(preprocessed if self.obs_norm is None else self.obs_norm(preprocessed))

    def forget_sparsity(self) -> None:
        """What is saved from now on is a dense network."""
        self.sparsity = self.sparsity.dense()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        ours = {**self.sparsity.keywords, "feeds_obs_norm": self.feeds_obs_norm, "obs_norm": self.obs_norm}
        return {**super()._get_constructor_parameters(), **ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "sparsity" not in state:
            # Pickled by an earlier version, which kept the keywords.
            keywords = dict(state["simba_kwargs"])
            state = {**state, "sparsity": Sparsity.from_keywords(**Sparsity.take_keywords(keywords)), **keywords}
            del state["simba_kwargs"]
        super().__setstate__(state)
