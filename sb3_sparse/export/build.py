"""Building the module that does as ``predict`` of an agent does."""

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.common.sb3_models import policy_of
from sb3_sparse.common.validation import flag, positive
from sb3_sparse.export.actions import action_head
from sb3_sparse.export.check import check_module, untouched
from sb3_sparse.export.module import PredictModule
from sb3_sparse.export.networks import scores_module
from sb3_sparse.export.vec_normalize import VecNormalizer, load_vec_normalize, raw_space, warn_of_wrapper
from sb3_sparse.networks.noisy import replace_noisy_
from sb3_sparse.simba.spaces import parts_of
from sb3_sparse.sparse import to_dense


def predict_module(
    model: BaseAlgorithm,
    *,
    vec_normalize: VecNormalize | str | Path | None = None,
    channels_last: bool = False,
    tolerance: float = 1e-5,
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
    :param tolerance: Largest difference to ``model.predict``: as a part of half an action's range where that is more than
        1, and absolute where it is less.
    :return: The module, in evaluation mode and without gradients.
    :raises ValueError: If the kind of agent is not known, or an argument is wrong.
    :raises RuntimeError: If what was built does not do as the agent does.
    """
    tolerance, wrapper = positive("tolerance", tolerance), load_vec_normalize(vec_normalize)
    with untouched(model):
        module = build(model, wrapper, channels_last)
        check_module(module, model, wrapper, tolerance)
    return module


def build(model: BaseAlgorithm, wrapper: VecNormalize | None, channels_last: bool) -> PredictModule:
    """:func:`predict_module` without its check."""
    flag("channels_last", channels_last)
    space = model.observation_space
    if shifted := [part for part in parts_of(space).values() if np.any(getattr(part, "start", 0))]:
        raise ValueError(f"observations {shifted} do not start at 0, which SB3 cannot tell apart: shift them in a wrapper.")
    if wrapper is None:
        warn_of_wrapper(model)
    elif wrapper.norm_obs:
        space = raw_space(wrapper, space)
    policy = policy_of(model)
    scores = scores_module(policy)
    head = action_head(model.action_space, squashed=policy.squash_output)
    # Only the part that acts becomes dense: critics and targets may be many times larger.
    scores = to_dense(scores).cpu()
    # Noise explores, which `predict` does not when it is deterministic.
    replace_noisy_(scores)
    normalizer = VecNormalizer(wrapper) if wrapper is not None and wrapper.norm_obs else None
    transposed = _images(space) if channels_last else ()
    if channels_last and not transposed:
        raise ValueError(f"channels_last=True: there is no image in {space}.")
    module = PredictModule(scores, head, _with_channels_last(space, transposed), normalizer, transposed)
    return module.eval().requires_grad_(False)


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
