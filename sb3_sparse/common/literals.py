"""Settings that were written as Python, read without running any of it."""

import ast
from collections.abc import Mapping
from typing import Any


def parse_literal(name: str, text: str, names: Mapping[str, Any]) -> Any:
    """
    The value of an expression made of literals, ``dict(...)`` calls and a list of names.

    >>> parse_literal("policy_kwargs", "dict(sparsity=0.9, net_arch=[256, 256])", {})
    {'sparsity': 0.9, 'net_arch': [256, 256]}

    :param name: What is set, for the error.
    :param text: The expression.
    :param names: What a name stands for, such as ``{"nn.ReLU": nn.ReLU}``.
    :raises ValueError: If the text is something else.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, names)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{name}={text!r}: {_reason(error)}; expected numbers, strings in quotes, True, False, None, lists, tuples, "
            f"dicts, dict(...) and the names {_listed(names)}. Nothing else is run."
        ) from error


def _reason(error: Exception) -> str:
    # What Python says of syntax ends with a place in a file that there is not.
    return error.msg if isinstance(error, SyntaxError) else str(error)


def _listed(names: Mapping[str, Any]) -> str:
    """Names in full, but for those of a module, of which one stands for all."""
    short = [name for name in sorted(names) if "." not in name]
    modules: dict[str, list[str]] = {}
    for name in sorted(names):
        if "." in name:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    of_modules = [
        f"{found[0]} ({len(found)} of {module})" if len(found) > 1 else found[0] for module, found in modules.items()
    ]
    return ", ".join([*short, *of_modules]) or "(none)"


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Dict):
        pairs = [(_key(key, names), _value(value, names)) for key, value in zip(node.keys, node.values, strict=True)]
        return dict(pairs)
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_value(element, names) for element in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {_keyword(keyword): _value(keyword.value, names) for keyword in node.keywords}
    if isinstance(node, (ast.Name, ast.Attribute)):
        dotted = ast.unparse(node)
        if dotted not in names:
            raise ValueError(f"the name {dotted!r} is not known")
        return names[dotted]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)!r} is no literal") from None


def _key(key: ast.expr | None, names: Mapping[str, Any]) -> Any:
    if key is None:
        raise ValueError("a dict with ** is no literal")
    return _value(key, names)


def _keyword(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("dict(**...) is no literal")
    return keyword.arg
