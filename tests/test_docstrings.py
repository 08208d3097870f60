"""Docstrings: readable without running anything, and a line for every keyword."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from gymnasium import spaces

import sb3_sparse

PACKAGE = Path(__file__).parent.parent / "sb3_sparse"
FILES = sorted(PACKAGE.rglob("*.py"))
files = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
CLASSES = sorted(
    {
        *(getattr(sb3_sparse, name) for name in sb3_sparse.__all__ if name.endswith("Policy")),
        *(getattr(sb3_sparse, name) for name in ("StreamAC", "StreamQ", "StreamSARSA")),
    },
    key=lambda cls: cls.__name__,
)
classes = pytest.mark.parametrize("cls", CLASSES, ids=[cls.__name__ for cls in CLASSES])


@files
def test_what_is_public_has_a_docstring_that_static_tools_read(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the file"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and [ast.unparse(each) for each in node.decorator_list] == ["overload"]:
            continue  # The function itself has one.
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
    computed = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "__doc__"]
    assert not any(isinstance(node.ctx, ast.Store) for node in computed)


@classes
def test_every_keyword_is_documented(cls):
    written = "".join(vars(base).get("__doc__") or "" for base in cls.__mro__)
    parameters = inspect.signature(cls).parameters
    assert len(parameters) >= 4
    for name, parameter in parameters.items():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if not name.startswith("_"):
            assert re.search(rf":param {name}:", written), name


@classes
def test_a_class_says_where_its_other_keywords_are_documented(cls):
    ours = [base for base in cls.__mro__ if base.__module__.startswith("sb3_sparse.")]
    written = "".join(base.__doc__ for base in ours)
    for base in ours[1:]:
        own = inspect.signature(vars(base)["__init__"]).parameters.keys() if "__init__" in vars(base) else set()
        if own - {"self", "args", "kwargs"} - set(re.findall(r":param (\w+):", cls.__doc__)):
            assert f":class:`{base.__name__}`" in written, base.__name__


def test_the_signature_has_the_keywords_of_all_constructors():
    parameters = inspect.signature(sb3_sparse.SparseSimBaPolicy).parameters
    assert list(parameters)[:3] == ["observation_space", "action_space", "lr_schedule"]
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    # Of the mixin, of the one for Gaussian actors, and of SB3's own policy.
    assert (defaults["sparsity"], defaults["squash_log_std"], defaults["n_critics"]) == (0.8, True, 2)
    assert "squash_log_std" not in inspect.signature(sb3_sparse.SparseSimBaDQNPolicy).parameters
    assert {"kappa", "gamma", "seed"} <= set(inspect.signature(sb3_sparse.StreamSARSA).parameters)


def test_the_signature_of_a_users_subclass_and_of_an_instance():
    class Own(sb3_sparse.SparseSimBaDQNPolicy):
        def __init__(self, *args, flavour=1, **kwargs):
            super().__init__(*args, **kwargs)

    assert {"flavour", "sparsity"} <= set(inspect.signature(Own).parameters)
    policy = Own(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 1e-3, width_scale=0.05)
    assert "sparsity" not in inspect.signature(policy).parameters, "an instance is called as a module"
