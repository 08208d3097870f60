"""``sb3-sparse describe --plot``: the picture of a topology against plain counting."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_sparse import Topology, cli, sparsify_
from sb3_sparse.results.weights import MAX_CELLS, density_image, draw_weights, fan_in

pytest.importorskip("matplotlib")


@pytest.mark.parametrize(("shape", "cells"), [((30, 20), 30), ((30, 20), 7), ((5, 100), 10), ((4, 3, 2, 2), 6)])
def test_density_image_equals_counting(shape, cells):
    mask = th.rand(shape, generator=th.Generator().manual_seed(0)) < 0.3
    topology = Topology.from_mask(mask)
    matrix = mask.reshape(shape[0], -1).numpy()
    image = density_image(topology, cells)
    rows, columns = (min(size, cells) for size in matrix.shape)
    assert image.shape == (rows, columns)
    row_cell, column_cell = (np.arange(size) * n // size for size, n in zip(matrix.shape, (rows, columns), strict=True))
    for i in range(rows):
        for j in range(columns):
            assert image[i, j] == pytest.approx(matrix[row_cell == i][:, column_cell == j].mean())
    np.testing.assert_array_equal(fan_in(topology), matrix.sum(axis=1))


def test_small_matrices_are_drawn_exactly():
    topology = Topology.random((MAX_CELLS, 40), 500, seed=1)
    image = density_image(topology)
    assert set(np.unique(image)) == {0.0, 1.0}
    np.testing.assert_array_equal(np.flatnonzero(image), topology.flat_index("cpu").numpy())


def test_every_layer_has_a_panel():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(300, 200), nn.LayerNorm(200), nn.Linear(200, 1))
    topologies = sparsify_(network, 0.9, exclude=("4",))
    figure = draw_weights({"critic": topologies, "head": nn.Linear(4, 2)})
    titles = [axes.get_title() for axes in figure.axes]
    assert "critic.0\n8x3x3x3, density " in titles[0]
    assert [title.split("\n")[0] for title in titles if "density" in title] == ["critic.0", "critic.2", "critic.4", "head"]
    density = network[2].density
    assert any(f"200x300, density {density:.4g}, {network[2].topology.nnz:,} weights" in title for title in titles)
    assert "fan-in 4 to 4\nmean 4" in titles
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        draw_weights({"critic": nn.ReLU()})


def test_describe_writes_the_picture_beside_the_table(tmp_path, monkeypatch, capsys):
    pytest.importorskip("rl_zoo3")
    monkeypatch.chdir(tmp_path)
    cli.main(["describe", "--env", "Pendulum-v1", "-params", "policy_kwargs:dict(width_scale=0.1, n_critics=1)", "--plot"])
    printed = capsys.readouterr().out
    assert printed.startswith("actor\nlayer")
    assert "52x13" in printed, "the table is still there"
    assert printed.endswith("\n\ndescribe.png\n")
    assert [path.name for path in tmp_path.iterdir()] == ["describe.png"]
    assert (tmp_path / "describe.png").read_bytes().startswith(b"\x89PNG")
