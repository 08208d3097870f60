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
PURE_PLASTICITY = (
    *("metrics", *(f"metrics.{path.stem}" for path in (PACKAGE / "plasticity" / "metrics").glob("[a-z]*.py"))),
    *("measurement.figures", "measurement.table", "resets.torch_module", "resets.redo", "resets.options"),
)
# What is known of models of SB3, for everybody who asks about a model.
ABOUT_SB3 = ("sb3_sparse.common.sb3_models", "sb3_sparse.common.model_report")
PURE = [path for path in ALL if path.relative_to(PACKAGE).parts[0] in ("common", "sparse", "networks")]
PURE = [path for path in PURE if f"sb3_sparse.common.{path.stem}" not in ABOUT_SB3]
PURE += [PACKAGE / "plasticity" / f"{name.replace('.', '/')}.py" for name in PURE_PLASTICITY[1:]]
PURE += [PACKAGE / "plasticity" / "metrics" / "__init__.py"]


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_networks_sparse_layers_and_metrics_know_no_rl_library(path):
    names = imports(path)
    assert not roots(names) & RL_LIBRARIES
    ours = {name for name in names if name.startswith("sb3_sparse")}
    allowed = {f"sb3_sparse.plasticity.{name}" for name in PURE_PLASTICITY}
    assert all(name.split(".")[1] in ("common", "sparse", "networks") or name in allowed for name in ours)
    assert not ours.intersection(ABOUT_SB3)


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_knows_rl_zoo3_and_imports_it_late(path):
    if path.name in ("zoo.py", "cli.py", "describe.py"):
        assert "rl_zoo3" not in roots(imports(path, top_level_only=True))
    else:
        assert "rl_zoo3" not in roots(imports(path))
