"""The import rule: what each part of the package may know about."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sb3_sparse"
RL_LIBRARIES = {"stable_baselines3", "sb3_contrib", "gymnasium", "rl_zoo3", "shimmy", "dm_control"}


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


ALL = sorted(PACKAGE.rglob("*.py"))
PURE = [
    path
    for path in ALL
    if path.relative_to(PACKAGE).parts[0] in ("sparse", "networks")
    or path.relative_to(PACKAGE).as_posix() in ("plasticity/metrics.py", "plasticity/simplicity.py")
]


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_networks_layers_and_measures_know_no_rl_library(path):
    names = imports(path)
    assert not roots(names) & RL_LIBRARIES
    ours = {name for name in names if name.startswith("sb3_sparse")}
    assert all(name.split(".")[1] in ("sparse", "networks") for name in ours)


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_knows_rl_zoo3_and_imports_it_late(path):
    if path.name in ("zoo.py", "cli.py", "describe.py"):
        assert "rl_zoo3" not in roots(imports(path, top_level_only=True))
    else:
        assert "rl_zoo3" not in roots(imports(path))
