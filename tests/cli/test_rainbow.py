"""Rainbow and DER from the command line, from training to a file that is exported."""

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces

from sb3_sparse import DER, Rainbow
from sb3_sparse.cli import main
from sb3_sparse.results.runs import read_settings
from tests.cli.running import run

pytest.importorskip("rl_zoo3")

SMALL = ("-params", "learning_starts:50", "batch_size:8", "policy_kwargs:dict(net_arch=[16],sparsity=0.5)")
ALGORITHMS = {"der": DER, "rainbow": Rainbow}


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_from_training_to_a_file(algo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--algo", algo, "--env", "CartPole-v1"]
    options = ["-f", "logs", "-n", "120", "--seed", "1", "--eval-freq", "60", "--eval-episodes", "1", *SMALL]
    main(["train", *arguments, "--save-replay-buffer", *options])
    folder = tmp_path / f"logs/{algo}/CartPole-v1_1"
    model = ALGORITHMS[algo].load(folder / "CartPole-v1.zip")
    assert (model.n_steps, model.q_net.support.v_max, model.q_net.sparsity.amount) == (3, 100.0, 0.5)
    assert (folder / "evaluations.npz").is_file()
    # Goes on with what made it, whatever the file says now, and with its priorities.
    capsys.readouterr()
    others = ("n_steps:7", "v_max:9.0", "alpha:0.9", "policy_kwargs:dict(net_arch=[4],sparsity=0.9)", "tau:0.5")
    main(["train", *arguments, "-i", str(folder / "CartPole-v1.zip"), *options, *others])
    said = capsys.readouterr().out
    kept = next(line for line in said.splitlines() if line.startswith("As they are in the saved agent, whatever is set: "))
    assert {"alpha", "n_steps", "v_max", "policy", "policy_kwargs"} <= set(kept.partition(": ")[2].split(", "))
    # And so it is written: what the agent takes as it is set now, anything else as the agent has it.
    config = dict(yaml.unsafe_load((tmp_path / f"logs/{algo}/CartPole-v1_2/CartPole-v1/config.yml").read_text()))
    expected = {"n_steps": 3, "v_max": 100.0, "alpha": 0.5, "prioritized": True, "policy": "MlpPolicy", "tau": 0.5}
    assert {name: config[name] for name in expected} == expected
    assert {name: config["policy_kwargs"][name] for name in ("net_arch", "sparsity")} == {"net_arch": [16], "sparsity": 0.5}
    assert not {"n_atoms", "noisy"} & config["policy_kwargs"].keys()
    assert config["n_atoms"] == 51
    assert read_settings(tmp_path / f"logs/{algo}/CartPole-v1_2/CartPole-v1/config.yml")["v_max"] == 100.0
    assert "Loading replay buffer" in said
    longer = ALGORITHMS[algo].load(tmp_path / f"logs/{algo}/CartPole-v1_2/CartPole-v1.zip")
    assert (longer.n_steps, longer.q_net.support.v_max, longer.tau) == (3, 100.0, 0.5)
    assert longer.replay_buffer.n_steps == 3
    main(["enjoy", *arguments, "-n", "60", "--no-render"])
    assert "Mean reward:" in capsys.readouterr().out
    main(["plot", f"logs/{algo}/CartPole-v1_1", "-o", "curve"])
    assert (tmp_path / "curve.png").is_file()
    main(["export", *arguments, "-f", "logs", "--to", "torch"])
    assert list(tmp_path.rglob("*.pt2"))


@pytest.mark.parametrize("algo", ["der", pytest.param("rainbow", marks=pytest.mark.full)])
def test_tune(algo, tmp_path):
    conf = tmp_path / "my.yml"
    entry = {"n_timesteps": 60, "policy": "MlpPolicy", "learning_starts": 30, "buffer_size": 100}
    entry["policy_kwargs"] = {"net_arch": [8], "mask_seed": 5}
    conf.write_text(yaml.safe_dump({"default": entry}))
    storage = tmp_path / "study.log"
    arguments = ("--algo", algo, "--env", "CartPole-v1", "-conf", str(conf), "--storage", str(storage), "--study-name", "s")
    options = (
        "--n-trials",
        "2",
        "--n-evaluations",
        "1",
        "--no-optim-plots",
        "--eval-episodes",
        "1",
        "--n-startup-trials",
        "1",
    )
    run("tune", *arguments, *options, "--seed", "0", cwd=tmp_path)
    # rl-zoo3 takes trial 0 for none, hence the second.
    run("train", *arguments, "--trial-id", "1", "--n-timesteps", "40", "--eval-freq", "-1", "-f", "logs", cwd=tmp_path)
    config = next((tmp_path / f"logs/{algo}").glob("CartPole-v1_*/CartPole-v1/config.yml"))
    saved = dict(yaml.unsafe_load(config.read_text()))
    assert {name: saved["policy_kwargs"][name] for name in ("net_arch", "mask_seed")} == entry["policy_kwargs"]
    assert 0.5 <= saved["policy_kwargs"]["sparsity"] <= 0.95
    model = ALGORITHMS[algo].load(next((tmp_path / f"logs/{algo}").glob("CartPole-v1_*/CartPole-v1.zip")))
    assert (model.n_steps, model.batch_size) == (saved["n_steps"], saved["batch_size"])


class Blank(gym.Env):
    """Of the spaces of Pong."""

    observation_space, action_space = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6)


def test_describe(capsys, tmp_path):
    pytest.importorskip("ale_py")
    small = "policy_kwargs:dict(encoder='impala',width_scale=0.5,sparsity=0.8)"
    main(["describe", "--algo", "der", "--env", "ALE/Pong-v5", "-params", small, "--plot", str(tmp_path / "weights.png")])
    said = capsys.readouterr().out
    # The deviations of noisy layers are counted on both sides.
    net = DER("CnnPolicy", Blank(), policy_kwargs=dict(encoder="impala", width_scale=0.5), buffer_size=1, device="cpu").q_net
    assert f"of {sum(p.numel() for p in net.parameters()):,} parameters, weight sparsity 0.8000" in said
    assert "q_net.2.advantage" in said
    assert "features_extractor.network.14.conv2" in said
    assert (tmp_path / "weights.png").is_file()


@pytest.mark.full
def test_a_game_by_dopamines_protocol(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ale_py")
    monkeypatch.chdir(tmp_path)
    arguments = ["--algo", "der", "--env", "ALE/Pong-v5"]
    small = "policy_kwargs:dict(encoder='grid',net_arch=[8],sparsity=0.5)"
    options = ["-n", "1000", "--seed", "1", "--eval-freq", "1000", "--eval-episodes", "1", "-f", "logs"]
    main(["train", *arguments, *options, "-params", "learning_starts:990", small])
    # Evaluations and logs have whole games, with the game's own frames for lengths.
    folder = tmp_path / "logs/der/ALE-Pong-v5_1"
    evaluations = np.load(folder / "evaluations.npz")
    rows = [line.split(",") for line in (folder / "0.monitor.csv").read_text().splitlines()[2:]]
    lengths = [int(row[1]) for row in rows]
    assert rows
    assert min(lengths) > 2000
    # Not what is left of it when rewards are cut off or an episode is no game.
    assert evaluations["results"][0, 0] <= -15
    assert evaluations["ep_lengths"][0, 0] > 2000
    model = DER.load(folder / "ALE-Pong-v5.zip")
    assert (model.observation_space.shape, model.replay_buffer.n_stack) == ((4, 84, 84), 4)
    capsys.readouterr()
    main(["enjoy", *arguments, "-n", "300", "--no-render"])
    assert "Stacking 4 frames" in capsys.readouterr().out
