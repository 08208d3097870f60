"""
Pytest plugin that makes the test suites of SB3 and sb3-contrib test our policies.

Their files run unmodified: the policy strings of every algorithm that we have a policy for stand for ours, and tests
of other algorithms are deselected. Loaded by ``scripts/conformance.py`` with ``-p upstream_plugin``.
"""

from typing import Any

import pytest
import torch as th
from stable_baselines3.common.torch_layers import NatureCNN

from sb3_sparse.simba.policies import POLICIES

th.set_num_threads(1)

# Algorithms that we have no policy for; tests parametrised with them are not about us.
OTHER_ALGORITHMS = {"PPO", "A2C", "TRPO", "ARS", "RecurrentPPO", "MaskablePPO"}

# Upstream tests that cannot pass, by the beginning of "test[parameters]", and why.
LAYER_NORM = (
    "asserts that every parameter moves by more than 1e-5 in one step of the target; the weights of LayerNorm start at "
    "exactly 1 and move by about 3e-6"
)
DESELECTED = {
    "test_custom_offpolicy[SAC-net_arch3]": "asks for an actor of widths 8 and 4; our residual blocks are equally wide",
    "test_custom_offpolicy[TD3-net_arch3]": "the same",
    "test_fps_logger[DQN": "expects 100 steps per second and more, on however busy a machine",
    "test_infinite_horizon[True-SAC": (
        "expects a value of 50 ± 1 after 500 steps, chosen for SB3's network, which then has 50.7, and 48.1 after 1,500; ours "
        "has 51.6, and 50.3 after 1,500"
    ),
    "test_save_load_large_model": "three blocks of width 8192 are 1.6 billion dense initial weights per network",
    "test_feature_extractor_target_net[True-TQC]": LAYER_NORM,
    "test_feature_extractor_target_net[False-TQC]": LAYER_NORM,
    "test_feature_extractor_target_net[True-QRDQN]": LAYER_NORM,
    "test_feature_extractor_target_net[False-QRDQN]": LAYER_NORM,
}

# Networks as small as the stock ones, so that the suites run in minutes.
WIDTH_SCALE = 0.5


def _small(policy: type, **defaults: Any) -> type:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("net_arch") is None:
            kwargs.setdefault("width_scale", WIDTH_SCALE)
        super(small, self).__init__(*args, **{**defaults, **kwargs})

    name = f"Small{policy.__name__}{'Cnn' if defaults else ''}"
    small = type(name, (policy,), {"__init__": __init__, "__module__": __name__})
    globals()[name] = small
    return small


for algorithm, policy in POLICIES.items():
    default, cnn = _small(policy), _small(policy, features_extractor_class=NatureCNN)
    algorithm.policy_aliases = {"MlpPolicy": default, "MultiInputPolicy": default, "CnnPolicy": cnn}


def _is_about_others(item: pytest.Item) -> bool:
    # Not `-k "not PPO"`: matching ignores case, and "MlpPolicy" contains "ppo".
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(getattr(value, "__name__", value if isinstance(value, str) else "") in OTHER_ALGORITHMS for value in values)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop tests of other algorithms and those in the table above."""
    dropped = [item for item in items if _is_about_others(item) or item.name.startswith(tuple(DESELECTED))]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]
