"""``from sb3_sparse import ...``: everything a user needs, loaded when it is first asked for."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from stable_baselines3 import SAC

import sb3_sparse

ROOT = Path(__file__).parent.parent

# What `import sb3_sparse` adds to a process that has SB3 already.
ADDED = """
import json, sys
import sb3_contrib, stable_baselines3
before = set(sys.modules)
import sb3_sparse
from stable_baselines3 import SAC
print(json.dumps([sorted(set(sys.modules) - before), "SparseSimBaPolicy" in SAC.policy_aliases]))
"""


def run(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_loads_what_the_policies_need_and_nothing_else():
    added, registered = json.loads(run(ADDED))
    assert registered
    ours = {name.split(".")[1] for name in added if name.startswith("sb3_sparse.")}
    assert ours == {"common", "networks", "simba", "sparse"}
    # A few modules of Python itself beside our kernels' compiler.
    others = {name for name in added if name.split(".")[0] not in ("sb3_sparse", "llvmlite")}
    assert all(name.split(".")[0].lstrip("_") in sys.stdlib_module_names | {"statistics"} for name in others), others
    assert len(others) < 15


def test_every_name_is_what_its_room_has():
    for room, names in sb3_sparse._ROOMS.items():
        module = importlib.import_module(f"sb3_sparse.{room}")
        assert getattr(sb3_sparse, room) is module
        for name in names:
            assert getattr(sb3_sparse, name) is getattr(module, name)
            assert callable(getattr(sb3_sparse, name))
            assert name in vars(sb3_sparse), "the second time it is simply there"
    assert all(hasattr(sb3_sparse, name) for name in sb3_sparse.__all__)
    assert set(sb3_sparse.__all__) <= set(dir(sb3_sparse))
    assert "streaming" in dir(sb3_sparse)


def test_what_static_tools_read_agrees_with_what_python_finds():
    tree = ast.parse(Path(sb3_sparse.__file__).read_text())
    block, hidden = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    # It would answer for every name.
    assert ast.unparse(hidden.test) == "not TYPE_CHECKING"
    assert [node.name for node in hidden.body] == ["__getattr__"]
    read = {(node.module, alias.name) for node in block.body for alias in node.names}
    assert read == {(f"sb3_sparse.{room}", name) for room, names in sb3_sparse._ROOMS.items() for name in names}
    at_once = {a.asname or a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names}
    known = {name for _, name in read} | {name for name in at_once if name not in ("TYPE_CHECKING", "Any")}
    assert set(sb3_sparse.__all__) == known | {"__version__"}
    assert sb3_sparse.__all__ == sorted(sb3_sparse.__all__)


def test_one_name_loads_one_room():
    code = (
        "import sys, sb3_sparse; from sb3_sparse import StreamQ; print(*sorted(m for m in sys.modules if m.count('.') == 1))"
    )
    loaded = {name.split(".")[1] for name in run(code).split() if name.startswith("sb3_sparse.")}
    assert loaded == {"common", "networks", "simba", "sparse", "streaming"}
    star = (
        "from sb3_sparse import *; print(StreamAC.__name__, PlasticityCallback.__name__, make_dmc.__name__, Sparsity.__name__)"
    )
    assert run(star).split() == ["StreamAC", "PlasticityCallback", "make_dmc", "Sparsity"]


@pytest.mark.parametrize(("wrong", "right"), [("StremAC", "StreamAC"), ("SparseSimbaPolicy", "SparseSimBaPolicy")])
def test_a_wrong_name_is_answered_with_a_near_one(wrong, right):
    with pytest.raises(AttributeError, match=f"^module 'sb3_sparse' has no attribute '{wrong}'. Did you mean '{right}'"):
        getattr(sb3_sparse, wrong)
    with pytest.raises(ImportError, match=wrong):
        exec(f"from sb3_sparse import {wrong}")
    assert not hasattr(sb3_sparse, "nothing_of_the_kind")


def test_old_addresses_are_there_without_an_import_of_their_own():
    assert run("import sb3_sparse; print(sb3_sparse.policies.POLICY_ALIAS)").split() == ["SparseSimBaPolicy"]
    assert sb3_sparse.policies.POLICIES[SAC] is sb3_sparse.SparseSimBaPolicy
