"""What files of earlier versions name can be imported for ever, and whole policies that these versions pickled work."""

import copy
import importlib
import json

import numpy as np
import pytest
import torch as th

from sb3_sparse import SparseLinear, to_dense
from sb3_sparse.sparse.kernels import available_backends
from tests.compatibility import cases

# Found in agents, policies, networks and pickled modules of versions 0.1 and 0.2.
ADDRESSES = {
    "sb3_sparse.networks.running_norm": ["RunningNorm"],
    "sb3_sparse.networks.simba": ["ResidualBlock", "SimBaEncoder"],
    "sb3_sparse.observations": ["FlatSmallImages", "ObservationNorm"],
    "sb3_sparse.policies": [
        *("SparseSimBaCrossQPolicy", "SparseSimBaDQNPolicy", "SparseSimBaPolicy"),
        *("SparseSimBaQRDQNPolicy", "SparseSimBaTD3Policy", "SparseSimBaTQCPolicy"),
    ],
    "sb3_sparse.policy_networks": [
        *("ObservationNorm", "SimBaContinuousCritic", "SimBaCrossQActor", "SimBaCrossQCritic", "SimBaQNetwork"),
        *("SimBaQuantileNetwork", "SimBaSACActor", "SimBaTD3Actor", "SimBaTQCActor", "SimBaTQCCritic"),
    ],
    "sb3_sparse.sparse": ["SparseConv2d", "SparseLinear", "Topology"],
    "sb3_sparse.sparse.layers": ["SparseConv2d", "SparseLinear"],
    "sb3_sparse.sparse.topology": ["Topology"],
    "sb3_sparse.streaming.networks": ["StreamNetwork"],
    "sb3_sparse.streaming.normalizers": ["ObservationNormalizer", "RewardScaler"],
    "sb3_sparse.streaming.obgd": ["AdaptiveObGD", "ObGD"],
    "sb3_sparse.streaming.policies": ["StreamACCnnPolicy", "StreamACPolicy", "StreamQCnnPolicy", "StreamQPolicy"],
}
# Since 0.3.
ADDRESSES |= {
    "sb3_sparse.simba.policies": ADDRESSES["sb3_sparse.policies"],
    "sb3_sparse.simba.networks": [name for name in ADDRESSES["sb3_sparse.policy_networks"] if name != "ObservationNorm"],
    "sb3_sparse.simba.observation_norm": ["ObservationNorm"],
    "sb3_sparse.simba.spaces": ["FlatSmallImages"],
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses(address):
    module = importlib.import_module(address)
    for name in ADDRESSES[address]:
        assert getattr(module, name).__name__ == name


def test_an_old_address_is_the_same_class():
    old, new = (importlib.import_module(f"sb3_sparse.{name}") for name in ("policies", "simba.policies"))
    assert old.SparseSimBaPolicy is new.SparseSimBaPolicy
    old, new = (importlib.import_module(f"sb3_sparse.{name}") for name in ("policy_networks", "simba.networks"))
    assert old.SimBaSACActor is new.SimBaSACActor


def stored(name):
    arrays = np.load(cases.PICKLES / f"{name}.npz")
    return arrays, {key.removeprefix("in_"): arrays[key] for key in arrays.files if key.startswith("in_")}


def assert_computes_what_it_did(model, name):
    if "compiled" not in available_backends("cpu"):
        pytest.skip("the backend that wrote the file cannot run on this machine")
    arrays, batches = stored(name)
    with cases.forced_backend("compiled"):
        outputs = cases.agent_outputs(model, batches)
    for key, output in outputs.items():
        np.testing.assert_allclose(output, arrays[key], rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", cases.PICKLED)
def test_whole_policies_that_were_pickled(name):
    policy = th.load(cases.PICKLES / f"{name}.policy.pt", weights_only=False)
    model = cases.PICKLED[name].build()
    model.policy = policy
    assert_computes_what_it_did(model, name)
    # What it says about itself is what it said, and builds the same.
    said = json.loads(cases.saved_keywords(policy))
    # That it acts as it did then.
    assert said.pop("compiled_acting", False) is False
    assert said == json.loads(str(stored(name)[0]["parameters"]))
    twin = type(policy)(**policy._get_constructor_parameters())
    assert [p.shape for p in twin.parameters()] == [p.shape for p in policy.parameters()]
    for copied in (copy.deepcopy(policy), to_dense(policy)):
        model.policy = copied
        assert_computes_what_it_did(model, name)
    assert not any(isinstance(layer, SparseLinear) for layer in copied.modules())
    assert copied._get_constructor_parameters()["sparsity"] == 0.0
    network = cases.network_of(copied)
    if hasattr(network, "_get_constructor_parameters"):
        assert network._get_constructor_parameters()["sparsity"] == 0.0


@pytest.mark.parametrize("name", [name for name in cases.PICKLED if not name.startswith("stream")])
def test_networks_that_were_saved_alone(name):
    model = cases.PICKLED[name].build()
    policy = th.load(cases.PICKLES / f"{name}.policy.pt", weights_only=False)
    kind = type(cases.network_of(policy))
    network = kind.load(cases.PICKLES / f"{name}.network.pt")
    for attribute in ("actor", "q_net", "quantile_net"):
        if hasattr(policy, attribute):
            setattr(policy, attribute, network)
    model.policy = policy
    assert_computes_what_it_did(model, name)
    ours, theirs = network._get_constructor_parameters(), cases.network_of(policy)._get_constructor_parameters()
    for keyword in ("sparsity", "sparsity_distribution", "mask_seed", "rescale", "feeds_obs_norm"):
        assert ours[keyword] == theirs[keyword]
        assert type(ours[keyword]) in (float, str, int, bool, type(None))
