"""Pruning at given positions."""

from collections import OrderedDict

import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from torch import nn

from sb3_sparse import Topology, sparsify_, sparsify_by_masks_


def network():
    th.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 4, 5), nn.ReLU(), nn.Linear(5, 2))


def masks():
    generator = np.random.default_rng(0)
    return {"0": generator.random((3, 2, 3, 3)) < 0.5, "4": generator.random((2, 5)) < 0.5}


def dense_twin(rescale=False):
    net = network()
    with th.no_grad():
        for name, mask in masks().items():
            net[int(name)].weight *= th.from_numpy(mask / (mask.mean() ** 0.5 if rescale else 1.0))
    return net


@pytest.mark.parametrize("rescale", [False, True])
def test_it_computes_what_the_masked_network_does(rescale):
    net = sparsify_by_masks_(network(), masks(), rescale=rescale)
    x = th.randn(6, 2, 4, 4)
    th.testing.assert_close(net(x), dense_twin(rescale)(x), rtol=1e-5, atol=1e-6)
    assert [type(layer).__name__ for layer in net] == ["SparseConv2d", "Flatten", "Linear", "ReLU", "SparseLinear"]


def test_masks_from_files(tmp_path):
    np.savez(tmp_path / "masks.npz", **masks())
    th.save({f"{name}.weight": th.from_numpy(mask) for name, mask in masks().items()}, tmp_path / "masks.pt")
    with np.load(tmp_path / "masks.npz") as loaded:
        first = sparsify_by_masks_(network(), loaded)
    second = sparsify_by_masks_(network(), th.load(tmp_path / "masks.pt"))
    for name, mask in masks().items():
        assert np.array_equal(first[int(name)].topology.mask(), mask)
        assert np.array_equal(second[int(name)].topology.mask(), mask)


def test_the_topologies_of_another_network():
    model = sparsify_(network(), 0.5, seed=1)
    topologies = {name: layer.topology for name, layer in model.named_modules() if hasattr(layer, "topology")}
    twin = sparsify_by_masks_(network(), topologies)
    assert all(th.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_names_of_layers_that_look_like_names_of_weights():
    net = nn.Sequential(OrderedDict(my_weight=nn.Linear(3, 2), weight=nn.Linear(2, 2)))
    sparsify_by_masks_(net, {"my_weight": th.eye(2, 3), "weight": th.eye(2)})
    assert [layer.topology.nnz for layer in net] == [2, 2]


def test_a_layer_alone():
    layer = nn.Linear(3, 2)
    assert sparsify_by_masks_(layer, {"": th.ones(2, 3)}).topology.nnz == 6
    assert sparsify_by_masks_(layer, {"weight": th.eye(2, 3)}).topology.nnz == 2


def test_the_policy_of_an_algorithm_trains_on():
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=200, learning_starts=50, seed=0)
    mask = th.rand(256, 256) < 0.1
    sparsify_by_masks_(model.policy, {"critic.qf0.2": mask})
    model.learn(80)
    assert th.equal(model.critic.qf0[2].topology.mask(), mask)
    assert model.critic.qf0[2].values in model.critic.optimizer.state
    # As the network that it follows.
    assert model.critic_target.qf0[2].topology == model.critic.qf0[2].topology


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"9": th.ones(2, 5)}, r"masks for \['9'\]: no layers that can be pruned. Those of the module are \['0', '2', '4'\]"),
        ({"3": th.ones(2, 5)}, r"masks for \['3'\]"),
        ({"4": th.ones(5, 2)}, r"mask of '4' has the shape \(5, 2\), and the weight \(2, 5\)"),
        ({"4": th.full((2, 5), th.nan)}, "mask of '4' holds other values"),
        ({"4": th.rand(2, 5)}, "Of scores, say which survive"),
        ({"4": np.full((2, 5), "yes")}, "mask of '4' holds other values"),
        ({"4": Topology.random((5, 2), 3, 0)}, r"topology of '4' has the shape \(5, 2\)"),
    ],
)
def test_what_does_not_fit_changes_nothing(given, expected):
    net = network()
    layers = list(net)
    with pytest.raises(ValueError, match=expected):
        sparsify_by_masks_(net, {"0": masks()["0"], **given})
    assert all(a is b for a, b in zip(net, layers, strict=True))


@pytest.mark.parametrize(
    "make", [lambda mask: mask.bfloat16(), lambda mask: mask.to_sparse(), lambda mask: mask.int().tolist()]
)
def test_masks_of_any_kind(make):
    layer = sparsify_by_masks_(nn.Linear(3, 2), {"": make(th.eye(2, 3))})
    assert th.equal(layer.topology.mask(), th.eye(2, 3).bool())


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ({}, "expected a dict of masks"),
        (None, "masks=None"),
        ({"0": th.eye(3), "0.weight": th.eye(3)}, "two entries for the layer '0'"),
        ({"0": th.eye(3)}, "0 and 1 share one weight"),
    ],
)
def test_masks_that_say_too_little_or_too_much(masks, expected):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    with pytest.raises(ValueError, match=expected):
        sparsify_by_masks_(net, masks)
    assert net[1].weight is net[0].weight


def test_a_layer_of_another_class_is_not_named_among_those_that_can_be_pruned():
    class Own(nn.Linear):
        pass

    with pytest.raises(ValueError, match=r"masks for \['0'\].*are \['1'\]"), pytest.warns(UserWarning, match="stay dense"):
        sparsify_by_masks_(nn.Sequential(Own(3, 3), nn.Linear(3, 3)), {"0": th.eye(3)})


def test_a_mask_that_leaves_nothing_is_said():
    with pytest.warns(UserWarning, match=r"masks of \['2'\] leave no weight"):
        net = sparsify_by_masks_(network(), {"2": np.zeros((5, 12)), "4": np.ones((2, 5))})
    assert net[2].topology.nnz == 0


def test_another_number_of_weights_says_what_to_do():
    net = sparsify_by_masks_(network(), {"4": np.eye(2, 5)})
    state = sparsify_by_masks_(network(), {"4": np.ones((2, 5))}).state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for 4\.nonzeros.*same sparsity or masks first"):
        net.load_state_dict(state)


def test_what_was_excluded_is_not_called_missing_and_what_is_no_module_is_named():
    with pytest.warns(UserWarning, match="that exclude does not name in Sequential"):
        sparsify_(network(), 0.5, exclude=("0", "2", "4"))
    with pytest.raises(ValueError, match=r"module is a generator: expected a torch\.nn\.Module"):
        sparsify_(network().parameters(), 0.5)
