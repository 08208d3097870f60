"""What is wrong in a file of hyperparameters, before rl-zoo3 stumbles over it."""

import ast
import difflib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.common.validation import whole_number
from sb3_sparse.zoo.hyperparameters import EVALUATED_BY_RL_ZOO, WrongSettingError
from sb3_sparse.zoo.mistakes.words import is_of_others, one_line
from sb3_sparse.zoo.rl_zoo import part

# What rl-zoo3 makes schedules of.
_SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
# What is named by its place to import.
_NAMED = ("policy", "env_wrapper", "vec_env_wrapper", "callback")


def check_file(config: str, env_id: str) -> None:
    """
    See whether a YAML file holds hyperparameters: names of environments, each with its own.

    :param config: The file; whatever has another ending is left alone.
    :param env_id: The environment whose entry is looked at.
    :raises WrongSettingError: If it does not.
    """
    if not config.endswith((".yml", ".yaml")):
        return
    # It comes with rl-zoo3.
    import yaml

    try:
        content = yaml.safe_load(Path(config).read_text())
    except OSError as error:
        raise WrongSettingError(one_line(error)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise WrongSettingError(about_yaml(config, error)) from error
    entries = f"expected entries such as {env_id!r} or 'default', each with names and values"
    if not isinstance(content, dict):
        raise WrongSettingError(f"{config} holds {'nothing' if content is None else repr(content)}: {entries}.")
    for name in (env_id, "atari", "default"):
        if name in content and not isinstance(content[name], dict):
            raise WrongSettingError(f"{config}: {name!r} is {content[name]!r}: {entries}.")


def about_yaml(path: str | Path, error: Exception) -> str:
    """
    What is wrong with a file that is no YAML, and where.

    :param path: The file.
    :param error: From reading it.
    """
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{path} is no YAML of plain data: {one_line(error)}."
    context = getattr(error, "context", None)
    return (
        f"{path} is no YAML of plain data: line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', error)}"
        f"{f' ({context})' if context else ''}."
    )


def check_values(source: str, env_id: str, hyperparams: dict[str, Any]) -> None:
    """
    See whether hyperparameters are what rl-zoo3 can do something with.

    :param source: Where they are from.
    :param env_id: Of which environment.
    :param hyperparams: As they were read.
    :raises WrongSettingError: If one is missing, or of the wrong kind.
    """
    for name, example in (("policy", "MlpPolicy"), ("n_timesteps", "100000")):
        if hyperparams.get(name) is None:
            raise WrongSettingError(f"{source} has no {name!r} for {env_id}: add it, such as {name}: {example}.")
    if not isinstance(hyperparams["policy"], str):
        raise WrongSettingError(f"policy={hyperparams['policy']!r}: expected a name, such as \"policy:'MlpPolicy'\".")
    try:
        int(hyperparams["n_timesteps"])
    except (TypeError, ValueError) as error:
        raise WrongSettingError(f"n_timesteps={hyperparams['n_timesteps']!r}: expected a number of steps.") from error
    for name in ("n_envs", "frame_stack"):
        if hyperparams.get(name) is not None:
            _whole(name, hyperparams[name])
    for name in _SCHEDULES:
        if isinstance(hyperparams.get(name), str) and not _is_schedule(hyperparams[name]):
            raise WrongSettingError(
                f"{name}={hyperparams[name]!r}: expected a number, or such as 'lin_0.001', which falls to 0 during training."
            )
    if (noise := hyperparams.get("noise_type")) is not None:
        if not isinstance(noise, str) or not any(known in noise for known in ("normal", "ornstein-uhlenbeck")):
            raise WrongSettingError(f"noise_type={noise!r}: expected 'normal' or 'ornstein-uhlenbeck'.")
        if "noise_std" not in hyperparams:
            raise WrongSettingError(f"noise_type={noise!r} needs noise_std, such as noise_std: 0.1.")
    _check_places(hyperparams)


def check_policy_kwargs(hyperparams: dict[str, Any]) -> None:
    """
    See whether keywords of the policy are keywords, or text that stands for some.

    :raises WrongSettingError: If not.
    """
    kwargs = hyperparams.get("policy_kwargs")
    if kwargs is not None and not isinstance(kwargs, (str, dict)):
        raise WrongSettingError(f"policy_kwargs={kwargs!r}: expected dict(...), such as dict(sparsity=0.9).")


@contextmanager
def about_evaluated(hyperparams: dict[str, Any]) -> Iterator[None]:
    """
    What goes wrong inside where rl-zoo3 evaluates strings is a mistake in one of them.

    :param hyperparams: As rl-zoo3 gets them.
    """
    texts = {name: hyperparams[name] for name in EVALUATED_BY_RL_ZOO if isinstance(hyperparams.get(name), str)}
    for name, text in texts.items():
        try:
            ast.parse(text.strip(), mode="eval")
        except SyntaxError as error:
            raise WrongSettingError(f"{name}={text!r} is no Python: {error.msg}.") from error
    try:
        yield
    except NameError as error:
        if found := [f"{name}={text!r}" for name, text in texts.items() if error.name and error.name in text]:
            raise WrongSettingError(
                f"{found[0]}: {error}. It may have names that rl-zoo3 knows, such as nn.ReLU; text is in quotes."
            ) from error
        raise


def check_normalize(kwargs: dict[str, Any]) -> None:
    """
    See whether ``VecNormalize`` takes certain keywords.

    :raises WrongSettingError: If not.
    """
    known = [name for name in inspect.signature(VecNormalize.__init__).parameters if name not in ("self", "venv")]
    if unknown := sorted(kwargs.keys() - set(known)):
        raise WrongSettingError(f"normalize: VecNormalize has no {', '.join(unknown)}: it takes {', '.join(known)}.")


def check_policy(algorithm: type[BaseAlgorithm], policy: Any) -> None:
    """
    See whether an algorithm has a policy of some name.

    :raises WrongSettingError: If not.
    """
    known = algorithm.policy_aliases
    if isinstance(policy, str) and policy not in known:
        close = difflib.get_close_matches(policy, known, n=1)
        raise WrongSettingError(
            f"policy {policy!r}: {algorithm.__name__} has none of this name.{f' Did you mean {close[0]!r}?' if close else ''} "
            f"Expected one of {', '.join(known)}, or the place of a class to import, such as sb3_sparse.SparseSimBaPolicy."
        )


def check_actions(algo: str, env_id: str, actions: spaces.Space) -> None:
    """
    See whether an algorithm can act in an environment.

    :param algo: Its name.
    :param env_id: ID of the environment.
    :param actions: The actions there.
    :raises WrongSettingError: If not.
    """
    if algo in ACTIONS and not isinstance(actions, ACTIONS[algo]):
        able = ", ".join(name for name, kinds in ACTIONS.items() if isinstance(actions, kinds))
        raise WrongSettingError(
            f"{algo} cannot act in {env_id}, whose actions are {actions}: it takes "
            f"{' or '.join(kind.__name__ for kind in ACTIONS[algo])}. {f'{able} can' if able else 'Wrap the environment'}."
        )


_ANY = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
#: The actions that algorithms take, as their constructors say it.
ACTIONS: dict[str, tuple[type[spaces.Space], ...]] = {
    **dict.fromkeys(("sac", "td3", "ddpg", "tqc", "crossq", "drqv2"), (spaces.Box,)),
    **dict.fromkeys(("dqn", "qrdqn", "rainbow", "der", "stream_q", "stream_sarsa"), (spaces.Discrete,)),
    **dict.fromkeys(("ars", "stream_ac"), (spaces.Box, spaces.Discrete)),
    **dict.fromkeys(("ppo", "a2c", "trpo", "ppo_lstm"), _ANY),
}


def _whole(name: str, value: Any) -> None:
    try:
        whole_number(name, value, 1)
    except (TypeError, ValueError) as error:
        raise WrongSettingError(str(error)) from error


def _is_schedule(text: str) -> bool:
    try:
        _, value = text.split("_")
        float(value)
    except ValueError:
        return False
    return True


def _check_places(hyperparams: dict[str, Any]) -> None:
    """What is named by its place is imported, where the module is there."""
    for name in _NAMED:
        value = hyperparams.get(name)
        for entry in value if isinstance(value, list) else [value]:
            place = next(iter(entry), None) if isinstance(entry, dict) else entry
            if not isinstance(place, str) or (name == "policy" and "." not in place):
                continue
            try:
                part("utils.get_class_by_name")(place)
            except (ImportError, AttributeError, ValueError) as error:
                # Of a module that is there, and wrong itself, there is more to say than this.
                if is_of_others(error):
                    raise
                raise WrongSettingError(
                    f"{name}: {place!r} cannot be imported ({error}). Modules in the current folder are found "
                    "with PYTHONPATH=."
                ) from error
