"""Which OpenGL is chosen, and what is said where there is none."""

import os
import subprocess
import sys

import pytest

from sb3_sparse.pixels import backend

# Both libraries, and what is said if that does not work.
DRAW = """
import os, sys
{before}
import gymnasium
from sb3_sparse import PixelObservations, make_dmc_pixels

FASTEST = "no_shadows_no_reflections_no_antialiasing"

def control():
    env = make_dmc_pixels("cartpole", "balance", size=16, rendering=FASTEST)
    assert env.reset(seed=0)[0].std() > 1
    env.render()
    env.close()

def cheetah():
    env = PixelObservations(gymnasium.make("HalfCheetah-v5"), size=16, rendering=FASTEST)
    assert env.reset(seed=0)[0].std() > 1
    env.close()

for draw in (control, cheetah):
    try:
        draw()
        print(os.environ["MUJOCO_GL"])
    except RuntimeError as error:
        print(error)
    except Exception as error:
        # MuJoCo's own import, where it is told to use what there is not.
        print(type(error).__name__)
"""
# No library of the system that draws: the loader is asked by PyOpenGL for these names.
NO_LIBRARIES = """
import ctypes, ctypes.util
find, load = ctypes.util.find_library, ctypes.CDLL.__init__
GL = ("EGL", "OSMesa")
def missing(name):
    return None if any(gl in name for gl in GL) else find(name)
def refused(self, name, *args, **kwargs):
    if any(gl in str(name) for gl in GL):
        raise OSError(f"{name}: cannot open shared object file")
    load(self, name, *args, **kwargs)
ctypes.util.find_library, ctypes.CDLL.__init__ = missing, refused
"""


def run(code, tmp_path=None, **environment):
    """Without what the tests themselves have set; with ``tmp_path``, and without OpenGL, also in processes of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    if tmp_path is not None:
        (tmp_path / "sitecustomize.py").write_text(NO_LIBRARIES)
        kept["PYTHONPATH"] = os.pathsep.join([str(tmp_path), os.getcwd()])
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, env={**kept, **environment})


full = pytest.mark.full


@pytest.mark.parametrize("before", ["import dm_control.suite", *(pytest.param(x, marks=full) for x in ("", "import mujoco"))])
def test_one_that_works_is_chosen_also_after_others_were_imported(before):
    result = run(DRAW.format(before=before))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() in (["egl", "egl"], ["osmesa", "osmesa"])


def test_a_choice_of_the_user_is_respected(monkeypatch):
    monkeypatch.setattr(backend, "_failure", lambda name: pytest.fail("nothing is tried"))
    for name in ("egl", "osmesa", " EGL"):
        monkeypatch.setenv("MUJOCO_GL", name)
        assert backend.choose_backend() == name.strip().lower()
        assert os.environ["MUJOCO_GL"] == name


@pytest.mark.parametrize(("works", "chosen"), [(["egl", "osmesa"], "egl"), (["osmesa"], "osmesa")])
def test_osmesa_is_the_second_choice_and_later_processes_know(works, chosen, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(backend, "_failure", lambda name: None if name in works else "no")
    assert backend.choose_backend() == chosen == os.environ["MUJOCO_GL"]


def test_without_any_one_sentence_says_what_to_install(tmp_path):
    result = run(DRAW.format(before=""), tmp_path)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("MuJoCo cannot draw without a window here: no OpenGL works (EGL: ")
        assert "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri" in line
        assert "apt-get install libosmesa6" in line
        assert 'pip install "sb3-sparse[dmc]"' in line


@pytest.mark.parametrize(("name", "package"), [("osmesa", "libosmesa6"), pytest.param("egl", "libegl1", marks=full)])
def test_of_a_choice_that_does_not_work_only_its_own_package_is_named(name, package, tmp_path):
    result = run(DRAW.format(before=""), tmp_path, MUJOCO_GL=name)
    assert result.returncode == 0, result.stderr
    line = result.stdout.splitlines()[0]
    assert line.startswith("MuJoCo cannot draw without a window here")
    assert package in line
    assert ("libegl1" in line) + ("libosmesa6" in line) == 1


@pytest.mark.parametrize("name", ["disabled", "vulkan"])
def test_a_value_that_draws_nothing_is_named(name, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", name)
    with pytest.raises(RuntimeError, match=rf"^MUJOCO_GL={name}: .*Unset it"):
        backend.choose_backend()


def test_pyopengl_that_somebody_else_has_is_named(monkeypatch):
    class Platform:
        PLATFORM = type("GLXPlatform", (), {"__module__": "OpenGL.platform.glx"})()

    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setitem(sys.modules, "OpenGL.platform", Platform)
    for check in (backend.check_backend, broken_draw):
        with pytest.raises(RuntimeError, match=r"^PyOpenGL was imported before, for glx, .*PYOPENGL_PLATFORM=egl"):
            check()


def broken_draw():
    with backend.explained():
        raise AttributeError("eglQueryString")
