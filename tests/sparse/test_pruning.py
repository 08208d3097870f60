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


def test_layers_in_plain_collections_are_replaced_there():
    """Mistake of ours: the dense ones went on computing, and nothing learned but biases."""

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.listed, self.named, self.both = [], {}, ()
            for i in range(4):
                layer = nn.Linear(8, 8)
                self.add_module(f"layer{i}", layer)
                self.listed.append(layer)
                self.named[str(i)] = [layer]
                self.both += (layer,)
            self.listed.append(self.listed)

        def forward(self, x):
            for layer in (self.listed[0], self.named["1"][0], self.both[2], self.layer3):
                x = layer(x).relu()
            return x

    module = Listed()
    listed = module.listed
    sparsify_(module, 0.5)
    assert module.listed is listed
    assert [*module.listed[:4]] == [*module.both] == [module.named[str(i)][0] for i in range(4)] == [*module.children()]
    module(th.randn(4, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    dense = to_dense(module)
    assert all(type(layer) is nn.Linear for layer in (*dense.listed[:4], *dense.both))
    x = th.randn(4, 8)
    th.testing.assert_close(dense(x), module(x))


def test_a_layer_that_is_excluded_in_one_place_is_excluded():
    shared = nn.Linear(8, 8)
    module = nn.ModuleDict({"a": nn.Sequential(shared, nn.Linear(8, 8)), "b": nn.Sequential(shared)})
    sparsify_(module, 0.5, exclude=["b"])
    assert module["a"][0] is module["b"][0] is shared
    assert isinstance(module["a"][1], SparseLinear)
    # As in SB3's on-policy policies, a part has several names.
    part = nn.Sequential(nn.Linear(8, 8))
    module = nn.ModuleDict({"extractor": part, "pi_extractor": part, "head": nn.Linear(8, 8)})
    sparsify_(module, 0.5, exclude=["pi_extractor"])
    assert type(part[0]) is nn.Linear
    assert isinstance(module["head"], SparseLinear)


def test_a_function_is_asked_about_layers_alone():
    asked = []
    sparsify_(network(), 0.5, exclude=lambda name, layer: asked.append(layer.weight.shape) or len(layer.weight) == 10)
    assert len(asked) >= 3


def test_layers_that_are_left_without_weights_are_named():
    with pytest.warns(UserWarning, match=r"sparsity=0.9 leaves no weight of \['2'\]"):
        sparsify_(nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 4), nn.Linear(4, 1)), 0.9, "uniform")


def test_settings_of_a_convolution_are_attributes_too():
    """Mistake of ours: they could be written to, and nothing happened."""
    dense = nn.Conv2d(3, 8, 3, padding=1)
    sparse = sparsify_(nn.Sequential(dense), 0.5)[0]
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    assert [getattr(sparse, name) for name in names] == [getattr(dense, name) for name in names]
    sparse.stride = (2, 2)
    assert sparse(th.randn(1, 3, 8, 8)).shape == (1, 8, 4, 4)
    assert sparse.to_dense().stride == (2, 2)
    with pytest.raises(AttributeError):
        sparse.groups = 2


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
    # Mistake of ours: one of them was pruned, and the tie was gone without a word.
    with pytest.raises(ValueError, match=r"^0 and 1 share one weight.*leave all of them out"):
        sparsify_(tied, 0.9, exclude=["1"])
    assert tied[1].weight is tied[0].weight
    frozen = nn.Sequential(nn.Linear(64, 64))
    weight = frozen[0].weight.detach()
    del frozen[0].weight
    frozen[0].register_buffer("weight", weight)
    with pytest.raises(ValueError, match=r"^0 has a weight that is no parameter"):
        sparsify_(frozen, 0.5)
    patched = nn.Sequential(nn.Linear(64, 64))
    dense_forward = patched[0].forward
    patched[0].forward = lambda x: dense_forward(x)
    with pytest.raises(ValueError, match=r"^0 has a forward of its own"):
        sparsify_(patched, 0.5)


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


def test_subclasses_stay_dense_whatever_else_they_have():
    class LowRank(nn.Linear):
        def __init__(self, *args):
            super().__init__(*args)
            self.low = nn.Parameter(th.zeros(2, self.in_features))
            self.register_buffer("scale", th.ones(()))

    net = nn.Sequential(LowRank(8, 8), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match=r"stay dense: 0 \(LowRank\)"):
        sparsify_(net, 0.5)
    assert [type(layer) for layer in net] == [LowRank, SparseLinear]
