"""The protocol of Atari-100k, against the same games played in another way."""

import json
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, SAC
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.atari import make_atari
from sb3_sparse.evaluation import atari100k
from sb3_sparse.evaluation.atari100k import (
    WholeGameMonitor,
    atari100k_env,
    evaluate_on_game,
    evaluate_saved_on_game,
    game_of_agent,
)
from sb3_sparse.evaluation.saved import SavedAgent, find_saved
from sb3_sparse.rainbow import DER
from tests.envs import SpaceEnv

pytest.importorskip("ale_py")
pytest.importorskip("cv2")

FRAMES = spaces.Box(0, 255, (4, 84, 84), np.uint8)


def agent(n_actions=4):
    env = SpaceEnv(FRAMES, spaces.Discrete(n_actions))
    return DER("CnnPolicy", env, seed=0, buffer_size=1, policy_kwargs={"net_arch": [8]})


@pytest.fixture
def short_games(monkeypatch):
    monkeypatch.setattr("sb3_sparse.atari.MAX_FRAMES", 400)


def test_a_return_is_that_of_the_whole_game():
    """The same actions where a lost life ends nothing."""
    env = WholeGameMonitor(make_atari("Breakout", terminal_on_life_loss=True, clip_rewards=False))
    other = make_atari("Breakout", terminal_on_life_loss=False, clip_rewards=False)
    env.reset(seed=11)
    other.reset(seed=11)
    generator = np.random.default_rng(0)
    games, lives_lost, points, total, n = [], 0, 0.0, 0.0, 0
    while len(games) < 3:
        action = int(generator.integers(4))
        _, reward, terminated, truncated, info = env.step(action)
        _, expected, over, cut, _ = other.step(action)
        total, n = total + expected, n + 1
        assert reward == expected
        assert ("episode" in info) == (over or cut)
        if over or cut:
            games.append((info["episode"]["r"], info["episode"]["l"]) == (total, n))
            points += total
            total, n = 0.0, 0
            other.reset()
        if terminated or truncated:
            lives_lost += not (over or cut)
            env.reset()
    assert games == [True] * 3
    assert lives_lost >= 12
    assert points > 3


def test_what_happens_before_the_agent_acts_is_not_its_return():
    env = WholeGameMonitor(make_atari("Pong", max_no_ops=400, clip_rewards=False))
    env.reset(seed=2)
    # The other player has scored while nothing was done: the picture shows it, as the emulator's memory does.
    scored = int(env.unwrapped.ale.getRAM()[13])
    assert scored > 0
    total, done = 0.0, False
    while not done:
        _, reward, terminated, truncated, info = env.step(0)
        total, done = total + reward, terminated or truncated
    assert info["episode"]["r"] == total == -21 + scored


def test_frames_begin_anew_with_a_life_and_games_go_on(monkeypatch):
    env = atari100k_env("Breakout", n_envs=1)
    env.seed(0)
    obs = env.reset()
    assert obs.shape == (1, 84, 84, 4)
    assert not obs[..., :3].any()
    generator, lost = np.random.default_rng(0), 0
    while lost < 2:
        obs, _, dones, infos = env.step(generator.integers(4, size=1))
        if dones[0]:
            lost += "episode" not in infos[0]
            assert not obs[..., :3].any()
            assert obs[..., 3].any()
    env.close()


def test_random_actions_come_as_often_as_the_protocol_says(monkeypatch, short_games):
    model, predicted, taken = agent(), [], []
    assert atari100k.EPSILON == 0.001
    predict = model.predict

    def spy(obs, *args, **kwargs):
        assert kwargs["deterministic"] is True
        actions, state = predict(obs, *args, **kwargs)
        predicted.append(actions.copy())
        return actions, state

    def make(game, n_envs):
        env = atari100k_env(game, n_envs)
        step = env.venv.step_async
        monkeypatch.setattr(env.venv, "step_async", lambda actions: (taken.append(np.array(actions)), step(actions))[1])
        return env

    monkeypatch.setattr(model, "predict", spy)
    monkeypatch.setattr(atari100k, "atari100k_env", make)
    monkeypatch.setattr(atari100k, "EPSILON", 0.4)
    evaluate_on_game(model, "Breakout", 4, n_envs=4)
    differ = np.concatenate(predicted) != np.concatenate(taken)
    assert len(differ) > 250
    # One of four random actions is the predicted one.
    assert abs(differ.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(differ))
    monkeypatch.setattr(atari100k, "EPSILON", 0.0)
    predicted.clear()
    taken.clear()
    evaluate_on_game(model, "Breakout", 1, n_envs=4)
    np.testing.assert_array_equal(np.concatenate(predicted), np.concatenate(taken))


def test_an_agent_in_a_file(tmp_path, short_games):
    agent().save(tmp_path / "Breakout_0")
    saved = find_saved(tmp_path / "Breakout_0.zip")
    # Loaded twice: without noise, and with seeds, nothing differs.
    first, other = evaluate_saved_on_game(saved, episodes=2, n_envs=2, seeds=[0, 1])
    (again,) = evaluate_saved_on_game(saved, "Breakout", episodes=2, n_envs=2)
    assert first == again
    assert (first.env, first.suite, first.epsilon, first.deterministic) == ("ALE/Breakout-v5", "atari-100k", 0.001, True)
    assert (len(first.returns), other.seed) == (2, 1)
    # 400 frames are 100 steps of the agent; those of doing nothing are not among them.
    assert 70 < min(first.lengths) < max(first.lengths) <= 100
    json.dumps(first.returns + first.lengths)


@pytest.mark.parametrize(
    ("path", "env", "expected"),
    [
        ("runs/Pong_0.zip", None, "Pong"),
        ("runs/der-bank_heist-3.zip", None, None),
        ("runs/bank_heist.zip", None, "BankHeist"),
        ("runs/der-BankHeist-3.zip", None, "BankHeist"),
        ("Pong/agent.zip", None, None),
        ("Pong_Qbert.zip", None, None),
        ("Pongo.zip", None, None),
        ("logs/der/x.zip", "ALE/Pong-v5", "Pong"),
        ("logs/der/Qbert.zip", "PongNoFrameskip-v4", "Pong"),
    ],
)
def test_the_game_of_an_agent(path, env, expected):
    saved = SavedAgent(Path(path), env=env)
    if expected is not None:
        assert game_of_agent(saved) == expected
        return
    with pytest.raises(ValueError, match=f"{path} does not say of which game it is") as error:
        game_of_agent(saved)
    assert f"Pong={path}" in str(error.value)


def test_what_plays_no_game_is_refused(tmp_path):
    agent(6).save(tmp_path / "pong")
    with pytest.raises(ValueError, match=r"pong.zip on Breakout: the agent has the actions Discrete\(6\)"):
        evaluate_saved_on_game(find_saved(tmp_path / "pong"), "Breakout")
    with pytest.raises(ValueError, match="'Venture' is no game of Atari-100k"):
        evaluate_saved_on_game(find_saved(tmp_path / "pong"), "Venture")
    DQN("MlpPolicy", "CartPole-v1", buffer_size=1).save(tmp_path / "cart")
    with pytest.raises(ValueError, match=r"cart.zip on Pong: the agent sees Box"):
        evaluate_saved_on_game(find_saved(tmp_path / "cart"), "Pong")
    SAC("MlpPolicy", "Pendulum-v1", buffer_size=1).save(tmp_path / "sac")
    with pytest.raises(ValueError, match=r"sac.zip has the actions Box.* it plays no game of Atari"):
        evaluate_saved_on_game(find_saved(tmp_path / "sac"), "Pong")
    with pytest.raises(ValueError, match="'CartPole-v1' is no game of Atari-100k"):
        game_of_agent(SavedAgent(tmp_path / "pong.zip", env="CartPole-v1"))
    # Of other agents, which may be there too.
    (tmp_path / "other").mkdir()
    VecNormalize(atari100k_env("Pong", 1)).save(tmp_path / "other/vecnormalize.pkl")
    with pytest.raises(ValueError, match=r"pong\.zip on Breakout"):
        evaluate_saved_on_game(find_saved(tmp_path / "pong"), "Breakout")
    for place in (tmp_path / "pong", tmp_path):
        place.mkdir(exist_ok=True)
        (tmp_path / "other/vecnormalize.pkl").rename(place / "vecnormalize.pkl")
        with pytest.raises(ValueError, match="trained with VecNormalize: agents of atari-100k see frames as they are"):
            evaluate_saved_on_game(find_saved(tmp_path / "pong"), "Pong")
        (place / "vecnormalize.pkl").rename(tmp_path / "other/vecnormalize.pkl")
    VecNormalize(atari100k_env("Pong", 1), norm_obs=False).save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(ValueError, match=r"pong\.zip on Breakout"):
        evaluate_saved_on_game(find_saved(tmp_path / "pong"), "Breakout")
