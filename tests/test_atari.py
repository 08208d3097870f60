"""Atari games as Dopamine prepares them, against the game itself."""

import sys

import gymnasium as gym
import numpy as np
import pytest

from sb3_sparse.atari import DopamineAtari, make_atari

pytest.importorskip("ale_py")
cv2 = pytest.importorskip("cv2")


def play(env, n, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(n):
        yield env.step(int(generator.integers(env.action_space.n)))


def test_a_frame_is_the_brighter_one_of_the_last_two_grey_and_small():
    env = make_atari("Breakout", max_no_ops=1)
    ale = env.unwrapped.ale
    screens, act = [], env.env.step
    env.reset(seed=0)

    def step(action):
        result = act(action)
        screens.append(ale.getScreenGrayscale())
        return result

    env.env.step = step
    for obs, *_ in play(env, 20):
        assert len(screens) == 4
        expected = cv2.resize(np.maximum(screens[2], screens[3]), (84, 84), interpolation=cv2.INTER_AREA)
        assert np.array_equal(obs[:, :, 0], expected)
        assert (obs.dtype, obs.shape) == (np.uint8, (84, 84, 1))
        screens.clear()


def test_videos_play_at_the_speed_of_the_console():
    assert [make_atari("Pong", frame_skip=skip).metadata["render_fps"] for skip in (4, 1)] == [15, 60]
    assert make_atari("Pong").unwrapped.metadata["render_fps"] == 30


def test_a_lost_life_ends_an_episode_and_not_the_game():
    env = make_atari("Breakout", max_no_ops=1)
    env.reset(seed=1)
    ale, frames, lives = env.unwrapped.ale, [], []
    for _, _, terminated, truncated, _ in play(env, 2000):
        if terminated or truncated:
            frames.append(ale.getEpisodeFrameNumber())
            lives.append(ale.lives())
            env.reset()
            if not ale.game_over() and lives[-1]:
                # Nothing was played between two lives.
                assert ale.getEpisodeFrameNumber() == frames[-1]
        if len(lives) == 6:
            break
    assert lives[:5] == [4, 3, 2, 1, 0]

    assert frames[5] < frames[4]


def test_a_return_begins_with_the_agents_first_action():
    """In Asterix, the steps of doing nothing before it may be worth 50 points, which Dopamine does not count."""
    env = make_atari("Asterix", terminal_on_life_loss=False, clip_rewards=False)
    before, step, is_new = [], env.env.step, False

    def look(action):
        result = step(action)
        if is_new:
            before.append(result[1])
        return result

    env.env.step = look
    for seed in range(20):
        is_new = True
        env.reset(seed=seed)
        is_new = False
        if sum(before):
            break
    assert sum(before) == 50
    total = 0.0
    for _, reward, terminated, truncated, info in play(env, 20_000):
        total += reward
        if terminated or truncated:
            assert info["episode"]["r"] == total > 0
            return
    raise AssertionError("the game does not end")


def test_for_evaluation_an_episode_is_a_game_and_rewards_are_those_of_the_game():
    env = make_atari("Qbert", max_no_ops=1, terminal_on_life_loss=False, clip_rewards=False)
    env.reset(seed=0)
    rewards = []
    for _, reward, terminated, truncated, _ in play(env, 3000):
        rewards.append(reward)
        if terminated or truncated:
            break
    assert env.unwrapped.ale.game_over()
    assert max(rewards) >= 25
    clipped = make_atari("Qbert", max_no_ops=1)
    clipped.reset(seed=0)
    assert {reward for _, reward, *_ in play(clipped, 300)} <= {-1.0, 0.0, 1.0}


def test_games_begin_with_steps_of_doing_nothing():
    begins = set()
    env = make_atari("Pong")
    for seed in range(12):
        env.reset(seed=seed)
        begins.add(env.unwrapped.ale.getEpisodeFrameNumber())
    assert len(begins) > 4
    assert all(frame % 4 == 0 and frame <= 29 * 4 for frame in begins)


def test_it_says_what_is_wrong():
    with pytest.raises(ValueError, match="no game of ale-py"):
        DopamineAtari(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="frameskip=4"):
        DopamineAtari(gym.make("ALE/Pong-v5", frameskip=4))
    with pytest.raises(ValueError, match="max_no_ops=0"):
        make_atari("Pong", max_no_ops=0)


@pytest.mark.parametrize("terminal_on_life_loss", [True, False])
def test_a_reset_in_the_middle_begins_a_new_game(terminal_on_life_loss):
    # As evaluate_policy does, whose returns would otherwise be those of the rest of a game.
    env = make_atari("Breakout", max_no_ops=1, terminal_on_life_loss=terminal_on_life_loss)
    env.reset(seed=1)
    ale = env.unwrapped.ale
    begins = ale.getEpisodeFrameNumber()
    for _ in play(env, 5):
        pass
    assert ale.getEpisodeFrameNumber() > begins
    env.reset()
    assert ale.getEpisodeFrameNumber() == begins


@pytest.mark.parametrize("module", ["ale_py", "cv2"])
def test_what_is_missing_is_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'Atari games need the extra "atari": pip install "sb3-sparse\[atari\]"'):
        make_atari("Pong")


@pytest.mark.parametrize("game", ["Breakout", "Asterix"])
def test_after_a_lost_life_the_agent_sees_what_the_step_before_showed(game):
    """Dopamine's runner begins the next episode with that observation: of two frames, not of one, where things flicker."""
    env = make_atari(game, max_no_ops=1)
    env.reset(seed=1)
    begun = 0
    for obs, _, terminated, _, _ in play(env, 3000):
        if terminated:
            goes_on = env.goes_on
            first, _ = env.reset()
            assert np.array_equal(first, obs) == goes_on or not goes_on
            assert not np.shares_memory(first, obs)
            begun += goes_on
    assert begun >= 3


def test_a_monitor_counts_whole_games_with_their_rewards():
    env = make_atari("Breakout", max_no_ops=1)
    env.reset(seed=1)
    ends = []
    for _, _, terminated, truncated, info in play(env, 4000):
        if terminated or truncated:
            ends.append(info.get("episode"))
            assert (ends[-1] is None) == env.goes_on
            env.reset()
        if any(ends):
            break
    assert ends[:-1] == [None] * 4
    assert ends[-1]["l"] > 100


def test_a_game_is_made_again_from_its_spec():
    env = make_atari("Pong", max_no_ops=7)
    again = gym.make(env.spec)
    assert isinstance(again, DopamineAtari)
    assert (again.max_no_ops, again.frame_skip) == (7, 4)
    assert again.reset(seed=0)[0].shape == (84, 84, 1)
