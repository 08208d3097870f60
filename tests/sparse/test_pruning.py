import pickle
import subprocess
import sys

import pytest
import torch as th
from torch import nn

from sb3_sparse.sparse import SparseConv2d, SparseLinear, erdos_renyi, sparsify_, sparsity_report, to_dense


def network():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64), nn.ReLU(), nn.Linear(64, 2))


def test_layers_are_swapped_and_keep_their_surviving_weights():
    th.manual_seed(0)
    dense = network()
    original = {name: p.detach().clone() for name, p in dense.named_parameters()}
    sparse = sparsify_(dense, 0.9, seed=0)
    assert sparse is dense
    assert [type(layer) for layer in sparse] == [SparseConv2d, nn.ReLU, nn.Flatten, SparseLinear, nn.ReLU, nn.Linear]
    expected = erdos_renyi({name: p.shape for name, p in original.items()}, 0.9)
    for index in (0, 3):
        layer = sparse[index]
        assert layer.topology.nnz == round(expected[f"{index}.weight"] * layer.topology.numel)
        assert th.equal(layer.weight, original[f"{index}.weight"] * layer.topology.mask())
        assert th.equal(layer.bias, original[f"{index}.bias"])
    assert sparsity_report(sparse).sparsity == pytest.approx(0.9, abs=1e-4)


def test_round_trip_to_dense():
    sparse = sparsify_(network(), 0.8, "uniform", rescale=True)
    dense = to_dense(sparse)
    x = th.randn(5, 3, 8, 8)
    assert th.allclose(dense(x), sparse(x), atol=1e-5)
    assert not any(isinstance(layer, (SparseLinear, SparseConv2d)) for layer in dense.modules())
    assert isinstance(sparse[3], SparseLinear), "the original is not changed"
    again = network()
    again.load_state_dict(dense.state_dict())
    assert th.equal(again(x), dense(x))


def test_dense_copy_opens_without_this_package(tmp_path):
    path = tmp_path / "dense.pkl"
    path.write_bytes(pickle.dumps(to_dense(sparsify_(network(), 0.8))))
    code = (
        "import sys, pickle, pathlib; sys.modules['sb3_sparse'] = None;"
        f"print(type(pickle.loads(pathlib.Path({str(path)!r}).read_bytes())).__name__)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "Sequential"


def test_a_shared_layer_stays_one_layer():
    layer = nn.Linear(64, 64)
    sparse = sparsify_(nn.Sequential(layer, nn.ReLU(), layer), 0.5)
    assert isinstance(sparse[0], SparseLinear)
    assert sparse[2] is sparse[0]
    dense = to_dense(sparse)
    assert type(dense[0]) is nn.Linear
    assert dense[2] is dense[0]


def test_frozen_parameters_stay_frozen():
    net = network().requires_grad_(False)
    assert not any(p.requires_grad for p in sparsify_(net, 0.8).parameters())
    assert not any(p.requires_grad for p in to_dense(net).parameters())


def test_a_layer_by_itself_is_returned():
    layer = sparsify_(nn.Linear(20, 20), 0.5)
    assert isinstance(layer, SparseLinear)
    assert type(to_dense(layer)) is nn.Linear


def test_zero_sparsity_changes_nothing():
    assert all(type(layer) is not SparseLinear for layer in sparsify_(network(), 0.0))


def test_exclude_by_name_and_by_function():
    for exclude in (["3"], "3", lambda name, layer: name == "3"):
        sparse = sparsify_(network(), 0.5, "uniform", exclude=exclude)
        assert type(sparse[3]) is nn.Linear
        assert isinstance(sparse[5], SparseLinear)


def test_masks_follow_the_global_seed_without_drawing_from_it():
    def masks():
        th.manual_seed(5)
        dense = network()
        before = th.get_rng_state()
        sparse = sparsify_(dense, 0.8)
        assert th.equal(before, th.get_rng_state())
        return [layer.topology for layer in sparse if hasattr(layer, "topology")]

    assert masks() == masks()


def test_report_counts():
    sparse = sparsify_(nn.Sequential(nn.Linear(100, 100), nn.LayerNorm(100)), 0.75)
    report = sparsity_report(sparse)
    assert (report.total_parameters, report.learnable_parameters) == (10_300, 2_800)
    assert report.parameter_bytes == 4 * 2_800
    (row,) = report.layers
    assert (row.name, row.shape, row.nnz, row.total, row.density) == ("0", (100, 100), 2_500, 10_000, 0.25)
    text = str(report)
    assert "100x100" in text
    assert "2,800 learnable of 10,300 parameters, weight sparsity 0.7500" in text
    assert str(sparsity_report(nn.ReLU())).startswith("layer")
    assert sparsity_report(nn.GRU(3, 4)).sparsity == 0.0


def test_what_cannot_be_pruned_is_named():
    twice = sparsify_(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), 0.5)
    with pytest.raises(ValueError, match=r"^0 is sparse already: .*to_dense"):
        sparsify_(twice, 0.9)
    tied = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"^0 and 1 share one weight"):
        sparsify_(tied, 0.9)
    assert isinstance(sparsify_(tied, 0.9, exclude=["1"])[0], SparseLinear)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0.*\[0, 1\)"),
        ({"sparsity": 0.5, "distribution": "er"}, "distribution='er': expected one of.*erdos_renyi"),
        ({"sparsity": 0.5, "exclude": ["head"]}, r"exclude=\['head'\]: not a submodule"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sparsify_(network(), **arguments)
