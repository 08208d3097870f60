"""The import rule: what each part of the package may know about."""

import ast
import re
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
PURE_PLASTICITY = ("metrics", "activations", "interference", "figures", "table", "simplicity", "resets", "redo")
PURE = [path for path in ALL if path.relative_to(PACKAGE).parts[0] in ("common", "sparse", "networks", "results")]
PURE += [PACKAGE / "plasticity" / f"{name}.py" for name in PURE_PLASTICITY]


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_networks_sparse_layers_and_metrics_know_no_rl_library(path):
    names = imports(path)
    assert not roots(names) & RL_LIBRARIES
    ours = {name for name in names if name.startswith("sb3_sparse")}
    allowed = {f"sb3_sparse.plasticity.{name}" for name in PURE_PLASTICITY}
    rooms = ("common", "sparse", "networks")
    if "results" in path.relative_to(PACKAGE).parts:
        rooms += ("results",)
    assert all(name.split(".")[1] in rooms or name in allowed for name in ours)


def strings(path: Path) -> list[str]:
    return [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(getattr(node, "value", None), str)]


def test_statistics_need_numpy_alone():
    assert roots(imports(PACKAGE / "results/statistics.py")) == {"dataclasses", "typing", "numpy"}


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_adapter_knows_rl_zoo3_and_imports_it_late(path):
    if path.relative_to(PACKAGE).parts[0] == "zoo":
        assert "rl_zoo3" not in roots(imports(path, top_level_only=True))
    else:
        assert "rl_zoo3" not in roots(imports(path))
        assert not [text for text in strings(path) if re.match(r"rl_zoo3(\.|$)", text)], "a name for importlib"


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nobody_imports_the_command(path):
    if path.relative_to(PACKAGE).parts[0] != "cli":
        assert not [name for name in imported_modules(path, ast.walk) if name.startswith("sb3_sparse.cli")]
        assert not [text for text in strings(path) if re.match(r"sb3_sparse\.cli(\.|$)", text)], "a name for importlib"


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_but_the_command_ends_the_program(path):
    if path.relative_to(PACKAGE).parts[0] == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        raised = ast.unparse(node.exc) if isinstance(node, ast.Raise) and node.exc else ""
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert not raised.startswith("SystemExit"), f"line {node.lineno}"
        assert called not in ("sys.exit", "exit", "quit", "os._exit", "parser.error", "parser.exit"), f"line {node.lineno}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ALL}


def top_level(tree: ast.Module) -> list[ast.stmt]:
    """What runs when a file is imported, without what only type checkers read."""
    found: list[ast.stmt] = []
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        found.append(node)
        if isinstance(node, (ast.Try, ast.With)) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test)
        ):
            todo += [child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
    return found


def imported_modules(path: Path, nodes_of=top_level) -> set[str]:
    """The files of the package that one imports, by module; what only has to be run first, its parents, do not count."""
    found = set()
    for node in nodes_of(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in MODULES}
            if any(f"{node.module}.{alias.name}" not in MODULES for alias in node.names):
                found.add(node.module)
    return found & set(MODULES)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A path that leads back to where it began, empty if there is none."""
    done: set[str] = set()

    def search(place: str, before: list[str]) -> list[str]:
        if place in before:
            return [*before[before.index(place) :], place]
        if place not in done:
            for following in sorted(graph[place]):
                if found := search(following, [*before, place]):
                    return found
            done.add(place)
        return []

    return next((found for place in sorted(graph) if (found := search(place, []))), [])


def test_the_search_for_circles_finds_one():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_file_imports_what_imports_it():
    graph = {name: imported_modules(path) for name, path in MODULES.items()}
    # That the search sees anything at all: two that are there for certain.
    assert "sb3_sparse.sparse.topology" in graph["sb3_sparse.sparse.layers"]
    assert "sb3_sparse.export.check" in graph["sb3_sparse.export.build"]
    assert not circle(graph), " -> ".join(circle(graph))
