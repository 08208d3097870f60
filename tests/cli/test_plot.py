"""``sb3-sparse plot``: what is written, and what is said."""

import base64
import re
import sys

import pytest

from sb3_sparse import cli
from tests.results.made import zoo_run

pytest.importorskip("matplotlib")
PNG = b"\x89PNG\r\n\x1a\n"


def test_picture_and_page(tmp_path, monkeypatch, capsys):
    folders = [zoo_run(tmp_path / f"logs/sac/Pendulum-v1_{seed}", seed) for seed in (1, 2, 3)]
    odd = zoo_run(tmp_path / "logs/<b>", 9, sparsity=0.5, plasticity=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    cli.main(["plot", *folders, f"dense & small={odd}"])
    assert capsys.readouterr().out.split() == ["plot.png", "plot.html"]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["plot.html", "plot.png"]
    png = (tmp_path / "work/plot.png").read_bytes()
    assert png.startswith(PNG)
    page = (tmp_path / "work/plot.html").read_text()
    (embedded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(embedded) == png
    assert "dense &amp; small" in page
    assert "&lt;b&gt;" in page
    assert "<script" not in page
    assert "http" not in page
    # Seeds 1, 2, 3 end at 302, 303, 304, and the mean of three is between the extremes of the bootstrap.
    assert re.search(r"303 \[302(\.3)?, 30(3\.7|4)\]<br><small>3 run\(s\), 300 timesteps", page), page[-3000:]
    assert "310<br><small>1 run(s)" in page
    assert page.count("–</td>") == 2, "the second group has no plasticity series"


def test_output_may_name_either_file(tmp_path):
    run = zoo_run(tmp_path / "run", 1)
    cli.main(["plot", run, "-o", str(tmp_path / "new/v1.5.png")])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["v1.5.html", "v1.5.png"]


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    run = zoo_run(tmp_path / "run", 1)
    (tmp_path / "afile").write_text("")
    with pytest.raises(SystemExit, match=r"afile/x.png.*name another file"):
        cli.main(["plot", run, "-o", str(tmp_path / "afile/x")])
    for command in (["plot", run, "-o", "."], ["describe", "--env", "Pendulum-v1", "--plot", "weights.pdf"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(command)


def test_a_missing_matplotlib_is_named(tmp_path, monkeypatch):
    run = zoo_run(tmp_path / "run", 1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (["plot", run], ["describe", "--env", "Pendulum-v1", "--plot"]):
        with pytest.raises(SystemExit, match=r"sb3-sparse\[zoo\]"):
            cli.main(command)


def test_an_empty_run_is_named_and_left_out(tmp_path, capsys):
    run, begun = zoo_run(tmp_path / "run", 1), tmp_path / "begun"
    begun.mkdir()
    output = tmp_path / "plot"
    cli.main(["plot", str(begun), run, "-o", str(output)])
    said = capsys.readouterr()
    assert said.out.split() == [f"{output}.png", f"{output}.html"]
    assert said.err.startswith(f"sb3-sparse plot: nothing to draw in '{begun}': looked for ")
    assert said.err.endswith(" Left out.\n")
    assert str(begun) not in output.with_suffix(".html").read_text()
    output.with_suffix(".png").unlink()
    with pytest.raises(SystemExit, match=r"sb3-sparse plot: nothing to draw in .*begun"):
        cli.main(["plot", str(begun), "-o", str(output)])
    assert not output.with_suffix(".png").exists()
