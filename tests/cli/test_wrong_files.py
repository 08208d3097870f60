"""Files of another algorithm, and folders that are no run: a sentence with the file, what is wrong, what was expected."""

import pytest
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import A2C, PPO, SAC, TD3

from sb3_sparse import StreamAC, load_safe, resume_exact, save_safe
from sb3_sparse.cli import main
from sb3_sparse.export.loading import load_agent

pytest.importorskip("rl_zoo3")

KINDS = {kind.__name__.lower(): kind for kind in (SAC, TQC, CrossQ, TD3, PPO, A2C, StreamAC)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An agent of each algorithm, as SB3 saves it and as a safe file."""
    folder = tmp_path_factory.mktemp("saved")
    for name, kind in KINDS.items():
        small = {"buffer_size": 10} if kind in (SAC, TQC, CrossQ, TD3) else {}
        model = kind("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]), device="cpu", **small)
        model.save(folder / f"{name}.zip")
        save_safe(model, folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_no_algorithm_loads_the_agent_of_another(name, saved):
    """Also of those whose agents SB3 loads for each other."""
    for wrong in KINDS.values():
        if wrong is KINDS[name]:
            assert type(load_agent(wrong, saved / f"{name}.zip")) is wrong
            continue
        with pytest.raises(ValueError, match=rf"/{name}\.zip is no agent of {wrong.__name__}: "):
            load_agent(wrong, saved / f"{name}.zip")
        expected = rf"/{name}\.safetensors holds an agent of {KINDS[name].__name__}, expected one of {wrong.__name__}\."
        with pytest.raises(ValueError, match=expected):
            load_safe(saved / f"{name}.safetensors", algorithm=wrong)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["evaluate", "sac.zip", "--env", "Pendulum-v1", "--algo", "tqc"], r"sac\.zip is no agent of TQC: .* an agent of SAC"),
        (["evaluate", "sac.zip", "--env", "Pendulum-v1", "--algo", "ppo"], r"sac\.zip is no agent of PPO: .* an agent of SAC"),
        (["evaluate", "sac.safetensors", "--env", "Pendulum-v1", "--algo", "tqc"], r"sac\.safetensors .* expected one of TQC"),
        (["enjoy", "-i", "ppo.safetensors", "--env", "Pendulum-v1", "--algo", "sac"], "agent of PPO, expected one of SAC"),
        (["enjoy", "--algo", "sac", "--env", "Pendulum-v1", "-f", "."], r"The \./sac folder was not found.* -f names the"),
        (["train", "--resume", "."], r"exact/command\.json is missing: expected the folder of a run that was trained with"),
        (["train", "--resume", "sac.zip"], r"sac\.zip/exact/command\.json is missing: expected the folder of a run"),
        (["export", "--model", "ppo.zip", "--algo", "a2c", "--to", "torch"], r"ppo\.zip is no agent of A2C: .* of PPO"),
    ],
)  # fmt: skip
def test_the_command_refuses_them(args, match, saved, monkeypatch):
    monkeypatch.chdir(saved)
    with pytest.raises(SystemExit, match=rf"sb3-sparse {args[0]}: .*{match}"):
        main(args)


def test_going_on_with_what_is_no_run(saved):
    with pytest.raises(FileNotFoundError, match=r"sac\.zip is no folder: expected one that ExactCheckpoint has written"):
        resume_exact(saved / "sac.zip")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: expected a folder that ExactCheckpoint has written"):
        resume_exact(saved)
