"""Figures belong to nobody, and their files are whole."""

import sys

import pytest

from sb3_sparse.common.figures import new_figure, one_panel, save_figure, to_png


def test_figures_are_no_part_of_pyplot(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    figure, axes = one_panel((4.0, 3.0))
    assert figure.axes == [axes]
    assert tuple(figure.get_size_inches()) == (4.0, 3.0)
    assert new_figure().axes == []
    assert pyplot.get_fignums() == before


def test_a_picture_is_written_whole(tmp_path):
    pytest.importorskip("matplotlib")
    figure, _ = one_panel((2.0, 1.0))
    save_figure(figure, tmp_path / "new/picture.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["picture.png"]
    assert (tmp_path / "new/picture.png").read_bytes()[:8] == to_png(figure)[:8] == b"\x89PNG\r\n\x1a\n"
    save_figure(figure, tmp_path / "new/picture.pdf")
    assert (tmp_path / "new/picture.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="not supported"):
        save_figure(figure, tmp_path / "new/picture.nothing")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["picture.pdf", "picture.png"]


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pictures need matplotlib: pip install "sb3-sparse\[zoo\]"'):
        new_figure()
