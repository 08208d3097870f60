"""Classes of a safe file in places that are not theirs: what they would do there is not done."""

import json
import sys

import pytest
from stable_baselines3 import PPO, SAC

from sb3_sparse.resume.safe import load_safe, save_safe
from sb3_sparse.resume.safe.container import read_container, write_container
from tests.envs import SpaceEnv
from tests.export.agents import BOX, VECTOR

FILE = "agent.safetensors"


@pytest.fixture
def agent(tmp_path):
    model = SAC("MlpPolicy", SpaceEnv(VECTOR, BOX), policy_kwargs={"net_arch": [4]}, buffer_size=10)
    return save_safe(model, tmp_path / "good")


def changed(agent, folder, change):
    content, tensors = read_container(agent)
    change(content["data"]["items"], content)
    write_container(folder / FILE, content, tensors)
    return folder / FILE


def a_class(name):
    return {"kind": "class", "name": name}


def a_dict(**items):
    return {"kind": "dict", "items": items}


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported."""
    path = tmp_path / "mark"
    (tmp_path / "module_of_nobody.py").write_text(f"open({str(path)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("module_of_nobody", None)


class MySAC(SAC):
    """An algorithm that a user allows."""


@pytest.mark.parametrize("name", ["stable_baselines3.sac.sac.SAC", "sb3_sparse.rainbow.algo.Rainbow", f"{__name__}.MySAC"])
def test_an_algorithm_inside_of_an_agent_makes_no_environment(name, agent, mark, tmp_path):
    """It would take "module:environment", and import the module."""

    def as_extractor(data, content):
        data["policy_kwargs"] = a_dict(
            features_extractor_class=a_class(name), features_extractor_kwargs=a_dict(env="module_of_nobody:Env-v0")
        )

    def as_policy(data, content):
        data["policy_class"], data["action_space"] = a_class(name), "module_of_nobody:Env-v0"

    for change in (as_extractor, as_policy):
        with pytest.raises(ValueError, match=rf"{FILE}.*names '{name}', which is an algorithm"):
            load_safe(changed(agent, tmp_path, change), allow=[MySAC])
        assert not mark.exists()


def test_the_algorithm_of_an_agent_is_one(agent, tmp_path):
    for name in ("stable_baselines3.sac.policies.SACPolicy", "builtins.int", "os.system"):

        def change(data, content, name=name):
            content["algorithm"] = a_class(name)

        with pytest.raises(ValueError, match=rf"{FILE}.*'{name}', .*algorithm"):
            load_safe(changed(agent, tmp_path, change))


def test_an_agent_that_holds_an_algorithm_is_refused_at_saving(tmp_path):
    model = PPO("MlpPolicy", SpaceEnv(VECTOR, BOX), n_steps=16, batch_size=8)
    model.teacher = SAC
    with pytest.raises(ValueError, match=r"agent\.safetensors: cannot save this PPO: data\.teacher is .*SAC, which"):
        save_safe(model, tmp_path / FILE)


class Loud:
    """Whose constructor does something."""

    def __init__(self, path):
        open(path, "w").close()

    def __call__(self, progress):
        return 1e-3


def test_no_constructor_of_an_instance_is_called(agent, tmp_path):
    def change(data, content):
        fields = a_dict(path=str(tmp_path / "mark"))
        data["learning_rate"] = {"kind": "named_tuple", "class": f"{__name__}.Loud", "fields": fields}

    with pytest.raises(ValueError, match=rf"{FILE}.*Loud', which is no tuple with names"):
        load_safe(changed(agent, tmp_path, change), allow=[Loud])
    assert not (tmp_path / "mark").exists()


def test_texts_that_make_much_more_than_they_are_long_are_refused(agent, tmp_path):
    """Each of these lists takes sixty times the bytes that it has in the file."""
    path = tmp_path / FILE
    data = agent.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["content"] = "[" + "[]," * (6 * 2**20) + "0]"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(ValueError, match=rf"{FILE}.*header has .* bytes"):
        load_safe(path)
