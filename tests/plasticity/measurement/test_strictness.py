"""Callbacks refuse before they touch anything, take NumPy's numbers as Python's, and know whose losses they know."""

import json
import warnings
import zipfile

import numpy as np
import pytest
import torch as th
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_sparse.plasticity import PlasticityCallback, Probe, ResetCallback, measure, reset_model_
from sb3_sparse.plasticity.measurement.losses import has_losses, per_sample_losses, why_no_losses
from sb3_sparse.plasticity.measurement.table import CsvTable
from sb3_sparse.streaming import StreamAC
from tests.plasticity.resets.test_sb3_model import make_model

OLD = "timesteps,critic_fau\n100,0.5\n"


class Refuses(BaseCallback):
    def _on_training_start(self):
        raise TypeError("not with me")

    def _on_step(self):
        return True


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (lambda one: [one], "the replay buffer holds 100 transitions at most"),
        (lambda one: [one, Refuses()], "not with me"),
        (lambda one: [one, ResetCallback(at=[10], strategy="last_layers", n_layers=50)], "n_layers=50"),
    ],
    ids=["capacity", "another callback", "a reset"],
)
def test_what_is_refused_leaves_the_old_table(callbacks, message, tmp_path):
    path = tmp_path / "plasticity.csv"
    path.write_text(OLD)
    n_samples = 200 if message.startswith("the replay") else 8
    model = make_model(SAC, steps=0, buffer_size=100)
    with pytest.raises((ValueError, TypeError), match=message):
        model.learn(40, callback=callbacks(PlasticityCallback(20, n_samples, "fau", csv_path=path)))
    assert path.read_text() == OLD
    assert [file.name for file in tmp_path.iterdir()] == ["plasticity.csv"]
    model.learn(40, callback=PlasticityCallback(20, 8, "fau", csv_path=path))
    assert path.read_text().splitlines()[0] == "timesteps,actor_fau,critic_fau"


def test_a_table_is_replaced_when_training_begins_even_if_nothing_is_measured(tmp_path):
    path = tmp_path / "plasticity.csv"
    path.write_text(OLD)
    with pytest.warns(UserWarning, match="measured nothing"):
        make_model(SAC, steps=0).learn(3, callback=PlasticityCallback(1000, 8, "fau", csv_path=path))
    assert path.read_text().split() == ["timesteps,actor_fau,critic_fau"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"timesteps,a\n10,1\n20,oops\n", "line 3: a is 'oops', which is no number"),
        (b"timesteps,a\n10,1\n1e1,2\n", "line 3: timesteps is '1e1', which is no whole number"),
        (b"timesteps,a\n,1\n", "line 2: timesteps is '', which is no whole number"),
        (b"timesteps,a\n10,1\n20\n", "line 3: 1 cells, and 2 columns"),
        (b"timesteps,a\n10,1,5\n", "line 2: 3 cells, and 2 columns"),
        (b"timesteps,a\n10,\xff\n", "line 1: .*can't decode"),
    ],
    ids=str,
)
def test_a_damaged_table_is_named_with_the_line(content, message, tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)p\.csv, {message}.*The file is damaged: repair or remove it"):
        CsvTable(path, ["a"], start=50)
    assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == 1


def test_a_write_that_fails_leaves_no_file_behind(tmp_path):
    table = CsvTable(tmp_path / "p.csv", ["a"])
    table.rows = [{"no such column": "1"}]
    with pytest.raises(ValueError, match="not in fieldnames"):
        table.begin()
    assert not list(tmp_path.iterdir())


LISTED = [SAC, TD3, DDPG, TQC, CrossQ, DQN, QRDQN, PPO, A2C, TRPO]


@pytest.mark.parametrize("algorithm", LISTED)
def test_a_subclass_with_a_train_of_its_own_has_no_losses(algorithm):
    class Same(algorithm):
        """Other defaults."""

    class Own(algorithm):
        def train(self, *args, **kwargs):
            return super().train(*args, **kwargs)

    class Protocol(Own):
        def per_sample_losses(self, network, batch):
            return th.zeros(3)

    env = "CartPole-v1" if algorithm in (DQN, QRDQN) else "Pendulum-v1"
    settings = {"buffer_size": 10} if hasattr(algorithm, "collect_rollouts") and algorithm not in (PPO, A2C, TRPO) else {}
    make = lambda kind: kind("MlpPolicy", env, policy_kwargs=dict(net_arch=[4]), **settings)  # noqa: E731
    assert has_losses(make(Same))
    model = make(Own)
    assert not has_losses(model)
    known = "TD3" if algorithm is DDPG else algorithm.__name__
    assert f"the losses of Own are not known (it is a {known} with a train() of its own" in why_no_losses(model)
    with pytest.raises(ValueError, match="the losses of Own are not known"):
        per_sample_losses(model, "critic", None)
    assert has_losses(make(Protocol))
    patched = make(Same)
    patched.train = lambda *args: None
    assert not has_losses(patched)


def test_an_on_policy_algorithm_that_nobody_knows_has_no_losses():
    class Own(OnPolicyAlgorithm):
        policy_aliases = PPO.policy_aliases

        def train(self):
            pass

    settings = dict(n_steps=8, gamma=0.9, gae_lambda=0.9, ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5)
    model = Own("MlpPolicy", "CartPole-v1", 1e-3, use_sde=False, sde_sample_freq=-1, **settings)
    assert not has_losses(model)
    assert "(it is" not in why_no_losses(model)


def test_metrics_that_need_losses_say_so(tmp_path):
    class Own(DQN):
        def train(self, gradient_steps, batch_size=100):
            return super().train(gradient_steps, batch_size)

    model = make_model(Own, policy="MlpPolicy", env="CartPole-v1")
    path = tmp_path / "p.csv"
    with pytest.warns(UserWarning, match=r"losses of Own .* \(it is a DQN .*Left out: gradient_norm\."):
        model.learn(40, callback=PlasticityCallback(20, 8, ["fau", "gradient_norm"], csv_path=path))
    assert all(line.endswith(",") for line in path.read_text().splitlines()[1:])
    with pytest.warns(UserWarning, match=r"losses of Own .*Left out: interference\."):
        assert set(measure(model, 8, ["fau", "interference"])) == {"critic_fau"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "critic_gradient_norm" not in measure(model, 8)
    with pytest.raises(ValueError, match="losses of Own are not known"):
        _ = Probe(model, 8).network("critic").gradients


def test_what_networks_see_is_asked_for_by_name():
    """An attribute that happens to have the name of ours means nothing."""

    class Foreign(StreamAC):
        plasticity_observations = None

    for algorithm, n_features in ((StreamAC, 4), (Foreign, 3)):
        model = algorithm("MlpPolicy", "Pendulum-v1", seed=0)
        callback = PlasticityCallback(1000, 2, "parameter_norm")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.learn(600, callback=callback)
        assert callback._source.pieces[0].observations.shape == (1, n_features)


def test_numbers_and_names_of_numpy_count_as_pythons(tmp_path):
    callback = ResetCallback(
        at=np.array([10, 1000]), networks=np.array(["critic"]), seed=np.int64(3), redraw_topology=np.True_
    )
    assert callback.at == [10, 1000]
    assert callback.networks == ["critic"]
    assert [type(value) for value in (callback.at[0], callback.networks[0], callback.seed)] == [int, str, int]
    assert callback.options["redraw_topology"] is True
    every = ResetCallback(every_env_steps=np.float32(30.0), strategy="redo", tau=np.float32(0.5), batch_size=np.int64(4))
    assert (every.interval, every.options["tau"], every.options["batch_size"]) == (30, 0.5, 4)
    assert {type(every.interval), type(every.options["batch_size"])} == {int}
    look = PlasticityCallback(np.int64(20), np.array(8), np.array(["fau", "srank"]), np.array(["critic"]), figures=np.False_)
    assert (look.log_freq, look.n_samples, look.metrics, look.wanted, look.figures) == (
        20,
        8,
        ["fau", "srank"],
        ["critic"],
        False,
    )
    model = make_model(SAC, steps=0).learn(40, callback=[callback, every, look])
    model.save(tmp_path / "agent")
    progress = json.loads(zipfile.ZipFile(tmp_path / "agent.zip").read("data"))["reset_progress"]
    assert progress[callback.record] == 40
    assert set(map(type, progress.values())) == {int}
    values = measure(model, np.int64(8), np.array(["fau"]), np.array(["critic"]), seed=np.int64(1))
    assert set(values) == {"critic_fau"}
    one, other = make_model(SAC), make_model(SAC)
    reset_model_(one, "last_layers", networks=np.array(["critic"]), n_layers=np.int64(1), seed=np.int64(5))
    reset_model_(other, "last_layers", networks="critic", n_layers=1, seed=5)
    assert all(map(th.equal, one.policy.state_dict().values(), other.policy.state_dict().values()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResetCallback(strategy=None), "strategy=None: expected one of"),
        (lambda: ResetCallback(strategy=["full"]), r"strategy=\['full'\]: expected one of"),
        (lambda: ResetCallback(target=1), "target=1: expected one of"),
        (lambda: ResetCallback(at="1000"), "at='1000': expected a list of positive whole numbers"),
        (lambda: ResetCallback(at=np.array([[1]])), r"(?s)at=.*: expected a list of positive whole numbers"),
        (lambda: ResetCallback(networks=[1]), r"networks=\[1\]: expected a name, or a list of names"),
        (lambda: ResetCallback(include_temperature="yes"), "include_temperature='yes': expected True or False"),
        (lambda: ResetCallback(strategy="last_layers", n_layers=0), "n_layers=0: expected a positive whole number"),
        (lambda: ResetCallback(strategy="last_layers", n_layers="1"), "n_layers='1': expected a positive whole number"),
        (lambda: ResetCallback(strategy="redo", tau=None), r"tau=None: expected a number in \[0, 1\)"),
        (lambda: PlasticityCallback(metrics=None), "metrics=None: expected a name, or a list of names"),
        (lambda: PlasticityCallback(metrics=[None]), r"metrics=\[None\]: expected a name, or a list of names"),
        (lambda: PlasticityCallback(networks=None), "networks=None: expected a name, or a list of names"),
        (lambda: PlasticityCallback(figures="no"), "figures='no': expected True or False"),
        (lambda: PlasticityCallback(csv_path=""), "csv_path='': expected the name of a CSV file"),
        (lambda: PlasticityCallback(n_samples="8"), "n_samples='8': expected a whole number of at least 2"),
        (lambda: reset_model_(None, "full", seed="a"), "seed='a': expected a whole number"),
        (lambda: reset_model_(None, "redo", reset_step=1), "reset_step=1: expected True or False"),
    ],
)
def test_what_is_no_argument_is_named_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()
