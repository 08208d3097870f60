"""The value that says how a network is pruned."""

import json

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_sparse import Sparsity, sparsify_
from sb3_sparse.sparse import SparseLinear


def mlp():
    th.manual_seed(3)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def masks(module):
    return {name: layer.topology.mask() for name, layer in module.named_modules() if isinstance(layer, SparseLinear)}


def same(a, b):
    return a.keys() == b.keys() and all(th.equal(a[name], b[name]) for name in a)


def test_it_is_what_sparsify_does():
    ours = Sparsity(0.9, "uniform", seed=5, rescale=True).apply_(mlp(), exclude=["4"])
    theirs = sparsify_(mlp(), 0.9, "uniform", exclude=["4"], seed=5, rescale=True)
    assert same(dict(ours.named_parameters()), dict(theirs.named_parameters()))
    assert same(masks(ours), masks(theirs))
    assert len(masks(ours)) == 2


def test_without_sparsity_a_module_stays_as_it_is():
    module = mlp()
    layers = list(module)
    assert Sparsity().apply_(module) is module
    assert all(a is b for a, b in zip(module, layers, strict=True))
    assert Sparsity(0.9, seed=1).dense() == Sparsity(seed=1)


def test_networks_with_layers_of_the_same_names_get_positions_of_their_own():
    sparsity = Sparsity(0.5, seed=1)
    actor, critic, again = (masks(sparsity.apply_(mlp(), name=name)) for name in ("pi", "qf", "pi"))
    assert same(actor, again)
    assert not any(th.equal(actor[name], critic[name]) for name in actor)


def test_values_are_plain_and_equal_ones_are_equal():
    sparsity = Sparsity(np.float32(0.5), np.str_("uniform"), np.int64(3), np.bool_(True))
    assert sparsity == Sparsity(0.5, "uniform", 3, True)
    assert hash(sparsity) == hash(Sparsity(0.5, "uniform", 3, True))
    assert [type(value) for value in vars(sparsity).values()] == [float, str, int, bool]
    with pytest.raises(AttributeError):
        sparsity.amount = 0.1


def test_there_and_back_through_a_file():
    per_network = Sparsity.per_network(
        ["pi", "qf"], {"pi": np.float64(0.5), "qf": 0.9}, sparsity_distribution="uniform", mask_seed=np.int32(7), rescale=True
    )
    saved = json.loads(json.dumps(Sparsity.keywords_of(per_network)))
    assert saved == {
        "sparsity": {"pi": 0.5, "qf": 0.9},
        "sparsity_distribution": "uniform",
        "mask_seed": 7,
        "rescale": True,
    }
    assert Sparsity.per_network(["pi", "qf"], **saved) == per_network
    one = Sparsity(0.8, seed=2)
    assert Sparsity.from_keywords(**json.loads(json.dumps(one.keywords))) == one
    assert Sparsity.keywords_of({"pi": one, "qf": one}) == one.keywords


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"amount": 1.0}, r"sparsity=1\.0: expected a number in \[0, 1\).*0 is the dense network"),
        ({"amount": True}, "sparsity=True"),
        ({"amount": "0.5"}, "sparsity='0.5'"),
        ({"distribution": "erk"}, r"distribution='erk': expected one of \['erdos_renyi', 'uniform'\]"),
        ({"seed": -1}, r"seed=-1: expected a whole number of at least 0"),
        ({"seed": 0.5}, r"seed=0\.5"),
        ({"rescale": 1}, "rescale=1: expected True or False"),
    ],
)
def test_it_checks_itself(arguments, expected):
    with pytest.raises(ValueError, match=expected):
        Sparsity(**arguments)


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"sparsity": -0.1}, r"^sparsity=-0\.1"),
        ({"sparsity": {"pi": 0.5}}, r"sparsity=\{'pi': 0\.5\}: expected a number, or one for each of \['pi', 'qf'\]"),
        ({"sparsity": {"pi": 0.5, "qf": 1}}, r"sparsity\['qf'\]=1"),
        ({"sparsity_distribution": "erk"}, "sparsity_distribution='erk'"),
        ({"mask_seed": -1}, "mask_seed=-1"),
        ({"rescale": None}, "rescale=None"),
    ],
)
def test_errors_name_the_keyword_that_was_given(keywords, expected):
    with pytest.raises(ValueError, match=expected):
        Sparsity.per_network(["pi", "qf"], **keywords)
