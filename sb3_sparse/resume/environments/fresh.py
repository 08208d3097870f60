"""What a run does whose environment cannot be put back: it goes on with a new episode."""

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_sparse.replay import cut_off
from sb3_sparse.streaming.base.loop import StreamLoop


def begin_fresh_episode(model: BaseAlgorithm) -> bool:
    """
    Reset the environments of a model, and what it knows about the episodes that ran in them.

    :param model: At the beginning of a rollout.
    :return: Whether its replay buffer has changed.
    """
    env = model.get_env()
    assert env is not None
    model._last_obs = env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        model._last_original_obs = normalizer.get_original_obs()
    if model.action_noise is not None:
        model.action_noise.reset()
    if isinstance(model, StreamLoop):
        for learner in model._learners:
            learner.reset_traces()
        model._begin_episode(model._last_obs)
    return isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None and cut_off(model.replay_buffer)
