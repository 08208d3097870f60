"""The algorithm that a buffer or a policy is made or used by, which SB3 does not tell them: who calls is known."""

from types import FrameType

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from torch import nn


def algorithm_behind(caller: FrameType | None) -> BaseAlgorithm | None:
    """
    The algorithm in whose method a buffer or a policy is made or asked; None if somebody else does.

    :param caller: The frame of who makes or asks.
    """
    frame, owner = caller, None
    # Past subclasses of the buffer or policy, and functions around them.
    while frame is not None and (owner is None or isinstance(owner, (ReplayBuffer, nn.Module))):
        owner, frame = _self_of(frame), frame.f_back
    return owner if isinstance(owner, BaseAlgorithm) else None


def _self_of(frame: FrameType) -> object:
    """``self`` there; None if there is none."""
    # Of no other function are the variables looked at: up to Python 3.12 a copy of them would outlive what is deleted there.
    code = frame.f_code
    return frame.f_locals.get("self") if "self" in (*code.co_varnames, *code.co_freevars) else None


def check_gamma(algorithm: BaseAlgorithm | None, buffer: ReplayBuffer | None) -> None:
    """
    See whether a buffer that adds rewards of several steps up discounts them as the algorithm does.

    :param algorithm: None: nothing to see.
    :param buffer: Any.
    :raises ValueError: If not.
    """
    ours, theirs = getattr(buffer, "gamma", None), getattr(algorithm, "gamma", None)
    if getattr(buffer, "n_steps", 1) > 1 and None not in (ours, theirs) and ours != theirs:
        raise ValueError(
            f"gamma={theirs!r} of {type(algorithm).__name__}, and gamma={ours!r} of its replay buffer, which adds rewards of "
            "several steps up: expected the same. Make the agent with one gamma, for SB3's own algorithms also in "
            f"replay_buffer_kwargs=dict(gamma={theirs!r}), and set neither afterwards."
        )


def check_buffer(algorithm: BaseAlgorithm, buffer: ReplayBuffer | None) -> None:
    """
    See whether a buffer makes the transitions that an algorithm of this package learns from: of its environments, of as many
    steps, and discounted alike. Attributes may have been set by hand, given to SB3's ``load`` as ``custom_objects``, or come
    with a file.

    :param algorithm: One with ``n_steps`` and ``gamma``.
    :param buffer: Its replay buffer.
    :raises ValueError: If not.
    """
    check_gamma(algorithm, buffer)
    ours, theirs = getattr(algorithm, "n_steps", 1), getattr(buffer, "n_steps", 1)
    if buffer is not None and ours != theirs:
        raise ValueError(
            f"n_steps={ours!r} of {type(algorithm).__name__}, and n_steps={theirs!r} of its replay buffer: expected "
            "the same. Make the agent with one n_steps, which a buffer of SB3's that is named takes from "
            "replay_buffer_kwargs, and do not set it afterwards."
        )
    if buffer is None:
        return
    for what, mine, its in (
        ("environments", algorithm.n_envs, buffer.n_envs),
        ("observations", _shape(algorithm.observation_space), _shape(buffer.observation_space)),
        ("actions", _shape(algorithm.action_space), _shape(buffer.action_space)),
    ):
        if mine != its:
            raise ValueError(
                f"the replay buffer has {what} {its}, and {type(algorithm).__name__} {mine}: its steps are those of another "
                "environment or number of them. Go on with as many and the same, or without the buffer: "
                "model.replay_buffer is made anew by load, if none is loaded into it."
            )


def _shape(space: spaces.Space) -> str:
    """What has to be equal of spaces whose values fit into the same arrays."""
    if isinstance(space, spaces.Dict):
        return str({name: _shape(part) for name, part in space.items()})
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n})"
    return f"{type(space).__name__}{tuple(space.shape or ())}"


def is_of_sb3(module: str) -> bool:
    """Whether a module is one of SB3 or sb3-contrib, whose updates know no priorities."""
    return module.partition(".")[0] in ("stable_baselines3", "sb3_contrib")


def draws_as_sb3(caller: FrameType | None) -> bool:
    """
    Whether an update of SB3 or sb3-contrib draws from a buffer.

    :param caller: The frame of who asks the buffer.
    """
    while caller is not None and isinstance(_self_of(caller), ReplayBuffer):
        caller = caller.f_back
    return caller is not None and is_of_sb3(str(caller.f_globals.get("__name__", "")))
