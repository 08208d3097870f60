"""How an agent acts is decided once and saved with it, in files of every kind; those from before act as they did."""

import copy
import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_sparse import SparseSimBaPolicy, load_safe, save_safe
from sb3_sparse.simba.acting.written import WrittenPass
from tests.compatibility import cases
from tests.simba.acting import ALGORITHMS, by_torch, make, network_of, observations

needs_numpy_2 = pytest.mark.skipif(
    np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="the files were saved with NumPy 2, which NumPy 1 cannot read"
)

OBSERVATION = observations()[0]
OLD = sorted({*cases.ACTOR_CRITIC, *cases.VALUE_BASED})


def saved(model):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


def without_record(file):
    """The file as a version without a choice would have written it."""
    old = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "data":
                data = json.loads(content)
                del data["compiled_acting"]
                content = json.dumps(data).encode()
            target.writestr(name, content)
    old.seek(0)
    return old


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def test_what_was_decided_comes_back(algorithm):
    for given, kwargs in ((True, {}), (True, {"compiled_acting": True}), (False, {"compiled_acting": False})):
        model = make(algorithm, steps=0, **kwargs)
        assert model.policy.compiled_acting is given
        for _ in range(2):
            model = algorithm.load(saved(model), device="cpu")
            assert model.policy.compiled_acting is given
        assert load_from_zip_file(saved(model))[0]["compiled_acting"] is given


def test_a_loaded_agent_acts_bit_by_bit_as_the_one_that_was_saved(passes):
    model = make()
    again = SAC.load(saved(model), device="cpu")
    passes.clear()
    for observation in observations():
        right = model.predict(observation, deterministic=True)[0]
        np.testing.assert_array_equal(again.predict(observation, deterministic=True)[0], right)
    assert len(passes) == 2 * len(observations())


def test_a_file_from_before_acts_as_it_did_and_stays_so(passes):
    model = make()
    right = [by_torch(model, observation) for observation in observations()]
    again = SAC.load(without_record(saved(model)), device="cpu")
    passes.clear()
    for _ in range(2):
        assert again.policy.compiled_acting is False
        for observation, action in zip(observations(), right, strict=True):
            np.testing.assert_array_equal(again.predict(observation, deterministic=True)[0], action)
        again = SAC.load(saved(again), device="cpu")
    assert not passes


@needs_numpy_2
@pytest.mark.parametrize("name", OLD)
def test_files_of_earlier_versions_act_by_torchs_pass(name, passes):
    agent = cases.AGENTS[name]
    model = agent.algorithm.load(cases.FILES / name, device="cpu")
    assert model.policy.compiled_acting is False
    model.predict(model.observation_space.sample())
    assert not passes
    # A new agent beside it, and what is asked for.
    assert agent.build().policy.compiled_acting is True
    assert agent.algorithm.load(cases.FILES / name, device="cpu", compiled_acting=True).policy.compiled_acting is True


@needs_numpy_2
@pytest.mark.parametrize("name", ["sac", "qrdqn", "dqn_image"])
def test_pickles_of_earlier_versions_act_by_torchs_pass(name):
    policy = th.load(cases.PICKLES / f"{name}.policy.pt", weights_only=False)
    assert policy.compiled_acting is False


def test_how_an_agent_acts_can_be_said_when_it_is_loaded():
    model = make(steps=0)
    assert SAC.load(saved(model), compiled_acting=False).policy.compiled_acting is False
    again = SAC.load(saved(SAC.load(saved(model), compiled_acting=False)))
    assert again.policy.compiled_acting is False
    with pytest.raises(ValueError, match="compiled_acting=3"):
        SAC.load(saved(model), compiled_acting=3)


def test_policy_kwargs_of_a_user_stay_what_they_were():
    kwargs = {"width_scale": 0.1}
    model = SAC("SparseSimBaPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs=kwargs)
    assert "compiled_acting" not in kwargs
    assert SAC.load(saved(model), policy_kwargs=kwargs).policy.compiled_acting is True


@pytest.mark.parametrize("given", [True, False])
def test_policies_alone(given, tmp_path):
    policy = make(steps=0, compiled_acting=given).policy
    policy.save(tmp_path / "policy.pth")
    assert SparseSimBaPolicy.load(tmp_path / "policy.pth", device="cpu").compiled_acting is given
    assert pickle.loads(pickle.dumps(policy)).compiled_acting is given
    file = th.load(tmp_path / "policy.pth", weights_only=False)
    del file["data"]["compiled_acting"]
    th.save(file, tmp_path / "old.pth")
    assert SparseSimBaPolicy.load(tmp_path / "old.pth", device="cpu").compiled_acting is False
    # Made by hand, from the keywords of another.
    assert SparseSimBaPolicy(**policy._get_constructor_parameters()).compiled_acting is given
    assert SparseSimBaPolicy(**file["data"]).compiled_acting is True


@pytest.mark.parametrize("given", [True, False])
def test_safe_files(given, tmp_path):
    path = save_safe(make(steps=0, compiled_acting=given), tmp_path / "agent")
    assert load_safe(path, device="cpu").policy.compiled_acting is given


@needs_numpy_2
def test_loading_weights_into_an_agent_does_not_change_how_it_acts():
    model, old = make(steps=0), SAC.load(cases.FILES / "sac", device="cpu")
    model.set_parameters(make(compiled_acting=False).get_parameters())
    assert model.policy.compiled_acting is True
    old.set_parameters(cases.AGENTS["sac"].build().get_parameters())
    assert old.policy.compiled_acting is False


@pytest.mark.parametrize("algorithm", [SAC, TD3, DQN])
def test_copies_act_with_weights_of_their_own(algorithm, passes):
    model = make(algorithm)
    right = model.predict(OBSERVATION, deterministic=True)[0]
    passes.clear()
    for again in (copy.deepcopy(model.policy), pickle.loads(pickle.dumps(model.policy))):
        assert again._pass is None
        np.testing.assert_array_equal(again.predict(OBSERVATION, deterministic=True)[0], right)
        with th.no_grad():
            for parameter in network_of(again).parameters():
                parameter.add_(1.0)
        assert not np.array_equal(again.predict(OBSERVATION, deterministic=True)[0], right) or algorithm is DQN
        np.testing.assert_array_equal(model.predict(OBSERVATION, deterministic=True)[0], right)
    assert len(passes) == 6


def test_nothing_of_the_pass_is_saved():
    model = make()
    model.predict(OBSERVATION, deterministic=True)[0]
    file = io.BytesIO()
    th.save(model.policy, file)
    state = model.policy.__getstate__()
    assert "_pass" in vars(model.policy)
    assert "_pass" not in state
    assert isinstance(model.policy._pass, WrittenPass)
