"""Arguments: the same strictness everywhere, plain Python in files, and whose file is whose."""

import io
import json
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
from gymnasium import spaces

from sb3_sparse.streaming import StreamAC, StreamACPolicy, StreamQ, StreamQPolicy, StreamSARSA
from tests.envs import SpaceEnv
from tests.streaming.test_algorithms import assert_same_state, state_of

FLAGS = ("bootstrap_truncated", "normalize_observations", "normalize_reward", "adaptive")


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["False", 1, None, 0.0, [True]], ids=str)
def test_flags_are_true_or_false(name, value, tmp_path):
    with pytest.raises(ValueError, match=rf"^{name}=.*: expected True or False\.$"):
        StreamAC("MlpPolicy", "CartPole-v1", **{name: value})
    StreamAC("MlpPolicy", "CartPole-v1").save(tmp_path / "agent")
    is_fixed = name in StreamAC.fixed_keywords
    message = rf"^load\(..., {name}=.*its own" if is_fixed else rf"^{name}=.*: expected True or False\.$"
    with pytest.raises(ValueError, match=message):
        StreamAC.load(tmp_path / "agent", **{name: value})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(time_feature="500"), "time_feature='500': expected True, False, or a number of steps"),
        (dict(time_feature=1.5), "time_feature=1.5: expected True, False"),
        (dict(time_feature=None), "time_feature=None: expected True, False"),
        (dict(learning_rate="1"), "learning_rate='1': expected a number that is not negative"),
        (dict(learning_rate=-1.0), "learning_rate=-1.0: expected a number that is not negative"),
        (dict(stats_window_size=0), "stats_window_size=0: expected a positive whole number"),
        (dict(seed=1.5), "seed=1.5: expected a whole number of at least 0"),
        (dict(gamma="0.9"), "gamma='0.9': expected a number in"),
        (dict(kappa_value=float("nan")), "kappa_value=nan: expected a positive number"),
        (dict(env=None), "env=None: StreamAC needs an environment"),
    ],
    ids=str,
)
def test_wrong_settings_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        StreamAC("MlpPolicy", **{"env": "CartPole-v1", **keywords})


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (dict(net_arch=[8, 0]), r"net_arch\[1\]=0: expected a positive whole number"),
        (dict(net_arch=8), "net_arch=8: expected a list of positive whole numbers"),
        (dict(net_arch="88"), "net_arch='88': expected a list of positive whole numbers"),
        (dict(net_arch={"pi": [8], "vf": [2.5]}), r"net_arch\['vf'\]\[0\]=2.5: expected a positive whole number"),
        (dict(width_scale=True), "width_scale=True: expected a positive number"),
        (dict(rescale="no"), "rescale='no': expected True or False"),
        (dict(init_sparsity="0.5"), r"init_sparsity='0.5': expected a number in \[0, 1\]"),
        (dict(init_sparsity=None), r"init_sparsity=None: expected a number in \[0, 1\]"),
        (dict(initialization="zeros"), r"initialization='zeros': expected one of \['lecun_uniform', 'sparse_init'\]"),
        (dict(mask_seed=0.5), "mask_seed=0.5: expected a whole number of at least 0"),
    ],
    ids=str,
)
def test_wrong_settings_of_the_policy_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        StreamAC("MlpPolicy", "CartPole-v1", policy_kwargs=keywords)


def test_an_unknown_keyword_of_the_policy_is_named():
    with pytest.raises(TypeError, match=r"StreamACPolicy has no keywords \['hidden'\]"):
        StreamAC("MlpPolicy", "CartPole-v1", policy_kwargs=dict(hidden=[8]))


def test_numbers_of_numpy_count_as_numbers_and_are_saved_as_plain_ones(tmp_path):
    f, b = np.float32, np.bool_
    settings = dict(
        learning_rate=f(0.5),
        gamma=f(0.5),
        trace_lambda=np.array(0.5),
        bootstrap_truncated=b(True),
        normalize_observations=b(True),
        normalize_reward=b(False),
        time_feature=np.int64(50),
        adaptive=b(False),
        seed=np.int64(3),
        stats_window_size=np.int64(10),
        kappa_policy=np.int64(3),
        kappa_value=f(2.0),
        ent_coef=f(0.25),
    )
    kwargs = dict(net_arch=np.array([8, 8]), sparsity=f(0.5), mask_seed=np.int64(7), rescale=b(True))
    plain = {name: value.item() for name, value in settings.items()}
    plain["policy_kwargs"] = dict(net_arch=[8, 8], sparsity=0.5, mask_seed=7, rescale=True)
    states, files = [], []
    for i, given in enumerate((dict(settings, policy_kwargs=kwargs), plain)):
        agent = StreamAC("MlpPolicy", "Pendulum-v1", **given).learn(20)
        agent.save(tmp_path / str(i))
        states.append(state_of(agent))
        data = json.loads(zipfile.ZipFile(tmp_path / f"{i}.zip").read("data"))
        names = {*plain, "_stats_window_size", "_time_limit"} - {"stats_window_size"}
        files.append({name: data[name] for name in names})
    assert type(kwargs["net_arch"]) is np.ndarray  # the caller's own is as it was
    assert_same_state(*states)
    assert files[0] == files[1]
    assert files[0]["policy_kwargs"] == dict(net_arch=[8, 8], sparsity=0.5, mask_seed=7, rescale=True)
    assert not any(isinstance(value, dict) and ":serialized:" in value for value in files[0].values())
    assert_same_state(states[0], state_of(StreamAC.load(tmp_path / "0", policy_kwargs=kwargs)))
    q = StreamQ(
        "MlpPolicy",
        "CartPole-v1",
        kappa=f(2.0),
        exploration_fraction=f(0.5),
        exploration_initial_eps=f(0.5),
        policy_kwargs=dict(net_arch=[np.int64(8)]),
    )
    assert {type(v) for v in (q.kappa, q.exploration_fraction, q.exploration_initial_eps, q.exploration_rate)} == {float}
    assert q.policy.net_arch == {"qf": [8]}
    assert type(q.policy.net_arch["qf"][0]) is int


@pytest.mark.parametrize(
    ("observations", "actions", "message"),
    [
        (spaces.Box(-1, 1, (0,)), spaces.Discrete(2), r"observation space .*: expected one with at least one number"),
        (spaces.Box(-1, 1, (3, 0)), spaces.Discrete(2), r"observation space .*: expected one with at least one number"),
        (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (0,)), r"action space .*: expected one with at least one number"),
    ],
    ids=str,
)
def test_spaces_without_a_number_are_refused(observations, actions, message):
    with pytest.raises(ValueError, match=message):
        StreamAC("MlpPolicy", SpaceEnv(observations, actions))


def test_images_without_a_pixel_are_refused():
    for shape in ((0, 10, 10), (10, 0, 4), (10, 10, 0)):
        with pytest.raises(ValueError, match="expected one with at least one number"):
            StreamQ("CnnPolicy", SpaceEnv(spaces.Box(0, 1, shape), spaces.Discrete(2)))


@pytest.mark.parametrize("algorithm", [StreamAC, StreamQ, StreamSARSA])
def test_the_smallest_spaces_work(algorithm):
    for observations in (spaces.Box(-1, 1, ()), spaces.Box(-1, 1, (1,))):
        model = algorithm("MlpPolicy", SpaceEnv(observations, spaces.Discrete(1)), time_feature=False, seed=0).learn(15)
        assert model.predict(observations.sample())[0] == 0
    if algorithm is StreamAC:
        algorithm("MlpPolicy", SpaceEnv(spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, ())), seed=0).learn(15)


DISCRETE = {"StreamQ", "StreamSARSA", "DQN", "QRDQN", "MaskablePPO", "A2C"}
STREAMING = {"StreamAC": StreamAC, "StreamQ": StreamQ, "StreamSARSA": StreamSARSA}
OTHERS = {
    name: getattr(library, name)
    for library, names in (
        (stable_baselines3, ["A2C", "DDPG", "DQN", "PPO", "SAC", "TD3"]),
        (sb3_contrib, ["ARS", "CrossQ", "MaskablePPO", "QRDQN", "RecurrentPPO", "TQC", "TRPO"]),
    )
    for name in names
}
OFF_POLICY = {"DDPG", "DQN", "SAC", "TD3", "CrossQ", "QRDQN", "TQC"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agents")
    for name, algorithm in {**STREAMING, **OTHERS}.items():
        policy = "MlpLstmPolicy" if name == "RecurrentPPO" else "MlpPolicy"
        settings = {"buffer_size": 10} if name in OFF_POLICY else {}
        algorithm(policy, "CartPole-v1" if name in DISCRETE else "Pendulum-v1", **settings).save(folder / name)
    return folder


@pytest.mark.parametrize("algorithm", STREAMING)
@pytest.mark.parametrize("saved", [*STREAMING, *OTHERS])
def test_the_file_of_another_algorithm_is_named(algorithm, saved, files):
    if saved == algorithm:
        assert isinstance(STREAMING[algorithm].load(files / saved), STREAMING[algorithm])
        return
    # DDPG is TD3 with other settings: their files cannot be told apart.
    found = ["DDPG", "TD3"] if saved in ("DDPG", "TD3") else [saved]
    expected = f"{' or '.join(found)}, which {algorithm} cannot load: use {' or '.join(f'{name}.load' for name in found)}."
    for name in (files / saved, str(files / f"{saved}.zip")):
        with pytest.raises(ValueError, match=expected):
            STREAMING[algorithm].load(name)


@pytest.mark.parametrize("saved", STREAMING)
@pytest.mark.parametrize("algorithm", [name for name in OTHERS if name != "ARS"])
def test_the_file_of_a_streaming_agent_is_named_where_others_load_it(algorithm, saved, files):
    with pytest.raises(ValueError, match=rf"Stream(AC|Q)Policy is a policy of .*loaded by .*{saved}\.load"):
        OTHERS[algorithm].load(files / saved)


def test_open_files_and_subclasses_are_loaded_as_before(files):
    class Own(StreamSARSA):
        pass

    with (files / "StreamSARSA.zip").open("rb") as file:
        content = io.BytesIO(file.read())
    for algorithm in (StreamSARSA, Own):
        content.seek(0)
        assert type(algorithm.load(content)) is algorithm
    content.seek(0)
    with pytest.raises(ValueError, match="holds an agent of StreamSARSA, which StreamQ cannot load"):
        StreamQ.load(content)
    assert isinstance(StreamSARSA.load(content), StreamSARSA)
    with pytest.raises(FileNotFoundError):
        StreamQ.load(files / "nothing")


def saved_data(path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("data"))


@pytest.mark.parametrize("saved", STREAMING)
def test_a_file_says_whose_agent_it_holds(saved, files, tmp_path):
    assert saved_data(files / f"{saved}.zip")["algorithm"] == saved

    class Own(STREAMING[saved]):
        pass

    Own("MlpPolicy", "CartPole-v1").save(tmp_path / "own")
    assert saved_data(tmp_path / "own.zip")["algorithm"] == saved
    STREAMING[saved].load(tmp_path / "own").save(tmp_path / "again")
    assert saved_data(tmp_path / "again.zip")["algorithm"] == saved


def test_what_a_file_says_counts_before_what_its_settings_look_like(tmp_path):
    class Other(StreamQ):
        kind = "Other"

        def __init__(self, *args, kappa_policy=1.0, **kwargs):
            super().__init__(*args, **kwargs)
            self.kappa_policy = kappa_policy

    Other("MlpPolicy", "CartPole-v1").save(tmp_path / "other")
    assert isinstance(Other.load(tmp_path / "other"), Other)
    for algorithm in STREAMING.values():
        with pytest.raises(ValueError, match=r"an agent of Other, which .* cannot load: use Other\.load"):
            algorithm.load(tmp_path / "other")


@pytest.mark.parametrize("saved", STREAMING)
@pytest.mark.parametrize("algorithm", STREAMING)
def test_files_that_do_not_say_it_are_told_by_their_settings(algorithm, saved, tmp_path):
    """As version 0.2 wrote them."""
    model = STREAMING[saved]("MlpPolicy", "CartPole-v1")
    model.save(tmp_path / "agent", exclude=["algorithm"])
    assert "algorithm" not in saved_data(tmp_path / "agent.zip")
    if saved == algorithm:
        assert STREAMING[saved].load(tmp_path / "agent").algorithm == saved
    else:
        with pytest.raises(ValueError, match=f"an agent of {saved}, which {algorithm} cannot load"):
            STREAMING[algorithm].load(tmp_path / "agent")


def test_policies_alone_need_no_algorithm():
    env = gym.make("CartPole-v1")
    for policy in (StreamACPolicy, StreamQPolicy):
        policy(env.observation_space, env.action_space)
        policy(env.observation_space, env.action_space, lambda _: 1.0, gamma=0.9)
        with pytest.raises(ValueError, match=f"{policy.__name__} is a policy of Stream"):
            policy(env.observation_space, env.action_space, lambda _: 1.0)
