"""YAML as plain data: no Python objects, no name twice, and 1e-4 is a number."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from sb3_sparse.zoo.mistakes.settings import about_yaml

# Numbers that YAML 1.1 has as text: 1e-4.
NUMBERS = ("tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"])


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
        # By text and by value: "1" and 1.0, "on" and "yes" are one name for whoever asks for it.
        texts: dict[str, str] = {}
        values: dict[Any, str] = {}
        for key, _ in node.value:
            # "<<" merges another mapping into this one, perhaps several times.
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            value, text = loader.construct_object(key, deep=True), str(key.value)
            if not isinstance(value, Hashable):
                raise yaml.YAMLError(f"{value!r} is no name, line {key.start_mark.line + 1}")
            if text in texts:
                raise yaml.YAMLError(f"{text!r} stands twice in one mapping, line {key.start_mark.line + 1}")
            if value in values:
                raise yaml.YAMLError(
                    f"{values[value]!r} and {text!r} are the same name ({value!r}) in one mapping, "
                    f"line {key.start_mark.line + 1}: quote what is meant as a word"
                )
            texts[text] = values[value] = text
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    Loader.add_implicit_resolver(*NUMBERS)
    try:
        return yaml.load(path.read_text(), Loader)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}): expected a file of YAML.") from error
    except (yaml.YAMLError, ValueError) as error:
        # Dates that there are not are such errors, and texts of another encoding.
        raise ValueError(about_yaml(path, error)) from error


def write_yaml(path: Path, content: Any) -> None:
    """
    Write plain data.

    :param path: The file.
    :param content: Mappings, lists, strings, numbers, booleans, None.
    """
    yaml = _yaml()

    class Dumper(yaml.SafeDumper):  # type: ignore[name-defined]
        """Quotes texts that :func:`read_yaml` would take for numbers."""

    Dumper.add_implicit_resolver(*NUMBERS)
    path.write_text(yaml.dump(content, Dumper=Dumper, sort_keys=False))


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError('studies need PyYAML: pip install "sb3-sparse[sweeps]"') from error
    return yaml
