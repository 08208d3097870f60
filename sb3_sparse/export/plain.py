"""An agent whose networks were made sparse as a plain file of Stable-Baselines3, which loads without this package."""

import base64
import copy
import inspect
import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import recursive_getattr
from torch import nn

from sb3_sparse.common.files import with_ending, written_beside
from sb3_sparse.common.sb3_models import policy_of
from sb3_sparse.common.validation import positive
from sb3_sparse.common.warn import warn_user
from sb3_sparse.export.check import check_agent, untouched
from sb3_sparse.export.loading import without_buffer
from sb3_sparse.sparse import to_dense

WAY_OUT = "Take export_onnx or export_torch (--to onnx, --to torch), which need neither this package nor SB3 to run."


def export_sb3(model: BaseAlgorithm, path: str | Path, *, tolerance: float = 1e-5) -> Path:
    """
    Write an agent of Stable-Baselines3 that :func:`sparsify_` was applied to as its own kind of file, with dense layers.

    ``PPO.load(path)`` (or whichever algorithm) opens it where this package is not installed; it predicts the same and can
    go on learning, as a dense network in which the weights that did not exist start at zero. Optimizers keep their state,
    with zeros for those weights, as far as they are of the kind that the policy makes; otherwise they are fresh, and a
    warning says so. The file is loaded and compared on 1,024 random observations before it gets its name.

    >>> sparsify_(model.policy, 0.9)  # doctest: +SKIP
    >>> export_sb3(model, "dense.zip")  # doctest: +SKIP

    :param model: An agent; it is not changed.
    :param path: The file. ``.zip`` is added to a name without an ending.
    :param tolerance: See :func:`export_onnx`.
    :return: The path.
    :raises ValueError: If the policy is one of this package, or its networks are not those that SB3 builds.
    :raises RuntimeError: If the file does not do as the agent does.
    """
    path, tolerance = with_ending(path, ".zip"), positive("tolerance", tolerance)
    plain_class = _plain_policy_class(model)
    with untouched(model):
        plain = _plain_agent(model, plain_class)
        with written_beside(path) as beside:
            plain.save(beside)
            _refuse_references(beside)
            with th.enable_grad():
                loaded = type(model).load(beside, device="cpu", seed=None, **without_buffer(type(model)))
            check_agent(loaded, model, tolerance)
    return path


def _plain_policy_class(model: BaseAlgorithm) -> type[BasePolicy]:
    policy_class = type(policy_of(model))
    ours = [c for c in (*type(model).__mro__, *policy_class.__mro__) if _root(c) == "sb3_sparse"]
    if ours:
        raise ValueError(
            f"{policy_class.__name__} of {type(model).__name__} is made of classes of this package, without which no file of "
            f"SB3 could be loaded. {WAY_OUT}"
        )
    if not isinstance(model, (OnPolicyAlgorithm, OffPolicyAlgorithm)):
        raise ValueError(f"{type(model).__name__}: expected an on-policy or off-policy algorithm of SB3. {WAY_OUT}")
    return next(c for c in policy_class.__mro__ if _root(c) in ("stable_baselines3", "sb3_contrib"))


def _root(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _plain_agent(model: Any, plain_class: type[BasePolicy]) -> Any:
    """A shallow copy of an agent with a dense policy of its own."""
    known = inspect.signature(plain_class.__init__).parameters
    policy_kwargs = {name: value for name, value in model.policy_kwargs.items() if name in known}
    extra = {"use_sde": model.use_sde} if isinstance(model, OnPolicyAlgorithm) and "use_sde" in known else {}
    arguments = (model.observation_space, model.action_space, model.lr_schedule)
    with th.enable_grad():
        policy = plain_class(*arguments, **{**extra, **policy_kwargs}).cpu()
    # Dense as the plain one, and with its optimizers; but still of the class that the agent has.
    dense = _with_policy(model, to_dense(policy_of(model)))
    try:
        policy.load_state_dict(dense.policy.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{type(dense.policy).__name__} has other networks than {plain_class.__name__} of SB3 builds from policy_kwargs="
            f"{policy_kwargs}, so that SB3 could not load it: {error}\n{WAY_OUT}"
        ) from error
    plain = _with_policy(model, policy)
    plain.policy_class, plain.policy_kwargs = plain_class, policy_kwargs
    for name in model._get_torch_save_params()[0]:
        old, new = recursive_getattr(dense, name), recursive_getattr(plain, name)
        # One that is no part of the policy, such as that of SAC's temperature, is the same in both.
        if isinstance(old, th.optim.Optimizer) and old is not new and (reason := _carry_state(old, new, dense.policy, policy)):
            warn_user(f"{name} {reason}: the file has a fresh one, which learning would go on with.")
    return plain


def _with_policy(model: Any, policy: nn.Module) -> Any:
    """A shallow copy of an agent with another policy."""
    other = copy.copy(model)
    other.policy = policy
    if hasattr(other, "_create_aliases"):
        other._create_aliases()
    return other


def _carry_state(old: th.optim.Optimizer, new: th.optim.Optimizer, dense: BasePolicy, plain: BasePolicy) -> str | None:
    """
    Give a fresh optimizer of a plain policy the state that the agent's has.

    :param old: The agent's, of its policy made dense.
    :param new: The fresh one.
    :param dense: The agent's policy made dense.
    :param plain: The policy of SB3, whose parameters have the same names.
    :return: Why it stays fresh, None: it does not.
    """
    if type(old) is not type(new):
        return f"is {type(old).__name__}, which the policy would not make (it makes {type(new).__name__})"
    if len(old.param_groups) != 1 or len(new.param_groups) != 1:
        return "has several groups of parameters, which the policy would not make"
    by_name = dict(dense.named_parameters(remove_duplicate=False))
    names = {id(p): name for name, p in plain.named_parameters()}
    ordered = [by_name[names[id(p)]] for p in new.param_groups[0]["params"]]
    if {id(p) for p in ordered} != {id(p) for p in old.param_groups[0]["params"]}:
        return "does not have the parameters of the networks (was it made before they became sparse?)"
    settings = {key: value for key, value in old.param_groups[0].items() if key != "params"}
    state = {i: old.state[parameter] for i, parameter in enumerate(ordered) if parameter in old.state}
    group = {**settings, "params": list(range(len(ordered)))}
    new.load_state_dict(copy.deepcopy({"state": state, "param_groups": [group]}))
    return None


def _refuse_references(path: Path) -> None:
    """
    :raises ValueError: If loading the file would import this package.
    """
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    serialized = {key: item[":serialized:"] for key, item in data.items() if isinstance(item, dict) and ":serialized:" in item}
    if naming := [key for key, text in serialized.items() if _names_this_package(base64.b64decode(text))]:
        raise ValueError(
            f"{naming} of the agent refer to this package, so that the file would not load without it: replace them. {WAY_OUT}"
        )


def _names_this_package(pickled: bytes) -> bool:
    strings = [argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)]
    return any(string.partition(" ")[0].partition(".")[0] == "sb3_sparse" for string in strings)
