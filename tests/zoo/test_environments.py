"""Environments that somebody else has to register first."""

import sys

import gymnasium as gym
import numpy as np
import pytest

from sb3_sparse import zoo
from sb3_sparse.cli import main
from sb3_sparse.zoo.environments import registry_restored

pytest.importorskip("rl_zoo3")

NEEDS = {"ALE/Pong-v5": "ale_py", "MinAtar/Breakout-v1": "minatar"}


@pytest.mark.parametrize("env_id", NEEDS)
def test_games_can_be_made_also_after_somebody_took_them_out_of_the_registry(env_id):
    pytest.importorskip(NEEDS[env_id])
    for _ in range(2):
        with registry_restored():
            zoo.make_known(env_id)
        gym.make(env_id).close()
        domain = env_id.partition("/")[0] + "/"
        for name in [name for name in gym.registry if name.startswith(domain)]:
            del gym.registry[name]
    zoo.make_known(env_id)


# How many channels each has.
GRIDS = {"Breakout": 4, "Freeway": 7, "Asterix": 4, "SpaceInvaders": 6, "Seaquest": 10}


@pytest.mark.parametrize("game", GRIDS)
def test_minatar_has_grids_of_bools(game):
    pytest.importorskip("minatar")
    zoo.make_known(f"MinAtar/{game}-v1")
    env = gym.make(f"MinAtar/{game}-v1")
    obs, _ = env.reset(seed=0)
    assert (obs.shape, obs.dtype) == ((10, 10, GRIDS[game]), np.dtype(bool))


@pytest.mark.parametrize("env_id", NEEDS)
def test_a_missing_package_is_one_sentence(env_id, monkeypatch):
    extra = {"ALE/Pong-v5": "atari", "MinAtar/Breakout-v1": "minatar"}[env_id]
    with monkeypatch.context() as patch:
        for name in [name for name in gym.registry if name.startswith(env_id.partition("/")[0])]:
            patch.delitem(gym.registry, name)
        for module in (NEEDS[env_id], f"{NEEDS[env_id]}.gym"):
            patch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf'pip install "sb3-sparse\[{extra}\]"'):
            zoo.make_known(env_id)
        for command in ("train", "describe"):
            with pytest.raises(SystemExit, match=rf'^sb3-sparse {command}: .*pip install "sb3-sparse\[{extra}\]"'):
                main([command, "--algo", "der", "--env", env_id])


def test_a_game_that_there_is_not_is_answered_with_a_near_one():
    pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=r"unknown environment 'ALE/Pongg-v5'. Did you mean 'ALE/Pong-v5'"):
        zoo.make_known("ALE/Pongg-v5")
