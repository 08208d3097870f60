"""
Pictures of MuJoCo models without a window.

Which OpenGL context is current is a matter of the thread, and everybody remembers it in another way: dm_control, gymnasium and
pygame would draw into each other's. So all of ours live in one thread that nobody else has.
"""

import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from sb3_sparse.pixels.backend import choose_backend, explained, gl_context
from sb3_sparse.pixels.rendering import Rendering

# As many as MuJoCo's own renderer has room for.
_MAX_GEOMS = 10_000


class Offscreen:
    """
    Draws in one size. OpenGL is asked for when the first picture is, in the process that wants it: until then it can be
    copied, pickled and sent to other processes, and what arrives there begins anew.

    :param height: Rows of pixels.
    :param width: Columns of pixels.
    :param rendering: What is left out.
    """

    def __init__(self, height: int, width: int, rendering: Rendering):
        self.height, self.width, self.rendering = height, width, rendering
        self._context: _Context | None = None

    def draw(self, model: Any, data: Any, camera: Any, option: Any) -> np.ndarray:
        """
        What a camera sees, as (height, width, 3) of uint8.

        :param model: An ``mjModel``. Where it is another one than before, the next picture takes as long as the first.
        :param data: Its ``mjData``.
        :param camera: An ``mjvCamera``.
        :param option: An ``mjvOption``.
        :raises RuntimeError: If OpenGL does not work here, or was used before this process was forked.
        """
        return _gl_thread().call(self._draw, model, data, camera, option)

    def _draw(self, model: Any, data: Any, camera: Any, option: Any) -> np.ndarray:
        if self._context is not None and self._context.model is not model:
            self._context.free()
            self._context = None
        if self._context is None:
            self._context = _Context(model, self.height, self.width, self.rendering)
        return self._context.draw(data, camera, option)

    def close(self) -> None:
        """Give back what it has of OpenGL; the next picture asks for it again."""
        context, self._context = self._context, None
        if context is not None and context.process == os.getpid():
            _gl_thread().call(context.free)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_context": None}

    def __del__(self) -> None:
        context = getattr(self, "_context", None)
        if context is not None and context.process == os.getpid():
            # Nobody waits: this may be called in the very thread that would do it.
            _gl_thread().submit(context.free)


class _Context:
    """A scene and its OpenGL. All of it happens in the one thread."""

    # Kept here until they are freed, which is never where a fork brought them: there they can be neither used nor freed.
    everyone: set["_Context"] = set()

    def __init__(self, model: Any, height: int, width: int, rendering: Rendering):
        # MuJoCo is there where a model is.
        import mujoco

        self.mujoco, self.model, self.process = mujoco, model, os.getpid()
        choose_backend()
        with explained(), rendering.applied(model, height, width):
            self.gl = gl_context(height, width)
            _at_exit()
            self.gl.make_current()
            self.context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.context)
        self.scene = mujoco.MjvScene(model, _MAX_GEOMS)
        self.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] &= rendering.reflections
        self.size = mujoco.MjrRect(0, 0, width, height)
        self.terrain = model.hfield_data.copy()
        _Context.everyone.add(self)

    def draw(self, data: Any, camera: Any, option: Any) -> np.ndarray:
        mujoco, model = self.mujoco, self.model
        self.gl.make_current()
        if not np.array_equal(self.terrain, model.hfield_data):
            # A task made other hills for this episode, of which OpenGL has a copy.
            np.copyto(self.terrain, model.hfield_data)
            for i in range(model.nhfield):
                mujoco.mjr_uploadHField(model, self.context, i)
        mujoco.mjv_updateScene(model, data, option, None, camera, mujoco.mjtCatBit.mjCAT_ALL, self.scene)
        frame = np.empty((self.size.height, self.size.width, 3), np.uint8)
        mujoco.mjr_render(self.size, self.scene, self.context)
        mujoco.mjr_readPixels(frame, None, self.size, self.context)
        # OpenGL counts rows from below.
        return frame[::-1]

    def free(self) -> None:
        if self in _Context.everyone:
            _Context.everyone.remove(self)
            self.gl.make_current()
            self.context.free()
            self.gl.free()


class _Thread:
    """Does one thing after the other."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._tasks: queue.SimpleQueue[tuple[Future, Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        # A daemon: the program does not wait for it, and it is there until the very end.
        threading.Thread(target=self._work, daemon=True, name="sb3_sparse OpenGL").start()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        future: Future = Future()
        self._tasks.put((future, function, arguments))
        return future

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.submit(function, *arguments).result()

    def _work(self) -> None:
        while True:
            future, function, arguments = self._tasks.get()
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                # Raised where the result is asked for.
                future.set_exception(error)
            # While it waits for the next one, it is to hold nothing of the last one.
            del future, function, arguments


_thread: _Thread | None = None


def _gl_thread() -> _Thread:
    global _thread
    if _thread is None:
        _thread = _Thread()
    if _thread.process != os.getpid():
        raise RuntimeError(
            "this process was forked from one that had drawn pictures with OpenGL, which does not survive that. Begin the "
            'processes of environments with start_method="forkserver" or "spawn" (SubprocVecEnv does by itself), or fork '
            "before the first picture is drawn."
        )
    return _thread


def _at_exit() -> None:
    # What is registered last is called first: before the functions of MuJoCo and dm_control that end the display ours are on.
    atexit.unregister(_free_all)
    atexit.register(_free_all)


def _free_all() -> None:
    def free() -> None:
        for context in list(_Context.everyone):
            context.free()

    if _thread is not None and _thread.process == os.getpid():
        with contextlib.suppress(TimeoutError):
            # A picture that takes longer, of a program that is over: left to the system.
            _thread.submit(free).result(timeout=5)
