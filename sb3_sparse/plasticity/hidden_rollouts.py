"""An error that both callbacks raise: inside an event callback they would never be told of a rollout."""


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
