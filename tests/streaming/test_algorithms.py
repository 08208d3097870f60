"""The algorithms, as a user of SB3 meets them."""

import copy
import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_sparse.sparse.kernels.native.sample import program
from sb3_sparse.streaming import AdaptiveObGD, ObGD, StreamAC, StreamQ, StreamSARSA, kernels
from sb3_sparse.streaming.learners import CompiledLearner
from sb3_sparse.streaming.policies import StreamACPolicy, StreamQPolicy
from tests.envs import ReachEnv, SpaceEnv

ALGORITHMS = [(StreamAC, "Pendulum-v1"), (StreamAC, "CartPole-v1"), (StreamQ, "CartPole-v1"), (StreamSARSA, "CartPole-v1")]
ALL = pytest.mark.parametrize(("algorithm", "env"), ALGORITHMS, ids=lambda value: getattr(value, "__name__", value))


def state_of(model):
    """Everything that learning changes, copied."""
    optimizers = {name: getattr(model.policy, name).state_dict() for name in model.optimizer_names}
    return copy.deepcopy((dict(model.policy.state_dict()), optimizers))


def assert_same_state(state, other):
    th.testing.assert_close(state, other, rtol=0, atol=0)


class Each(BaseCallback):
    """Calls a function in every step."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def _on_step(self):
        return self.function(self) is not False


@ALL
@pytest.mark.parametrize(("adaptive", "sparsity"), [(False, 0.0), (True, 0.8)], ids=["dense", "adaptive, sparse"])
def test_a_saved_agent_goes_on_as_if_nothing_had_happened(algorithm, env, adaptive, sparsity, tmp_path):
    model = algorithm("MlpPolicy", env, seed=1, adaptive=adaptive, policy_kwargs=dict(sparsity=sparsity, net_arch=[16, 16]))
    model.learn(150)
    model.save(tmp_path / "agent.zip")
    loaded = algorithm.load(tmp_path / "agent.zip", env=gym.make(env))
    assert_same_state(state_of(model), state_of(loaded))
    assert isinstance(getattr(loaded.policy, loaded.optimizer_names[0]), AdaptiveObGD if adaptive else ObGD)
    observation = model.observation_space.sample()
    for deterministic in (True, False):
        actions = []
        for agent in (model, loaded):
            agent.set_random_seed(3)
            actions.append(agent.predict(observation, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*actions)
    # Learning goes on alike: same episode, same random numbers.
    ends = []
    for agent in (model, loaded):
        agent.set_env(DummyVecEnv([lambda: gym.make(env)]))
        agent.set_random_seed(5)
        agent.learn(100, reset_num_timesteps=False)
        assert agent.num_timesteps == 250
        ends.append(state_of(agent))
    assert_same_state(*ends)


@ALL
def test_traces_survive_a_file(algorithm, env, tmp_path):
    model = algorithm("MlpPolicy", env, seed=1).learn(50)
    model.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent")
    for name in model.optimizer_names:
        state, other = getattr(model.policy, name).state, getattr(loaded.policy, name).state
        traces, others = ([s["trace"] for s in one.values()] for one in (state, other))
        assert len(traces) >= 6
        assert all(th.equal(z, y) for z, y in zip(traces, others, strict=True))
        if algorithm is StreamAC:
            assert any(z.abs().sum() > 0 for z in traces)


@ALL
def test_seeds_reproduce_everything(algorithm, env):
    runs = [state_of(algorithm("MlpPolicy", env, seed=seed).learn(200)) for seed in (1, 1, 2)]
    assert_same_state(runs[0], runs[1])
    with pytest.raises(AssertionError):
        assert_same_state(runs[0], runs[2])


@ALL
def test_the_fast_path_is_the_slow_path(algorithm, env, monkeypatch):
    """In float32 they differ by rounding, so actions are given."""

    def run(backend):
        monkeypatch.setenv("SB3_SPARSE_BACKEND", backend)
        model = algorithm("MlpPolicy", env, seed=1, policy_kwargs=dict(net_arch=[16, 16], sparsity=0.5))
        act = model._act

        def scripted(features):
            action, env_action = act(features)
            t = model.num_timesteps
            if isinstance(model.action_space, spaces.Discrete):
                return t % 2, np.array([t % 2])
            return np.full_like(action, np.sin(t)), np.full_like(env_action, np.sin(t))

        model._act = scripted
        model.learn(150)
        return model

    fast, slow = run("auto"), run("dense")
    assert isinstance(fast._learners[0], CompiledLearner)
    assert not isinstance(slow._learners[0], CompiledLearner)
    th.testing.assert_close(state_of(fast)[0], state_of(slow)[0], rtol=1e-5, atol=1e-5)


@ALL
def test_callbacks_see_the_agent_as_it_acted(algorithm, env):
    seen, updates = [], []

    def look(callback):
        seen.append((callback.num_timesteps, callback.model._n_updates))
        updates.append(next(callback.model.policy.parameters()).detach().clone())
        assert {"infos", "rewards", "dones", "new_obs"} <= set(callback.locals)

    model = algorithm("MlpPolicy", env, seed=0)
    first = next(model.policy.parameters()).detach().clone()
    model.learn(10, callback=Each(look))
    assert seen == [(t, t - 1) for t in range(1, 11)]
    assert th.equal(updates[0], first)
    assert not th.equal(updates[1], first)
    assert model._n_updates == 10


def test_a_callback_can_stop_training():
    model = StreamAC("MlpPolicy", "CartPole-v1", seed=0)
    model.learn(100, callback=Each(lambda callback: callback.num_timesteps < 7))
    assert model.num_timesteps == model._n_updates == 7


@ALL
def test_evaluation_during_training_changes_nothing(algorithm, env, tmp_path):
    def run(callback):
        model = algorithm("MlpPolicy", env, seed=1)
        return state_of(model.learn(120, callback=callback))

    evaluation = EvalCallback(
        make_vec_env(env, seed=0), eval_freq=40, n_eval_episodes=1, best_model_save_path=str(tmp_path), verbose=0
    )
    assert_same_state(run(None), run([evaluation, CheckpointCallback(50, str(tmp_path))]))
    assert evaluation.last_mean_reward != -np.inf
    best = algorithm.load(tmp_path / "best_model.zip")
    assert evaluate_policy(best, make_vec_env(env, n_envs=2, seed=0), n_eval_episodes=2)
    assert (tmp_path / "rl_model_100_steps.zip").is_file()


def test_traces_are_cleared_where_an_episode_is_cut():
    def traces(model):
        return [state["trace"] for name in model.optimizer_names for state in getattr(model.policy, name).state.values()]

    model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0).learn(20)
    assert all(z.abs().sum() > 0 for z in traces(model)[1:])
    during = []
    look = Each(lambda callback: during.append(max(z.abs().max().item() for z in traces(callback.model))))
    model.learn(1, callback=look)
    model.learn(1, callback=look, reset_num_timesteps=False)
    model.set_env(model.get_env())
    model.learn(1, callback=look, reset_num_timesteps=False)
    assert [value == 0.0 for value in during] == [True, False, True]


@pytest.mark.parametrize("bootstrap_truncated", [False, True])
def test_the_end_of_an_episode_by_its_time_limit(bootstrap_truncated):
    """ReachEnv is truncated after 5 steps."""
    model = StreamAC("MlpPolicy", ReachEnv(n_steps=5), seed=0, bootstrap_truncated=bootstrap_truncated)
    seen = []
    update = model._update

    def watch(features, action, reward, next_features, discount, done):
        update(features, action, reward, next_features, discount, done)
        traces = [s["trace"].abs().sum().item() for s in model.policy.critic_optimizer.state.values()]
        seen.append((discount, done, max(traces) == 0.0))

    model._update = watch
    model.learn(10)
    assert [done for _, done, _ in seen] == 2 * [False, False, False, False, True]
    assert [clear for _, _, clear in seen] == [done for _, done, _ in seen]
    assert [discount for discount, _, _ in seen] == 2 * [*4 * [0.99], 0.99 if bootstrap_truncated else 0.0]


def test_parameters_set_between_two_calls_of_learn_are_used():
    """Learners are kept from one call to the next; optimisers get new traces by loading."""
    model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0).learn(30)
    saved = copy.deepcopy(model.get_parameters())
    runs = []
    for _ in range(2):
        model.learn(30, reset_num_timesteps=False)
        model.set_parameters(copy.deepcopy(saved))
        model.set_random_seed(1)
        model.set_env(model.get_env())
        runs.append(state_of(model.learn(30, reset_num_timesteps=False)))
    assert_same_state(*runs)


def test_statistics_count_terminal_and_first_observations():
    model = StreamAC("MlpPolicy", ReachEnv(n_steps=5), seed=0).learn(12)
    assert model.policy.obs_norm.obs_count == 12 + 1 + 2
    assert model.policy.reward_scaler.reward_statistics[1] == 12


def test_normalisation_can_be_left_out():
    model = StreamAC(
        "MlpPolicy", ReachEnv(n_steps=5), normalize_observations=False, normalize_reward=False, time_feature=False
    )
    rewards = []
    update = model._update
    model._update = lambda f, a, reward, *rest: (rewards.append((f.copy(), reward)), update(f, a, reward, *rest))
    callback_rewards = []
    model.learn(5, callback=Each(lambda callback: callback_rewards.append(float(callback.locals["rewards"][0]))))
    assert [reward for _, reward in rewards] == callback_rewards
    assert rewards[0][0].shape == (2,)
    assert model.policy.obs_norm is None


def test_one_thread_while_learning():
    before = th.get_num_threads()
    th.set_num_threads(2)
    try:
        seen = []
        StreamQ("MlpPolicy", "CartPole-v1").learn(2, callback=Each(lambda callback: seen.append(th.get_num_threads())))
        assert (seen, th.get_num_threads()) == ([1, 1], 2)

        def fail(callback):
            raise RuntimeError("on purpose")

        with pytest.raises(RuntimeError, match="on purpose"):
            StreamQ("MlpPolicy", "CartPole-v1").learn(2, callback=Each(fail))
        assert th.get_num_threads() == 2
    finally:
        th.set_num_threads(before)


def test_several_environments_are_refused():
    for algorithm in (StreamAC, StreamQ, StreamSARSA):
        with pytest.raises(ValueError, match="does not support multiple envs"):
            algorithm("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2))


def test_unsupported_action_spaces_are_refused():
    for algorithm in (StreamQ, StreamSARSA):
        with pytest.raises(AssertionError, match="only supports"):
            algorithm("MlpPolicy", "Pendulum-v1")
    space = spaces.Box(-1, 1, (3,))
    with pytest.raises(AssertionError, match="only supports"):
        StreamAC("MlpPolicy", SpaceEnv(space, spaces.MultiDiscrete([2, 3])))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(gamma=1.5), "gamma=1.5"),
        (dict(trace_lambda=-1), "trace_lambda=-1"),
        (dict(kappa_policy=0), "kappa_policy=0"),
        (dict(kappa_value="3"), "kappa_value='3'"),
        (dict(time_feature=-3), "time_feature=-3"),
        (dict(policy_kwargs=dict(initialization="sparse_init", sparsity=0.5)), "Leave one of them out"),
    ],
    ids=str,
)
def test_bad_values_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        StreamAC("MlpPolicy", "Pendulum-v1", **kwargs)
    with pytest.raises(ValueError, match="exploration_fraction=2"):
        StreamQ("MlpPolicy", "CartPole-v1", exploration_fraction=2)


def test_actions_are_clipped_for_the_environment_only():
    model = StreamAC("MlpPolicy", "Pendulum-v1", seed=0)
    model.env.action_space.low[:] = model.action_space.low[:] = -1e-3
    model.env.action_space.high[:] = model.action_space.high[:] = 1e-3
    own, env_actions = [], []
    act = model._act

    def watch(features):
        action, env_action = act(features)
        own.append(float(action[0]))
        env_actions.append(float(env_action[0, 0]))
        return action, env_action

    model._act = watch
    model.learn(50)
    assert np.abs(own).max() > 0.5
    assert np.abs(env_actions).max() <= 1e-3 + 1e-9


def test_exploration_falls_linearly():
    rates = []
    model = StreamQ("MlpPolicy", "CartPole-v1", exploration_fraction=0.1, seed=0)
    model.learn(100, callback=Each(lambda callback: rates.append(callback.model.exploration_rate)))
    np.testing.assert_allclose(rates[:9], 1.0 - 0.099 * np.arange(1, 10))
    np.testing.assert_allclose(rates[9:], 0.01)


@pytest.mark.parametrize("algorithm", [StreamQ, StreamSARSA])
def test_traces_of_action_values(algorithm):
    """Q clears them after exploring, SARSA does not; both at the end."""
    model = algorithm("MlpPolicy", "CartPole-v1", seed=0, exploration_final_eps=0.5, exploration_fraction=0.0)
    update, seen = model._update, []

    def watch(features, action, reward, next_features, discount, done):
        explored = action != int(np.argmax(model._q.outputs(features)))
        update(features, action, reward, next_features, discount, done)
        clear = not any(s["trace"].any() for s in model.policy.q_optimizer.state.values())
        seen.append((explored, done, clear))

    model._update = watch
    model.learn(200)
    assert any(done for _, done, _ in seen)
    assert any(explored and not done for explored, done, _ in seen)
    for explored, done, clear in seen:
        assert clear == (done or (explored and algorithm is StreamQ))


def test_sarsa_takes_the_action_it_valued():
    model = StreamSARSA("MlpPolicy", "CartPole-v1", seed=0, exploration_initial_eps=0.5)
    act, update, taken, valued = model._act, model._update, [], []
    model._act = lambda features: (taken.append(act(features)), taken[-1])[1]

    def watch(*args):
        update(*args)
        valued.append(model._next_action if not args[-1] else None)

    model._update = watch
    model.learn(100)
    for action, before in zip(taken[1:], valued, strict=False):
        assert before in (None, action[0])
    assert sum(action is not None for action in valued) > 80


def test_learning_rate_schedules_reach_the_optimisers():
    model = StreamAC("MlpPolicy", "CartPole-v1", learning_rate=lambda progress: 1e-6 * progress, seed=0)
    rates = []
    model.learn(10, callback=Each(lambda callback: rates.append(model.policy.critic_optimizer.param_groups[0]["lr"])))
    np.testing.assert_allclose(rates, 1e-6 * np.array([10, *range(10, 1, -1)]) / 10)


@ALL
def test_logs(algorithm, env, tmp_path):
    model = algorithm("MlpPolicy", env, seed=0, tensorboard_log=str(tmp_path))
    model.learn(450, log_interval=1)
    logged = {}
    model.logger.record, model.logger.dump = lambda name, value, **kwargs: logged.update({name: value}), lambda step: None
    model.dump_logs()
    expected = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps", "train/td_error", "train/n_updates"}
    expected |= {"train/step_size_policy", "train/trace_l1_value"} if algorithm is StreamAC else {"rollout/exploration_rate"}
    assert expected <= set(logged)
    assert all(np.isfinite(value) for value in logged.values())
    assert list(tmp_path.glob(f"{algorithm.__name__}_1/events*"))


def test_settings_given_to_load_reach_the_optimisers(tmp_path):
    StreamAC("MlpPolicy", "CartPole-v1", seed=0).learn(5).save(tmp_path / "agent.zip")
    settings = dict(kappa_policy=30.0, gamma=0.5, trace_lambda=0.0, learning_rate=1e-7)
    model = StreamAC.load(tmp_path / "agent.zip", env=gym.make("CartPole-v1"), **settings).learn(1)
    expected = dict(kappa=30.0, gamma=0.5, trace_lambda=0.0, lr=1e-7)
    assert {name: model.policy.actor_optimizer.param_groups[0][name] for name in expected} == expected
    assert model.policy.critic_optimizer.param_groups[0]["kappa"] == 2.0


@pytest.mark.parametrize("saved", [True, False, 50])
def test_what_made_the_inputs_of_a_saved_agent_is_not_changed_at_load(saved, tmp_path):
    StreamAC("MlpPolicy", "CartPole-v1", time_feature=saved).learn(5).save(tmp_path / "agent.zip")
    for settings in (dict(time_feature=True), dict(time_feature=7), dict(normalize_observations=False)):
        ((name, value),) = settings.items()
        with pytest.raises(ValueError, match=rf"load\(..., {name}={value}\): .* has its own, which made its networks"):
            StreamAC.load(tmp_path / "agent.zip", env=gym.make("CartPole-v1"), **settings)
    loaded = StreamAC.load(tmp_path / "agent.zip")
    assert loaded.fixed_settings() == dict(normalize_observations=True, time_feature=saved)
    assert loaded.policy.time_limit == {True: 500, False: None, 50: 50}[saved]


def test_actions_of_whole_numbers_are_refused():
    space = spaces.Box(-3, 3, (1,), np.int64)
    with pytest.raises(ValueError, match="actions of int64 would be rounded"):
        StreamAC("MlpPolicy", SpaceEnv(spaces.Box(-1, 1, (3,)), space))


def test_an_agent_is_not_loaded_as_one_of_the_adaptive_kind(tmp_path):
    StreamAC("MlpPolicy", "CartPole-v1").save(tmp_path / "agent.zip")
    with pytest.raises(TypeError, match="keep `adaptive`"):
        StreamAC.load(tmp_path / "agent.zip", adaptive=True)


def test_sarsa_chooses_anew_in_every_step_without_a_future():
    model = StreamSARSA("MlpPolicy", "CartPole-v1", gamma=0.0, exploration_final_eps=1.0, seed=0)
    actions = []
    model.learn(60, callback=Each(lambda callback: actions.append(int(callback.locals["env_action"][0]))))
    assert 15 < sum(actions) < 45
    assert sum(a != b for a, b in itertools.pairwise(actions)) > 15


def test_frozen_parameters_stay():
    model = StreamAC("MlpPolicy", "CartPole-v1", policy_kwargs=dict(initialization="lecun_uniform"), seed=0)
    model.policy.actor.trunk.requires_grad_(False)
    before = copy.deepcopy(dict(model.policy.state_dict()))
    after = model.learn(20).policy.state_dict()
    moved = {name for name in before if name.startswith("actor.") and not th.equal(before[name], after[name])}
    assert moved == {"actor.logits.weight", "actor.logits.bias"}


def test_replaced_layers_are_refused():
    model = StreamAC("MlpPolicy", "CartPole-v1", seed=0).learn(3)
    model.policy.actor.logits = th.nn.Linear(32, 2)
    with pytest.raises(ValueError, match="optimiser does not know"):
        model.learn(3)


@ALL
def test_a_trained_agent_can_be_copied(algorithm, env):
    model = algorithm("MlpPolicy", env, seed=0).learn(20)
    twin, state = copy.deepcopy(model), state_of(model)
    assert_same_state(state_of(twin), state)
    twin.learn(20)
    assert_same_state(state_of(model), state)


def test_the_time_limit_of_a_wrapper_counts_without_an_id():
    env = gym.wrappers.TimeLimit(gym.make("CartPole-v1").unwrapped, 50)
    assert StreamAC("MlpPolicy", env).policy.time_limit == 50


def test_vec_normalize_is_one_normalisation_too_many():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    with pytest.warns(UserWarning, match="leave it out"):
        StreamAC("MlpPolicy", env)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StreamAC("MlpPolicy", env, normalize_observations=False, normalize_reward=False)


def test_an_interrupted_step_is_followed_by_a_new_episode():
    model = StreamAC("MlpPolicy", "CartPole-v1", seed=0)

    def interrupt(callback):
        if callback.num_timesteps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.learn(20, callback=Each(interrupt))
    steps = []
    elapsed = lambda: model.env.get_attr("_elapsed_steps")[0]  # noqa: E731
    watch = Each(lambda callback: steps.append((model._episode_steps, elapsed())))
    model.learn(3, reset_num_timesteps=False, callback=watch)
    # Callbacks come after the environment's step: agent and environment are at the same place.
    assert steps == [(0, 1), (1, 2), (2, 3)]


def test_the_policy_of_another_algorithm_is_named():
    for algorithm, policy in ((StreamAC, StreamQPolicy), (StreamQ, StreamACPolicy), (StreamAC, SACPolicy)):
        with pytest.raises(ValueError, match=f"{policy.__name__} is no policy of {algorithm.__name__}: expected 'MlpPolicy'"):
            algorithm(policy, "CartPole-v1")


def test_the_entropy_of_a_saturated_policy_is_a_number():
    model = StreamAC("MlpPolicy", "CartPole-v1", seed=0).learn(5)
    with th.no_grad():
        model.policy.actor.heads[0].bias[0] = 2000.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model._training_logs()["entropy"] == 0.0


def test_without_compiled_code_learning_goes_on(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no such target")

    with monkeypatch.context() as patch:
        patch.setattr(program, "compile_module", fail)
        # What this process has compiled already.
        patch.setattr(kernels.Program, "kernels", program.KernelSet(kernels.Program.kernels.written))
        with pytest.warns(UserWarning, match="no such target"):
            model = StreamAC("MlpPolicy", "CartPole-v1", seed=0).learn(20)
    monkeypatch.setenv("SB3_SPARSE_BACKEND", "dense")
    assert_same_state(state_of(model), state_of(StreamAC("MlpPolicy", "CartPole-v1", seed=0).learn(20)))


def test_other_failures_of_the_compiled_update_are_raised(monkeypatch):
    def fail(*args):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(CompiledLearner, "_write_programs", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        StreamAC("MlpPolicy", "CartPole-v1", seed=0).learn(20)


@pytest.mark.parametrize(
    ("space", "keywords", "message"),
    [
        (spaces.Discrete(2, start=1), {}, "starts at 0"),
        (spaces.Discrete(2), {"ent_coef": "auto"}, "ent_coef='auto'"),
        (spaces.Discrete(2), {"ent_coef": -1}, "ent_coef=-1"),
    ],
)
def test_more_input_that_is_refused(space, keywords, message):
    with pytest.raises(ValueError, match=message):
        StreamAC("MlpPolicy", SpaceEnv(spaces.Box(-1, 1, (3,)), space), **keywords)


def test_dict_observations_are_told_what_to_do():
    env = SpaceEnv(spaces.Dict({"a": spaces.Box(-1, 1, (3,))}), spaces.Discrete(2))
    with pytest.raises(ValueError, match="FlattenObservation"):
        StreamQ("MultiInputPolicy", env)
