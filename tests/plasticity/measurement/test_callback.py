"""The callback, as a user meets it: logs, files, pictures, and training that does not notice."""

import csv
import subprocess
import sys
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch as th
import yaml
from sb3_contrib import QRDQN, TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_sparse.plasticity import DEFAULT_METRICS, METRICS, PlasticityCallback, ResetCallback
from sb3_sparse.plasticity.measurement.named_metrics import columns
from sb3_sparse.streaming import StreamAC
from tests.envs import ReachEnv, SpaceEnv
from tests.plasticity.measurement.test_probe import DISCRETE, assert_equal_states, make, state_of

NETWORKS = ["actor", "critic"]


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def untrained(algorithm, policy="MlpPolicy", **kwargs):
    return make(algorithm, policy, steps=0, **kwargs)


@pytest.mark.parametrize(
    ("algorithm", "policy", "kwargs"),
    [
        (SAC, "SparseSimBaPolicy", {"policy_kwargs": {"width_scale": 0.05}}),
        (SAC, "MlpPolicy", {}),
        (SAC, "MlpPolicy", {"use_sde": True, "sde_sample_freq": 4}),
        (DQN, "MlpPolicy", {"env": "CartPole-v1"}),
        (PPO, "MlpPolicy", {}),
        (A2C, "MlpPolicy", {"n_steps": 5}),
    ],
)
def test_training_is_bit_equal_with_and_without(algorithm, policy, kwargs, tmp_path):
    states = []
    for callback in (None, PlasticityCallback(40, 8, metrics="all", csv_path=str(tmp_path / "p.csv"))):
        model = untrained(algorithm, policy, **kwargs)
        if policy == "SparseSimBaPolicy":  # images once; they take longer than all the rest
            model.set_logger(configure(str(tmp_path / f"tb{len(states)}"), ["tensorboard"]))
        model.learn(100, callback=callback)
        state = state_of(model)
        for name in model._get_torch_save_params()[0]:
            if name.endswith("optimizer"):
                optimizer = model.policy.optimizer if name == "policy.optimizer" else getattr(model, name.split(".")[0])
                optimizer = getattr(optimizer, "optimizer", optimizer)
                for i, entry in optimizer.state_dict()["state"].items():
                    state |= {f"{name}.{i}.{key}": value for key, value in entry.items()}
        if hasattr(model, "replay_buffer"):
            state["next batch"] = model.replay_buffer.sample(32).observations
        states.append(state)
    assert len(rows_of(tmp_path / "p.csv")) > 2
    assert_equal_states(*states)


OFF_POLICY = (SAC, TD3, DDPG, TQC, CrossQ, DQN, QRDQN)


@pytest.mark.parametrize(
    ("algorithm", "policy"),
    [(algorithm, "MlpPolicy") for algorithm in (*OFF_POLICY, PPO, A2C)]
    + [(algorithm, "SparseSimBaPolicy") for algorithm in OFF_POLICY],
)
def test_every_algorithm(algorithm, policy, tmp_path):
    model = untrained(algorithm, policy, policy_kwargs={"net_arch": [8]})
    callback = PlasticityCallback(40, 10, csv_path=str(tmp_path / "p.csv"))
    model.learn(80, callback=callback, log_interval=1)
    networks = ["critic"] if algorithm in (DQN, QRDQN) else NETWORKS
    header, *rows = rows_of(tmp_path / "p.csv")
    assert header == ["timesteps", *columns(DEFAULT_METRICS, networks)]
    assert [int(row[0]) for row in rows] == [40, 80]
    assert np.isfinite(np.array(rows, dtype=float)).all()


def test_logger_and_table_agree_and_no_key_is_too_long_for_the_console(tmp_path, capsys):
    model = untrained(SAC, "SparseSimBaPolicy", policy_kwargs={"width_scale": 0.1})
    model.set_logger(configure(str(tmp_path), ["stdout", "csv", "tensorboard"]))
    model.learn(55, callback=PlasticityCallback(50, 16, metrics="all"), log_interval=1)
    model.logger.dump(55)
    names = columns(list(METRICS), NETWORKS)
    header, row = rows_of(tmp_path / "plasticity.csv")
    assert header == ["timesteps", *names]
    printed = capsys.readouterr().out
    # SB3's table cuts what follows the slash after 30 characters and stops if two keys become equal.
    assert all(len(name) < 30 and f" {name} " in printed for name in names)
    progress = rows_of(tmp_path / "progress.csv")
    logged = {key: value for line in progress[1:] for key, value in zip(progress[0], line, strict=False) if value}
    for name, value in zip(names, row[1:], strict=True):
        assert float(logged[f"plasticity/{name}"]) == pytest.approx(float(value), rel=1e-6)


def test_pictures_in_tensorboard(tmp_path):
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = untrained(SAC, tensorboard_log=str(tmp_path))
    model.learn(55, callback=PlasticityCallback(50, 16), log_interval=1)
    model.logger.dump(55)
    events = EventAccumulator(model.logger.dir)
    events.Reload()
    pictures = [f"plasticity/{network}_{name}" for network in NETWORKS for name in ("interference", "spectrum")]
    assert sorted(events.Tags()["images"]) == sorted(pictures)
    assert "plasticity/critic_srank" in events.Tags()["scalars"]
    model = untrained(SAC, tensorboard_log=str(tmp_path))
    model.learn(55, callback=PlasticityCallback(50, 16, figures=False), log_interval=1)
    events = EventAccumulator(model.logger.dir)
    events.Reload()
    assert not events.Tags()["images"]


def test_without_matplotlib_training_goes_on_after_one_warning(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = untrained(SAC, tensorboard_log=str(tmp_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(75, callback=PlasticityCallback(25, 16))
    ours = [str(warning.message) for warning in caught if "PlasticityCallback" in str(warning.message)]
    assert len(ours) == 1
    assert 'pip install "sb3-sparse[zoo]"' in ours[0]
    assert len(rows_of(f"{model.logger.dir}/plasticity.csv")) == 4


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
def test_where_the_table_is(tmp_path, capsys):
    # Nothing writes files: no table.
    callback = PlasticityCallback(20, 8)
    untrained(SAC).learn(45, callback=callback)
    assert callback.table is None
    # Beside the evaluations, if there are any, else in the folder of the logger.
    evaluations = EvalCallback(ReachEnv(), eval_freq=30, n_eval_episodes=1, log_path=str(tmp_path / "run"), verbose=0)
    model = untrained(SAC, tensorboard_log=str(tmp_path / "tb"))
    model.learn(45, callback=[evaluations, PlasticityCallback(20, 8, verbose=1)])
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"evaluations.npz", "plasticity.csv"}
    assert str(tmp_path / "run" / "plasticity.csv") in capsys.readouterr().out
    model.learn(45, callback=PlasticityCallback(20, 8))
    assert len(rows_of(f"{model.logger.dir}/plasticity.csv")) == 3


def test_a_run_that_goes_on_continues_its_table(tmp_path):
    path = str(tmp_path / "deep" / "p.csv")
    model = untrained(SAC)
    model.learn(70, callback=PlasticityCallback(20, 8, csv_path=path))
    first = rows_of(path)
    assert [row[0] for row in first[1:]] == ["20", "40", "60"]
    model.num_timesteps = 50  # as if it had been saved there and was loaded after a crash
    model.learn(40, callback=PlasticityCallback(20, 8, "srank", csv_path=path), reset_num_timesteps=False)
    second = rows_of(path)
    assert [row[0] for row in second[1:]] == ["20", "40", "60", "80"]
    assert second[0] == first[0]
    assert second[:3] == first[:3]
    index = second[0].index("critic_srank"), second[0].index("critic_fau")
    assert second[4][index[0]] != ""
    assert second[4][index[1]] == ""
    assert not list((tmp_path / "deep").glob("*.tmp"))
    # From the beginning: a new table.
    model.learn(25, callback=PlasticityCallback(20, 8, csv_path=path))
    assert [row[0] for row in rows_of(path)[1:]] == ["20"]
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="not a table of plasticity metrics"):
        model.learn(5, PlasticityCallback(20, 8, csv_path=str(tmp_path / "other.csv")), reset_num_timesteps=False)


def test_too_few_samples_are_waited_for(tmp_path):
    path = str(tmp_path / "p.csv")
    untrained(SAC).learn(100, callback=PlasticityCallback(20, 50, csv_path=path))
    assert [row[0] for row in rows_of(path)[1:]] == ["60", "80", "100"]


def test_normalised_observations_reach_the_probe(tmp_path, monkeypatch):
    """What VecNormalize does to a replayed batch, it does to ours."""
    from stable_baselines3.common.env_util import make_vec_env

    env = VecNormalize(make_vec_env(lambda: ReachEnv(mean=100.0, scale=5.0), 2))
    seen = []
    monkeypatch.setattr(PlasticityCallback, "_log", lambda self, probe: seen.append(probe.batch.observations))
    make(SAC, env=env, steps=0).learn(100, callback=PlasticityCallback(50, 40))
    assert len(seen) == 2
    assert all(abs(float(observations.mean())) < 1 for observations in seen)


class ValuePolicy(BasePolicy):
    def __init__(self, observation_space, action_space, lr_schedule, **kwargs):
        super().__init__(observation_space, action_space)
        self.critic = nn.Sequential(nn.Linear(observation_space.shape[0], 8), nn.ReLU(), nn.Linear(8, 1))

    def _predict(self, observation, deterministic=False):
        return 2 * th.rand(len(observation), self.action_space.shape[0]) - 1


class Streaming(BaseAlgorithm):
    """No buffer, and losses that nobody knows."""

    policy_aliases: ClassVar = {"ValuePolicy": ValuePolicy}

    def _setup_model(self):
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = ValuePolicy(self.observation_space, self.action_space, self.lr_schedule)

    def learn(self, total_timesteps, callback: BaseCallback | None = None, **kwargs):
        total_timesteps, callback = self._setup_learn(total_timesteps, callback)
        callback.on_training_start(locals(), globals())
        while self.num_timesteps < total_timesteps:
            actions, _ = self.predict(self._last_obs)
            new_obs, rewards, dones, infos = self.env.step(actions)
            self.num_timesteps += 1
            callback.update_locals(locals())
            callback.on_step()
            self._last_obs = new_obs
        callback.on_training_end()
        return self


def test_an_algorithm_without_a_buffer_is_measured_on_what_it_observes(tmp_path, monkeypatch):
    path = str(tmp_path / "p.csv")
    model = Streaming("ValuePolicy", ReachEnv(), learning_rate=0.1, seed=0)
    model._setup_model()
    with pytest.warns(UserWarning, match="losses of Streaming are not known"):
        model.learn(200, callback=PlasticityCallback(100, 20, csv_path=path))
    header, *rows = rows_of(path)
    assert header == ["timesteps", *columns(DEFAULT_METRICS, ["critic"])]
    assert [row[0] for row in rows] == ["100", "200"]
    for name, value in zip(header, rows[0], strict=True):
        assert bool(value) != any(word in name for word in ("gradient", "interference")), name
    # Observations from all over the interval, and those that belong to it.
    seen = []
    monkeypatch.setattr(PlasticityCallback, "_log", lambda self, probe: seen.append(probe.batch.observations))
    observed = []

    class Spy(BaseCallback):
        def _on_step(self):
            observed.append(th.tensor(self.model._last_obs[0]).float())
            return True

    with pytest.warns(UserWarning, match="are not known"):
        model.learn(200, callback=[Spy(), PlasticityCallback(100, 20)])
    for i in (0, 1):
        assert th.equal(seen[i], th.stack(observed[100 * i + 4 : 100 * i + 100 : 5]))
    assert len(th.stack(observed).unique(dim=0)) > 100


def test_names_and_numbers_that_cannot_be(tmp_path):
    for kwargs, message in [
        ({"log_freq": 0}, "log_freq=0: expected a positive whole number"),
        ({"n_samples": 1}, "n_samples=1: expected a whole number of at least 2"),
        ({"log_freq": 10.5}, "log_freq=10.5"),
        ({"log_freq": float("inf")}, "log_freq=inf"),
        ({"metrics": ["srnak"]}, "unknown metric 'srnak': expected 'all' or some of"),
        ({"networks": "quantile_net"}, "goes by the name 'critic'"),
    ]:
        with pytest.raises(ValueError, match=message):
            PlasticityCallback(**kwargs)
    with pytest.raises(ValueError, match="DQN has no network actor, it has: critic"):
        untrained(DQN, env=SpaceEnv(*DISCRETE)).learn(5, callback=PlasticityCallback(networks="actor"))
    with pytest.raises(ValueError, match="is recurrent"):
        RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=8).learn(8, callback=PlasticityCallback())


def test_every_measurement_reaches_tensorboard_under_its_own_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make(SAC, steps=0)
    model.tensorboard_log = str(tmp_path)
    model.learn(200, callback=PlasticityCallback(40, 16, metrics=["fau"], figures=False), log_interval=1000)
    events = EventAccumulator(str(next(tmp_path.iterdir()))).Reload()
    assert [event.step for event in events.Scalars("plasticity/critic_fau")] == [40, 80, 120, 160, 200]


def test_two_callbacks_do_not_write_to_one_file(tmp_path):
    path = str(tmp_path / "p.csv")
    both = [PlasticityCallback(20, 8, metrics="fau", csv_path=path) for _ in range(2)]
    with pytest.raises(ValueError, match="give one of them another csv_path"):
        make(SAC, steps=0).learn(40, callback=both)
    with pytest.raises(ValueError, match="is a folder"):
        make(SAC, steps=0).learn(40, callback=PlasticityCallback(20, 8, csv_path=str(tmp_path)))


@pytest.mark.parametrize("turned", [False, True])
def test_nor_if_one_is_inside_another_callback(tmp_path, turned):
    """Mistake of ours: inside an event callback it was not seen, and the second one replaced its table."""
    inside = EveryNTimesteps(10, PlasticityCallback(5, 16, csv_path=tmp_path / "a.csv", metrics=["fau"]))
    pair = [inside, PlasticityCallback(5, 16, csv_path=tmp_path / "a.csv", metrics=["srank"])]
    with pytest.raises(ValueError, match="two PlasticityCallbacks write to"):
        make(SAC, steps=1).learn(20, callback=pair[::-1] if turned else pair)


@pytest.mark.parametrize("inner", [PlasticityCallback(10, 16), ResetCallback(10)])
def test_what_sb3_never_tells_that_training_starts_says_so(inner):
    env = ReachEnv()
    callback = EvalCallback(env, callback_on_new_best=inner, eval_freq=10, n_eval_episodes=1, warn=False)
    with pytest.raises(ValueError, match=f"{type(inner).__name__} as callback_on_new_best of EvalCallback"):
        make(SAC, steps=1).learn(40, callback=callback)


def test_a_run_without_a_measurement_is_not_silent():
    with pytest.warns(UserWarning, match="has measured nothing in 40 timesteps"):
        make(SAC, steps=0).learn(40, callback=PlasticityCallback(n_samples=64))


def test_a_batch_that_the_buffer_can_never_hold_is_refused():
    with pytest.raises(ValueError, match="n_samples=256: the replay buffer holds 200 transitions at most"):
        make(SAC, steps=0).learn(40, callback=PlasticityCallback())


def test_a_file_that_cannot_be_written_is_named_before_training(tmp_path):
    (tmp_path / "mine.csv").write_text("my precious,data\n")
    (tmp_path / "afile").write_text("")
    for name, message in [("mine.csv", "is not a table of plasticity metrics"), ("afile/x.csv", "choose another csv_path")]:
        model = make(SAC, steps=0)
        with pytest.raises(ValueError, match=message):
            model.learn(40, callback=PlasticityCallback(csv_path=tmp_path / name))
        assert model.num_timesteps == 0
    assert (tmp_path / "mine.csv").read_text() == "my precious,data\n"
    with pytest.raises(ValueError, match="csv_path=5"):
        PlasticityCallback(csv_path=5)


def test_a_disk_that_fills_up_does_not_end_the_training(tmp_path, monkeypatch):
    def append(self, timesteps, values):
        raise OSError("No space left on device")

    monkeypatch.setattr("sb3_sparse.plasticity.measurement.table.CsvTable.append", append)
    callback = PlasticityCallback(log_freq=30, n_samples=16, metrics="fau", csv_path=tmp_path / "p.csv")
    with pytest.warns(UserWarning, match="No space left on device"):
        assert make(SAC, steps=0).learn(40, callback=callback).num_timesteps == 40


def test_rollouts_hidden_by_an_event_callback_are_an_error():
    for callback in (PlasticityCallback(log_freq=16, n_samples=8), ResetCallback(every_env_steps=16)):
        model = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=8)
        with pytest.raises(ValueError, match=f"{type(callback).__name__} inside an event callback"):
            model.learn(64, callback=EveryNTimesteps(8, callback))


def test_steps_of_streaming_agents_hidden_by_an_event_callback_are_an_error():
    model, callback = StreamAC("MlpPolicy", "CartPole-v1"), PlasticityCallback(log_freq=16, n_samples=8, metrics="fau")
    with pytest.raises(ValueError, match="inside an event callback, such as EveryNTimesteps, does not see the steps"):
        model.learn(64, callback=EveryNTimesteps(8, callback))
    # One that hides nothing is as good as none, also in training that goes on.
    model = StreamAC("MlpPolicy", "CartPole-v1")
    for _ in range(2):
        model.learn(32, callback=EveryNTimesteps(1, callback), reset_num_timesteps=False)
        assert callback._n_logged == 2


def test_on_policy_measurements_are_logged_under_their_own_steps(tmp_path):
    model = A2C("MlpPolicy", "CartPole-v1")
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(100, callback=PlasticityCallback(log_freq=20, n_samples=5, metrics="fau"))
    with (tmp_path / "progress.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["plasticity/critic_fau"]]
    assert [int(row["time/total_timesteps"]) for row in rows] == [20, 40, 60, 80, 100]


def test_in_a_yaml_for_rl_zoo3(tmp_path):
    pytest.importorskip("rl_zoo3")
    callback = {"sb3_sparse.plasticity.PlasticityCallback": {"log_freq": 20, "n_samples": 16, "metrics": ["srank", "fau"]}}
    entry = {"n_timesteps": 60, "policy": "sb3_sparse.SparseSimBaPolicy", "policy_kwargs": {"width_scale": 0.1}}
    (tmp_path / "my.yml").write_text(yaml.safe_dump({"Pendulum-v1": {**entry, "learning_starts": 30, "callback": [callback]}}))
    command = ["train", "--algo", "sac", "--env", "Pendulum-v1", "-conf", "my.yml", "-f", "logs"]
    command += ["--eval-freq", "50", "--eval-episodes", "1", "--seed", "0"]
    result = subprocess.run(
        [sys.executable, "-m", "sb3_sparse.cli", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    header, *rows = rows_of(tmp_path / "logs/sac/Pendulum-v1_1/plasticity.csv")
    assert header[:3] == ["timesteps", "actor_srank", "actor_srank_normalized"]
    assert [row[0] for row in rows] == ["20", "40", "60"]
