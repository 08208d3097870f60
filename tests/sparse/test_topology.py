import copy
import hashlib
import pickle

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import torch as th

from sb3_sparse.sparse.topology import MAX_SEED, Topology, derive_seed

# Positions are part of the file format: a checkpoint stores only the seed. These may never change.
CHECKSUMS = {
    ((4, 7), 9, 0): "2870d4ba752f",
    ((64, 32), 205, 12345): "6610111529b4",
    ((2048, 512), 104858, MAX_SEED - 1): "ba5730efb8f8",
    ((16, 8, 3, 3), 115, 7): "243e700e4c56",
    ((100, 50), 60, 3): "cfed9869f061",
}


def checksum(topology: Topology) -> str:
    return hashlib.sha256(topology.flat_index().numpy().astype("<i8").tobytes()).hexdigest()[:12]


@pytest.mark.parametrize("arguments", CHECKSUMS)
def test_positions_never_change(arguments):
    assert checksum(Topology.random(*arguments)) == CHECKSUMS[arguments]


def test_seeds_of_layers_never_change():
    assert derive_seed(0, "qf0.0.stem") == 11803475
    assert derive_seed(2**63 + 5, "latent_pi.blocks.0.fc1") == 15750043


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 100), (8, 3, 3, 3)])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_counts_are_exact_and_no_row_is_empty_if_avoidable(shape, fraction):
    nnz = round(fraction * int(np.prod(shape)))
    topology = Topology.random(shape, nnz, seed=1)
    mask = topology.mask()
    assert mask.shape == shape
    assert mask.sum() == nnz == topology.nnz
    if nnz >= shape[0]:
        assert topology.fan_in().min() >= 1
    assert th.equal(topology.fan_in(), mask.flatten(1).sum(1).int())
    assert th.equal(topology.fan_out(), mask.flatten(1).sum(0))


def test_one_weight_per_row():
    assert Topology.random((50, 40), 50, seed=3).fan_in().tolist() == [1] * 50


def test_positions_are_uniform():
    # Every entry is as likely as another: chi-squared over 2,000 draws of 8 of 48.
    counts = sum(Topology.random((6, 8), 8, seed).mask().int() for seed in range(2000)).flatten()
    expected = 2000 * 8 / 48
    statistic = ((counts - expected) ** 2).sum().item() / expected / (1 - 8 / 48)
    assert scipy.stats.chi2.sf(statistic, 47) > 1e-4


@pytest.mark.parametrize("shape", [(7, 5), (30, 200), (3, 70000)])
def test_indices_equal_scipy(shape):
    topology = Topology.random(shape, shape[0] * shape[1] // 5, seed=2)
    values = np.arange(1.0, topology.nnz + 1)
    dense = np.zeros(shape)
    dense.reshape(-1)[topology.flat_index().numpy()] = values
    rows, columns = scipy.sparse.csr_matrix(dense), scipy.sparse.csr_matrix(dense.T)
    index = topology.tensors()
    for ours, theirs in [(index.crow, rows.indptr), (index.col, rows.indices)]:
        assert ours.dtype == th.int32
        assert np.array_equal(ours.numpy(), theirs)
    for ours, theirs in [(index.t_crow, columns.indptr), (index.t_col, columns.indices)]:
        assert np.array_equal(ours.numpy(), theirs)
    assert np.array_equal(values[index.t_order.numpy()], columns.data)


@pytest.mark.parametrize("positions", [[3, 1, 2], [1, 1, 2], [-1, 0, 1], [0, 5, 12]])
def test_positions_have_to_ascend_inside_the_tensor(positions):
    with pytest.raises(ValueError, match=r"ascending numbers in \[0, 12\)"):
        Topology((3, 4), np.array(positions))


def test_equal_arguments_share_one_object():
    first = Topology.random((20, 10), 30, 4)
    assert Topology.random((20, 10), 30, 4) is first
    assert copy.deepcopy(first) is first
    assert pickle.loads(pickle.dumps(first)) is first
    assert len(pickle.dumps(first)) < 200
    assert first.tensors() is first.tensors("cpu")


def test_mask_round_trip():
    mask = th.rand(9, 4, 3) < 0.3
    topology = Topology.from_mask(mask)
    assert th.equal(topology.mask(), mask)
    assert topology.seed is None
    restored = pickle.loads(pickle.dumps(topology))
    assert restored == topology
    assert restored is not topology
    assert hash(restored) == hash(topology)
    assert topology != Topology.from_mask(~mask)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("dtype", [th.bool, th.uint8, th.int64, th.float16, th.bfloat16, th.float32, th.float64])
def test_masks_of_any_type_and_layout(dtype):
    mask = th.eye(4, 6, dtype=dtype)
    parameter = th.nn.Parameter(mask, requires_grad=dtype.is_floating_point)
    masks = [mask, parameter, mask.t().contiguous().t(), mask.to_sparse(), mask.to_sparse_csr()]
    masks += [mask.numpy()] if dtype is not th.bfloat16 else []
    masks += [mask * 1e-300] if dtype is th.float64 else []
    assert all(th.equal(Topology.from_mask(each).mask(), th.eye(4, 6).bool()) for each in masks)


def test_different_seeds_differ():
    assert Topology.random((30, 30), 90, 0) != Topology.random((30, 30), 90, 1)
    assert derive_seed(0, "a") != derive_seed(0, "b")
    assert derive_seed(0, "a") != derive_seed(1, "a")


@pytest.mark.parametrize(
    ("shape", "nnz", "seed", "message"),
    [
        ((3, 4), 13, 0, "nnz=13"),
        ((3, 4), -1, 0, "nnz=-1"),
        ((3, 4), 5, MAX_SEED, "seed="),
        ((3, 4), 5, -1, "seed="),
        ((3,), 1, 0, "weight shape"),
        ((3, 0), 0, 0, "weight shape"),
        ((2**16, 2**15), 5, 0, "more than"),
    ],
)
def test_bad_arguments_are_named(shape, nnz, seed, message):
    with pytest.raises(ValueError, match=message):
        Topology.random(shape, nnz, seed)
