"""
Names in docstrings and signatures.

One of the package leads to where it is documented, and one that there is not is a warning. Defaults that are classes or
functions are shown by their names.
"""

import ast
import builtins
import re
from functools import cache
from pathlib import Path
from pydoc import locate

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[2] / "sb3_sparse"


@cache
def defined() -> set[str]:
    """All names of classes, functions, methods and attributes that the sources of the package define."""
    names = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def documented(env: BuildEnvironment, target: str) -> tuple[str, str] | None:
    """
    Where a name is documented.

    :param target: The name, as the end of what it is documented as, or as what it is imported by.
    :return: Page and anchor, or None if nothing, or more than one thing, has that name.
    """
    objects = env.domains["py"].data["objects"]
    end = target.rpartition(".")[2]
    named = {name: entry for name, entry in objects.items() if name == end or name.endswith("." + end)}
    if target.startswith("sb3_sparse."):
        meant = locate(target)
        named = {name: entry for name, entry in named.items() if meant is not None and locate(name) is meant}
    else:
        named = {name: entry for name, entry in named.items() if ("." + name).endswith("." + target)}
    places = {(entry.docname, entry.node_id) for entry in named.values()}
    return places.pop() if len(places) == 1 else None


def exists(target: str) -> bool:
    """
    Whether there is something of that name, documented or not.

    :param target: A name, or a path of names.
    """
    parts = target.split(".")
    if parts[0] == "sb3_sparse" or hasattr(builtins, target):
        return locate(target) is not None
    # What others have is not ours to check; a name without a path is taken for one of ours.
    return (len(parts) > 1 and parts[0] not in defined()) or parts[-1] in defined()


def missing_reference(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Called by Sphinx for each reference that it found nothing for."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].lstrip(".")
    place = documented(env, target)
    if place is not None:
        return make_refnode(app.builder, node["refdoc"], *place, content)
    # Only what was written as a reference: types of signatures are those of the code.
    if "refexplicit" in node and not exists(target):
        logger.warning("there is nothing named %s", target, location=node, type="ref", subtype="own")
    return None


def name_defaults(
    app: Sphinx, kind: str, name: str, thing: object, options: object, signature: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Called by Sphinx for each signature: one with ``<class 'torch.optim.AdamW'>`` is no Python, and could not be set."""
    named = r"<(?:class '|function )(?:\w+\.)*(\w+)(?:'| at 0x[0-9a-f]+)>"
    return signature and re.sub(named, r"\1", signature).replace("<factory>", "..."), result


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", name_defaults)
    # After the documentation of others has been asked.
    app.connect("missing-reference", missing_reference, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
