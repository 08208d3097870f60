"""How large things are: a file is read top to bottom, a function at a glance."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sb3_sparse"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES, MAX_FUNCTION, MAX_FILES = 400, 60, 10


def relative(path):
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_file_is_too_long(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES


def functions(path):
    return [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def length(function):
    """Lines without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    has_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return lines - (first.end_lineno - first.lineno + 1 if has_docstring else 0)


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_function_is_too_long(path):
    assert {function.name: length(function) for function in functions(path) if length(function) > MAX_FUNCTION} == {}


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_folder_is_too_full(folder):
    files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MAX_FILES, files
