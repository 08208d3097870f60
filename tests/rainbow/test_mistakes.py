"""What is wrong with an agent's settings is said by name, before anything is trained."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_sparse.rainbow import DER, ImageEncoder, Rainbow, RainbowPolicy
from sb3_sparse.rainbow.simba import SparseSimBaRainbowPolicy
from sb3_sparse.replay import FrameReplayBuffer
from tests.envs import SpaceEnv

DISCRETE = spaces.Discrete(3)
WRONG = [
    ({"n_atoms": 1}, r"n_atoms=1: "),
    ({"n_atoms": 2.5}, r"n_atoms=2\.5: "),
    ({"v_min": 3, "v_max": 3}, r"v_min=3, v_max=3: expected v_min below v_max"),
    ({"v_min": float("nan")}, r"v_min=nan: "),
    ({"n_steps": 0}, r"n_steps=0: "),
    ({"n_steps": True}, r"n_steps=True: "),
    ({"alpha": 1.5}, r"alpha=1\.5: expected a number in \[0, 1\]"),
    ({"alpha": -0.1}, r"alpha=-0\.1: expected a number in \[0, 1\]"),
    ({"beta": 1.5}, r"beta=1\.5: expected a number in \[0, 1\]"),
    ({"beta": "lin_0.4"}, r"beta='lin_0.4': "),
    ({"batch_size": 0}, r"batch_size=0: expected a positive whole number"),
    ({"batch_size": 2.5}, r"batch_size=2\.5: "),
    ({"buffer_size": 0}, r"buffer_size=0: "),
    ({"learning_starts": -1}, r"learning_starts=-1: expected a whole number of at least 0"),
    ({"gradient_steps": -2}, r"gradient_steps=-2: expected a whole number of at least -1"),
    ({"target_update_interval": 0}, r"target_update_interval=0: expected a positive whole number"),
    ({"train_freq": 0}, r"train_freq=0: expected a positive whole number"),
    ({"train_freq": (0, "step")}, r"train_freq\[0\]=0: "),
    ({"tau": 1.5}, r"tau=1\.5: expected a number in \[0, 1\]"),
    ({"gamma": 2}, r"gamma=2: expected a number in \[0, 1\]"),
    ({"exploration_initial_eps": 2.0}, r"exploration_initial_eps=2\.0: expected a number in \[0, 1\]"),
    ({"exploration_final_eps": -0.1}, r"exploration_final_eps=-0\.1: "),
    ({"exploration_fraction": 1.1}, r"exploration_fraction=1\.1: "),
    ({"max_grad_norm": 0}, r"max_grad_norm=0: expected a positive number"),
    *(
        ({"policy_kwargs": {"net_arch": net_arch}}, r"net_arch=.*: expected a list of positive whole numbers, .*\[64, 64\]")
        for net_arch in ({"qf": [8]}, 8, [0], [8.5], "ab", [dict(qf=[8])])
    ),
]


@pytest.mark.parametrize("algorithm", [Rainbow, DER])
@pytest.mark.parametrize(("kwargs", "expected"), WRONG)
def test_values_out_of_range(algorithm, kwargs, expected):
    with pytest.raises(ValueError, match=expected):
        algorithm("MlpPolicy", "CartPole-v1", **{"buffer_size": 10, **kwargs})


@pytest.mark.parametrize("kwargs", [{"batch_size": 0}, {"exploration_initial_eps": 2.0}, {"target_update_interval": 0}])
def test_values_out_of_range_for_a_saved_agent(kwargs, tmp_path):
    Rainbow("MlpPolicy", "CartPole-v1", buffer_size=10).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))}=.*: expected"):
        Rainbow.load(tmp_path / "agent", **kwargs)


@pytest.mark.parametrize("algorithm", [Rainbow, DER])
def test_a_schedule_of_beta_out_of_range_is_said_by_the_first_update(algorithm):
    model = algorithm("MlpPolicy", "CartPole-v1", beta=lambda progress: 1 + progress, learning_starts=10, buffer_size=50)
    with pytest.raises(ValueError, match=r"beta\(progress_remaining\)=1\.\d+: expected a number in \[0, 1\]"):
        model.learn(20)


@pytest.mark.parametrize("algorithm", [Rainbow, DER])
def test_continuous_actions(algorithm):
    with pytest.raises(AssertionError, match="Discrete"):
        algorithm("MlpPolicy", "Pendulum-v1")


def test_images_in_the_wrong_layout():
    # Channels in the middle, which neither SB3 nor an encoder can mean.
    space = spaces.Box(0, 255, (36, 4, 36), np.uint8)
    with pytest.raises(ValueError, match=r"\(36, 4, 36\): expected channels"):
        ImageEncoder(space, "grid")
    # Frames have to be stacked along the channels, in front; a single frame is no stack.
    for shape in ((3, 36, 36), (1, 36, 36)):
        env = SpaceEnv(spaces.Box(0, 255, shape, np.uint8), DISCRETE)
        with pytest.raises(ValueError, match="expected 4 frames one after the other"):
            DER("CnnPolicy", env, replay_buffer_kwargs=dict(n_stack=4), buffer_size=10)
    with pytest.raises(ValueError, match="frames are kept of images"):
        DER("MlpPolicy", "CartPole-v1", replay_buffer_kwargs=dict(n_stack=4), buffer_size=10)


@pytest.mark.parametrize("encoder", ["nature", "nature_same", "impala"])
def test_images_that_sb3_would_not_scale(encoder):
    """Mistake of ours: such encoders were given numbers up to 254 where they expect [0, 1]."""
    kwargs = dict(buffer_size=10, policy_kwargs=dict(encoder=encoder))
    for high in (1, 254):
        env = SpaceEnv(spaces.Box(0, high, (4, 84, 84), np.uint8), DISCRETE)
        with pytest.raises(ValueError, match=f"encoder='{encoder}' for the observation space .*expected bounds of 0 and 255"):
            Rainbow("CnnPolicy", env, **kwargs)
    Rainbow("CnnPolicy", SpaceEnv(spaces.Box(0, 255, (4, 84, 84), np.uint8), DISCRETE), **kwargs)


def test_a_divergence_is_called_one():
    model = Rainbow("MlpPolicy", "CartPole-v1", learning_rate=1e30, learning_starts=10, buffer_size=50)
    with pytest.raises(ValueError, match="of 32 losses are not finite: training has diverged"):
        model.learn(60)


@pytest.mark.parametrize("prioritized", [True, False])
@pytest.mark.parametrize("distributional", [True, False])
@pytest.mark.parametrize("wrong", ["reward", "observation"])
def test_what_is_no_number_is_named_before_the_network_learns_it(prioritized, distributional, wrong):
    class Breaks(SpaceEnv):
        n_steps = 0

        def step(self, action):
            obs, reward, *others = super().step(action)
            self.n_steps += 1
            if self.n_steps > 30:
                obs, reward = (obs, float("nan")) if wrong == "reward" else (obs * np.float32("nan"), reward)
            return obs, reward, *others

    env = Breaks(spaces.Box(-1, 1, (3,)), DISCRETE)
    kwargs = dict(prioritized=prioritized, distributional=distributional, policy_kwargs={"net_arch": [8]})
    model = Rainbow("MlpPolicy", env, learning_starts=10, buffer_size=60, train_freq=1, seed=0, **kwargs)
    with pytest.raises(ValueError, match=r"of 32 losses are not finite: .* rewards or observations are not finite"):
        model.learn(200)
    assert model.num_timesteps > 30
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_ders_adam_is_not_simbas():
    der = DER("SparseSimBaPolicy", "CartPole-v1", buffer_size=10).policy.optimizer
    rainbow = Rainbow("SparseSimBaPolicy", "CartPole-v1", buffer_size=10).policy.optimizer
    assert type(der) is type(rainbow) is th.optim.AdamW
    assert {**der.defaults, "lr": 0} == {**rainbow.defaults, "lr": 0}
    assert DER("MlpPolicy", "CartPole-v1", buffer_size=10).policy.optimizer.defaults["eps"] == 1.5e-4
    adam = DER("SparseSimBaPolicy", "CartPole-v1", buffer_size=10, policy_kwargs={"optimizer_class": th.optim.Adam})
    assert adam.policy.optimizer.defaults["eps"] == 1.5e-4


@pytest.mark.parametrize("policy", ["MlpPolicy", "SparseSimBaPolicy"])
def test_actions_that_do_not_begin_with_0(policy):
    env = SpaceEnv(spaces.Box(-1, 1, (4,)), spaces.Discrete(2, start=5))
    with pytest.raises(ValueError, match=r"Discrete\(2, start=5\): Q-values are of actions that begin with 0"):
        Rainbow(policy, env, buffer_size=10)


@pytest.mark.parametrize("kwargs", [{"n_steps": 7}, {"gamma": 0.5}, {"alpha": 0.9}, {"beta": 0.9}])
def test_a_buffer_that_contradicts_the_agent(kwargs):
    with pytest.raises(ValueError, match="as a keyword of Rainbow itself"):
        Rainbow("MlpPolicy", "CartPole-v1", replay_buffer_kwargs=kwargs, buffer_size=10)
    Rainbow("MlpPolicy", "CartPole-v1", replay_buffer_kwargs=kwargs, buffer_size=10, **kwargs)


BOX, IMAGE, DICT = (
    spaces.Box(-1, 1, (4,)),
    spaces.Box(0, 255, (4, 36, 36), np.uint8),
    spaces.Dict({"a": spaces.Box(-1, 1, (4,))}),
)
SMALL_IMAGE = spaces.Box(0, 255, (4, 35, 36), np.uint8)


@pytest.mark.parametrize(
    ("policy", "space", "expected"),
    [
        *(("MultiInputPolicy", space, "expected a Dict") for space in (BOX, IMAGE, spaces.Discrete(4))),
        *(("CnnPolicy", space, "expected images.*'MlpPolicy'") for space in (BOX, spaces.Discrete(4))),
        ("CnnPolicy", SMALL_IMAGE, r"\(4, 35, 36\): NatureCNN needs at least 36 x 36 pixels.*encoder='grid'"),
        (RainbowPolicy, DICT, "it has parts. Use 'MultiInputPolicy'"),
    ],
)
def test_a_policy_for_other_observations(policy, space, expected):
    with pytest.raises(ValueError, match=expected):
        Rainbow(policy, SpaceEnv(space, DISCRETE), buffer_size=10)


@pytest.mark.parametrize(
    ("name", "value", "wanted"), [("n_stack", 4, "FrameReplayBuffer"), ("alpha", 0.5, "prior"), ("beta", 0.5, "prior")]
)
def test_keywords_of_our_buffers_for_sb3s(name, value, wanted):
    kwargs = dict(replay_buffer_kwargs={name: value}, buffer_size=10, policy_kwargs=dict(encoder="grid"))
    with pytest.raises(ValueError, match=f"with prioritized=False: SB3's own replay buffer has no {name}.*{wanted}"):
        Rainbow("CnnPolicy", SpaceEnv(IMAGE, DISCRETE), prioritized=False, **kwargs)


def test_files_of_other_algorithms(tmp_path):
    env = SpaceEnv(BOX, DISCRETE)
    agents = {
        "DQNPolicy": DQN("MlpPolicy", env, buffer_size=10),
        "QRDQNPolicy": QRDQN("MlpPolicy", env, buffer_size=10),
        "ActorCriticPolicy": PPO("MlpPolicy", env),
    }
    for name, agent in agents.items():
        agent.save(tmp_path / name)
        with pytest.raises(ValueError, match=f"Rainbow with the policy {name}: .*saved by another algorithm"):
            Rainbow.load(tmp_path / name, buffer_size=10)
    DQN(RainbowPolicy, env, buffer_size=10, policy_kwargs=dict(dueling=True)).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"does not know its \['distributional', 'noisy'.*saved by another algorithm"):
        Rainbow.load(tmp_path / "agent")
    with pytest.raises(ValueError, match="Rainbow with the policy DQNPolicy: expected RainbowPolicy"):
        Rainbow(DQNPolicy, env, buffer_size=10)


class Untrained(DQN):
    """Trains as DQN does."""


class Trained(DQN):
    """Has a training of its own."""

    def train(self, gradient_steps, batch_size=100):
        assert self.q_net.support is not None


@pytest.mark.parametrize("policy", [RainbowPolicy, SparseSimBaRainbowPolicy])
def test_policies_whose_parts_an_algorithm_does_not_train(policy, tmp_path):
    env = SpaceEnv(BOX, DISCRETE)
    common = dict(buffer_size=10, policy_kwargs=dict(distributional=True))
    for algorithm in (DQN, Untrained):
        with pytest.raises(ValueError, match=f"{algorithm.__name__} trains no distributional network.*Use Rainbow or DER"):
            algorithm(policy, env, **common)
        with pytest.raises(ValueError, match=f"{algorithm.__name__} trains no noisy network"):
            algorithm(policy, env, buffer_size=10, policy_kwargs=dict(noisy=True))
    for kwargs in (common, dict(buffer_size=10)):
        with pytest.raises(ValueError, match="QRDQN cannot train a policy of Rainbow"):
            QRDQN(policy, env, **kwargs)
    Trained(policy, env, learning_starts=2, **common).learn(6)
    DQN(policy, env, buffer_size=10, policy_kwargs=dict(dueling=True), learning_starts=2).learn(6)
    # An agent of ours, loaded by the wrong class.
    Rainbow(policy, env, buffer_size=10, prioritized=False, n_steps=1).save(tmp_path / "agent")
    with pytest.raises(ValueError, match="DQN trains no distributional or noisy network"):
        DQN.load(tmp_path / "agent")


FEW = dict(buffer_size=100, learning_starts=4, train_freq=1, device="cpu")


@pytest.mark.parametrize("prioritized", [True, False])
def test_settings_of_the_buffer_that_are_set_by_hand(prioritized, tmp_path):
    def make():
        return Rainbow("MlpPolicy", "CartPole-v1", prioritized=prioritized, **FEW)

    for name, value in (("gamma", 0.5), ("n_steps", 5)):
        expected = rf"{name}={value} of Rainbow, and {name}=.* of its replay buffer.*: expected the same"
        model = make()
        setattr(model, name, value)
        with pytest.raises(ValueError, match=expected):
            model.learn(8)
        model = make().learn(8)
        setattr(model, name, value)
        # Also where somebody calls it himself, and in the middle of a training.
        with pytest.raises(ValueError, match=expected):
            model.train(1, 4)
        make().save(tmp_path / "agent")
        with pytest.raises(ValueError, match=expected):
            Rainbow.load(tmp_path / "agent", env=model.get_env(), custom_objects={name: value})
    with pytest.raises(ValueError, match="with a replay buffer of the class"):
        Rainbow.load(tmp_path / "agent", custom_objects={"prioritized": not prioritized})


def test_a_discount_factor_of_single_steps_may_be_set():
    model = Rainbow("MlpPolicy", "CartPole-v1", n_steps=1, **FEW)
    model.gamma = 0.5
    model.learn(8)


def test_several_steps_with_a_buffer_of_single_ones():
    with pytest.warns(UserWarning, match="is ignored"), pytest.raises(ValueError, match="n_steps=3 of Rainbow, and n_steps=1"):
        Rainbow("MlpPolicy", "CartPole-v1", prioritized=False, replay_buffer_class=ReplayBuffer, **FEW)


def test_a_buffer_of_ours_with_another_discount_factor_than_sb3s_algorithm():
    env = SpaceEnv(IMAGE, DISCRETE)
    common = dict(buffer_size=40, learning_starts=4, replay_buffer_class=FrameReplayBuffer, policy_kwargs=dict(net_arch=[4]))
    steps = {"n_steps": 3, "gamma": 0.9}
    for algorithm in (DQN, QRDQN):
        with pytest.raises(ValueError, match=rf"gamma=0\.5 of {algorithm.__name__}, and gamma=0\.9 of its replay buffer"):
            algorithm("MlpPolicy", env, gamma=0.5, replay_buffer_kwargs=steps, **common)
        # The default of the buffer is none of the algorithm's.
        with pytest.raises(ValueError, match=r"gamma=0\.5 of .*gamma=0\.99 of its"):
            algorithm("MlpPolicy", env, gamma=0.5, replay_buffer_kwargs={"n_steps": 3}, **common)
        model = algorithm("MlpPolicy", env, gamma=0.9, replay_buffer_kwargs=steps, **common).learn(8)
        model.gamma = 0.5
        with pytest.raises(ValueError, match=r"gamma=0\.5 of"):
            model.learn(8)
        algorithm("MlpPolicy", env, gamma=0.5, replay_buffer_kwargs={"gamma": 0.9}, **common).learn(8)
