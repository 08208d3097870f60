"""
Normalisation of observations inside a policy: what is normalised, and when its statistics move.

How they move is in ``networks/running_norm.py``. Streaming agents have their own, in ``streaming/normalizers.py``.
"""

import sys
from collections.abc import Mapping, Sequence
from types import CodeType, FrameType, FunctionType
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_sparse.networks.running_norm import Moments, RunningNorm
from sb3_sparse.simba.spaces import parts_of


class ObservationNorm(nn.Module):
    """
    One :class:`RunningNorm` for every part of an observation that is a vector of numbers.

    Images, discrete and binary observations pass through unchanged. The statistics move when the optimizer that
    :meth:`follow` was given makes a step, with the batch that :meth:`observe` was given: looking at a network makes no
    step. From there on until the step, an algorithm's ``train`` sees statistics that have moved already; what it computes
    before, such as the targets of DQN and TD3, does not.

    :param observation_space: A Dict space is normalised key by key.
    :param normalize_images: SB3's option of that name: False means that images are floats.
    """

    # Attributes of the class too, for what was pickled without them.
    _observed: dict[str, th.Tensor] | None = None
    _ahead: list[Moments] | None = None
    _trainer: CodeType | None = None
    _followed: th.optim.Optimizer | None = None
    _hook: Any = None

    def __init__(self, observation_space: spaces.Space, normalize_images: bool = True):
        super().__init__()
        parts = parts_of(observation_space)
        normed = {key: space for key, space in parts.items() if _is_vector(space, normalize_images)}
        self.keys = list(normed)
        self.norms = nn.ModuleList(RunningNorm(space.shape or ()) for space in normed.values())

    def follow(self, optimizer: th.optim.Optimizer) -> None:
        """
        Let the statistics move with the steps of an optimizer, and of no other.

        :raises TypeError: If it is none of torch's.
        """
        # Copies of an optimizer have lost their hooks, and copies of this module forget whom they followed.
        if optimizer is self._followed:
            return
        if not isinstance(optimizer, th.optim.Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):
            raise TypeError(
                f"optimizer={optimizer!r}: expected a torch.optim.Optimizer, made by its own constructor, whose steps "
                "move the statistics of observations."
            )
        if self._hook is not None:
            self._hook.remove()
        self._hook = optimizer.register_step_post_hook(self._on_step)
        self._followed = optimizer

    def training_mode_set(self, mode: bool, caller: FrameType) -> None:
        """
        The policy was told its mode. SB3's ``train`` begins with that.

        :param caller: Who told.
        """
        if not mode and self._observed is None and self._ahead is None and self._trainer is None:
            return  # before every action, and a module takes long to set an attribute
        self._observed = self._ahead = None
        in_algorithm = mode and isinstance(caller.f_locals.get("self"), BaseAlgorithm)
        self._trainer = caller.f_code if in_algorithm else None

    def observe(self, obs: PyTorchObs) -> None:
        """Remember a preprocessed batch that may be trained on: only the optimizer's next step will show it."""
        in_training_step = self._in_training_step()
        if in_training_step and (self._ahead is not None or self._in_optimizer()):
            # The first pass of a gradient step is the algorithm's; somebody looks from a hook, before or after the step.
            return
        batch = dict(zip(self.keys, self._vectors(obs), strict=True))
        self._observed = self._ahead = None
        if all(_holds_numbers(part) for part in batch.values()):
            self._observed = {key: part.detach() for key, part in batch.items()}
            self._ahead = self._blended() if in_training_step else None

    def forward(self, obs: PyTorchObs) -> PyTorchObs:
        """Normalise a preprocessed batch."""
        if not self.keys:
            return obs
        moments: Sequence[Moments | None] = [None] * len(self.keys)
        if self._ahead is not None and self._in_training_step():
            moments = self._ahead
        normed = [norm(part, known) for norm, part, known in zip(self.norms, self._vectors(obs), moments, strict=True)]
        return {**obs, **dict(zip(self.keys, normed, strict=True))} if isinstance(obs, dict) else normed[0]

    def _in_training_step(self) -> bool:
        # Whether statistics move is the optimizer's to say. But an algorithm's batch is normalised as if they had, before
        # the step, and nothing but the stack tells the next pass of `train` from a look after its last.
        return self._trainer is not None and not th.compiler.is_compiling() and runs(self._trainer)

    def _in_optimizer(self) -> bool:
        # Torch wraps the step of every optimizer, with its hooks, in one function.
        step = getattr(type(self._followed), "step", None)
        return isinstance(step, FunctionType) and runs(step.__code__)

    def _vectors(self, obs: PyTorchObs) -> list[th.Tensor]:
        return [obs[key] if isinstance(obs, dict) else obs for key in self.keys]

    def _blended(self) -> list[Moments]:
        assert self._observed is not None
        return [norm.blended(self._observed[key]) for key, norm in zip(self.keys, self._running_norms(), strict=True)]

    def _on_step(self, *_: Any) -> None:
        # An optimizer's hook, called with the optimizer and the arguments of its step.
        if self._observed is not None:
            for norm, moments in zip(self._running_norms(), self._ahead or self._blended(), strict=True):
                norm.move_to(moments)
        self._observed = self._ahead = None

    def _running_norms(self) -> list[RunningNorm]:
        return [norm for norm in self.norms if isinstance(norm, RunningNorm)]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self._observed = self._ahead = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        passing = ("_observed", "_ahead", "_trainer", "_followed", "_hook")
        return {name: value for name, value in vars(self).items() if name not in passing}


class ShowsItsSteps:
    """Mixin for a module with an optimizer whose steps move the statistics of observations."""

    def _norm_to_move(self) -> ObservationNorm | None:
        raise NotImplementedError

    @property
    def optimizer(self) -> th.optim.Optimizer:
        """The optimizer. Another one may take its place at any time; in a copy it has to be followed anew."""
        try:
            optimizer = self.__dict__["optimizer"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'optimizer'") from None
        if (norm := self._norm_to_move()) is not None:
            norm.follow(optimizer)
        return optimizer

    @optimizer.setter
    def optimizer(self, optimizer: th.optim.Optimizer) -> None:
        if (norm := self._norm_to_move()) is not None:
            norm.follow(optimizer)
        self.__dict__["optimizer"] = optimizer

    @optimizer.deleter
    def optimizer(self) -> None:
        del self.__dict__["optimizer"]


def _is_vector(space: spaces.Space, normalize_images: bool) -> bool:
    if not isinstance(space, spaces.Box):
        return False
    is_float_image = not normalize_images and len(space.shape) == 3
    return not is_image_space(space) and not is_float_image


def _holds_numbers(tensor: th.Tensor) -> bool:
    """Not one of the stand-ins that torch's tracers and function transforms work with."""
    # The flag, since torch.compile of torch 2.8 and 2.9 takes `is_exporting()` for True.
    if type(tensor) is not th.Tensor or th.compiler._is_exporting_flag:
        return False
    return th.compiler.is_compiling() or not th._C._functorch.is_functorch_wrapped_tensor(tensor)


def runs(code: CodeType) -> bool:
    """Whether a function is being executed, further up on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
