"""``predict`` of an agent as one torch module: from raw observations to actions."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_sparse.common.validation import flag
from sb3_sparse.export.actions import ActionHead, action_head
from sb3_sparse.export.networks import Observation, StreamScores, VecNormalizer, scores_module
from sb3_sparse.sparse import to_dense


class PredictModule(nn.Module):
    """
    What ``model.predict(observation, deterministic=True)[0]`` computes for a batch, see :func:`predict_module`.

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


def predict_module(
    model: BaseAlgorithm, *, vec_normalize: VecNormalize | str | Path | None = None, channels_last: bool = False
) -> PredictModule:
    """
    What ``model.predict(observation, deterministic=True)[0]`` computes, as a module of dense torch layers on the CPU.

    Observations go in as the environment gives them, always as a batch: in the dtype of their space, images in bytes,
    whole numbers where the space is Discrete, a Dict as a dict of tensors. Their preparation and the scaling of
    actions are inside. An agent with a time feature (:mod:`sb3_sparse.streaming`) takes a second input: how many steps
    its episode has had.

    >>> module = predict_module(model)  # doctest: +SKIP
    >>> module(th.as_tensor(observations))  # doctest: +SKIP

    :param model: An agent; it is not changed. See the page on export for which.
    :param vec_normalize: The wrapper that normalised the observations in training, or the file that it was saved to:
        becomes a part of the module, which then takes raw observations. (The file is a pickle: only open your own.)
    :param channels_last: Take images as ``(batch, height, width, channels)``. By default they are as in
        ``model.observation_space``, where SB3 has put the channels first.
    :return: The module, in evaluation mode and without gradients.
    :raises ValueError: If the kind of agent is not known, or an argument is wrong.
    :raises RuntimeError: If what was built does not do as the agent does.
    """
    from sb3_sparse.export.check import check_module, untouched

    with untouched(model):
        module = build(model, vec_normalize, channels_last)
        check_module(module, model, load_vec_normalize(vec_normalize))
    return module


def build(model: BaseAlgorithm, vec_normalize: VecNormalize | str | Path | None, channels_last: bool) -> PredictModule:
    """:func:`predict_module` without its check."""
    flag("channels_last", channels_last)
    wrapper = load_vec_normalize(vec_normalize)
    space = model.observation_space
    if shifted := [part for part in parts_of(space).values() if np.any(getattr(part, "start", 0))]:
        raise ValueError(f"observations {shifted} do not start at 0, which SB3 cannot tell apart: shift them in a wrapper.")
    if wrapper is None:
        _warn_of_wrapper(model)
    elif wrapper.norm_obs:
        space = _raw_space(wrapper, space)
    policy = policy_of(model)
    scores = scores_module(policy)
    head = action_head(model.action_space, squashed=policy.squash_output)
    # Only the part that acts becomes dense: critics and targets may be many times larger.
    scores = to_dense(scores).cpu()
    normalizer = VecNormalizer(wrapper) if wrapper is not None and wrapper.norm_obs else None
    transposed = _images(space) if channels_last else ()
    if channels_last and not transposed:
        raise ValueError(f"channels_last=True: there is no image in {space}.")
    module = PredictModule(scores, head, _with_channels_last(space, transposed), normalizer, transposed)
    return module.eval().requires_grad_(False)


def policy_of(model: BaseAlgorithm) -> BasePolicy:
    """The policy, also where it was replaced by what ``torch.compile`` made of it."""
    return getattr(model.policy, "_orig_mod", model.policy)


def load_vec_normalize(given: VecNormalize | str | Path | None) -> VecNormalize | None:
    """
    The wrapper itself, or from the file that it was saved to.

    :raises ValueError: If it is no such wrapper.
    """
    wrapper: Any = given
    if isinstance(given, (str, Path)):
        with open(given, "rb") as file:
            try:
                wrapper = pickle.load(file)
            except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, ValueError) as error:
                raise ValueError(f"{str(given)!r} is no file of VecNormalize: {error}") from error
    if wrapper is not None and not isinstance(wrapper, VecNormalize):
        raise ValueError(f"vec_normalize={given!r}: expected a VecNormalize, or the file that one was saved to.")
    return wrapper


def parts_of(space: spaces.Space) -> dict[str, spaces.Space]:
    """The spaces of a Dict by name; any other space has one part, named ""."""
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}


def _warn_of_wrapper(model: BaseAlgorithm) -> None:
    wrapper = model.get_vec_normalize_env()
    if wrapper is not None and wrapper.norm_obs:
        warnings.warn(
            "the environment of this agent is wrapped in VecNormalize, which is no part of it: what is exported expects "
            "observations that are normalised as there. To have it inside, pass vec_normalize=model.get_vec_normalize_env(), "
            "or the file that it was saved to.",
            stacklevel=4,
        )


def _raw_space(wrapper: VecNormalize, seen: spaces.Space) -> spaces.Space:
    """Space of the observations that go into a wrapper, of an agent that sees ``seen``."""
    raw = wrapper.observation_space if wrapper.venv is None else wrapper.venv.observation_space
    inside = {key: part.shape for key, part in parts_of(raw).items()}
    outside = {key: part.shape for key, part in parts_of(seen).items()}
    if inside != outside:
        raise ValueError(
            f"VecNormalize takes observations of shape {inside}, the agent of shape {outside}: a wrapper between them, such "
            "as VecFrameStack, cannot be exported. Export without vec_normalize=, and normalise in front."
        )
    return raw


def _images(space: spaces.Space) -> tuple[str, ...]:
    return tuple(key for key, part in parts_of(space).items() if is_image_space(part))


def _with_channels_last(space: spaces.Space, transposed: tuple[str, ...]) -> spaces.Space:
    def convert(key: str, part: Any) -> spaces.Space:
        if key not in transposed:
            return part
        return spaces.Box(part.low.transpose(1, 2, 0), part.high.transpose(1, 2, 0), dtype=part.dtype)

    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: convert(key, part) for key, part in space.spaces.items()})
    return convert("", space)
