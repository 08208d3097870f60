"""ONNX files and programs of torch.export do as predict does, and wrong ones are never left behind."""

import functools
import json
import random

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.sac.policies import SACPolicy

from sb3_sparse import SparseLinear
from sb3_sparse.export import check, export_onnx, export_torch, files
from sb3_sparse.networks.noisy import noisy_layers
from tests.envs import SpaceEnv
from tests.export.agents import (
    BOX,
    MAKERS,
    OFF_POLICY,
    VECTOR,
    agent,
    assert_equal_actions,
    in_child,
    observations_of,
    simba,
)

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

N = 1000


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """The ONNX file of an agent, written once, alone in its folder."""
    return functools.cache(lambda name: export_onnx(agent(name), tmp_path_factory.mktemp("onnx") / "agent"))


@pytest.fixture(scope="module")
def torch_file(tmp_path_factory):
    """The same as a program of torch.export."""
    return functools.cache(lambda name: export_torch(agent(name), tmp_path_factory.mktemp("torch") / "agent"))


def raw(name):
    """A thousand observations of an agent, the steps that they come after, and what predict answers."""
    model = agent(name)
    observations = observations_of(model.observation_space, N, seed=7)
    steps = np.random.default_rng(7).integers(0, 1500, N)
    expected, _ = model.predict(observations, state=(steps,), deterministic=True)
    return model, observations, steps, expected


def run_onnx(path, observations, steps):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = dict(observations) if isinstance(observations, dict) else {"observation": observations}
    if "step" in [wanted.name for wanted in session.get_inputs()]:
        inputs["step"] = steps
    return session.run(None, inputs)[0]


def tensors(observations):
    if isinstance(observations, dict):
        return {key: th.from_numpy(part) for key, part in observations.items()}
    return th.from_numpy(observations)


# Writing ONNX takes seconds. These have nothing that others have not: same layers, inputs and actions.
NO_NEWS = {"sac small image", "sac bytes", "sb3 sac", "sb3 td3 sparse", "rainbow dense", "rainbow dict", "drqv2 dense"}


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in NO_NEWS])
def test_an_onnx_file_does_as_predict_does(name, onnx_file):
    _, observations, steps, expected = raw(name)
    path = onnx_file(name)
    assert [file.name for file in path.parent.iterdir()] == [path.name] == ["agent.onnx"]
    assert_equal_actions(run_onnx(path, observations, steps), expected)
    # A single one, as an agent acts.
    first = {key: part[:1] for key, part in observations.items()} if isinstance(observations, dict) else observations[:1]
    assert_equal_actions(run_onnx(path, first, steps[:1]), expected[:1])


@pytest.mark.parametrize("name", MAKERS)
def test_a_program_of_torch_export_does_as_predict_does(name, torch_file):
    model, observations, steps, expected = raw(name)
    path = torch_file(name)
    assert [file.name for file in path.parent.iterdir()] == [path.name] == ["agent.pt2"]
    program = th.export.load(path)
    has_step = len(program.graph_signature.user_inputs) > len(getattr(model.observation_space, "spaces", [0]))
    assert has_step == (name.startswith("stream") and name not in ("stream_sarsa", "stream_q minatar"))
    arguments = (tensors(observations), th.from_numpy(steps)) if has_step else (tensors(observations),)
    assert_equal_actions(program.module()(*arguments).numpy(), expected)


def test_inputs_have_the_names_and_types_of_the_observations(onnx_file):
    session = onnxruntime.InferenceSession(onnx_file("sac dict"))
    inputs = {i.name: (i.type, i.shape[1:]) for i in session.get_inputs()}
    assert inputs == {
        "a goal": ("tensor(double)", [3]),
        "linear": ("tensor(int64)", []),
        "action": ("tensor(int8)", [2]),
        "mul": ("tensor(float)", [2]),
    }
    assert [o.name for o in session.get_outputs()] == ["predicted_action"]
    session = onnxruntime.InferenceSession(onnx_file("dqn multidiscrete"))
    assert [i.type for i in session.get_inputs()] == ["tensor(int32)"]
    session = onnxruntime.InferenceSession(onnx_file("stream_ac"))
    assert [(i.name, i.type) for i in session.get_inputs()] == [("observation", "tensor(double)"), ("step", "tensor(int64)")]
    assert [o.name for o in session.get_outputs()] == ["action"]


SPACES = {
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([3, 4], dtype=np.int16),
    "multibinary": spaces.MultiBinary(2),
    "box": spaces.Box(0, 9, (2,), np.uint8),
    "wide box": VECTOR,
}
# A Discrete takes it as an argument in newer versions of gymnasium.
SPACES["discrete"].dtype = np.dtype(np.int32)


@pytest.mark.parametrize("name", SPACES)
def test_random_observations_have_the_type_of_the_environments(name):
    """Mistake: integers were drawn as int64, so that programs refused the observations of other spaces."""
    space = SPACES[name]
    observations = check.random_observations(space, 5, np.random.default_rng(0))
    assert (observations.dtype, observations.shape) == (space.dtype, (5, *space.shape))


def test_a_file_says_what_it_is(onnx_file, torch_file):
    session = onnxruntime.InferenceSession(onnx_file("sac"))
    said = session.get_modelmeta().custom_metadata_map
    assert said["algorithm"] == "SAC"
    assert said["policy"] == "sb3_sparse.simba.policies.SparseSimBaPolicy"
    assert said["observation_space"] == str(VECTOR)
    assert said["action_space"] == str(BOX)
    assert said["num_timesteps"] == "32"
    extra = {files.METADATA_FILE: ""}
    th.export.load(torch_file("sac"), extra_files=extra)
    assert json.loads(extra[files.METADATA_FILE]) == said


@pytest.mark.parametrize("export", [export_onnx, export_torch])
def test_the_agent_stays_as_it_was(export, tmp_path):
    model = agent("sac")
    model.policy.set_training_mode(True)
    for parameter in model.policy.parameters():
        parameter.grad = th.ones_like(parameter)
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    states = th.get_rng_state(), str(np.random.get_state()), random.getstate(), th.is_grad_enabled()
    export(model, tmp_path / "agent")
    assert th.equal(states[0], th.get_rng_state())
    assert states[1:] == (str(np.random.get_state()), random.getstate(), th.is_grad_enabled())
    assert all(module.training for module in model.policy.actor.modules())
    assert all(th.equal(p.grad, th.ones_like(p)) for p in model.policy.parameters())
    assert all(p.requires_grad for p in model.policy.actor.parameters())
    after = model.policy.state_dict()
    assert list(before) == list(after)
    assert all(th.equal(before[key], after[key]) for key in before)


class Stubborn(SACPolicy):
    """Does something of its own, which nobody who only knows the parent can export."""

    def _predict(self, observation, deterministic=False):
        return super()._predict(observation, deterministic) * 0.5


@pytest.mark.parametrize(("export", "ending"), [(export_onnx, "onnx"), (export_torch, "pt2")])
def test_a_wrong_file_is_not_left_behind(export, ending, tmp_path):
    model = SAC(Stubborn, SpaceEnv(VECTOR, BOX), policy_kwargs={"net_arch": [8]}, **OFF_POLICY)
    path = tmp_path / f"agent.{ending}"
    path.write_text("an older one")
    with pytest.raises(RuntimeError, match=r"does not do as predict does: 1 of 1 .* Does Stubborn override"):
        export(model, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "an older one"


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = MAKERS["td3"]()
    with th.no_grad():
        model.actor.mu[1].bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="does not do as predict does"):
        export_torch(model, tmp_path / "agent")


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    model = agent("sac")
    with pytest.raises(ValueError, match=r"path='.*agent.zip': expected a name that ends in '.onnx'"):
        export_onnx(model, tmp_path / "agent.zip")
    with pytest.raises(ValueError, match="expected the name of a file"):
        export_torch(model, tmp_path)
    with pytest.raises(ValueError, match="tolerance=0: expected a positive number"):
        export_onnx(model, tmp_path / "agent", tolerance=0)
    with pytest.raises(ValueError, match="channels_last=1: expected True or False"):
        export_onnx(model, tmp_path / "agent", channels_last=1)
    assert not list(tmp_path.iterdir())


def test_folders_are_made(tmp_path):
    assert export_torch(agent("dqn"), tmp_path / "new/folder/agent").is_file()


def test_onnx_missing(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'needs onnxruntime: pip install "sb3-sparse\[export\]"'):
        export_onnx(agent("sac"), tmp_path / "agent")


def test_importing_the_package_does_not_import_onnx():
    code = "import sb3_sparse, sb3_sparse.export, sys; print([n for n in sys.modules if n.split('.')[0].startswith('onnx')])"
    assert in_child(code, blocked=()).strip() == "[]"


LOAD_TORCH = """
import numpy as np, torch
arrays = np.load(sys.argv[2])
inputs = {k.removeprefix("part_"): torch.from_numpy(arrays[k]) for k in arrays if k.startswith("part_")}
program = torch.export.load(sys.argv[1]).module()
np.save(sys.argv[3], program(inputs if len(inputs) > 1 else inputs["observation"]).numpy())
assert not [name for name in sys.modules if name.startswith(("sb3_sparse.", "stable_baselines3.", "gymnasium."))]
"""
LOAD_ONNX = """
import numpy as np, onnxruntime
arrays = np.load(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1])
np.save(sys.argv[3], session.run(None, {k.removeprefix("part_"): arrays[k] for k in arrays if k.startswith("part_")})[0])
"""
NO_RL = ("sb3_sparse", "stable_baselines3", "sb3_contrib", "gymnasium")


@pytest.mark.parametrize("name", ["sac", "sac dict"])
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_a_file_needs_nothing_else(name, kind, onnx_file, torch_file, tmp_path):
    _, observations, _, expected = raw(name)
    parts = observations if isinstance(observations, dict) else {"observation": observations}
    np.savez(tmp_path / "observations.npz", **{f"part_{key}": part for key, part in parts.items()})
    path, code, blocked = (
        (onnx_file(name), LOAD_ONNX, (*NO_RL, "torch")) if kind == "onnx" else (torch_file(name), LOAD_TORCH, NO_RL)
    )
    in_child(code, path, tmp_path / "observations.npz", tmp_path / "actions.npy", blocked=blocked, cwd=tmp_path)
    assert_equal_actions(np.load(tmp_path / "actions.npy"), expected)


def test_critics_and_targets_are_not_in_the_file(torch_file):
    program = th.export.load(torch_file("td3"))
    actor = sum(p.numel() for p in agent("td3").policy.actor.parameters())
    layers = [layer for layer in agent("td3").policy.actor.modules() if isinstance(layer, SparseLinear)]
    pruned = sum(layer.topology.numel - layer.topology.nnz for layer in layers)
    assert sum(p.numel() for p in program.parameters()) == actor + pruned


def test_noise_is_not_in_the_file(torch_file):
    program = th.export.load(torch_file("der"))
    net = agent("der").q_net
    assert any("sigma" in name for name, _ in net.named_parameters())
    layers = list(noisy_layers(net))
    means = sum((layer.in_features + 1) * layer.out_features for layer in layers)
    assert sum(p.numel() for p in program.parameters()) == means
    assert not [name for name, _ in program.named_buffers() if "noise" in name]
    # The agent explores as before.
    assert all(layer.noisy for layer in layers)


def test_dict_with_one_part(tmp_path):
    model = simba(SAC, spaces.Dict({"only": VECTOR}), BOX)
    observations = observations_of(model.observation_space, N, seed=1)
    expected, _ = model.predict(observations, deterministic=True)
    assert_equal_actions(run_onnx(export_onnx(model, tmp_path / "agent"), observations, None), expected)
