"""Agents in files: whose they are, and what belongs to them."""

import hashlib
import pickle
from collections import OrderedDict
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

from sb3_sparse import save_safe
from sb3_sparse.evaluation.saved import (
    ALGORITHMS,
    SavedAgent,
    environment_of,
    evaluate_saved,
    find_saved,
    load_saved,
    statistics_beside,
)
from tests.envs import SpaceEnv

DISCRETE = ("dqn", "qrdqn", "rainbow", "der", "stream_q", "stream_sarsa", "ppo_mask")
POLICIES = {"ppo_lstm": "MlpLstmPolicy", "drqv2": "CnnPolicy"}
# What an agent does is the same in these, and their files do not differ.
TOLD_AS = {"ddpg": "td3", "der": "rainbow"}
SPARSE = ("sac", "td3", "dqn", "qrdqn", "tqc", "crossq")


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_file_tells_its_algorithm(algo, tmp_path):
    space = spaces.Box(0, 255, (3, 15, 15), np.uint8) if algo == "drqv2" else spaces.Box(-1, 1, (3,), np.float32)
    env = SpaceEnv(space, spaces.Discrete(2) if algo in DISCRETE else spaces.Box(-1, 1, (1,)))
    policies = [POLICIES.get(algo, "MlpPolicy")] + ["SparseSimBaPolicy"] * (algo in SPARSE)
    for policy in policies:
        small = {"buffer_size": 100} if issubclass(ALGORITHMS[algo], OffPolicyAlgorithm) else {}
        small |= {"policy_kwargs": {"net_arch": [8]}} if algo == "drqv2" else {}
        small |= {"policy_kwargs": {"width_scale": 0.1}} if policy == "SparseSimBaPolicy" else {}
        model = ALGORITHMS[algo](policy, env, seed=0, **small)
        model.save(tmp_path / "agent")
        saved = find_saved(tmp_path / "agent")
        loaded = load_saved(saved)
        assert type(loaded) is ALGORITHMS[TOLD_AS.get(algo, algo)]
        # A run of rl-zoo3 knows better, where the file does not contradict.
        assert type(load_saved(SavedAgent(saved.path, algo=algo))) is ALGORITHMS[algo]
        wrong = "sac" if algo != "sac" else "ppo"
        assert type(load_saved(SavedAgent(saved.path, algo=wrong))) is type(loaded)
        assert type(load_saved(saved, algo)) is ALGORITHMS[algo]
        obs = np.random.default_rng(0).uniform(space.low, space.high, size=(20, *space.shape)).astype(space.dtype)
        np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
        assert getattr(loaded, "replay_buffer", None) is None or loaded.replay_buffer.buffer_size == 1


def test_every_algorithm_of_rl_zoo3_and_of_this_package_is_known():
    pytest.importorskip("rl_zoo3")
    from sb3_sparse.zoo import algorithms

    known = algorithms()
    assert {name: ALGORITHMS[name] for name in known} == known


def test_checksums_need_nothing_that_python_3_10_lacks(tmp_path, monkeypatch):
    """Mistake of ours: the command that evaluates ended in an AttributeError there."""
    monkeypatch.delattr(hashlib, "file_digest", raising=False)
    for size in (0, 1, 1 << 20, (1 << 20) + 1):
        content = np.random.default_rng(0).bytes(size)
        (tmp_path / "agent.zip").write_bytes(content)
        assert SavedAgent(tmp_path / "agent.zip").checksum == hashlib.sha256(content).hexdigest()


def test_an_agent_is_found_with_and_without_ending(tmp_path):
    DQN("MlpPolicy", "CartPole-v1", buffer_size=1).save(tmp_path / "a.1.zip")
    assert find_saved(tmp_path / "a.1.zip") == find_saved(tmp_path / "a.1") == SavedAgent(tmp_path / "a.1.zip")
    with pytest.raises(ValueError, match=r"there is no agent '.*nothing'"):
        find_saved(tmp_path / "nothing")
    for folder in (tmp_path, f"{tmp_path}/", "."):
        with pytest.raises(ValueError, match="is a folder, and none of a run of rl-zoo3"):
            find_saved(folder)
    (tmp_path / "text.zip").write_text("no agent")
    with pytest.raises(ValueError, match=r"text\.zip is no agent of SB3"):
        load_saved(find_saved(tmp_path / "text"))
    with pytest.raises(ValueError, match=r"a\.1\.zip is no agent of PPO"):
        load_saved(find_saved(tmp_path / "a.1"), "ppo")
    with pytest.raises(ValueError, match=r"a\.1\.zip does not say in which environment"):
        evaluate_saved(find_saved(tmp_path / "a.1"))
    with pytest.raises(ValueError, match=r"unknown environment 'CartPole-v7'"):
        evaluate_saved(find_saved(tmp_path / "a.1"), env_id="CartPole-v7")
    with pytest.raises(ValueError, match=r"a\.1\.zip: the agent sees Box"):
        evaluate_saved(find_saved(tmp_path / "a.1"), env_id="Acrobot-v1")


def normalised(tmp_path, name="agent"):
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2, seed=0))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0).learn(256)
    model.save(tmp_path / name)
    return model, env


def test_statistics_beside_an_agent(tmp_path):
    model, env = normalised(tmp_path)
    saved = find_saved(tmp_path / "agent")
    raw = evaluate_policy(model, make_vec_env("Pendulum-v1", seed=7), 3, return_episode_rewards=True)[0]
    (alone,) = evaluate_saved(saved, 3, env_id="Pendulum-v1", seeds=[7])
    np.testing.assert_allclose(alone.returns, raw)
    env.save(tmp_path / "vecnormalize.pkl")
    (found,) = evaluate_saved(saved, 3, env_id="Pendulum-v1", seeds=[7])
    one = VecNormalize.load(tmp_path / "vecnormalize.pkl", make_vec_env("Pendulum-v1"))
    one.training = one.norm_reward = False
    one.seed(7)
    np.testing.assert_allclose(found.returns, evaluate_policy(model, one, 3, return_episode_rewards=True)[0])
    assert found.returns != alone.returns
    assert (found.env, found.seed, found.algo, found.suite, found.lengths) == ("Pendulum-v1", 7, "PPO", None, [200] * 3)
    (left_out,) = evaluate_saved(saved, 3, env_id="Pendulum-v1", seeds=[7], statistics="none")
    assert left_out.returns == alone.returns
    (named,) = evaluate_saved(saved, 3, env_id="Pendulum-v1", seeds=[7], statistics=tmp_path / "vecnormalize.pkl")
    assert named.returns == found.returns
    statistics = str(tmp_path / "vecnormalize.pkl")
    assert [each.statistics for each in (alone, found, left_out, named)] == [None, statistics, None, statistics]
    with pytest.raises(ValueError, match="does not fit to CartPole-v1"):
        evaluate_saved(saved, 3, env_id="CartPole-v1")
    with pytest.raises(ValueError, match="is no file of VecNormalize"):
        evaluate_saved(saved, env_id="Pendulum-v1", statistics=tmp_path / "agent.zip")
    (tmp_path / "vecnormalize.pkl").unlink()
    # Of others, whether they are agents beside it or not.
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        env.save(tmp_path / name / "vecnormalize.pkl")
        assert statistics_beside(saved.path) is None
    (left_alone,) = evaluate_saved(saved, 3, env_id="Pendulum-v1", seeds=[7])
    assert (left_alone.statistics, left_alone.returns) == (None, alone.returns)
    model.save(tmp_path / "one")
    assert statistics_beside(saved.path) is None, "those of the agent of that name"
    assert statistics_beside(tmp_path / "one.zip") == tmp_path / "one/vecnormalize.pkl"
    # Of the run, for all its agents; those beside an agent may be others.
    (tmp_path / "two/config.yml").write_text("{}")
    assert statistics_beside(saved.path) == tmp_path / "two/vecnormalize.pkl"
    env.save(tmp_path / "vecnormalize.pkl")
    with pytest.raises(ValueError, match=r"belongs to .*agent\.zip\? Name it: --vecnormalize FILE"):
        evaluate_saved(saved, env_id="Pendulum-v1")
    (tmp_path / "agent").mkdir()
    env.save(tmp_path / "agent/vecnormalize.pkl")
    assert statistics_beside(saved.path) == tmp_path / "agent/vecnormalize.pkl"


def test_statistics_of_a_checkpoint_callback(tmp_path):
    env = VecNormalize(make_vec_env("Pendulum-v1"))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=32)
    model.learn(128, callback=CheckpointCallback(64, str(tmp_path), name_prefix="an_agent", save_vecnormalize=True))
    for steps in (64, 128):
        expected = tmp_path / f"an_agent_vecnormalize_{steps}_steps.pkl"
        assert expected.is_file()
        assert statistics_beside(tmp_path / f"an_agent_{steps}_steps.zip") == expected
    # Those of its own step, whatever else lies there; of other steps none.
    env.save(tmp_path / "vecnormalize.pkl")
    assert statistics_beside(tmp_path / "an_agent_64_steps.zip") == tmp_path / "an_agent_vecnormalize_64_steps.pkl"
    (played,) = evaluate_saved(find_saved(tmp_path / "an_agent_64_steps.zip"), 1, env_id="Pendulum-v1")
    assert played.statistics == str(tmp_path / "an_agent_vecnormalize_64_steps.pkl")
    (tmp_path / "vecnormalize.pkl").unlink()
    model.save(tmp_path / "an_agent_32_steps")
    model.save(tmp_path / "other_64_steps")
    assert [statistics_beside(tmp_path / name) for name in ("an_agent_32_steps.zip", "other_64_steps.zip")] == [None, None]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, r"v\.pkl' cannot be read .*: expected what VecNormalize\.save wrote"),
        (b"", r"v\.pkl' is no file of VecNormalize \(EOFError"),
        (b"text", r"v\.pkl' is no file of VecNormalize \(UnpicklingError"),
        (b"}.", r"v\.pkl' holds dict: expected the VecNormalize"),
        # What is cut off or damaged raises anything.
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff", r"v\.pkl' is no file of VecNormalize"),
        (b"cbuiltins\nint\n(S'x'\ntR.", r"v\.pkl' is no file of VecNormalize \(ValueError"),
        (b"cbuiltins\nint\n(}tR.", r"v\.pkl' is no file of VecNormalize \(TypeError"),
    ],
)
def test_statistics_that_are_none(content, expected, tmp_path):
    DQN("MlpPolicy", "CartPole-v1", buffer_size=1).save(tmp_path / "agent")
    if content is not None:
        (tmp_path / "v.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        evaluate_saved(find_saved(tmp_path / "agent"), env_id="CartPole-v1", statistics=tmp_path / "v.pkl")


ENTRY = {
    "n_timesteps": 128,
    "policy": "MlpPolicy",
    "n_steps": 64,
    "batch_size": 32,
    "n_epochs": 1,
    "normalize": True,
    "frame_stack": 2,
}


def test_a_run_of_rl_zoo3_is_evaluated_as_it_was_trained(tmp_path):
    pytest.importorskip("rl_zoo3")
    import yaml

    from sb3_sparse.zoo import train_agent

    (tmp_path / "my.yml").write_text(yaml.safe_dump({"Pendulum-v1": ENTRY}))
    kwargs = {"g": 5.0}
    model, folder = train_agent("ppo", "Pendulum-v1", tmp_path / "logs", config=tmp_path / "my.yml", env_kwargs=kwargs)
    # As `train` keeps its options.
    settings = folder / "Pendulum-v1"
    (settings / "args.yml").write_text(yaml.dump({"algo": "ppo", "env": "Pendulum-v1", "env_kwargs": kwargs}))
    saved = find_saved(folder)
    assert saved == SavedAgent(folder / "Pendulum-v1.zip", settings, "ppo", "Pendulum-v1")
    assert saved == find_saved(folder / "Pendulum-v1")
    (found,) = evaluate_saved(saved, 3, n_envs=2, seeds=[3])
    env = VecNormalize.load(settings / "vecnormalize.pkl", make_vec_env("Pendulum-v1", 2, env_kwargs=kwargs))
    env.training = env.norm_reward = False
    env = VecFrameStack(env, 2)
    env.seed(6)
    expected = evaluate_policy(model, env, 3, return_episode_rewards=True)[0]
    np.testing.assert_allclose(found.returns, expected, atol=1e-4)
    (heavier,) = evaluate_saved(saved, 3, n_envs=2, seeds=[3], env_kwargs={"g": 15.0})
    assert heavier.returns != found.returns
    (settings / "vecnormalize.pkl").unlink()
    with pytest.raises(ValueError, match="was trained with VecNormalize, and its statistics are missing"):
        evaluate_saved(saved)
    with pytest.raises(ValueError, match=r"there is no agent .*best_model\.zip"):
        find_saved(folder, best=True)
    model.save(folder / "best_model")
    assert find_saved(folder, best=True) == SavedAgent(folder / "best_model.zip", settings, "ppo", "Pendulum-v1")
    (settings / "vecnormalize.pkl").touch()
    assert statistics_beside(folder / "best_model.zip") == settings / "vecnormalize.pkl"


def test_the_wrappers_of_a_run(tmp_path):
    pytest.importorskip("rl_zoo3")
    import yaml

    settings = tmp_path / "Pendulum-v1"
    settings.mkdir()
    wrapped = {"env_wrapper": [{"gymnasium.wrappers.TransformReward": {"func": abs}}], "n_timesteps": 1e5}
    (settings / "config.yml").write_text(yaml.dump(OrderedDict(wrapped)))
    env = environment_of(SavedAgent(tmp_path / "agent.zip", settings, "ppo", "Pendulum-v1"), n_envs=2)
    assert env.env_is_wrapped(gym.wrappers.TransformReward) == [True, True]
    env.reset()
    assert env.step(np.zeros((2, 1), np.float32))[1].min() > 0
    env.close()


def test_a_game_counts_as_a_whole_where_lives_end_episodes(tmp_path):
    pytest.importorskip("rl_zoo3")
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    import yaml

    kwargs = {"frameskip": 1, "repeat_action_probability": 0.0, "max_num_frames_per_episode": 4_000}
    env = SpaceEnv(spaces.Box(0, 255, (2, 84, 84), np.uint8), spaces.Discrete(4))
    DQN("CnnPolicy", env, buffer_size=1, policy_kwargs={"net_arch": [8]}).save(tmp_path / "agent")
    found = {}
    for by_life in (True, False):
        settings = tmp_path / f"run_{by_life}"
        settings.mkdir()
        wrapper = {"sb3_sparse.atari.DopamineAtari": {"terminal_on_life_loss": by_life, "clip_rewards": by_life}}
        (settings / "config.yml").write_text(yaml.dump({"env_wrapper": wrapper, "env_kwargs": kwargs, "frame_stack": 2}))
        saved = SavedAgent(tmp_path / "agent.zip", settings, "dqn", "ALE/Breakout-v5")
        # The same random actions, whatever is seen.
        (found[by_life],) = evaluate_saved(saved, 3, epsilon=1.0)
    assert found[True] == found[False]
    assert max(found[True].returns) > 1


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_safe_file_is_evaluated_and_nothing_beside_it_is_read(tmp_path):
    model, env = normalised(tmp_path)
    env.save(tmp_path / "vecnormalize.pkl")
    (expected,) = evaluate_saved(find_saved(tmp_path / "agent"), 3, env_id="Pendulum-v1", seeds=[7])
    safe = tmp_path / "strangers/agent.safetensors"
    save_safe(model, safe, vec_normalize=env)
    mark = tmp_path / "executed"
    for beside in (safe.parent / "agent", safe.parent):
        beside.mkdir(exist_ok=True)
        (beside / "vecnormalize.pkl").write_bytes(pickle.dumps(Payload(mark)))
        (beside / "config.yml").write_text(
            f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{mark}]]"
        )
        (beside / "args.yml").write_text((beside / "config.yml").read_text())
    (found,) = evaluate_saved(find_saved(safe), 3, env_id="Pendulum-v1", seeds=[7])
    assert (found.returns, found.algo, found.statistics) == (expected.returns, "PPO", str(safe))
    (left_out,) = evaluate_saved(find_saved(safe), 3, env_id="Pendulum-v1", seeds=[7], statistics="none")
    assert left_out.returns != expected.returns
    assert not mark.exists()
    pickle.loads((safe.parent / "vecnormalize.pkl").read_bytes())
    assert mark.exists()
