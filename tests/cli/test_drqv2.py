"""DrQ-v2 from the command line, from training on pictures to a file that is exported."""

import gc

import pytest
import torch as th
import yaml

from sb3_sparse import DrQv2
from sb3_sparse.cli import main

pytest.importorskip("rl_zoo3")
pytest.importorskip("dm_control")

ENV = "dm_control/cartpole-balance-v0"
# Episodes of 50 decisions.
SHORT = ("--env-kwargs", "task_kwargs:dict(time_limit=1)")
SMALL = ("-params", "learning_starts:20", "batch_size:8", "buffer_size:200", "n_steps:2")
POLICY = "policy_kwargs:dict(net_arch=[16],feature_dim=5,features_extractor_kwargs=dict(channels=4),sparsity=0.5)"


def test_from_training_to_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--algo", "drqv2", "--env", ENV]
    options = ["-f", "logs", "-n", "60", "--seed", "1", "--eval-freq", "60", "--eval-episodes", "1", *SHORT]
    stored = "replay_buffer_kwargs:dict(storage_path='store',rewind=50,flush_every=20)"
    main(["train", *arguments, *options, *SMALL, POLICY, stored])
    folder = tmp_path / "logs/drqv2/dm_control-cartpole-balance-v0_1"
    file = folder / "dm_control-cartpole-balance-v0.zip"
    # Its file is in use nowhere when an agent is only looked at.
    model = DrQv2.load(file, buffer_size=1)
    assert (model.n_steps, model.observation_space.shape, model.num_timesteps) == (2, (9, 64, 64), 60)
    assert model.policy.sparsity["qf"].amount == 0.5
    assert (tmp_path / "store").is_dir()
    assert (folder / "evaluations.npz").is_file()
    capsys.readouterr()
    # It goes on with what made it, and with its frames, which no other buffer of this process has any longer.
    gc.collect()
    with pytest.warns(UserWarning, match="store holds 60 transitions of an earlier run, which are used"):
        main(["train", *arguments, "-i", str(file), *options, *SMALL[:-1], "n_steps:5", "tau:0.5", POLICY])
    said = capsys.readouterr().out
    assert "As they are in the saved agent, whatever is set: gamma, n_steps, policy, policy_kwargs" in said
    config = dict(yaml.unsafe_load(next(folder.parent.glob("*_2/*/config.yml")).read_text()))
    assert (config["n_steps"], config["tau"], config["policy"]) == (2, 0.5, "CnnPolicy")
    assert config["replay_buffer_kwargs"]["storage_path"] == str(tmp_path / "store")
    main(["enjoy", *arguments, "-n", "60", "--no-render"])
    main(["evaluate", str(folder), "-n", "1"])
    assert "DrQv2" in capsys.readouterr().out
    main(["plot", str(folder), "-o", "curve"])
    assert (tmp_path / "curve.png").is_file()
    main(["export", *arguments, "-f", "logs", "--exp-id", "1", "--to", "torch"])
    (program,) = tmp_path.rglob("*.pt2")
    images = th.randint(0, 256, (8, 9, 64, 64), dtype=th.uint8)
    expected = DrQv2.load(file, buffer_size=1, device="cpu").predict(images.numpy(), deterministic=True)[0]
    assert th.export.load(program).module()(images).numpy() == pytest.approx(expected, abs=1e-5)


def test_describe(capsys):
    main(["describe", "--algo", "drqv2", "--env", ENV])
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line in ("encoder", "actor", "critic")] == ["encoder", "actor", "critic"]
    assert "16x9x3x3" in said
    assert "q_networks.1.2  1024x1024   0.1594" in said
