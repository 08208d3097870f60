"""The model itself: what SB3's own file holds, and what it leaves out."""

import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.distributions import StateDependentNoiseDistribution
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from torch import nn

from sb3_sparse.resume.state.plain import is_from_library, plain_attributes
from sb3_sparse.resume.state.random_state import capture_random, capture_space, restore_random, restore_space

# Of the process and its clock.
_OF_THE_PROCESS = ("start_time", "_num_timesteps_at_start", "verbose", "tensorboard_log", "_custom_logger", "seed")
# Of gSDE: drawn before a rollout, used in it.
_NOISE = ("exploration_mat", "exploration_matrices")


def model_zip(model: BaseAlgorithm) -> bytes:
    """The file that ``model.save`` writes: weights, optimizers, settings."""
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


def restore_weights(model: BaseAlgorithm, zipped: bytes) -> None:
    """
    Put weights, optimizers and other tensors back, in place.

    :param model: The model.
    :param zipped: Of :func:`model_zip`.
    """
    _, parameters, variables = load_from_zip_file(io.BytesIO(zipped), device=model.device, load_data=False)
    model.set_parameters(parameters, exact_match=True, device=model.device)
    for name, value in (variables or {}).items():
        if value is not None:
            recursive_getattr(model, name).data = value.data


def why_not_loaded(model: BaseAlgorithm, zipped: bytes) -> str | None:
    """
    Try what a run that goes on begins with: SB3's ``load``, which builds the networks that the settings say.

    :param model: The model, which stays as it is.
    :param zipped: Of :func:`model_zip`.
    :return: None, or what it cannot do: networks or optimizers were replaced after they were built.
    """
    # That of HER asks for an environment; an empty buffer of any class says nothing about networks.
    is_her = issubclass(getattr(model, "replay_buffer_class", None) or object, HerReplayBuffer)
    changes: dict[str, Any] = dict(replay_buffer_class=None, replay_buffer_kwargs={}) if is_her else {}
    if isinstance(model, OffPolicyAlgorithm):
        # Neither the memory nor the files of the one that is there.
        changes["buffer_size"] = 1
    random_state = capture_random()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = type(model).load(io.BytesIO(zipped), device="cpu", verbose=0, **changes)
    # Whatever it stumbles over, it will later.
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        restore_random(random_state)
    for name in model._get_torch_save_params()[0]:
        ours, theirs = (type(recursive_getattr(each, name)).__name__ for each in (model, again))
        if ours != theirs:
            return f"{name} is a {ours}, and would be a {theirs}"
    return None


def capture_model(model: BaseAlgorithm) -> dict[str, Any]:
    """What SB3's file lacks, and what the beginning of ``learn`` changes."""
    env = model.get_env()
    return {
        # As bytes: the originals go on.
        "attributes": _dumps(plain_attributes(model, _OF_THE_PROCESS, _is_of_its_own(model))),
        "action_space": pickle.dumps(capture_space(model.action_space)),
        "shares_action_space": env is not None and model.action_space is env.action_space,
        "drawn": [None if drawn is None else drawn.cpu().clone() for _, _, drawn in _drawn(model)],
        "unsaved": {name: buffer.cpu().clone() for name, buffer in _unsaved(model.policy)},
        "frozen": [name for name, parameter in model.policy.named_parameters() if not parameter.requires_grad],
    }


def restore_model(model: BaseAlgorithm, state: dict[str, Any]) -> None:
    """
    Put back what :func:`capture_model` took, in place: a rollout that has begun holds the parts already.

    :param model: Loaded from the :func:`model_zip` of the same moment.
    :param state: Of that moment.
    """
    env = model.get_env()
    if state["shares_action_space"] and env is not None:
        model.action_space = env.action_space
    vars(model).update(pickle.loads(state["attributes"]))
    restore_space(model.action_space, pickle.loads(state["action_space"]))
    for (owner, name, _), drawn in zip(_drawn(model), state["drawn"], strict=True):
        if drawn is not None:
            setattr(owner, name, drawn.to(model.device))
    with th.no_grad():
        for name, buffer in _unsaved(model.policy):
            buffer.copy_(state["unsaved"][name])
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(name not in state["frozen"])


class _Pickler(pickle.Pickler):
    """Tensors of a GPU can be read where there is none."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is th.Tensor and value.device.type != "cpu":
            return _placed, (value.cpu(), str(value.device))
        return NotImplemented


def _dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def _placed(tensor: th.Tensor, device: str) -> th.Tensor:
    try:
        return tensor.to(device)
    except (RuntimeError, AssertionError):
        return tensor


def _is_of_its_own(model: BaseAlgorithm) -> Callable[[Any], bool]:
    """For tensors among the attributes: recurrent states are data, lists of a network's buffers are not."""
    known = {tensor.data_ptr() for tensor in (*model.policy.parameters(), *model.policy.buffers())}

    def is_of_its_own(value: Any) -> bool:
        return type(value) is th.Tensor and not value.requires_grad and value.data_ptr() not in known

    return is_of_its_own


def _drawn(model: BaseAlgorithm) -> Iterator[tuple[StateDependentNoiseDistribution, str, th.Tensor | None]]:
    """The noise of gSDE, and where it is kept."""
    for module in model.policy.modules():
        distribution = getattr(module, "action_dist", None)
        if isinstance(distribution, StateDependentNoiseDistribution):
            for name in _NOISE:
                yield distribution, name, getattr(distribution, name, None)


def _unsaved(policy: nn.Module) -> Iterator[tuple[str, th.Tensor]]:
    """Buffers that state dicts leave out, such as the noise of noisy layers; our whole numbers are topologies, made anew."""
    saved = policy.state_dict().keys()
    for name, buffer in policy.named_buffers():
        is_ours = is_from_library(type(policy.get_submodule(name.rpartition(".")[0])))
        if name not in saved and (buffer.is_floating_point() or not is_ours):
            yield name, buffer
