"""Where frames come from: MuJoCo, in the size that is wanted, or whatever an environment draws, resized."""

import os
import sys
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from sb3_sparse.common.validation import choice, whole_number
from sb3_sparse.pixels.offscreen import Offscreen
from sb3_sparse.pixels.rendering import RENDERINGS
from sb3_sparse.pixels.resize import resize


class Frames(Protocol):
    """What an environment looks like."""

    def frame(self) -> np.ndarray:
        """Now, as (size, size, 3) of uint8."""
        ...

    def picture(self) -> Any:
        """The same for people, in the environment's own size: what ``render()`` returns."""
        ...

    def close(self) -> None:
        """Give back what drawing has taken."""
        ...


def frames_of(env: gym.Env, size: int, camera_id: int | str | None, rendering: str) -> Frames:
    """
    :param env: The environment.
    :param size: Pixels on a side.
    :param camera_id: Of MuJoCo, the number or the name of a camera; None for the usual one.
    :param rendering: A name in ``RENDERINGS``.
    :raises ValueError: If the environment cannot be drawn, or not in such a way.
    :raises RuntimeError: If it shows itself in a window, and there is no display.
    """
    choice("rendering", rendering, RENDERINGS)
    scene = _scene_of(env)
    if scene is not None:
        _check_display(env)
        return MujocoFrames(env, scene, size, camera_id, rendering)
    for name, value, usual in (("camera_id", camera_id, None), ("rendering", rendering, "exact")):
        if value != usual:
            raise ValueError(f"{name}={value!r}: {env} draws its pictures itself, without MuJoCo, and has only one way to.")
    return RenderedFrames(env, size)


def has_display() -> bool:
    """Whether there is a screen on which a window can be opened, as far as one can say."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _check_display(env: gym.Env) -> None:
    # GLFW, which opens the window at the first step, ends the program there.
    if env.render_mode == "human" and not has_display():
        raise RuntimeError(
            "render_mode='human': a window needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set. Leave the mode "
            "out: observations are drawn without a window. For sb3-sparse enjoy: --no-render."
        )


class RenderedFrames:
    """
    What ``render()`` returns.

    :param env: An environment that was made with ``render_mode="rgb_array"``.
    :param size: Pixels on a side; both sides are stretched or shrunk to it.
    :raises ValueError: If it has another render mode.
    """

    def __init__(self, env: gym.Env, size: int):
        if env.render_mode != "rgb_array":
            raise ValueError(
                f"render_mode={env.render_mode!r}: {env} has to return its pictures. Make it with "
                'gymnasium.make(..., render_mode="rgb_array"); in a YAML file of rl-zoo3: '
                "env_kwargs: {render_mode: rgb_array}; for sb3-sparse enjoy: --no-render."
            )
        self._env, self._size = env, size

    def frame(self) -> np.ndarray:
        frame = self.picture()
        is_frame = isinstance(frame, np.ndarray) and frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8
        if not is_frame:
            given = f"{frame.dtype} of shape {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
            raise ValueError(f"render() of {self._env} returned {given}: expected uint8 of shape (height, width, 3).")
        return resize(frame, self._size, self._size)

    def picture(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        """Nothing is its own."""


class MujocoFrames:
    """
    What a camera of MuJoCo sees.

    :param env: The environment.
    :param scene: Where its model is.
    :param size: Pixels on a side.
    :param camera_id: The number or the name of a camera, -1 for the free one; None for the usual one.
    :param rendering: A name in ``RENDERINGS``.
    :raises ValueError: If there is no such camera.
    """

    def __init__(self, env: gym.Env, scene: "_Scene", size: int, camera_id: int | str | None, rendering: str):
        self._env, self._scene = env, scene
        self._camera_id = _number_of(scene.usual_camera() if camera_id is None else camera_id, scene.model_and_data()[0])
        self._offscreen = Offscreen(size, size, RENDERINGS[rendering])
        self._for_people: Offscreen | None = None

    def frame(self) -> np.ndarray:
        return self._draw(self._offscreen)

    def picture(self) -> Any:
        if self._env.render_mode not in (None, "rgb_array"):
            return self._env.render()
        if self._for_people is None:
            self._for_people = Offscreen(*self._scene.picture_size(), RENDERINGS["exact"])
        return self._draw(self._for_people)

    def close(self) -> None:
        self._offscreen.close()
        if self._for_people is not None:
            self._for_people.close()

    def _draw(self, offscreen: Offscreen) -> np.ndarray:
        import mujoco

        # Asked for again each time: a task may build its model anew, a checkpoint puts another one in its place.
        model, data = self._scene.model_and_data()
        camera, option = mujoco.MjvCamera(), mujoco.MjvOption()
        if self._camera_id < 0:
            mujoco.mjv_defaultFreeCamera(model, camera)
        else:
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._camera_id
        self._scene.adjust(camera, option)
        return offscreen.draw(model, data, camera, option)


def _number_of(camera_id: int | str, model: Any) -> int:
    import mujoco

    if not isinstance(camera_id, str):
        return whole_number("camera_id", camera_id, -1, model.ncam - 1)
    known = [model.camera(i).name for i in range(model.ncam)]
    choice("camera_id", camera_id, known)
    return mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera_id)


class _Scene(Protocol):
    """A model of MuJoCo, as a library has it."""

    def model_and_data(self) -> tuple[Any, Any]: ...

    def usual_camera(self) -> int | str: ...

    def picture_size(self) -> tuple[int, int]:
        """Height and width of what ``render()`` returns."""
        ...

    def adjust(self, camera: Any, option: Any) -> None:
        """What the library itself sets before it draws."""
        ...


def _scene_of(env: gym.Env) -> _Scene | None:
    """None of an environment without MuJoCo. Whoever has made one has imported its module: nothing is imported here."""
    base = env.unwrapped
    for module, kind, scene in (
        ("shimmy.dm_control_compatibility", "DmControlCompatibilityV0", _DmControlScene),
        ("gymnasium.envs.mujoco.mujoco_env", "MujocoEnv", _GymnasiumScene),
    ):
        if module in sys.modules and isinstance(base, getattr(sys.modules[module], kind)):
            return scene(base)
    return None


class _DmControlScene:
    def __init__(self, base: Any):
        self._base = base

    def model_and_data(self) -> tuple[Any, Any]:
        physics = self._base._env.physics
        return physics.model.ptr, physics.data.ptr

    def usual_camera(self) -> int | str:
        # DrQ-v2's choice: from behind, where the others are seen from the side.
        is_quadruped = self._base.spec is not None and self._base.spec.id.startswith("dm_control/quadruped-")
        usual = 2 if is_quadruped else 0
        return self._base.render_kwargs.get("camera_id", min(usual, self.model_and_data()[0].ncam - 1))

    def picture_size(self) -> tuple[int, int]:
        # dm_control's own.
        return self._base.render_kwargs.get("height", 240), self._base.render_kwargs.get("width", 320)

    def adjust(self, camera: Any, option: Any) -> None:
        import mujoco

        option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False


class _GymnasiumScene:
    def __init__(self, base: Any):
        self._base = base

    def model_and_data(self) -> tuple[Any, Any]:
        return self._base.model, self._base.data

    def usual_camera(self) -> int | str:
        # gymnasium's free camera stays where it is, while the robot runs away: the model's own one follows it.
        chosen = self._base.mujoco_renderer.camera_id
        if getattr(self._base.spec, "kwargs", {}).get("camera_id") == -1:
            # Asked for, where -1 is also what stands there if nobody has asked.
            return -1
        return min(0, self._base.model.ncam - 1) if chosen == -1 else chosen

    def picture_size(self) -> tuple[int, int]:
        return self._base.mujoco_renderer.height, self._base.mujoco_renderer.width

    def adjust(self, camera: Any, option: Any) -> None:
        renderer = self._base.mujoco_renderer
        for flag, value in renderer._vopt.items():
            option.flags[flag] = value
        if camera.fixedcamid < 0:
            for name, value in (renderer.default_cam_config or {}).items():
                if isinstance(value, np.ndarray):
                    getattr(camera, name)[:] = value
                else:
                    setattr(camera, name, value)
