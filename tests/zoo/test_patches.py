"""What is changed in rl-zoo3 is changed for a while."""

import sys
from contextlib import nullcontext

import gymnasium as gym
import pytest
from stable_baselines3 import SAC

from sb3_sparse import cli, zoo
from sb3_sparse.cli import describe, train_tune_enjoy
from sb3_sparse.dmc import make_dmc
from sb3_sparse.zoo import rl_zoo
from sb3_sparse.zoo.environments import registry_restored
from sb3_sparse.zoo.rl_zoo import replaced
from tests.zoo.state import state_of_rl_zoo

ALGOS = pytest.importorskip("rl_zoo3").ALGOS


@pytest.fixture(autouse=True)
def _not_registered(monkeypatch):
    """Without what other tests have registered for good."""
    for table in ("utils.ALGOS", "hyperparams_opt.HYPERPARAMS_SAMPLER", "hyperparams_opt.HYPERPARAMS_CONVERTER"):
        for name in ("stream_ac", "stream_q", "stream_sarsa", *(["crossq"] if table != "utils.ALGOS" else [])):
            monkeypatch.delitem(rl_zoo.part(table), name, raising=False)


@pytest.mark.parametrize("end", [None, KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("command", ["train", "tune", "enjoy", "describe"])
def test_a_command_leaves_nothing_behind(command, end, monkeypatch):
    import rl_zoo3.enjoy
    import rl_zoo3.train

    during = []

    def instead(*args, **kwargs):
        during.append((state_of_rl_zoo(), dict(ALGOS), dict(rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER)))
        during.append((rl_zoo3.train.ExperimentManager, list(sys.argv)))
        gym.registry["Acrobot-v1"] = gym.registry.pop("CartPole-v1")
        gym.register("Meanwhile-v0", "nowhere:Env")
        if end is not None:
            raise end

    if command != "describe":
        parser = train_tune_enjoy.filled_parser(command)
        monkeypatch.setattr(train_tune_enjoy, "filled_parser", lambda command: parser)
    monkeypatch.setattr(rl_zoo3.train, "train", instead)
    monkeypatch.setattr(rl_zoo3.enjoy, "enjoy", instead)
    monkeypatch.setattr(describe, "untrained_agent", instead)
    monkeypatch.setattr(describe, "describe_model", lambda model: "")
    before, manager = state_of_rl_zoo(), rl_zoo3.train.ExperimentManager
    # Of Ctrl-C, a status and one line.
    raised = SystemExit if end is KeyboardInterrupt else end
    with pytest.raises(raised) if raised else nullcontext():
        cli.main([command, "--algo", "sac", "--env", "Pendulum-v1"])
    # What was registered meanwhile stays.
    assert gym.registry.pop("Meanwhile-v0").entry_point == "nowhere:Env"
    after = state_of_rl_zoo()
    assert dict(after.pop("registry")) == dict(before.pop("registry"))
    assert after == before
    (inside, algorithms, samplers), (inside_manager, argv) = during
    assert inside["tables"] != before["tables"]
    assert {"stream_ac", "stream_q", "stream_sarsa"} <= set(algorithms)
    assert {"stream_ac", "crossq"} <= set(samplers)
    assert all(isinstance(algorithm, type) for algorithm in algorithms.values())
    assert inside_manager is not manager
    if command != "describe":
        assert argv[0] == f"sb3-sparse {'train' if command == 'tune' else command}"
        assert argv[-4:] == ["--algo", "sac", "--env", "Pendulum-v1"] or command == "tune"


def test_what_a_module_registered_stays_and_the_rest_is_put_back():
    before = dict(gym.registry)
    with registry_restored():
        gym.register("OnImport-v0", "nowhere:Env")
        gym.registry["Acrobot-v1"] = gym.registry.pop("Pendulum-v1")
    assert gym.registry.pop("OnImport-v0").entry_point == "nowhere:Env"
    assert gym.registry == before


def test_deepmind_control_can_be_made_after_a_command():
    pytest.importorskip("dm_control")
    for _ in range(2):
        with registry_restored():
            zoo.make_known("dm_control/cartpole-swingup-v0")
        assert "dm_control/cartpole-swingup-v0" in gym.registry
        make_dmc("cartpole", "swingup").close()
        for env_id in [env_id for env_id in gym.registry if env_id.startswith("dm_control/")]:
            del gym.registry[env_id]
        make_dmc("cartpole", "swingup").close()


def test_entries_are_put_back_in_their_order():
    table = {"a": 1, "b": 2, "c": 3}
    with replaced(table, {"b": 20, "d": 40}):
        assert table == {"a": 1, "b": 20, "c": 3, "d": 40}
    assert list(table.items()) == [("a", 1), ("b", 2), ("c", 3)]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("train", "train"),
        ("train", "ExperimentManager"),
        ("enjoy", "get_model_path"),
        ("utils", "ALGOS"),
        ("hyperparams_opt", "HYPERPARAMS_SAMPLER"),
        ("hyperparams_opt", "HYPERPARAMS_CONVERTER"),
        ("exp_manager.ExperimentManager", "read_hyperparameters"),
        ("exp_manager.ExperimentManager", "_preprocess_hyperparams"),
        ("exp_manager.ExperimentManager", "load_trial"),
        ("exp_manager.ExperimentManager", "hyperparameters_optimization"),
    ],
)
def test_a_version_that_lacks_what_is_patched_is_named(module, name, monkeypatch):
    before = state_of_rl_zoo()
    with monkeypatch.context() as patch:
        patch.delattr(rl_zoo.part(module), name)
        with pytest.raises(SystemExit, match=rf"sb3-sparse train: rl-zoo3 \d.* has no rl_zoo3.{module}.{name}, which"):
            cli.main(["train", "--algo", "sac", "--env", "Pendulum-v1"])
    assert state_of_rl_zoo() == before


def test_a_version_without_the_search_space_that_others_are_made_of_is_named(monkeypatch):
    monkeypatch.delitem(rl_zoo.part("hyperparams_opt.HYPERPARAMS_SAMPLER"), "sac")
    with pytest.raises(ImportError, match=r"has no rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER\['sac'\], which"):
        zoo.register_algorithms()


def test_enjoy_allocates_no_buffer(tmp_path):
    SAC("SparseSimBaPolicy", "Pendulum-v1", policy_kwargs={"width_scale": 0.1}).save(tmp_path / "sac")
    with zoo.registered(loads_only=True):
        assert ALGOS["sac"] is not SAC
        assert issubclass(ALGOS["sac"], SAC)
        model = ALGOS["sac"].load(tmp_path / "sac")
    assert type(model) is SAC
    assert model.buffer_size == 1
    assert ALGOS["sac"] is SAC


@pytest.mark.parametrize(
    ("lacking", "says"),
    [
        ("requests", "rl-zoo3 needs requests: pip install requests"),
        ("rl_zoo3", r'this needs rl-zoo3: pip install "sb3-sparse\[zoo\]"'),
        ("rl_zoo3.train", r'this needs rl-zoo3: pip install "sb3-sparse\[zoo\]"'),
    ],
)
def test_what_is_missing_is_what_is_named(lacking, says, monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {lacking!r}", name=lacking)

    monkeypatch.setattr(rl_zoo.importlib, "import_module", import_module)
    with pytest.raises(ImportError, match=says):
        rl_zoo.part("train")
