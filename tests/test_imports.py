"""The import rule: what each part of the package may know about, by its source."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sb3_sparse"
RL_LIBRARIES = {"stable_baselines3", "sb3_contrib", "gymnasium", "rl_zoo3", "shimmy", "dm_control"}
ALL = sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in ALL}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def statements(path: Path, late: bool) -> list[ast.stmt]:
    """Those that import; with ``late`` also inside of functions, never what only type checkers read."""
    found, todo = [], list(tree(path).body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif late or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            todo += list(ast.iter_child_nodes(node))
    return found


def imports(path: Path, late: bool = True) -> set[str]:
    """Full names of what a file imports: of ours, files; what only has to be run first, their parents, does not count."""
    found = set()
    for node in statements(path, late):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{relative(path)}, line {node.lineno}: imports are written out"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner & set(MODULES)
            if inner - set(MODULES):
                found.add(node.module or "")
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def within(*places: str) -> list[Path]:
    return [path for path in ALL if any(PACKAGE / place in (path, *path.parents) for place in places)]


# What is known of models of SB3, for those who ask about a model.
ABOUT_SB3 = within("common/sb3_models.py", "common/model_report.py")
PURE = [path for path in within("common", "sparse", "networks", "plasticity/metrics") if path not in ABOUT_SB3]
PURE += within(*(f"plasticity/resets/{name}.py" for name in ("torch_module", "redo", "options")))
STATISTICS = within(*(f"results/{name}.py" for name in ("statistics", "aggregates", "atari100k")))
PURE += STATISTICS


@pytest.mark.parametrize("path", PURE, ids=relative)
def test_pure_rooms_reach_no_rl_library(path):
    # `plasticity/__init__.py` and that of resets/ offer everything, to whoever asks for it there.
    offering = ("sb3_sparse.plasticity", "sb3_sparse.plasticity.resets", "sb3_sparse.results")
    seen: set[str] = set()
    todo = [path]
    while todo:
        for name in imports(todo.pop()) - seen:
            seen.add(name)
            todo += [MODULES[name]] if name in MODULES and name not in offering else []
    assert not roots(seen) & RL_LIBRARIES
    assert not seen & {"sb3_sparse", *offering}


def strings(path: Path) -> list[str]:
    return [node.value for node in ast.walk(tree(path)) if isinstance(getattr(node, "value", None), str)]


@pytest.mark.parametrize("path", STATISTICS, ids=relative)
def test_statistics_need_numpy_alone(path):
    names = imports(path) - {module_name(statistic) for statistic in STATISTICS}
    assert roots(names) <= {"collections", "dataclasses", "functools", "re", "typing", "numpy"}


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_only_the_adapter_knows_rl_zoo3_and_imports_it_late(path):
    if path in within("zoo"):
        assert "rl_zoo3" not in roots(imports(path, late=False))
    else:
        assert "rl_zoo3" not in roots(imports(path))
        assert not [text for text in strings(path) if re.match(r"rl_zoo3(\.|$)", text)], "a name for importlib"


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_nobody_imports_the_command(path):
    if path.relative_to(PACKAGE).parts[0] != "cli":
        assert not [name for name in imports(path) if name.startswith("sb3_sparse.cli")]
        assert not [text for text in strings(path) if re.match(r"sb3_sparse\.cli(\.|$)", text)], "a name for importlib"


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_nothing_but_the_command_ends_the_program(path):
    if path in within("cli") or path.name == "__main__.py":
        return
    for node in ast.walk(tree(path)):
        raised = ast.unparse(node.exc) if isinstance(node, ast.Raise) and node.exc else ""
        called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        assert not raised.startswith("SystemExit"), f"line {node.lineno}"
        assert called not in ("sys.exit", "exit", "quit", "os._exit", "parser.error", "parser.exit"), f"line {node.lineno}"


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
    graph = {name: imports(path, late=False) & set(MODULES) for name, path in MODULES.items()}
    # That the search sees anything at all: two that are there for certain.
    assert "sb3_sparse.sparse.topology" in graph["sb3_sparse.sparse.layers"]
    assert "sb3_sparse.export.check" in graph["sb3_sparse.export.build"]
    assert not circle(graph), " -> ".join(circle(graph))
