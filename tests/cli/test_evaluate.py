"""``sb3-sparse evaluate``: what is played, written and said."""

import json
import os
import shutil

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_sparse.cli import main
from sb3_sparse.rainbow import DER, Rainbow
from sb3_sparse.results.atari100k import GAMES
from sb3_sparse.results.evaluations import Evaluation, read_evaluations, write_evaluations
from tests.envs import SpaceEnv

CART = "CartPole-v1"


def evaluate(*args):
    main(["evaluate", *map(str, args)])


def fails(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        evaluate(*args)
    assert stopped.value.code
    return f"{stopped.value.code}\n{capsys.readouterr().err}"


@pytest.fixture
def saved(tmp_path):
    for seed in range(2):
        model = DQN("MlpPolicy", CART, seed=seed, buffer_size=500, learning_starts=50, policy_kwargs={"net_arch": [8]})
        model.learn(200).save(tmp_path / f"dqn_{seed}")
    return tmp_path / "dqn_0.zip"


def test_agents_seeds_and_files(saved, tmp_path, capsys):
    other, path = tmp_path / "dqn_1.zip", tmp_path / "new/returns.json"
    evaluate(saved, other, "--env", CART, "-n", 4, "--seed", 3, 5, "--json", path, "--n-envs", 2)
    said = capsys.readouterr()
    found = read_evaluations(path)
    assert [(each.agent, each.seed) for each in found] == [(str(file), seed) for file in (saved, other) for seed in (3, 5)]
    for each in found:
        model = DQN.load(each.agent)
        expected = evaluate_policy(model, make_vec_env(CART, 2, seed=2 * each.seed), 4, return_episode_rewards=True)
        assert (each.returns, each.lengths) == tuple(map(list, expected))
        assert (each.algo, each.env, each.deterministic, each.epsilon, each.suite) == ("DQN", CART, True, 0.0, None)
        assert f"{each.mean:,.2f} ± {np.std(each.returns):,.2f}" in said.out
    assert f"{CART}: {np.mean([each.mean for each in found]):,.2f} [" in said.out
    assert "the mean of 2 agents" in said.out
    assert said.err.splitlines()[0] == f"{saved} in {CART}, seed 3: {found[0].mean:,.2f}"


def test_random_actions_and_stochastic_ones(saved, tmp_path):
    results = {}
    for name, options in {"plain": [], "random": ["--epsilon", 1], "stochastic": ["--stochastic"]}.items():
        evaluate(saved, "--env", CART, "-n", 30, "--json", tmp_path / "r.json", *options)
        (results[name],) = read_evaluations(tmp_path / "r.json")
    assert results["random"].epsilon == 1.0
    assert not results["stochastic"].deterministic
    assert len({tuple(each.returns) for each in results.values()}) == 3
    # A random policy holds the pole for about 22 steps.
    assert 15 < results["random"].mean < 30


def test_noise_is_off(tmp_path):
    Rainbow("MlpPolicy", CART, seed=0, buffer_size=100, sigma=4.0, policy_kwargs={"net_arch": [8]}).save(tmp_path / "agent")
    for name in ("one", "two"):
        evaluate(tmp_path / "agent.zip", "--env", CART, "--json", tmp_path / f"{name}.json")
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()


def test_a_run_in_a_log_folder_with_its_statistics(tmp_path, capsys):
    pytest.importorskip("rl_zoo3")
    entry = "  policy: MlpPolicy\n  n_timesteps: 128\n  n_steps: 64\n  batch_size: 32\n  n_epochs: 1\n  normalize: true\n"
    (tmp_path / "my.yml").write_text(f"Pendulum-v1:\n{entry}")
    for seed in (1, 2):
        options = ("--seed", seed, "--eval-freq", -1, "--env-kwargs", "g:5.0", "-f", tmp_path / "logs")
        main(["train", "--algo", "ppo", "--env", "Pendulum-v1", "-conf", *map(str, (tmp_path / "my.yml", *options))])
    capsys.readouterr()
    run = tmp_path / "logs/ppo/Pendulum-v1_1"
    evaluate(run, tmp_path / "logs/ppo/Pendulum-v1_2", "-n", 2, "--json", tmp_path / "runs.json")
    out = capsys.readouterr().out
    statistics = run / "Pendulum-v1/vecnormalize.pkl"
    assert f"observations of {run / 'Pendulum-v1.zip'} are normalised by {statistics}" in out
    evaluate(*("--algo", "ppo", "--env", "Pendulum-v1", "-f", tmp_path / "logs", "--exp-id", 1, 0, "-n", 2))
    assert capsys.readouterr().out.endswith(out)
    first, second = read_evaluations(tmp_path / "runs.json")
    assert (first.env, first.algo, first.statistics) == ("Pendulum-v1", "PPO", str(statistics))
    assert first.returns != second.returns
    evaluate(run, "-n", 2, "--vecnormalize", "none", "--env-kwargs", "g:10.0", "--json", tmp_path / "raw.json")
    (raw,) = read_evaluations(tmp_path / "raw.json")
    expected = evaluate_policy(
        PPO.load(run / "Pendulum-v1.zip"), make_vec_env("Pendulum-v1", seed=0), 2, return_episode_rewards=True
    )
    np.testing.assert_allclose(raw.returns, expected[0], atol=1e-5)


def test_mistakes_are_one_sentence(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "dqn_0.zip does not say in which environment it was trained: name one by --env" in fails(capsys, saved)
    assert "unknown environment 'CartPole-v9'" in fails(capsys, saved, "--env", "CartPole-v9")
    assert "there is no agent 'nothing.zip'" in fails(capsys, "nothing.zip", "--env", CART)
    assert "is no agent of PPO" in fails(capsys, saved, "--env", CART, "--algo", "ppo")
    assert "expected an AGENT, or --algo and --env" in fails(capsys, "--algo", "dqn")
    assert "is given twice: name each agent once" in fails(capsys, saved, tmp_path / "dqn_0", "--env", CART)
    # Before anything is played, whatever a copy is called.
    copied = shutil.copy(saved, tmp_path / "copy.zip")
    message = fails(capsys, saved, copied, "--env", CART, "-n", 10**9)
    assert "copy.zip is given twice (also as " in message
    assert "--episodes=0: expected a positive whole number" in fails(capsys, saved, "--env", CART, "-n", 0)
    assert "--n-envs=-1" in fails(capsys, saved, "--env", CART, "--n-envs", -1)
    assert "--epsilon=1.5: expected a number in [0, 1]" in fails(capsys, saved, "--env", CART, "--epsilon", 1.5)
    assert "--seed=-3" in fails(capsys, saved, "--env", CART, "--seed", -3)
    assert "each seed once" in fails(capsys, saved, "--env", CART, "--seed", 1, 1)
    assert "--out is for --suite" in fails(capsys, saved, "--env", CART, "--out", "x")
    suite = ("--suite", "atari-100k")
    assert "--epsilon: --suite atari-100k decides this" in fails(capsys, saved, *suite, "--epsilon", 0.1)
    assert "--stochastic: --suite atari-100k decides this" in fails(capsys, saved, *suite, "--stochastic")
    assert "an agent of another game is given as GAME=AGENT" in fails(capsys, saved, *suite, "--env", "ALE/Pong-v5")
    assert "dqn_0.zip does not say of which game it is: name it" in fails(capsys, saved, *suite)
    assert "'Tetris' is no game of Atari-100k" in fails(capsys, f"Tetris={saved}", *suite)
    assert "nothing.json' cannot be read" in fails(capsys, "A=nothing.json", *suite)
    (tmp_path / "afile").write_text("")
    # Before anything is played, which would end with another sentence here.
    for options, named in (
        (("--json", "afile/r.json"), "afile/r.json"),
        ((*suite, "--out", "afile"), "afile/atari-100k.json"),
    ):
        assert f"cannot write '{named}'" in fails(capsys, "nothing.zip", *options)


def scores(path, factor, n_runs):
    """A file as the command writes it, of other games."""
    evaluations = [
        Evaluation(
            *(f"{game}_{run}.zip", "DER", f"ALE/{game}-v5", 0, True, 0.001, "atari-100k", None),
            *([GAMES[game].der_dopamine * factor + run] * 2, [5, 5]),
        )
        for game in ("Breakout", "Qbert")
        for run in range(n_runs)
    ]
    write_evaluations(path, evaluations)


def test_a_suite_is_played_put_together_and_compared(tmp_path, capsys, monkeypatch):
    pytest.importorskip("ale_py")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sb3_sparse.atari.MAX_FRAMES", 400)
    env = SpaceEnv(spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(4))
    for seed in range(2):
        DER("CnnPolicy", env, seed=seed, buffer_size=1, policy_kwargs={"net_arch": [8]}).save(f"Breakout_{seed}")
    evaluate("--suite", "atari-100k", "Breakout_0.zip", "Breakout=Breakout_1.zip", "-n", 2, "--out", "out", "--n-envs", 2)
    out = capsys.readouterr().out
    assert out.splitlines()[-2:] == ["out/atari-100k.png", "out/atari-100k.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"atari-100k.{end}" for end in ("html", "json", "png")
    ]
    found = read_evaluations("out/atari-100k.json")
    assert [(each.agent, each.env, each.suite, each.epsilon) for each in found] == [
        (f"Breakout_{seed}.zip", "ALE/Breakout-v5", "atari-100k", 0.001) for seed in range(2)
    ]
    mean = np.mean([each.mean for each in found])
    assert "Breakout     1.7   30.5" in out
    assert f"{mean:,.1f}" in out
    assert f"{(mean - 1.7) / 28.8:.3f}" in out
    assert "mean return of 2 whole games" in (tmp_path / "out/atari-100k.html").read_text()
    assert "DER: return" not in out, "a file does not tell it from Rainbow"
    evaluate("--suite", "atari-100k", "Breakout_0.zip", "-n", 1, "--algo", "der", "--label", "mine")
    out = capsys.readouterr().out
    assert "mine: return" in out
    assert "  DER  " in out
    # Together with what others wrote, of which one is in two parts.
    scores("dense.json", 1.0, 3)
    scores("sparse.json", 2.0, 3)
    content = json.loads((tmp_path / "sparse.json").read_text())
    for name, part in (("one", slice(0, 3)), ("two", slice(3, None))):
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, "evaluations": content["evaluations"][part]}))
    options = ("--suite", "atari-100k", "--out", "compared")
    os.mkdir("other")
    scores("other/dense.json", 3.0, 3)
    for wrong, said in (
        (("dense.json", "other/dense.json"), "dense.json and other/dense.json have one name: say which method each is of"),
        (("dense.json", "--label", "mine"), "--label mine: there are no agents to be played"),
    ):
        assert said in fails(capsys, *wrong, *options)
    evaluate("dense.json", "sparse=one.json", "sparse=two.json", "out/atari-100k.json", *options)
    out = capsys.readouterr().out
    assert "Aggregates are over 1 of the 26 games" in out
    assert "dense > sparse" in out
    assert "sparse > dense              1.000 [1.000, 1.000]" in out
    assert sorted(path.name for path in (tmp_path / "compared").iterdir()) == ["atari-100k.html", "atari-100k.png"]
    evaluate("dense.json", "sparse=sparse.json", *options)
    assert "Aggregates are over 2 of the 26 games" in capsys.readouterr().out
    before = (tmp_path / "out/atari-100k.json").read_text()
    said = fails(capsys, "out/atari-100k.json", "Breakout_0.zip", "--suite", "atari-100k", "--out", "out")
    assert "out/atari-100k.json is read, and would be written anew" in said
    assert (tmp_path / "out/atari-100k.json").read_text() == before
    assert "Breakout_0.zip is there twice" in fails(capsys, "A=dense.json", "A=sparse.json", *options)
