"""YAML as plain data: no Python objects, no name twice, and 1e-4 is a number."""

import re
from pathlib import Path
from typing import Any

from sb3_sparse.zoo.mistakes.settings import about_yaml


def read_yaml(path: Path) -> Any:
    """
    The content of a file: mappings, lists, strings, numbers, booleans, null.

    Two things that YAML 1.1 does without a word are done otherwise: ``1e-4`` is a number, and a name that stands twice in one
    mapping is an error.

    :param path: The file.
    :raises ValueError: If it is missing, or no such YAML.
    :raises ImportError: If PyYAML is missing.
    """
    yaml = _yaml()

    class Loader(yaml.SafeLoader):  # type: ignore[name-defined]
        """See :func:`read_yaml`."""

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            # "<<" merges another mapping into this one, perhaps several times.
            name = str(key.value)
            if name in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"{name!r} stands twice in one mapping, line {key.start_mark.line + 1}")
            seen.add(name)
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
    )
    try:
        return yaml.load(path.read_text(), Loader)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): expected a file of YAML.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(about_yaml(path, error)) from error


def write_yaml(path: Path, content: Any) -> None:
    """
    Write plain data.

    :param path: The file.
    :param content: Mappings, lists, strings, numbers, booleans, None.
    """
    path.write_text(_yaml().safe_dump(content, sort_keys=False))


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError('studies need PyYAML: pip install "sb3-sparse[sweeps]"') from error
    return yaml
