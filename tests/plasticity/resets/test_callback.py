"""When resets take place. Several tests are named after a mistake that an earlier implementation made."""

import json
import warnings
import zipfile
from pathlib import Path

import gymnasium as gym
import pytest
import torch as th
from sb3_contrib import ARS
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.plasticity import ResetCallback
from sb3_sparse.plasticity.resets import callback as callbacks
from tests.envs import ReachEnv


@pytest.fixture
def resets(monkeypatch):
    """Records each reset instead of making it: environment steps, gradient steps, strategy, keywords."""
    made = []

    def record(model, strategy, **kwargs):
        made.append((model.num_timesteps, model._n_updates, strategy, kwargs))
        return {}

    monkeypatch.setattr(callbacks, "reset_model_", record)
    return made


def env_steps(resets):
    return [reset[0] for reset in resets]


def make_model(n_envs=1, **kwargs):
    kwargs = {"learning_starts": 10, "batch_size": 4, "buffer_size": 1000, **kwargs}
    policy_kwargs = {"net_arch": [4]}
    return SAC("MlpPolicy", make_vec_env(ReachEnv, n_envs), policy_kwargs=policy_kwargs, seed=0, device="cpu", **kwargs)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"every_env_steps": 30}, [30, 60, 90]),
        ({"at": [70, 15, 70]}, [15, 70]),
        # 10 steps without training; step n is made after n - 11 updates.
        ({"every_grad_steps": 25}, [36, 61, 86]),
    ],
)
def test_schedules(resets, schedule, expected):
    make_model().learn(100, callback=ResetCallback(**schedule))
    assert env_steps(resets) == expected


@pytest.mark.parametrize(
    ("n_envs", "kwargs", "schedule", "expected"),
    [
        (3, {}, {"every_env_steps": 20}, [21, 42, 60, 81]),
        (3, {}, {"at": [4, 5, 50]}, [6, 51]),
        (1, {"train_freq": 7}, {"every_env_steps": 30}, [30, 60, 90]),
        # Ten updates every fifth step, the first after step 15.
        (1, {"train_freq": 5, "gradient_steps": 10}, {"every_grad_steps": 15}, [21, 26, 36, 41, 51, 56, 66, 71, 81, 86, 96]),
    ],
)
def test_counts_that_jump_over_the_step(resets, n_envs, kwargs, schedule, expected):
    """Mistake: a comparison with ``==``, or ``%``, that several steps at once pass by."""
    make_model(n_envs, **kwargs).learn(98, callback=ResetCallback(**schedule))
    assert env_steps(resets) == expected


def test_several_resets_due_at_once_are_one(resets):
    make_model(4).learn(40, callback=ResetCallback(every_env_steps=2))
    assert env_steps(resets) == list(range(4, 40, 4))


def test_the_default_is_nikishins():
    callback = ResetCallback()
    assert (callback.clock, callback.interval) == ("env_steps", 200_000)
    assert callback.positions(0, 1_000_000) == [200_000, 400_000, 600_000, 800_000, 1_000_000]
    assert callback.positions(200_000, 399_999) == []
    assert (callback.strategy, callback.networks, callback.options["target"]) == ("full", None, None)


def test_a_run_does_not_end_with_a_fresh_network(resets):
    """The reset that falls on the last step waits until training goes on."""
    model = make_model()
    model.learn(60, callback=ResetCallback(30))
    assert env_steps(resets) == [30]
    model.learn(40, callback=ResetCallback(30), reset_num_timesteps=False)
    assert env_steps(resets) == [30, 61, 90]


def test_a_resumed_run_makes_no_reset_twice_and_leaves_none_out(resets, tmp_path):
    model = make_model()
    checkpoints = CheckpointCallback(10, str(tmp_path))
    model.learn(65, callback=CallbackList([checkpoints, ResetCallback(30)]))
    model.save(tmp_path / "end")
    assert env_steps(resets) == [30, 60]
    for name, expected in (
        # Written before the reset of step 30 was made, so it is made at once.
        ("rl_model_30_steps", [31, 60, 90]),
        ("rl_model_40_steps", [60, 90]),
        ("end", [90]),
    ):
        resets.clear()
        loaded = SAC.load(tmp_path / name, env=model.get_env())
        loaded.learn(95 - loaded.num_timesteps, callback=ResetCallback(30), reset_num_timesteps=False)
        assert env_steps(resets) == expected
    after = tmp_path / "after"
    model = make_model()
    model.learn(35, callback=CallbackList([ResetCallback(30), CheckpointCallback(30, str(after))]))
    loaded = SAC.load(after / "rl_model_30_steps", env=model.get_env())
    resets.clear()
    loaded.learn(35, callback=ResetCallback(30), reset_num_timesteps=False)
    assert env_steps(resets) == [60], "the reset of step 30 is in the checkpoint"


def test_resuming_by_gradient_steps(resets, tmp_path):
    model = make_model(train_freq=5, gradient_steps=10)
    model.learn(50, callback=ResetCallback(every_grad_steps=30))
    model.save(tmp_path / "model")
    first = [reset[1] for reset in resets]
    loaded = SAC.load(tmp_path / "model", env=model.get_env())
    loaded.learn(50, callback=ResetCallback(every_grad_steps=30), reset_num_timesteps=False)
    updates = [reset[1] for reset in resets]
    assert len({step // 30 for step in updates}) == len(updates)
    assert updates[len(first) :][0] // 30 == first[-1] // 30 + 1


def test_starting_anew_counts_anew(resets):
    model = make_model()
    callback = ResetCallback(30)
    model.learn(50, callback=callback)
    model.learn(50, callback=callback)
    assert env_steps(resets) == [30, 30]


def test_a_model_trained_without_resets_has_nothing_to_make_up_for(resets):
    model = make_model()
    model.learn(50)
    model.learn(50, callback=ResetCallback(30), reset_num_timesteps=False)
    assert env_steps(resets) == [60, 90]


def test_progress_is_readable_in_the_checkpoint(tmp_path):
    model = make_model()
    model.learn(50, callback=ResetCallback(20))
    model.save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = json.loads(archive.read("data"))
    assert data["reset_progress"] == {"env_steps/full": 50, "count": 2}


def test_a_schedule_that_never_fires_is_told():
    """Mistake: SR-SAC's 2,560,000 updates, in a run that makes fewer."""
    with pytest.warns(UserWarning, match="will not reset anything: this run goes from 0 to 40 env steps"):
        make_model().learn(40, callback=ResetCallback())
    with pytest.warns(UserWarning, match="goes from 0 to 30 grad steps and the first reset is due at 2560000"):
        make_model().learn(40, callback=ResetCallback(every_grad_steps=2_560_000))
    with pytest.warns(UserWarning, match=r"all resets \(\[20\]\) lie before it"):
        make_model().learn(20).learn(20, callback=ResetCallback(at=[20]), reset_num_timesteps=False)
    with pytest.warns(UserWarning, match="the first reset is due at 40"):
        make_model().learn(40, callback=ResetCallback(40))


def test_no_warning_where_a_reset_will_come_or_cannot_be_foreseen():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_model().learn(40, callback=ResetCallback(39))
        make_model(train_freq=(1, "episode"), gradient_steps=3).learn(30, callback=ResetCallback(every_grad_steps=1000))
        make_model(train_freq=(1, "episode"), gradient_steps=-1).learn(60, callback=ResetCallback(every_grad_steps=20))


def test_the_plan_and_each_reset_are_printed(capsys):
    make_model().learn(50, callback=ResetCallback(20, verbose=1))
    printed = capsys.readouterr().out
    assert "Resets (full) at 20, 40 env steps" in printed
    assert "Reset 2 (full) at 40 env steps" in printed


def test_options_reach_the_reset(resets):
    options = {"networks": ["critic"], "target": "fresh", "redraw_topology": True, "n_layers": 2}
    make_model().learn(20, callback=ResetCallback(15, strategy="last_layers", **options))
    ((_, _, strategy, kwargs),) = resets
    assert strategy == "last_layers"
    assert {name: kwargs[name] for name in options} == options
    assert kwargs["seed"] is None


def test_seeds_differ_from_reset_to_reset_and_repeat_from_run_to_run(resets):
    for _ in range(2):
        make_model().learn(50, callback=ResetCallback(20, seed=7))
    seeds = [reset[3]["seed"] for reset in resets]
    assert seeds[:2] == seeds[2:]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("algorithm", "strategy"),
    [(SAC, "full"), (SAC, "redo"), (TD3, "shrink_perturb"), (DQN, "last_layers"), (PPO, "full"), (A2C, "shrink_perturb")],
)
def test_real_resets_in_training(algorithm, strategy, tmp_path):
    env = ReachEnv() if algorithm in (SAC, TD3) else "CartPole-v1"
    if algorithm in (PPO, A2C):
        kwargs = {"n_steps": 16} | ({"batch_size": 8} if algorithm is PPO else {})
    else:
        kwargs = {"learning_starts": 10, "batch_size": 8, "buffer_size": 200}
    policy = "MlpPolicy" if algorithm in (PPO, A2C) else "SparseSimBaPolicy"
    policy_kwargs = {"net_arch": [8]}
    model = algorithm(policy, env, seed=0, policy_kwargs=policy_kwargs, device="cpu", **kwargs)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    objects = [id(p) for p in model.policy.parameters()]
    options = {"batch_size": 16} if strategy == "redo" else {}
    model.learn(80, callback=ResetCallback(30, strategy=strategy, **options))
    assert model.reset_progress["count"] == 2
    assert [id(p) for p in model.policy.parameters()] == objects
    assert all(p.isfinite().all() for p in model.policy.parameters())


def test_on_policy_rollouts_come_from_one_policy(monkeypatch):
    """A reset inside a rollout would leave log probabilities of another policy in the buffer."""
    filled = []
    monkeypatch.setattr(callbacks, "reset_model_", lambda model, *_, **__: filled.append(model.rollout_buffer.pos) or {})
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=16, batch_size=8)
    model.learn(64, callback=ResetCallback(20))
    # Rollouts begin at 0, 16, 32 and 48.
    assert filled == [0, 0]
    with pytest.raises(ValueError, match="counts epochs, not gradient steps"):
        model.learn(64, callback=ResetCallback(every_grad_steps=20))


def test_redo_with_vec_normalize_scores_normalised_observations():
    env = VecNormalize(make_vec_env(ReachEnv), norm_reward=False)
    model = SAC("MlpPolicy", env, learning_starts=10, batch_size=8, buffer_size=200, policy_kwargs={"net_arch": [8]})
    model.learn(40, callback=ResetCallback(20, strategy="redo", tau=0.5, batch_size=16))
    assert model.logger.name_to_value["reset/count"] == 1
    assert 0 < model.logger.name_to_value["reset/critic_dormant"] < 1
    assert {name for name in model.logger.name_to_value if name.startswith("reset/actor")} == {
        "reset/actor_recycled",
        "reset/actor_dormant",
        "reset/actor_unconnected",
    }


def test_the_learning_rate_schedule_goes_on():
    model = make_model(learning_rate=lambda left: 1e-3 * left)
    model.learn(40, callback=ResetCallback(20))
    twin = make_model(learning_rate=lambda left: 1e-3 * left)
    twin.learn(40)
    assert model.actor.optimizer.param_groups[0]["lr"] == twin.actor.optimizer.param_groups[0]["lr"]
    assert model.num_timesteps == twin.num_timesteps
    assert model._n_updates == twin._n_updates


def test_fused_optimizer_state_is_made_anew_as_torch_makes_it():
    model = SAC(
        "SparseSimBaPolicy",
        ReachEnv(),
        learning_starts=10,
        batch_size=8,
        buffer_size=200,
        policy_kwargs={"net_arch": [8]},
        device="cpu",
    )
    model.learn(40, callback=ResetCallback(20))
    optimizer = model.critic.optimizer
    assert optimizer.param_groups[0]["fused"]
    for parameter in model.critic.parameters():
        state = optimizer.state[parameter]
        assert state["step"].item() == 21, "of the steps 20 to 40"
        assert state["step"].dtype == th.float32
        assert {state[key].device for key in state} == {parameter.device}
        assert state["exp_avg"].dtype == parameter.dtype


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"every_env_steps": 10, "every_grad_steps": 10}, "every_env_steps and every_grad_steps were given"),
        ({"every_env_steps": 10, "at": [10]}, "takes one schedule"),
        ({"every_env_steps": 0}, "every_env_steps=0: expected a positive whole"),
        ({"every_grad_steps": -5}, "every_grad_steps=-5"),
        ({"every_env_steps": 10.5}, r"every_env_steps=10\.5"),
        ({"at": []}, r"at=\[\]: expected at least one"),
        ({"at": [10, 0]}, r"at\[1\]=0: expected a positive whole number"),
        ({"strategy": "none"}, "strategy='none'"),
        ({"target": "none"}, "target='none'"),
        ({"redraw_topology": True, "target": "keep"}, "redraw_topology=True"),
        ({"layers": 2}, "no keyword 'layers'"),
        ({"tau": 0.1}, r"tau=0\.1 goes with strategy='redo', not with 'full'"),
        ({"strategy": "redo", "tau": 1}, "tau=1: expected"),
        ({"strategy": "redo", "batch_size": 0}, "batch_size=0: expected"),
        ({"strategy": "shrink_perturb", "shrink": 2}, "shrink=2: expected"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ResetCallback(**kwargs)


def test_what_cannot_be_reset_is_told_before_training():
    with pytest.raises(TypeError, match="ARS cannot be reset"):
        ARS("MlpPolicy", "Pendulum-v1").learn(10, callback=ResetCallback(5))
    with pytest.raises(ValueError, match="DQN has no 'actor'"):
        DQN("MlpPolicy", gym.make("CartPole-v1")).learn(10, callback=ResetCallback(5, networks=["actor"]))
    with pytest.raises(ValueError, match=r"networks=\['q'\]: SAC has no 'q', only \['actor', 'critic'\]"):
        make_model().learn(10, callback=ResetCallback(5, networks=["q"]))
    with pytest.raises(ValueError, match="n_layers=3: the network has 2"):
        make_model().learn(10, callback=ResetCallback(5, strategy="last_layers", n_layers=3))
    with pytest.raises(ValueError, match="no learned temperature"):
        make_model(ent_coef=0.1).learn(10, callback=ResetCallback(5, include_temperature=True))


def test_from_the_yaml_of_rl_zoo3():
    yaml = pytest.importorskip("yaml")
    utils = pytest.importorskip("rl_zoo3.utils")
    page = (Path(__file__).parents[3] / "docs/plasticity/resets.md").read_text()
    hyperparameters = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    (callback,) = utils.get_callback_list(hyperparameters)
    assert type(callback) is ResetCallback
    assert (callback.clock, callback.interval, callback.strategy) == ("env_steps", 200_000, "redo")
    assert callback.networks == ["critic"]
    assert callback.options["tau"] == 0.025


def test_a_float_from_yaml_is_a_whole_number():
    assert ResetCallback(every_env_steps=1e5).interval == 100_000


def test_two_callbacks_each_keep_their_own_record(resets):
    def both():
        return [ResetCallback(every_env_steps=30, strategy="redo", batch_size=16), ResetCallback(every_env_steps=50)]

    model = make_model()
    model.learn(60, callback=both())
    assert env_steps(resets) == [30, 50]
    model.learn(60, reset_num_timesteps=False, callback=both())
    # The one due at 60, the last step of the first run, is made up for.
    expected = [(30, "redo"), (50, "full"), (61, "redo"), (90, "redo"), (100, "full")]
    assert [(reset[0], reset[2]) for reset in resets] == expected


def test_two_callbacks_of_one_kind_each_keep_their_own_record(resets):
    """Mistake of ours: the second one marked a postponed reset of the first as made."""

    def callbacks():
        return [ResetCallback(at=[at], strategy="last_layers", n_layers=n) for at, n in ((100, 1), (60, 2))]

    model = make_model()
    with pytest.warns(UserWarning, match="will not reset anything"):
        model.learn(100, callback=callbacks())
    assert env_steps(resets) == [60]
    with pytest.warns(UserWarning, match="will not reset anything"):
        model.learn(50, reset_num_timesteps=False, callback=CallbackList([CallbackList(callbacks())]))
    # The one due at 100, the last step of the first run, is made up for.
    assert env_steps(resets) == [60, 101]


def test_redo_waits_for_something_to_score_units_on():
    model = make_model(n_envs=8, learning_starts=1000)
    callback = ResetCallback(every_env_steps=8, strategy="redo", batch_size=16)
    model.learn(40, callback=callback)
    assert model.reset_progress["count"] == 2  # at 24 and 32: before, less than a batch is stored


def test_redo_after_a_resume_waits_for_a_batch(tmp_path):
    model = make_model(learning_starts=1000)
    model.learn(60)
    model.save(tmp_path / "model")
    resumed = type(model).load(tmp_path / "model", env=model.get_env())
    callback = ResetCallback(every_env_steps=61, strategy="redo", batch_size=32)
    resumed.learn(20, callback=callback, reset_num_timesteps=False)
    assert "count" not in resumed.reset_progress
    resumed.learn(40, callback=callback, reset_num_timesteps=False)
    assert resumed.reset_progress["count"] == 1


def test_redo_without_a_hidden_layer_is_refused_before_training():
    model = DQN("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": []})
    with pytest.raises(ValueError, match="the critic of DQN has no hidden layer"):
        model.learn(20, callback=ResetCallback(every_env_steps=10, strategy="redo"))
    assert model.num_timesteps == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"at": 1000}, "at=1000: expected a list of positive whole numbers"),
        ({"every_env_steps": float("inf")}, "every_env_steps=inf"),
        ({"networks": ["q_net"]}, "unknown network 'q_net'"),
        ({"networks": []}, r"networks=\[\]"),
        ({"seed": "a"}, "seed='a'"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"strategy": "redo", "reset_step": "no"}, "reset_step='no': expected True or False"),
        ({"redraw_topology": 1}, "redraw_topology=1"),
    ],
)
def test_bad_input_is_refused_when_the_callback_is_made(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ResetCallback(**kwargs)
