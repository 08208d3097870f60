"""Errors of callbacks inside an event callback, which does not tell them of all that they have to see."""


def hidden_start(callback: str) -> ValueError:
    """
    What to raise in a step if training has not started.

    :param callback: Its name.
    """
    return ValueError(
        f"{callback} as callback_on_new_best of EvalCallback is not told by SB3 that training starts: pass it to learn() "
        "directly, or as callback_after_eval."
    )


def hidden_rollouts(callback: str, schedule: str) -> ValueError:
    """
    What to raise in a step if no rollout has begun.

    :param callback: Its name.
    :param schedule: Its argument to use instead of the event callback.
    """
    return ValueError(
        f"{callback} inside an event callback, such as EveryNTimesteps, does not see the rollouts of PPO and A2C: "
        f"pass it to learn() directly. {schedule}= is its schedule."
    )


def hidden_steps(callback: str, schedule: str) -> ValueError:
    """
    What to raise if steps went by that were not seen, of an algorithm that keeps nothing of them.

    :param callback: Its name.
    :param schedule: Its argument to use instead of the event callback.
    """
    return ValueError(
        f"{callback} inside an event callback, such as EveryNTimesteps, does not see the steps of an algorithm without a "
        f"buffer: pass it to learn() directly. {schedule}= is its schedule."
    )
