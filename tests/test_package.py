"""What is shipped."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_wheel_has_the_hyperparameters(distributions):
    (wheel,) = distributions.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"sb3_sparse/hyperparams/{path.name}" for path in (ROOT / "hyperparams").glob("*.yml")} <= set(names)
    assert "sb3_sparse/py.typed" in names
    assert not [name for name in names if name.startswith("tests")]


def test_the_source_distribution_has_what_the_readme_calls(distributions):
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    assert {"Makefile", "constraints.txt", "README.md", "docs/images/demo.png", "examples/evaluate.py"} <= names
    assert {"scripts/conformance.py", "hyperparams/sac.yml", "tests/envs.py"} <= names
