"""``predict`` of an agent as one torch module: from raw observations to actions."""

import torch as th
from gymnasium import spaces
from torch import nn

from sb3_sparse.export.actions import ActionHead
from sb3_sparse.export.networks import Observation, StreamScores
from sb3_sparse.export.vec_normalize import VecNormalizer


class PredictModule(nn.Module):
    """
    What ``model.predict(observation, deterministic=True)[0]`` computes for a batch.

    See :func:`sb3_sparse.export.predict_module`, which makes it.

    :param network: From observations to scores: actions before they are scaled, or a number for each action.
    :param head: From scores to actions.
    :param observation_space: Of the raw observations.
    :param normalizer: What ``VecNormalize`` does to them, None: there is none.
    :param transposed: Names of the images that come with their channels last ("" for an observation that is no Dict).
    """

    def __init__(
        self,
        network: nn.Module,
        head: ActionHead,
        observation_space: spaces.Space,
        normalizer: VecNormalizer | None = None,
        transposed: tuple[str, ...] = (),
    ):
        super().__init__()
        self.network = network
        self.head = head
        self.observation_space = observation_space
        self.normalizer = normalizer
        self.transposed = transposed

    @property
    def takes_step(self) -> bool:
        """Whether there is a second input, the steps taken in the episode: of agents with a time feature."""
        return isinstance(self.network, StreamScores) and self.network.time_limit is not None

    def scores(self, observation: Observation, step: th.Tensor | None = None) -> th.Tensor:
        """
        What the action is chosen by: itself before it is scaled, action values, or logits.

        :param observation: A batch of raw observations.
        :param step: ``(batch,)``, if :attr:`takes_step`.
        :return: ``(batch, n)``
        """
        if isinstance(observation, dict):
            observation = {key: self._channels_first(key, part) for key, part in observation.items()}
        else:
            observation = self._channels_first("", observation)
        if self.normalizer is not None:
            observation = self.normalizer(observation)
        return self.network(observation, step) if self.takes_step else self.network(observation)

    def forward(self, observation: Observation, step: th.Tensor | None = None) -> th.Tensor:
        """
        :param observation: A batch of raw observations; a dict of tensors where the space is a Dict.
        :param step: ``(batch,)``, integers: steps taken in the episode, if :attr:`takes_step`.
        :return: ``(batch, *action_space.shape)``
        """
        return self.head(self.scores(observation, step))

    def _channels_first(self, key: str, part: th.Tensor) -> th.Tensor:
        return part.permute(0, 3, 1, 2) if key in self.transposed else part
