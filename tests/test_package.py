"""What is shipped."""

import ast
import inspect
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import sb3_sparse
from sb3_sparse.plasticity import PlasticityCallback
from sb3_sparse.streaming import StreamAC, StreamQ
from sb3_sparse.streaming.policies import StreamACCnnPolicy, StreamACPolicy

ROOT = Path(__file__).parent.parent
release_check = runpy.run_path(str(ROOT / "scripts" / "release_check.py"))
# Not in the extra "all": under the GPL; what only developers run.
NOT_FOR_EVERYBODY = {"minatar", "docs"}


def project():
    return pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())


def settings():
    return project()["project"]


def requirements():
    """Ours, those of extras included."""
    extras = [entry for entries in settings()["optional-dependencies"].values() for entry in entries]
    return [Requirement(entry) for entry in [*settings()["dependencies"], *extras] if not entry.startswith("sb3-sparse")]


def lowest(requirement):
    return max((Version(s.version) for s in requirement.specifier if s.operator in (">=", "~=", "==")), default=Version("0"))


def test_one_version():
    version = settings()["version"]
    assert sb3_sparse.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert re.fullmatch(rf"{re.escape(version)}|Unreleased \({re.escape(version)}\)", newest)


def test_code_is_checked_for_the_oldest_python_that_is_allowed():
    """Mistake of ours: mypy let pass what Python 3.10 lacks."""
    (oldest,) = (allowed.version for allowed in SpecifierSet(settings()["requires-python"]) if allowed.operator == ">=")
    tools = project()["tool"]
    assert tools["mypy"]["python_version"] == oldest
    assert tools["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"


def test_classifiers_name_the_pythons_that_are_allowed():
    classifiers = settings()["classifiers"]
    named = {name.rpartition(" ")[2] for name in classifiers if re.search(r":: 3\.\d+$", name)}
    allowed = SpecifierSet(settings()["requires-python"])
    assert named == {f"3.{minor}" for minor in range(50) if f"3.{minor}" in allowed}
    assert set(classifiers) <= pytest.importorskip("trove_classifiers").classifiers


def test_the_extra_all_names_every_other_one():
    extras = settings()["optional-dependencies"]
    single = set(extras) - {"all", "dev"}
    (everything,) = [Requirement(entry) for entry in extras["all"]]
    (developers,) = [Requirement(entry) for entry in extras["dev"] if entry.startswith("sb3-sparse")]
    assert everything.extras == single - NOT_FOR_EVERYBODY
    assert developers.extras == single


@pytest.mark.parametrize("package", ["stable_baselines3", "sb3_contrib", "rl_zoo3"])
def test_versions_that_others_do_not_allow_are_not_promised(package):
    ours = {canonicalize_name(requirement.name): requirement for requirement in requirements()}
    try:
        theirs = [Requirement(entry) for entry in metadata.requires(package) if "extra ==" not in entry]
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    shared = [requirement for requirement in theirs if canonicalize_name(requirement.name) in ours]
    assert shared
    for requirement in shared:
        mine = ours[canonicalize_name(requirement.name)]
        assert lowest(mine) >= lowest(requirement), f"{mine} allows what {package} does not: {requirement}"


def test_pinned_versions_are_allowed_ones():
    allowed = {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements()}
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    pins.append(Requirement(re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]))
    checked = 0
    for pin in pins:
        specifier = allowed.get(canonicalize_name(pin.name))
        if specifier is not None:
            checked += 1
            assert specifier.contains(lowest(pin)), f"{pin} is not in {specifier}"
    assert checked > 15


def test_no_extra_names_what_cannot_be_imported():
    # Archived, and not to be imported with pandas 3, which the extras allow.
    assert "rliable" not in {requirement.name for requirement in requirements()}


def test_kernels_run_with_a_tested_llvmlite():
    (llvmlite,) = [requirement for requirement in requirements() if requirement.name == "llvmlite"]
    assert llvmlite.specifier.contains(metadata.version("llvmlite"))
    assert not llvmlite.specifier.contains("1.0")


def test_the_readme_names_the_torch_that_is_required():
    (torch,) = [requirement for requirement in requirements() if requirement.name == "torch"]
    assert f"or any from {lowest(torch)} on" in (ROOT / "README.md").read_text()


# (page, keyword column of the table, what has these keywords)
TABLES = [
    ("docs/policies.md", "keyword in `policy_kwargs`", (sb3_sparse.SparseSimBaPolicy,)),
    ("docs/streaming.md", "keyword", (StreamAC, StreamQ)),
    ("docs/streaming.md", "keyword in `policy_kwargs`", (StreamACPolicy, StreamACCnnPolicy)),
    ("docs/plasticity/index.md", "argument", (PlasticityCallback,)),
]


def default_of(owners, name):
    for owner in (base for cls in owners for base in cls.__mro__ if "__init__" in vars(base)):
        parameter = inspect.signature(owner.__init__).parameters.get(name)
        if parameter is not None and parameter.default is not parameter.empty:
            return parameter.default
    raise AssertionError(f"{[owner.__name__ for owner in owners]} have no keyword {name} with a default")


@pytest.mark.parametrize(("page", "head", "owners"), TABLES, ids=[f"{page} {head}" for page, head, _ in TABLES])
def test_defaults_in_tables_are_those_of_the_code(page, head, owners):
    text = (ROOT / page).read_text()
    table = text[text.index(f"| {head} | default |") :].partition("\n\n")[0].splitlines()[2:]
    checked = 0
    for row in table:
        names_cell, default_cell = (cell.strip() for cell in row.strip("|").split("|")[:2])
        names = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", names_cell))
        texts = re.split(r", (?![^(]*\))", default_cell) if len(names) > 1 else [default_cell]
        texts *= len(names) if len(texts) == 1 else 1
        for name, written in zip(names, texts, strict=True):
            actual = default_of(owners, name)
            try:
                expected = ast.literal_eval(
                    written.strip("`").replace(",", "") if written[:1].isdigit() else written.strip("`")
                )
            except (ValueError, SyntaxError):
                continue  # in words
            checked += 1
            assert expected == actual, f"{name}: {written} in {page}, {actual!r} in the code"
    assert checked >= 4


# Prints what importing every module of the package changed outside of it.
IMPORT_ALL = """
import importlib, logging, os, pkgutil, signal, sys, warnings
import gymnasium, numpy, torch
import sb3_contrib, stable_baselines3
algorithms = {k: v for m in (sb3_contrib, stable_baselines3) for k, v in vars(m).items() if hasattr(v, "policy_aliases")}

def state():
    return {
        "environments": sorted(gymnasium.registry),
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(),
                  torch.initial_seed(), torch.get_rng_state().tolist(), torch.is_grad_enabled()),
        "numpy": (numpy.geterr(), repr(numpy.random.get_state())),
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "hooks": (sys.excepthook, signal.getsignal(signal.SIGINT), list(sys.argv), list(sys.path)),
        "classes": {name: sorted(set(vars(kind)) - {"policy_aliases"}) for name, kind in algorithms.items()},
        "aliases": {(name, alias) for name, kind in algorithms.items() for alias in kind.policy_aliases},
    }

before = state()
import sb3_sparse
for module in pkgutil.walk_packages(sb3_sparse.__path__, "sb3_sparse."):
    importlib.import_module(module.name)
after = state()
assert after.pop("aliases") - before.pop("aliases") == {
    (name, "SparseSimBaPolicy") for name in ("SAC", "TD3", "DDPG", "DQN", "QRDQN", "TQC", "CrossQ")}
for name in before:
    assert before[name] == after[name], (name, before[name], after[name])
assert not {"rl_zoo3", "shimmy", "matplotlib.pyplot"} & set(sys.modules)
"""


def test_importing_changes_nothing_but_the_aliases():
    result = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


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
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "sb3_sparse").rglob("*") if path.is_file()}
    assert {"sb3_sparse/py.typed", "sb3_sparse/results/studies/page.js"} <= there
    assert {name for name in there if "__pycache__" not in name} <= set(names)
    assert not [name for name in names if name.startswith("tests")]


def test_the_source_distribution_has_what_the_readme_calls(distributions):
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.partition("/")[2] for name in members.getnames()}
    assert {"Makefile", "constraints.txt", "README.md", "docs/images/demo.png", "examples/stream_ac.py"} <= names
    assert {"scripts/conformance.py", "hyperparams/sac.yml", "tests/envs.py"} <= names
    assert {"tests/compatibility/files/sac.zip", "tests/compatibility/files/manifest.json", "benchmarks/gpu.py"} <= names


# Of which `all` is made.
EXTRAS = ("zoo", "dmc", "atari", "sweeps", "export", "completion")


def test_the_release_check_installs_the_lower_bound_of_whatever_is_needed(distributions):
    (wheel,) = distributions.glob("*.whl")
    extras = settings()["optional-dependencies"]
    entries = [*settings()["dependencies"], *(entry for name in EXTRAS for entry in extras[name])]
    needed = {found.name: found for found in map(Requirement, entries) if found.name != "sb3-sparse"}
    needed = {name: found for name, found in needed.items() if any(bound.operator == ">=" for bound in found.specifier)}
    assert {"onnx", "ray", "plotly", "pandas", "ale-py", "shimmy", "shtab"} <= needed.keys()
    plan, pythons = release_check["make_plan"](wheel, ROOT, None, True, ["tests"])
    assert pythons == SpecifierSet(settings()["requires-python"])
    pins = [Requirement(pin) for pin in [*plan.pins, plan.torch]]
    assert {pin.name: lowest(pin) for pin in pins} == {name: lowest(requirement) for name, requirement in needed.items()}
    newest, _ = release_check["make_plan"](wheel, ROOT, None, False, ["tests"])
    assert (plan.tests, newest.tests, newest.pins) == (["tests"], [], [])
    assert f"TORCH ?= {newest.torch}\n" in (ROOT / "Makefile").read_text()


def test_the_release_check_finds_a_python():
    here = f"3.{sys.version_info.minor}"
    found = release_check["interpreters"](SpecifierSet(f"=={here}"))
    if not found:
        pytest.skip(f"no python{here} on the path")
    command = [found[here], "-c", "import sys; print(sys.version_info.minor)"]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == str(sys.version_info.minor)


def test_the_release_check_tells_what_failed(tmp_path, capsys):
    call, row = release_check["call"], release_check["Row"]("3.11")
    assert row.step("good", lambda: call(sys.executable, "-c", "print('fine')", folder=tmp_path))
    assert not row.failed
    assert not row.step("bad", lambda: call(sys.executable, "-c", "print('why'); exit(3)", folder=tmp_path))
    assert row.failed
    assert [text.partition(",")[0] for text in row.steps.values()] == ["fine", "**failed**"]
    output, errors = capsys.readouterr()
    assert "3.11: bad: **failed**" in output
    assert "why" in errors


TYPES = pytest.param(["-m", "mypy", "--strict", "--config-file=", "user.py"], marks=pytest.mark.full)


@pytest.mark.parametrize("command", [["user.py", "."], TYPES])
def test_a_users_script_runs_and_has_types(command, tmp_path):
    shutil.copy(ROOT / "scripts" / "release_user.py", tmp_path / "user.py")
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
