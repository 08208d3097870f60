"""Settings of Rainbow that SB3's DQN takes as they are: looked at where an agent is made, and where one is loaded."""

from typing import Any

from stable_baselines3 import DQN
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer

from sb3_sparse.common.validation import check_off_policy, fraction, positive, whole_number
from sb3_sparse.rainbow.policies import RainbowPolicy
from sb3_sparse.rainbow.simba import SparseSimBaRainbowPolicy
from sb3_sparse.replay import PrioritizedReplayBuffer
from sb3_sparse.replay.buffer import ComposedReplayBuffer

# Keywords that made the network and the replay buffer of a saved agent.
OF_NETWORK = ("distributional", "dueling", "noisy", "n_atoms", "v_min", "v_max", "sigma")
OF_BUFFER = ("prioritized", "n_steps", "gamma", "alpha", "beta", "replay_buffer_class", "replay_buffer_kwargs")
# What an agent takes if no other class is named.
_DEFAULT_BUFFERS = (ReplayBuffer, DictReplayBuffer, NStepReplayBuffer, ComposedReplayBuffer, PrioritizedReplayBuffer)
# Of buffers of this package; SB3's have no such keywords.
_OF_OUR_BUFFERS = {"n_stack": "replay_buffer_class=FrameReplayBuffer", "alpha": "prioritized=True", "beta": "prioritized=True"}


def check_settings(model: DQN) -> None:
    """
    :param model: An agent whose network is not yet made. Whole numbers become Python's.
    :raises ValueError: If a setting is out of range, or its policy is none of Rainbow's.
    """
    _check_policy(type(model).__name__, model.policy_class, model.policy_kwargs)
    model.target_update_interval = whole_number("target_update_interval", model.target_update_interval, 1)
    check_off_policy(model)
    for name in ("exploration_initial_eps", "exploration_final_eps", "exploration_fraction"):
        fraction(name, getattr(model, name))
    if model.max_grad_norm != float("inf"):
        positive("max_grad_norm", model.max_grad_norm)


def _check_policy(algorithm: str, policy_class: type, policy_kwargs: dict[str, Any]) -> None:
    kind = policy_class.__name__
    if not issubclass(policy_class, (RainbowPolicy, SparseSimBaRainbowPolicy)):
        raise ValueError(
            f"{algorithm} with the policy {kind}: expected RainbowPolicy, SparseSimBaRainbowPolicy or a subclass. A file with "
            "another one was saved by another algorithm: load it with that, such as DQN.load."
        )
    if missing := [name for name in OF_NETWORK if name not in policy_kwargs]:
        raise ValueError(
            f"{algorithm} with a {kind} that does not know its {missing}: the file was saved by another algorithm. Load it "
            "with that, such as DQN.load."
        )


def check_buffer_kwargs(algorithm: str, buffer_class: type | None, buffer_kwargs: dict[str, Any], own: dict[str, Any]) -> None:
    """
    :param algorithm: Its name.
    :param buffer_class: Of the replay buffer; None: SB3's own.
    :param buffer_kwargs: Of the user.
    :param own: Keywords of the algorithm itself that are the buffer's too.
    :raises ValueError: If one is said twice, or is that of a buffer of this package, and it is SB3's.
    """
    for name, value in own.items():
        if buffer_kwargs.get(name, value) != value:
            raise ValueError(
                f"replay_buffer_kwargs={buffer_kwargs!r} and {name}={value!r}: say {name} once, as a keyword of {algorithm} "
                "itself."
            )
    for name, wanted in _OF_OUR_BUFFERS.items():
        if buffer_class is None and name in buffer_kwargs:
            raise ValueError(
                f"replay_buffer_kwargs={buffer_kwargs!r} with prioritized=False: SB3's own replay buffer has no {name}. Leave "
                f"it out, or pass {wanted}."
            )


def fixed_settings(model: Any) -> dict[str, Any]:
    """
    The settings that made the network and the replay buffer of an agent of Rainbow, as keywords of its constructor.

    :param model: The agent.
    """
    settings = {name: model.policy_kwargs[name] for name in OF_NETWORK}
    settings |= {name: getattr(model, name) for name in ("prioritized", "n_steps", "gamma")}
    rest = {name: value for name, value in model.replay_buffer_kwargs.items() if name not in settings}
    if model.prioritized:
        settings |= {name: rest.pop(name) for name in ("alpha", "beta")}
    if rest:
        settings["replay_buffer_kwargs"] = rest
    if model.replay_buffer_class not in _DEFAULT_BUFFERS:
        settings["replay_buffer_class"] = model.replay_buffer_class
    return settings
