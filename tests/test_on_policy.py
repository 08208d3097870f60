"""SB3's on-policy algorithms with a policy that was pruned: the way that docs/sparse.md describes."""

from pathlib import Path

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO

from sb3_sparse import SparseLinear, sparsify_

PAGE = Path(__file__).parent.parent / "docs/sparse.md"


def documented():
    section = PAGE.read_text().partition("### SB3's PPO and A2C")[2]
    return section.partition("```python\n")[2].partition("```")[0]


def test_the_documented_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = documented()
    # The part that makes the file, then the part that reads it, with a look in between.
    first, _, second = code.partition("later = ")
    names = {}
    exec(first, names)
    saved = names["model"]
    observations = np.stack([saved.observation_space.sample() for _ in range(50)])
    expected, _ = saved.predict(observations, deterministic=True)
    loading, learning = ("later = " + second).rsplit("later.learn", 1)
    exec(loading, names)
    later = names["later"]
    sparse = [layer for layer in later.policy.modules() if isinstance(layer, SparseLinear)]
    assert len(sparse) == 4
    assert np.array_equal(later.predict(observations, deterministic=True)[0], expected)
    states = [model.policy.optimizer.state_dict()["state"] for model in (saved, later)]
    assert states[0].keys() == states[1].keys() != set()
    assert all(th.equal(states[0][key]["exp_avg"], states[1][key]["exp_avg"]) for key in states[0])
    before = [layer.values.detach().clone() for layer in sparse]
    exec("later.learn" + learning, names)
    assert later.num_timesteps == saved.num_timesteps + 2_048
    assert not any(th.equal(old, layer.values) for old, layer in zip(before, sparse, strict=True))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_load_refuses_instead_of_giving_another_network(algorithm, tmp_path):
    model = algorithm("MlpPolicy", "Pendulum-v1", n_steps=64)
    sparsify_(model.policy, 0.9)
    model.save(tmp_path / "agent")
    with pytest.raises(RuntimeError, match="nonzeros"):
        algorithm.load(tmp_path / "agent")
