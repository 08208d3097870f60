"""SB3's ``VecNormalize``, which is no part of an agent, as a part of what is exported."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_sparse.common.warn import warn_user
from sb3_sparse.export.networks import Observation
from sb3_sparse.simba.spaces import parts_of


class VecNormalizer(nn.Module):
    """
    What ``VecNormalize.normalize_obs`` computes, in double precision as there.

    :param wrapper: The wrapper, whose statistics are copied.
    """

    def __init__(self, wrapper: VecNormalize):
        super().__init__()
        self.clip = float(wrapper.clip_obs)
        statistics = wrapper.obs_rms if isinstance(wrapper.obs_rms, dict) else {"": wrapper.obs_rms}
        self.keys = list(statistics)
        for i, moments in enumerate(statistics.values()):
            self.register_buffer(f"mean_{i}", th.tensor(moments.mean, dtype=th.float64))
            self.register_buffer(f"scale_{i}", th.tensor(np.sqrt(moments.var + wrapper.epsilon), dtype=th.float64))

    def forward(self, observation: Observation) -> Observation:
        """Normalise a batch."""
        if not isinstance(observation, dict):
            return self._normalize(0, observation)
        return {**observation, **{key: self._normalize(i, observation[key]) for i, key in enumerate(self.keys)}}

    def _normalize(self, i: int, x: th.Tensor) -> th.Tensor:
        scaled = (x.double() - self.get_buffer(f"mean_{i}")) / self.get_buffer(f"scale_{i}")
        return scaled.clamp(-self.clip, self.clip).float()


def load_vec_normalize(given: VecNormalize | str | Path | None) -> VecNormalize | None:
    """
    The wrapper itself, or from the file that it was saved to.

    :raises ValueError: If it is no such wrapper.
    """
    wrapper: Any = given
    if isinstance(given, (str, Path)):
        try:
            with open(given, "rb") as file:
                wrapper = pickle.load(file)
        except OSError as error:
            raise ValueError(f"{str(given)!r} cannot be read ({error}): expected what VecNormalize.save wrote.") from error
        except Exception as error:  # whatever a pickle does that is damaged, or of something else
            raise ValueError(
                f"{str(given)!r} is no file of VecNormalize ({type(error).__name__}: {error}): expected one that "
                "VecNormalize.save wrote."
            ) from error
    if wrapper is not None and not isinstance(wrapper, VecNormalize):
        raise ValueError(
            f"{str(given)!r} holds {type(wrapper).__name__}: expected the VecNormalize that VecNormalize.save wrote."
            if isinstance(given, (str, Path))
            else f"vec_normalize={given!r}: expected a VecNormalize, or the file that one was saved to."
        )
    return wrapper


def warn_of_wrapper(model: BaseAlgorithm) -> None:
    """Say that a wrapper's normalisation is not inside of what is exported, if there is one."""
    wrapper = model.get_vec_normalize_env()
    if wrapper is not None and wrapper.norm_obs:
        warn_user(
            "the environment of this agent is wrapped in VecNormalize, which is no part of it: what is exported expects "
            "observations that are normalised as there. To have it inside, pass vec_normalize=model.get_vec_normalize_env(), "
            "or the file that it was saved to."
        )


def raw_space(wrapper: VecNormalize, seen: spaces.Space) -> spaces.Space:
    """Space of the observations that go into a wrapper, of an agent that sees ``seen``."""
    raw = wrapper.observation_space if wrapper.venv is None else wrapper.venv.observation_space
    inside = {key: part.shape for key, part in parts_of(raw).items()}
    outside = {key: part.shape for key, part in parts_of(seen).items()}
    if inside != outside:
        raise ValueError(
            f"VecNormalize takes observations of shape {inside}, the agent of shape {outside}: a wrapper between them, such "
            "as VecFrameStack, cannot be exported. Export without vec_normalize=, and normalise in front."
        )
    if isinstance(raw, spaces.Dict):
        return spaces.Dict({key: _before_wrapper(wrapper, part) for key, part in raw.items()})
    return _before_wrapper(wrapper, raw)


def _before_wrapper(wrapper: VecNormalize, part: spaces.Space) -> spaces.Space:
    """
    The space of raw observations. SB3 replaces that of an image, in place, by the space of what it makes of it: in the
    wrapper's file always, of a Dict also in the environment.
    """
    bound = wrapper.clip_obs
    made_of_image = isinstance(part, spaces.Box) and len(part.shape) == 3 and part.dtype == np.float32
    if made_of_image and np.all(part.low == np.float32(-bound)) and np.all(part.high == np.float32(bound)):  # type: ignore
        return spaces.Box(0, 255, part.shape, np.uint8)
    return part
