"""Plans for tests: an agent that is trained in a fraction of a second."""

from typing import Any

CARTPOLE: dict[str, Any] = {
    "study": "small",
    "algo": "dqn",
    "env": "CartPole-v1",
    "n_timesteps": 200,
    "device": "cpu",
    "hyperparams": {
        "policy": "MlpPolicy",
        "policy_kwargs": {"net_arch": [8]},
        "buffer_size": 1000,
        "learning_starts": 50,
        "batch_size": 8,
        "train_freq": 4,
        "gradient_steps": 1,
    },
    "evaluation": {"every": 100, "episodes": 2, "final_episodes": 3},
    "axes": {"seed": 1},
}


def cartpole(**changes: Any) -> dict[str, Any]:
    """The small plan, with other entries."""
    return {**CARTPOLE, **changes}
