"""Hyperparameter files: the packaged ones, and how strings in them are read."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from sb3_sparse import DrQv2, FrameReplayBuffer, policies, zoo
from sb3_sparse.zoo.hyperparameters import EVALUATED_BY_RL_ZOO, check_names, read_setting

ALGOS = pytest.importorskip("rl_zoo3").ALGOS

ALGORITHMS = ("sac", "ddpg", "td3", "tqc", "crossq", "dqn", "qrdqn")
DMC_HARD = [f"dm_control/{task}-v0" for task in ("humanoid-run", "humanoid-walk", "humanoid-stand")] + [
    f"dm_control/dog-{task}-v0" for task in ("run", "walk", "trot", "stand")
]


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_packaged_hyperparameters_are_complete_and_valid(algo):
    settings = yaml.safe_load(zoo.hyperparams_file(algo).read_text())
    assert "default" in settings
    known = {policy.__name__ for policy in policies.POLICIES.values()}
    # What rl-zoo3 takes out before the algorithm sees the rest.
    of_rl_zoo = {"n_timesteps", "env_wrapper", "noise_type", "noise_std"}
    keywords = set(inspect.signature(ALGOS[algo]).parameters)
    for entry in settings.values():
        assert set(entry) - of_rl_zoo <= keywords
        module, _, name = entry["policy"].rpartition(".")
        assert (module, name in known) == ("sb3_sparse", True)
    if algo in ("dqn", "qrdqn"):
        assert {"CartPole-v1", "LunarLander-v3"} <= set(settings)
        return
    assert {"dm_control/cartpole-swingup-v0", "Pendulum-v1"} <= set(settings)
    if algo == "crossq":
        return
    assert set(DMC_HARD) <= set(settings)
    for task in DMC_HARD:
        entry = settings[task]
        paper = {"learning_rate": 1e-4, "batch_size": 256, "gamma": 0.99, "tau": 0.005, "gradient_steps": 2}
        assert {name: entry[name] for name in paper} == paper
        assert (entry["n_timesteps"], entry["learning_starts"], entry["buffer_size"]) == (500_000, 5_000, 1_000_000)
        assert entry["policy_kwargs"]["n_critics"] == 1
        assert entry["env_wrapper"] == [{"sb3_sparse.dmc.DMCWrapper": {"action_repeat": 2}}]
        if algo in ("sac", "tqc"):
            assert entry["target_entropy"] == -(21 if "humanoid" in task else 38) / 2
            assert entry["ent_coef"] == "auto_0.01"


def test_an_unknown_algorithm_has_no_packaged_file():
    assert zoo.hyperparams_file("ppo") is None


def test_the_strings_of_rl_zoos_own_files_are_read_as_it_evaluates_them():
    from rl_zoo3 import exp_manager

    strings = 0
    for path in (Path(exp_manager.__file__).parent / "hyperparams").glob("*.yml"):
        for entry in yaml.safe_load(path.read_text()).values():
            for name in EVALUATED_BY_RL_ZOO:
                if isinstance(text := entry.get(name), str):
                    strings += 1
                    assert read_setting(name, text) == eval(text, dict(vars(exp_manager)))
    assert strings > 50


def test_what_rl_zoo3_takes_itself_is_no_unknown_hyperparameter():
    taken = dict.fromkeys(["callback", "env_wrapper", "vec_env_wrapper"]) | {"monitor_kwargs": {}, "env_kwargs": {}}
    taken |= {"n_timesteps": 20, "n_envs": 2, "normalize": {"norm_obs": False}, "frame_stack": 2}
    taken |= {"noise_type": "normal", "noise_std": 0.1, "train_freq": [1, "step"], "learning_rate": "lin_1e-3"}
    model = zoo.untrained_agent("td3", "Pendulum-v1", hyperparams={**taken, "policy_kwargs": {"width_scale": 0.1}})
    assert model.action_noise is not None
    assert model.n_envs == 2
    # A keyword of a parent's constructor.
    zoo.untrained_agent("stream_ac", "Pendulum-v1", hyperparams={"stats_window_size": 7})
    zoo.untrained_agent("ppo", "CartPole-v1", hyperparams={"clip_range": "lin_0.1"})


def test_the_packaged_and_rl_zoo3s_own_entries_have_known_hyperparameters_only():
    own = Path(importlib.import_module("rl_zoo3").__file__).parent / "hyperparams"
    taken = {"n_timesteps", "n_envs", "normalize", "frame_stack", "callback", "env_wrapper", "vec_env_wrapper", "env_kwargs"}
    n_entries = 0
    for algo, algorithm in zoo.algorithms().items():
        for path in {zoo.hyperparams_file(algo), own / f"{algo}.yml"} - {None}:
            for entry in (yaml.safe_load(path.read_text()) if path.is_file() else {}).values():
                check_names(algorithm, {name: value for name, value in entry.items() if name not in taken})
                n_entries += 1
    assert n_entries > 100


# Of Atari-100k.
GAMES = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout", "ChopperCommand"),
    *("CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero", "Jamesbond", "Kangaroo", "Krull"),
    *("KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest", "UpNDown"),
)
MINATAR = ("Breakout", "Freeway", "Asterix", "SpaceInvaders", "Seaquest")


@pytest.mark.parametrize("algo", ["rainbow", "der"])
def test_rainbow_has_all_games_in_dopamines_protocol(algo):
    settings = yaml.safe_load(zoo.hyperparams_file(algo).read_text())
    assert len(set(GAMES)) == 26
    expected = {f"ALE/{game}-v5" for game in GAMES} | {f"MinAtar/{game}-v1" for game in MINATAR}
    assert set(settings) == expected | {"default", "CartPole-v1", "LunarLander-v3", "minatar", "atari"}
    for game in GAMES:
        entry = settings[f"ALE/{game}-v5"]
        assert entry == settings["atari"]
        assert entry["env_wrapper"] == ["sb3_sparse.atari.DopamineAtari"]
        protocol = {"frameskip": 1, "repeat_action_probability": 0.0, "max_num_frames_per_episode": 100_000}
        assert entry["env_kwargs"] == protocol
        assert (entry["frame_stack"], entry["replay_buffer_kwargs"]) == (4, {"n_stack": 4})
    assert algo != "der" or settings["ALE/Pong-v5"]["n_timesteps"] == 100_000


@pytest.mark.parametrize("algo", ["rainbow", "der"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "MinAtar/Seaquest-v1", "ALE/Pong-v5", "ALE/Venture-v5"])
def test_every_kind_of_entry_makes_an_agent(algo, env_id):
    if "/" in env_id:
        pytest.importorskip({"ALE": "ale_py", "MinAtar": "minatar"}[env_id.partition("/")[0]])
    # The paper's network is large.
    small = {"policy_kwargs": {"encoder": "impala", "width_scale": 0.25, "sparsity": 0.8}}
    model = zoo.untrained_agent(algo, env_id, hyperparams=small if env_id.startswith("ALE/") else None)
    assert type(model) is zoo.algorithms()[algo]
    assert model.q_net.sparsity.amount == 0.8
    has_its_default = env_id in ("Acrobot-v1", "ALE/Pong-v5", "ALE/Venture-v5")
    assert model.replay_buffer.n_steps == (10 if algo == "der" and has_its_default else 3)
    if env_id.startswith("ALE/"):
        assert model.observation_space.shape == (4, 84, 84)
        assert model.replay_buffer.n_stack == 4


MEDIUM = (
    *("acrobot-swingup", "cartpole-swingup_sparse", "cheetah-run", "finger-turn_easy", "finger-turn_hard", "hopper-hop"),
    *("quadruped-run", "quadruped-walk", "reach_duplo_features", "reacher-easy", "reacher-hard", "walker-run"),
)
SMALL = ("cartpole-balance", "cartpole-swingup", "ball_in_cup-catch")


def test_drqv2_has_the_medium_tasks_as_published():
    settings = yaml.safe_load(zoo.hyperparams_file("drqv2").read_text())
    assert set(settings) == {"default", *(f"dm_control/{task}-v0" for task in (*MEDIUM, *SMALL))}
    published = {"learning_rate": 1e-4, "learning_starts": 2_000, "gamma": 0.99, "tau": 0.01, "noise_clip": 0.3}
    published |= {"train_freq": 2, "gradient_steps": 1, "exploration_initial_std": 1.0, "exploration_final_std": 0.1}
    published |= {"exploration_steps": 500_000, "n_timesteps": 1_000_000, "policy": "CnnPolicy"}
    for task in MEDIUM:
        entry = settings[f"dm_control/{task}-v0"]
        assert {name: entry[name] for name in published} == published
        pictures = {"size": 84, "n_stack": 3, "action_repeat": 2}
        assert entry["env_wrapper"] == [{"sb3_sparse.pixels.PixelObservations": pictures}]
        assert entry["policy_kwargs"] == {"critic_width_scale": 4, "sparsity": 0.8}
        assert (entry["n_steps"], entry["batch_size"]) == ((1, 512) if task == "walker-run" else (3, 256))
        assert entry["buffer_size"] == (100_000 if task == "quadruped-run" else 1_000_000)
    # The class has the same by itself.
    defaults = {name: parameter.default for name, parameter in inspect.signature(DrQv2).parameters.items()}
    of_others = ("policy", "n_timesteps", "env_wrapper", "policy_kwargs")
    assert all(defaults[name] == value for name, value in settings["default"].items() if name not in of_others)


@pytest.mark.parametrize(
    ("env_id", "shape", "n_actions"),
    [
        ("dm_control/quadruped-run-v0", (9, 84, 84), 12),
        ("dm_control/reach_duplo_features-v0", (9, 84, 84), 9),
        ("dm_control/cartpole-balance-v0", (9, 64, 64), 1),
        ("HalfCheetah-v5", (9, 84, 84), 6),
    ],
)
def test_drqv2_of_these_tasks_sees_pictures(env_id, shape, n_actions):
    pytest.importorskip("dm_control")
    pytest.importorskip("mujoco")
    # Orthogonal matrices of the width in the file take a quarter of a minute.
    narrow = {"policy_kwargs": {"net_arch": [32, 32], "critic_width_scale": 4, "sparsity": 0.8}}
    model = zoo.untrained_agent("drqv2", env_id, hyperparams=narrow if shape[-1] == 84 else None)
    assert (model.observation_space.shape, model.action_space.shape) == (shape, (n_actions,))
    assert model.policy.sparsity["qf"].amount == 0.8
    width = 32 if shape[-1] == 84 else 256
    assert model.critic.q_networks[0][0].out_features == 4 * width
    assert model.actor.mu[0].out_features == width
    assert type(model.replay_buffer) is FrameReplayBuffer


@pytest.mark.parametrize("name", ["FrameReplayBuffer", "sb3_sparse.FrameReplayBuffer"])
@pytest.mark.parametrize("reads_only", [False, True])
def test_our_buffers_have_names_in_files(name, reads_only, tmp_path, monkeypatch):
    pytest.importorskip("ale_py")
    monkeypatch.chdir(tmp_path)
    zoo.make_known("ALE/Pong-v5")
    atari = yaml.safe_load(zoo.hyperparams_file("der").read_text())["atari"]
    entry = {name: atari[name] for name in ("env_kwargs", "env_wrapper", "frame_stack", "policy")}
    entry |= {"replay_buffer_class": name, "n_timesteps": 30, "buffer_size": 30, "learning_starts": 10, "batch_size": 4}
    Path("my.yml").write_text(yaml.safe_dump({"atari": entry}))
    if reads_only:
        model = zoo.untrained_agent("dqn", "ALE/Pong-v5", config="my.yml")
    else:
        model, folder = zoo.train_agent("dqn", "ALE/Pong-v5", "logs", config="my.yml")
        # What is kept beside the agent is what the file says.
        saved = yaml.unsafe_load((folder / "ALE-Pong-v5/config.yml").read_text())
        assert dict(saved)["replay_buffer_class"] == name
    assert type(model.replay_buffer) is FrameReplayBuffer
