"""Safe files that are damaged, or made by somebody who means harm."""

import base64
import copy
import json
import os
import pickle
import random
import re
import time
import zipfile

import cloudpickle
import numpy as np
import pytest
import torch as th
from safetensors.torch import save
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_sparse.export import safe_to_sb3
from sb3_sparse.export.loading import load_agent
from sb3_sparse.resume.safe import load_safe, load_safe_vec_normalize, save_safe
from sb3_sparse.resume.safe.container import FORMAT, parse, read_container, write_container
from tests.envs import SpaceEnv
from tests.export.agents import BOX, DISCRETE, VECTOR
from tests.resume.safe_agents import KINDS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small agent with something of everything: shared tensors, optimizers, a learned temperature, statistics."""
    model = KINDS["sac"]()
    model.learn(20)
    return save_safe(model, tmp_path_factory.mktemp("safe") / "whole").read_bytes()


@pytest.fixture
def parts(whole, tmp_path):
    path = tmp_path / "whole.safetensors"
    path.write_bytes(whole)
    return read_container(path)


def refused(path, match="", **kwargs):
    """It is refused with a message that names the file, and fast."""
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}.*{match}") as error:
        load_safe(path, **kwargs)
    assert time.perf_counter() - start < 3
    return str(error.value)


def outcome(path, **kwargs):
    """What is said of a file that is refused; the class of the agent that is loaded."""
    try:
        return type(load_safe(path, **kwargs)).__name__
    except ValueError as error:
        return str(error)


def damaged(whole):
    """Files that differ from a whole one: cut off, longer, with a bit flipped anywhere, with bytes or pieces exchanged."""
    draw = random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in [0, 1, 7, 8, 9, header - 1, header, header + 1, len(whole) - 1]:
        yield f"cut off at {length}", whole[:length]
    for i in range(91):
        length = draw.randrange(len(whole))
        yield f"{i}: cut off at {length}", whole[:length]
    for i in range(50):
        yield f"{i}: longer", whole + bytes(draw.randrange(256) for _ in range(i + 1))
    places = [
        *range(64),
        *(draw.randrange(8, header) for _ in range(100)),
        *(draw.randrange(header, len(whole)) for _ in range(86)),
    ]
    for i, bit in enumerate(places):
        # In the length of the header every bit, then bits of its text, then of tensors.
        place, bit = (bit // 8, bit % 8) if i < 64 else (bit, draw.randrange(8))
        yield f"{i}: bit {bit} of byte {place}", whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
    names = sorted(set(re.findall(rb'"(params\.policy\.[^"\\]+)":\{', whole[:header])))
    assert len(names) > 20
    for i in range(50):
        a, b = draw.sample(names, 2)
        swapped = (
            whole[8:header].replace(b'"%b":{' % a, b"\0").replace(b'"%b":{' % b, b'"%b":{' % a).replace(b"\0", b'"%b":{' % b)
        )
        yield f"{i}: {a} for {b}", len(swapped).to_bytes(8, "little") + swapped + whole[header:]
    for i in range(50):
        place, length = draw.randrange(header, len(whole) - 64), draw.randrange(1, 64)
        piece = bytes(draw.randrange(256) for _ in range(length))
        if whole[place : place + length] != piece:
            yield f"{i}: {length} other bytes at {place}", whole[:place] + piece + whole[place + length :]


def test_500_damaged_files_are_refused(whole, tmp_path):
    variants = list(damaged(whole))
    assert len(variants) == 500
    assert len({content for _, content in variants}) > 495
    path = tmp_path / "agent.safetensors"
    messages = set()
    for what, content in variants:
        assert content != whole
        path.write_bytes(content)
        start = time.perf_counter()
        said = outcome(path)
        assert said.startswith(f"{path} cannot be read as a safe file: "), what
        assert time.perf_counter() - start < 3, what
        messages.add(said.partition("safe file: ")[2][:12])
    # All by one and the same check would show that one only.
    assert len(messages) > 3
    path.write_bytes(whole)
    assert type(load_safe(path)) is SAC


class Payload:
    """What runs code when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_the_payload_works(tmp_path):
    # Where something is unpickled, it is seen: also by the loader of SB3.
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").is_dir()
    model = PPO("MlpPolicy", SpaceEnv(VECTOR, BOX), n_steps=16, batch_size=8)
    model.payload = Payload(tmp_path / "another")
    model.save(tmp_path / "agent.zip")
    PPO.load(tmp_path / "agent.zip")
    assert (tmp_path / "another").is_dir()


def positions(value, path=()):
    """The place of every value in JSON."""
    yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from positions(inner, (*path, key))


def put(content, path, value):
    content = copy.deepcopy(content)
    if not path:
        return value
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


def payloads(mark):
    pickled = cloudpickle.dumps(Payload(mark))
    encoded = base64.b64encode(pickled).decode()
    yield {":type:": "x", ":serialized:": encoded}
    yield {"kind": "object", "class": "posix.mkdir", "attributes": {"kind": "dict", "items": {"mark": str(mark)}}}
    yield {"kind": "class", "name": "os.mkdir"}
    yield f"__import__('os').mkdir({str(mark)!r})"
    yield pickled.decode("latin-1")


def short(value):
    # Lists of many entries are all alike.
    return [path for path in positions(value) if not any(isinstance(key, int) and key > 2 for key in path)]


def test_a_planted_payload_is_executed_in_no_position(parts, tmp_path, monkeypatch):
    """In each value of the JSON, in each loader: whether it loads or not, nothing happens."""
    content, tensors = parts
    mark, path = tmp_path / "mark", tmp_path / "agent.safetensors"
    places = short({name: content[name] for name in ("algorithm", "data", "variables", "vec_normalize", "versions")})
    places += [("params",), *(("params", *place) for place in short(content["params"])[:60]), ()]
    assert len(places) > 150
    n_loaded = 0
    planted = [(place, payload) for place in places for payload in payloads(mark)]
    for place, payload in random.Random(0).sample(planted, 400):
        write_container(path, put(content, place, payload), tensors)
        said = outcome(path, buffer_size=1)
        assert said == "SAC" or str(path) in said
        n_loaded += said == "SAC"
        assert not mark.exists(), (place, payload)
    # Some are only text, where any text is allowed.
    assert 0 < n_loaded < 200


def test_a_payload_beside_the_json_is_not_executed(whole, parts, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "agent.safetensors"
    pickled = pickle.dumps(Payload(mark))
    content, tensors = parts
    # A pickle, a zip of SB3 and one of torch under the name of a safe file.
    th.save(Payload(mark), tmp_path / "payload.pth")
    model = PPO("MlpPolicy", SpaceEnv(VECTOR, BOX), n_steps=16, batch_size=8)
    model.payload = Payload(mark)
    model.save(tmp_path / "payload.zip")
    files = [pickled, (tmp_path / "payload.pth").read_bytes(), (tmp_path / "payload.zip").read_bytes()]
    # As metadata, as a tensor, behind the tensors.
    text = pickled.decode("latin-1")
    files += [
        save(tensors, {"format": "pt", "sb3_sparse": FORMAT, "content": text, "sha256": "0" * 64}),
        save(tensors, {"format": "pt", "sb3_sparse": text, "content": json.dumps(content), "sha256": "0" * 64}),
        save({**tensors, text: th.tensor(list(pickled), dtype=th.uint8)}, {"pickle": text}),
        whole + pickled,
    ]
    other = tmp_path / "vec.zip"
    for file in files:
        path.write_bytes(file)
        for loader in (
            load_safe,
            lambda p: load_agent(SAC, p),
            lambda p: safe_to_sb3(p, other),
            lambda p: load_safe_vec_normalize(p, DummyVecEnv([lambda: SpaceEnv(VECTOR, BOX)])),
        ):
            with pytest.raises(ValueError, match=re.escape(str(path))):
                loader(path)
            assert not mark.exists()
    # As one more tensor in a file that is right otherwise: it stays a tensor.
    write_container(path, content, {**tensors, "payload.pkl": th.tensor(list(pickled), dtype=th.uint8)})
    load_safe(path)
    assert not mark.exists()


def data_with(content, **attributes):
    changed = copy.deepcopy(content)
    changed["data"]["items"] |= attributes
    return changed


@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        ({"env": "os:Pendulum-v1"}, r"it has \['env'\], which no file decides"),
        ({"policy": None}, r"it has \['policy'\]"),
        ({"tensorboard_log": "/etc"}, r"it has \['tensorboard_log'\]"),
        ({"_logger": None}, r"it has \['_logger'\]"),
        ({"learn": 1}, "'learn', which is a method of SAC"),
        ({"_setup_model": {"kind": "class", "name": "torch.nn.modules.activation.ReLU"}}, "'_setup_model', which is a method"),
        ({"logger": 1}, "'logger', which is a method"),
        ({"__class__": 1}, "'__class__', which is no name"),
        ({"a.b": 1}, "'a.b', which is no name"),
        ({"policy_class": {"kind": "class", "name": "os.system"}}, r"'os\.system', which is not on the list"),
        ({"policy_class": {"kind": "class", "name": "tests.envs.ReachEnv"}}, "which is not on the list"),
        ({"policy_class": {"kind": "class", "name": ["os"]}}, "which is not on the list"),
        ({"policy_class": {"kind": "class", "name": "torch.optim.adam.Adam"}}, "makes no agent of SAC"),
        ({"x": {"kind": "object", "class": "torch.optim.adam.Adam", "attributes": {}}}, "not on the list"),
        (
            {"x": {"kind": "object", "class": "stable_baselines3.common.utils.ConstantSchedule",
                   "attributes": {"kind": "dict", "items": {"__call__": 1}}}},
            "'__call__', which is no name",
        ),
        ({"x": {"kind": "device", "value": "no such"}}, "none of an agent|Expected one of"),
        ({"x": {"kind": "dtype", "value": "O"}}, "it names 'O'"),
        ({"x": {"kind": "scalar", "dtype": "object", "value": 1}}, "it names 'object'"),
        ({"x": {"kind": "tensor", "name": "../../etc/passwd"}}, "passwd"),
        ({"x": {"kind": "generator", "name": "system", "state": {}}}, "it names 'system'"),
        ({"x": {"kind": "tuple", "values": "text"}}, "where a list is expected"),
        ({"x": {"kind": "no such"}}, "unknown kind 'no such'"),
        ({"x": {}}, "none of an agent: KeyError"),
        (
            {"observation_space": {"kind": "space", "parts": {"kind": "dict", "items": {"space": "Graph"}}}},
            "of the kind 'Graph'",
        ),
        ({"observation_space": 3}, "makes no agent of SAC"),
        ({"buffer_size": 10**18}, "makes no agent of SAC"),
        ({"policy_kwargs": {"kind": "dict", "items": {"net_arch": [4, 4]}}}, "makes no agent of SAC"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_say(attributes, match, parts, tmp_path):
    content, tensors = parts
    path = tmp_path / "agent.safetensors"
    write_container(path, data_with(content, **attributes), tensors)
    refused(path, match)


def test_a_part_that_is_missing_or_of_another_shape(parts, tmp_path):
    content, tensors = parts
    path = tmp_path / "agent.safetensors"
    for name in ("algorithm", "data", "params", "variables", "vec_normalize"):
        write_container(path, {key: value for key, value in content.items() if key != name}, tensors)
        refused(path, name)
    for name in ("policy", "actor.optimizer", "ent_coef_optimizer"):
        changed = copy.deepcopy(content)
        del changed["params"]["items"][name]
        write_container(path, changed, tensors)
        refused(path, name)
    changed = copy.deepcopy(content)
    del changed["variables"]["items"]["log_ent_coef"]
    write_container(path, changed, tensors)
    refused(path, r"it lacks the tensors \['log_ent_coef'\]")
    first = next(name for name in tensors if name.endswith("nonzeros"))
    write_container(path, content, {name: tensor for name, tensor in tensors.items() if name != first})
    refused(path, re.escape(first))
    write_container(path, content, {**tensors, first: th.zeros(3)})
    refused(path, "makes no agent of SAC")


def with_header(text, data=b""):
    return len(text).to_bytes(8, "little") + text + data


def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path):
    path = tmp_path / "agent.safetensors"
    huge = 2**60
    entry = {"dtype": "F32", "shape": [huge // 4], "data_offsets": [0, huge]}
    header = json.dumps({"__metadata__": {"sb3_sparse": FORMAT}, "a": entry}).encode()
    for content, match in [
        ((2**63).to_bytes(8, "little") + b"{}", "says that its header has 9,223,372,036,854,775,808 bytes"),
        ((99).to_bytes(8, "little") + b"{}", "header has 99 bytes"),
        (with_header(header), "says that it has 1,152,921,504,606,846,976 bytes of tensors, and has 0"),
        (with_header(b"[" * 100_000), "JSON"),
        (with_header(b'{"a":' * 50_000), "JSON"),
        (with_header(b'{"__metadata__":{},"__metadata__":{}}'), "there twice"),
        (with_header(b'{"__metadata__":{"a":NaN}}'), "NaN is no JSON"),
        (with_header(b'{"__metadata__":{"a":%s}}' % (b"1" * 5000)), "JSON"),
        (with_header(b'{"__metadata__":{},"a":{"data_offsets":[0,true]}}'), "does not say where it is"),
        (with_header(b'{"__metadata__":{},"a":3}'), "does not say where it is"),
        (with_header(b'{"__metadata__":{}}'), "no agent of save_safe"),
        (with_header(b"{}"), "no agent of save_safe"),
        (with_header(b'{"\xff":1}'), "JSON"),
    ]:  # fmt: skip
        path.write_bytes(content)
        refused(path, match)
    # A file of which hardly anything is there.
    with path.open("wb") as file:
        file.truncate(2**42)
    refused(path, r"4,398,046,511,104 bytes: expected at most max_bytes=")


@pytest.mark.parametrize(
    "settings", [{"net_arch": [200_000, 200_000]}, {"net_arch": [3_000] * 1_000}, {"net_arch": [8], "n_critics": 10**9}]
)
def test_settings_that_ask_for_absurd_networks_are_refused(settings, tmp_path):
    model = SAC("MlpPolicy", SpaceEnv(VECTOR, BOX), policy_kwargs={"net_arch": [8]}, buffer_size=10)
    content, tensors = read_container(save_safe(model, tmp_path / "agent"))
    content["data"]["items"]["policy_kwargs"]["items"].update(settings)
    path = tmp_path / "absurd.safetensors"
    write_container(path, content, tensors)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"absurd\.safetensors makes no agent of SAC: .*its settings ask for "):
        load_safe(path)
    assert time.perf_counter() - start < 60


def test_a_limit_of_the_users(whole, tmp_path):
    path = tmp_path / "agent.safetensors"
    path.write_bytes(whole)
    refused(path, "expected at most max_bytes=1,000", max_bytes=1000)
    load_safe(path, max_bytes=len(whole))


def test_folders_pipes_and_devices_are_refused_and_not_waited_for(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    os.symlink("/dev/zero", tmp_path / "device.safetensors")
    os.symlink(tmp_path / "loop.safetensors", tmp_path / "loop.safetensors")
    for name in ("folder", "pipe", "device"):
        refused(tmp_path / f"{name}.safetensors", "it is no regular file")
    with pytest.raises(OSError, match=r"loop\.safetensors"):
        load_safe(tmp_path / "loop.safetensors")


def test_no_name_in_a_file_is_a_path(parts, tmp_path):
    """Names of tensors that look like paths are names: nothing is read or written there."""
    content, tensors = parts
    folder = tmp_path / "inside"
    folder.mkdir()
    path = folder / "agent.safetensors"
    names = [f"../{i}.txt" for i in range(3)] + [str(tmp_path / "absolute.txt"), "..\\back.txt", "nul\0.txt"]
    write_container(path, content, {**tensors, **{name: th.arange(3) for name in names}})
    load_safe(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["inside", "whole.safetensors"]
    assert [p.name for p in folder.iterdir()] == ["agent.safetensors"]


def test_saving_does_not_write_through_a_link(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("mine")
    os.symlink(secret, tmp_path / "agent.safetensors")
    save_safe(PPO("MlpPolicy", SpaceEnv(VECTOR, DISCRETE), n_steps=16, batch_size=8), tmp_path / "agent")
    assert secret.read_text() == "mine"
    assert not (tmp_path / "agent.safetensors").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["agent.safetensors", "secret.txt"]


def test_the_older_file_stays_where_the_new_one_cannot_be_written(whole, tmp_path):
    path = tmp_path / "agent.safetensors"
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="cannot save this PPO"):
        save_safe(PPO("MlpPolicy", SpaceEnv(VECTOR, DISCRETE), learning_rate=lambda p: 1e-3, n_steps=16, batch_size=8), path)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["agent.safetensors"]


def test_json_is_as_strict_as_its_standard():
    assert parse('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for text in ('{"a": Infinity}', '{"a": 1, "a": 2}', "[1,]", ""):
        with pytest.raises(ValueError, match="its JSON cannot be read"):
            parse(text)


def test_a_zip_without_its_pytorch_variables_is_an_error(tmp_path):
    model = KINDS["sac"]()
    model.save(tmp_path / "agent.zip")
    load_agent(SAC, tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as whole, zipfile.ZipFile(tmp_path / "less.zip", "w") as less:
        for name in whole.namelist():
            if name != "pytorch_variables.pth":
                less.writestr(name, whole.read(name))
    # SB3 itself says nothing, and has a temperature as at the start.
    SAC.load(tmp_path / "less.zip")
    with pytest.raises(
        ValueError, match=r"less\.zip is no agent of SAC: .*pytorch_variables\.pth is missing in .*log_ent_coef"
    ):
        load_agent(SAC, tmp_path / "less.zip")


def test_numpy_loads_no_pickle_here():
    # Arrays of objects are none that a file may hold.
    model = PPO("MlpPolicy", SpaceEnv(VECTOR, DISCRETE), n_steps=16, batch_size=8)
    model._last_obs = np.array([object()], dtype=object)
    with pytest.raises(ValueError, match=r"_last_obs is a numpy\.ndarray"):
        save_safe(model, "never.safetensors")
