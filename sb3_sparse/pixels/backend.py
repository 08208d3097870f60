"""Which OpenGL draws without a window, found out by trying, and what to install where none does."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Modules of MuJoCo with a class GLContext, by the values of MUJOCO_GL.
_MODULES = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa", "glfw": "mujoco.glfw", "glx": "mujoco.glfw", "cgl": "mujoco.cgl"}
_PACKAGES = {
    "egl": "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (with an NVIDIA GPU its driver brings EGL)",
    "osmesa": "apt-get install libosmesa6",
}
# Everything that the first picture needs, in a process of its own: what fails there leaves nothing behind here, where PyOpenGL
# stays with what it was first loaded for.
_TRIAL = """
from {module} import GLContext
import mujoco
context = GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_100).free()
context.free()
"""


def gl_context(height: int, width: int) -> Any:
    """An OpenGL context of the backend that :func:`choose_backend` names, which is not current anywhere yet."""
    return importlib.import_module(_MODULES[choose_backend()]).GLContext(width, height)


@contextmanager
def explained() -> Iterator[None]:
    """
    What goes wrong inside comes from OpenGL: it is said what to do.

    :raises RuntimeError: Instead of whatever a driver or PyOpenGL raised; the message says what to install.
    """
    try:
        yield
    except Exception as error:
        name = choose_backend()
        failure = f"{type(error).__name__}: {error}"
        raise RuntimeError(_taken_by_another(name) or _what_to_do({name: failure})) from error


def check_backend() -> None:
    """
    :raises RuntimeError: If the backend in ``MUJOCO_GL`` does not work; the message says what to install.
    """
    name = choose_backend()
    if (taken := _taken_by_another(name)) is not None:
        raise RuntimeError(taken)
    if (failure := _failure(name)) is not None:
        raise RuntimeError(_what_to_do({name: failure}))


def choose_backend() -> str:
    """
    The value of ``MUJOCO_GL``. Where it is not set, it is set, for MuJoCo, dm_control and processes that begin later: to EGL
    if a context can be made, else to OSMesa; on macOS and Windows to what they have.

    :raises RuntimeError: If it is set to something else than a backend, or nothing works.
    """
    given = os.environ.get("MUJOCO_GL", "").strip().lower()
    if given:
        if given not in _MODULES:
            raise RuntimeError(
                f"MUJOCO_GL={given}: this names no OpenGL to draw with. Unset it, and one that works is chosen, or set it "
                f"to one of {sorted(_MODULES)}."
            )
        return given
    if sys.platform != "linux":
        return "cgl" if sys.platform == "darwin" else "glfw"
    failures = {}
    for name in ("egl", "osmesa"):
        failure = _failure(name)
        if failure is None:
            os.environ["MUJOCO_GL"] = name
            return name
        failures[name] = failure
    raise RuntimeError(_what_to_do(failures))


def _failure(name: str) -> str | None:
    """None if a picture can be drawn, else the last line of what is said about it."""
    code = _TRIAL.format(module=_MODULES[name])
    trial = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "MUJOCO_GL": name})
    if trial.returncode == 0:
        return None
    errors = [line for line in trial.stderr.splitlines() if line and not line.startswith((" ", "Exception ignored"))]
    return errors[-1] if errors else f"ended with {trial.returncode}"


def _taken_by_another(name: str) -> str | None:
    """What to do if PyOpenGL was loaded for something else, which lasts as long as the process; None if it was not."""
    platform = sys.modules.get("OpenGL.platform")
    loaded = type(platform.PLATFORM).__module__.rpartition(".")[2] if platform is not None else name
    if loaded == name or name not in _PACKAGES:
        return None
    return (
        f"PyOpenGL was imported before, for {loaded}, and MuJoCo needs it for {name}: make the environment before whatever "
        f"imports OpenGL, or begin the program with PYOPENGL_PLATFORM={name} and MUJOCO_GL={name} set."
    )


def _what_to_do(failures: dict[str, str]) -> str:
    names = {"egl": "EGL", "osmesa": "OSMesa"}
    tried = "; ".join(f"{names.get(name, name)}: {failure}" for name, failure in failures.items())
    packages = ", or ".join(_PACKAGES[name] for name in failures if name in _PACKAGES)
    install = f" On Debian and Ubuntu: {packages}." if packages else ""
    return (
        f"MuJoCo cannot draw without a window here: no OpenGL works ({tried}).{install} "
        'The Python packages come with pip install "sb3-sparse[dmc]". MUJOCO_GL=egl or MUJOCO_GL=osmesa names one.'
    )
