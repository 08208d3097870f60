"""Agents as files that need neither this package nor Stable-Baselines3: ONNX, and programs of ``torch.export``."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse.common.files import with_ending, written_beside
from sb3_sparse.common.validation import positive
from sb3_sparse.export.build import build
from sb3_sparse.export.check import Arrays, as_tensors, check, random_observations, untouched
from sb3_sparse.export.module import PredictModule
from sb3_sparse.export.vec_normalize import load_vec_normalize
from sb3_sparse.simba.spaces import parts_of

METADATA_FILE = "sb3_sparse.json"


def export_onnx(
    model: BaseAlgorithm,
    path: str | Path,
    *,
    vec_normalize: VecNormalize | str | Path | None = None,
    channels_last: bool = False,
    tolerance: float = 1e-5,
) -> Path:
    """
    Write ``predict`` of an agent as an ONNX file: raw observations in, deterministic actions out, batches of any size.

    The input is named ``observation``, or one is named after each key of a Dict; an agent with a time feature has the
    input ``step`` too. The output is named ``action``. The file is run in onnxruntime on 1,024 random observations
    before it gets its name; one that does not do as ``model.predict`` does is never left behind.

    >>> export_onnx(model, "agent.onnx")  # doctest: +SKIP

    :param model: An agent, see :func:`predict_module`; it is not changed.
    :param path: The file. ``.onnx`` is added to a name without an ending.
    :param vec_normalize: See :func:`predict_module`.
    :param channels_last: See :func:`predict_module`.
    :param tolerance: Largest difference to ``model.predict``: as a part of half an action's range where that is more than
        1, and absolute where it is less.
    :return: The path.
    :raises ValueError: If the agent cannot be exported, or an argument is wrong.
    :raises RuntimeError: If the file does not do as the agent does.
    """
    onnxruntime, onnx = _import("onnxruntime"), _import("onnx")
    _import("onnxscript")

    def write(module: PredictModule, beside: Path, metadata: dict[str, str]) -> None:
        inputs, output = input_names(module), output_name(module)
        with _quiet_exporter():
            program = th.onnx.export(_traced(module), dynamo=True, input_names=inputs, output_names=[output], verbose=False)
        assert program is not None
        _rename_inner_values(program.model.graph, {*inputs, output})
        program.model.metadata_props.update(metadata)
        program.save(str(beside), external_data=False)
        onnx.checker.check_model(str(beside))

    def load(module: PredictModule, beside: Path) -> Callable[[Arrays, np.ndarray | None], np.ndarray]:
        session = onnxruntime.InferenceSession(str(beside), providers=["CPUExecutionProvider"])
        names = input_names(module)

        def run(observations: Arrays, steps: np.ndarray | None) -> np.ndarray:
            arrays = [*observations.values()] if isinstance(observations, dict) else [observations]
            return session.run(None, dict(zip(names, arrays if steps is None else [*arrays, steps], strict=True)))[0]

        return run

    return _export(model, path, ".onnx", write, load, vec_normalize, channels_last, tolerance)


def export_torch(
    model: BaseAlgorithm,
    path: str | Path,
    *,
    vec_normalize: VecNormalize | str | Path | None = None,
    channels_last: bool = False,
    tolerance: float = 1e-5,
) -> Path:
    """
    Write ``predict`` of an agent as a program of ``torch.export``, which loads with torch alone.

    ``torch.export.load(path).module()`` is called as what :func:`predict_module` returns: with a batch of raw
    observations (a dict of tensors for a Dict), and the steps taken where the agent has a time feature. The file is
    checked as that of :func:`export_onnx`.

    >>> export_torch(model, "agent.pt2")  # doctest: +SKIP

    :param model: An agent, see :func:`predict_module`; it is not changed.
    :param path: The file. ``.pt2`` is added to a name without an ending.
    :param vec_normalize: See :func:`predict_module`.
    :param channels_last: See :func:`predict_module`.
    :param tolerance: See :func:`export_onnx`.
    :return: The path.
    :raises ValueError: If the agent cannot be exported, or an argument is wrong.
    :raises RuntimeError: If the file does not do as the agent does.
    """

    def write(module: PredictModule, beside: Path, metadata: dict[str, str]) -> None:
        th.export.save(_traced(module), beside, extra_files={METADATA_FILE: json.dumps(metadata, indent=1)})

    def load(module: PredictModule, beside: Path) -> Callable[[Arrays, np.ndarray | None], np.ndarray]:
        loaded = th.export.load(beside).module()
        return lambda observations, steps: loaded(*as_tensors(observations, steps)).numpy()

    return _export(model, path, ".pt2", write, load, vec_normalize, channels_last, tolerance)


def input_names(module: PredictModule) -> list[str]:
    """Names of the inputs of an ONNX file, in their order."""
    names = [key or "observation" for key in parts_of(module.observation_space)]
    return [*names, "step"] if module.takes_step else names


def output_name(module: PredictModule) -> str:
    """``action``, unless an input has that name."""
    return "action" if "action" not in input_names(module) else "predicted_action"


def describe_agent(model: BaseAlgorithm, module: PredictModule) -> dict[str, str]:
    """What a file says about itself."""
    from sb3_sparse import __version__

    policy = type(model.policy)
    return {
        "algorithm": type(model).__name__,
        "policy": f"{policy.__module__}.{policy.__qualname__}",
        "observation_space": str(module.observation_space),
        "action_space": str(model.action_space),
        "inputs": json.dumps(input_names(module)),
        "output": output_name(module),
        "vec_normalize": "inside" if module.normalizer is not None else "none",
        "num_timesteps": str(model.num_timesteps),
        "sb3_sparse": __version__,
        "stable_baselines3": stable_baselines3.__version__,
        "torch": th.__version__,
    }


def _export(
    model: BaseAlgorithm,
    path: str | Path,
    ending: str,
    write: Callable[[PredictModule, Path, dict[str, str]], None],
    load: Callable[[PredictModule, Path], Callable[[Arrays, np.ndarray | None], np.ndarray]],
    vec_normalize: VecNormalize | str | Path | None,
    channels_last: bool,
    tolerance: float,
) -> Path:
    path, tolerance = with_ending(path, ending), positive("tolerance", tolerance)
    wrapper = load_vec_normalize(vec_normalize)
    with untouched(model):
        module = build(model, wrapper, channels_last)
        with written_beside(path) as beside:
            write(module, beside, describe_agent(model, module))
            check(load(module, beside), module, model, wrapper, tolerance)
    return path


def _traced(module: PredictModule) -> th.export.ExportedProgram:
    """The program of a module, for batches of any size."""
    # Two observations: torch would take a batch of one for a constant.
    steps = np.zeros(2, dtype=np.int64) if module.takes_step else None
    arguments = as_tensors(random_observations(module.observation_space, 2, np.random.default_rng(0)), steps)
    batch = th.export.Dim("batch")
    shapes: list[Any] = [{key: {0: batch} for key in arguments[0]} if isinstance(arguments[0], dict) else {0: batch}]
    shapes += [{0: batch}] * (len(arguments) - 1)
    return th.export.export(module, arguments, dynamic_shapes=tuple(shapes))


def _rename_inner_values(graph: Any, outside: set[str]) -> None:
    """An observation may be called as a value inside of the graph is: inputs and outputs keep their names, the others not."""
    for node in graph:
        for value in node.outputs:
            if value.name in outside and not value.is_graph_output():
                value.name = f"{value.name}/inner"
    for name in [name for name in graph.initializers if name in outside]:
        value = graph.initializers.pop(name)
        value.name = f"{name}/inner"
        graph.initializers[value.name] = value


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's remarks on torchvision, and on a part of torch that another part of torch calls outdated."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _import(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'exporting to ONNX needs {name}: pip install "sb3-sparse[export]"') from error
