"""What MuJoCo draws: against dm_control and gymnasium themselves, bit by bit."""

import gymnasium as gym
import numpy as np
import pytest
from dm_control import suite
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

from sb3_sparse import PixelObservations, make_dmc_pixels
from sb3_sparse.pixels import RENDERINGS, Rendering
from tests.pixels.tasks import FASTEST, cartpole


def scaled(spec, action):
    """An action in [-1, 1], as DrQ-v2 scales it."""
    return spec.minimum + (action + 1) / 2 * (spec.maximum - spec.minimum)


# (domain, task): as dm_control names the domain, and the camera.
TASKS = {
    ("cartpole", "swingup"): ("cartpole", 0),
    ("cup", "catch"): ("ball_in_cup", 0),
    ("quadruped", "run"): ("quadruped", 2),
}


@pytest.mark.parametrize("task", TASKS)
def test_what_drq_v2_sees_bit_by_bit(task):
    domain, camera = TASKS[task]
    env = make_dmc_pixels(*task, size=84)
    plain = suite.load(domain, task[1], task_kwargs={"random": 3})
    obs, _ = env.reset(seed=3)
    # Seeds are given to the task when it is made, or by shimmy before the episode: the same generator.
    plain.reset()
    frames = [plain.physics.render(84, 84, camera).transpose(2, 0, 1)] * 3
    assert np.array_equal(obs, np.concatenate(frames))
    assert env.action_space == spaces.Box(-1.0, 1.0, plain.action_spec().shape, np.float32)
    env.action_space.seed(0)
    for _ in range(2):
        action = env.action_space.sample()
        steps = [plain.step(scaled(plain.action_spec(), action.astype(float))) for _ in range(2)]
        frames = [*frames[1:], plain.physics.render(84, 84, camera).transpose(2, 0, 1)]
        obs, reward, terminated, truncated, _ = env.step(action)
        assert np.array_equal(obs, np.concatenate(frames))
        assert reward == pytest.approx(sum(step.reward for step in steps))
        assert not terminated
        assert not truncated
    env.close()


def test_every_rendering_changes_what_it_says_and_nothing_else():
    env = make_dmc_pixels("walker", "walk", n_stack=1)
    exact, _ = env.reset(seed=0)
    model = env.unwrapped._env.physics.model
    change = {}
    for name in RENDERINGS:
        other = make_dmc_pixels("walker", "walk", n_stack=1, rendering=name)
        change[name] = np.abs(other.reset(seed=0)[0].astype(int) - exact).mean()
        drawn = other._frames._offscreen._context
        wanted = RENDERINGS[name]
        assert drawn.context.shadowSize == (2048 if wanted.shadow_size is None else wanted.shadow_size)
        assert drawn.context.offSamples == (4 if wanted.antialiasing is None else wanted.antialiasing)
        # The model, which checkpoints hold and the environment itself draws, is as it was.
        quality, size = model.vis.quality, model.vis.global_
        assert (quality.shadowsize, quality.offsamples, size.offwidth, size.offheight) == (2048, 4, 640, 480)
        other.close()
    assert change["exact"] == 0
    assert 0 < change["coarse_shadows"] < 0.1 < change["coarse_shadows_no_antialiasing"] < 2 < change["no_shadows"]
    assert change["no_shadows"] < change["no_shadows_no_reflections"] < change[FASTEST] < 10
    env.close()


def test_no_rendering_asks_for_more_than_the_model_has():
    model = suite.load("cartpole", "balance").physics.model.ptr
    model.vis.quality.shadowsize, model.vis.quality.offsamples = 100, 2
    with Rendering(shadow_size=512, antialiasing=4).applied(model, 10, 20):
        assert (model.vis.quality.shadowsize, model.vis.quality.offsamples) == (100, 2)
        assert (model.vis.global_.offheight, model.vis.global_.offwidth) == (10, 20)


@pytest.mark.parametrize("render_mode", ["rgb_array", None])
def test_gymnasiums_own_mujoco_in_this_size_whatever_the_render_mode(render_mode):
    env = PixelObservations(gym.make("HalfCheetah-v5", render_mode=render_mode), size=48, n_stack=1)
    plain = gym.make("HalfCheetah-v5", render_mode="rgb_array", camera_name="track", width=48, height=48)
    obs, _ = env.reset(seed=0)
    plain.reset(seed=0)
    assert np.array_equal(obs, plain.render().transpose(2, 0, 1))
    action = np.ones(6, np.float32)
    plain.step(action)
    plain.step(action)
    assert np.array_equal(env.step(action)[0], plain.render().transpose(2, 0, 1))
    # Afterwards, whoever draws for himself still draws the same.
    assert np.array_equal(env._frames.frame(), plain.render())
    env.close()
    plain.close()


def test_a_window_without_a_display_is_an_error(monkeypatch):
    """And not the end of the program, as in GLFW, at the first step."""
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    for make in (cartpole, lambda render_mode: PixelObservations(gym.make("HalfCheetah-v5", render_mode=render_mode))):
        with pytest.raises(RuntimeError, match=r"^render_mode='human': .*neither DISPLAY nor WAYLAND_DISPLAY.*--no-render"):
            make(render_mode="human")
    monkeypatch.setenv("DISPLAY", ":0")
    cartpole(render_mode="human").close()


def test_gymnasiums_free_camera_is_there_for_who_asks():
    """Mistake of ours: it could not be told from none."""
    frames = {}
    for name, kwargs in (("default", {}), ("free", {"camera_id": -1}), ("track", {"camera_id": 0})):
        env = PixelObservations(gym.make("HalfCheetah-v5", render_mode="rgb_array", **kwargs), size=36)
        frames[name] = env.reset(seed=0)[0]
        env.close()
    assert np.array_equal(frames["default"], frames["track"])
    assert not np.array_equal(frames["free"], frames["track"])


def test_a_model_without_cameras_has_the_free_one():
    env = PixelObservations(gym.make("InvertedPendulum-v5"), size=32, rendering=FASTEST)
    assert env.reset(seed=0)[0].std() > 1
    env.close()


@pytest.mark.parametrize("camera_id", ["lookatcart", -1])
def test_a_camera_is_that_of_dm_control(camera_id):
    env = cartpole(camera_id=camera_id, rendering="exact")
    env.reset(seed=0)
    assert np.array_equal(env._frames.frame(), env.unwrapped._env.physics.render(36, 36, camera_id))
    env.close()


def test_the_usual_camera_and_chosen_ones():
    chosen = {str(camera_id): cartpole(camera_id=camera_id)._frames._camera_id for camera_id in (None, 1, np.int64(1))}
    assert chosen == {"None": 0, "1": 1}
    assert cartpole(render_kwargs={"camera_id": 1})._frames._camera_id == 1
    assert cartpole(render_kwargs={"camera_id": 1}, camera_id=0)._frames._camera_id == 0


@pytest.mark.parametrize(
    ("camera_id", "expected"),
    [
        (2, "a whole number from -1 to 1"),
        (-2, "from -1 to 1"),
        ("side", r"one of \['fixed', 'lookatcart'\]"),
        (0.5, "from -1 to 1"),
    ],
)
def test_a_camera_that_there_is_not_is_named(camera_id, expected):
    with pytest.raises(ValueError, match=rf"^camera_id={camera_id!r}: expected .*{expected}"):
        cartpole(camera_id=camera_id)


def test_hills_of_a_new_episode_are_seen():
    env = make_dmc_pixels("quadruped", "escape", size=84, n_stack=1)
    for seed in (0, 1):
        obs, _ = env.reset(seed=seed)
        expected = env.unwrapped._env.physics.render(84, 84, 2)
        assert np.array_equal(obs, expected.transpose(2, 0, 1))
    env.close()


def test_two_environments_do_not_draw_into_each_other():
    ours, other = cartpole(), PixelObservations(gym.make("HalfCheetah-v5"), size=36, rendering=FASTEST)
    first, _ = ours.reset(seed=0)
    cheetah, _ = other.reset(seed=0)
    ours.render()
    assert np.array_equal(ours.reset(seed=0)[0], first)
    assert np.array_equal(other.reset(seed=0)[0], cheetah)
    ours.close()
    assert np.array_equal(other.reset(seed=0)[0], cheetah)
    other.close()


def test_people_see_more_by_the_same_camera():
    env = cartpole()
    env.reset(seed=0)
    assert np.array_equal(env.render(), env.unwrapped._env.physics.render(240, 320, 0))
    large = cartpole(render_kwargs={"height": 50, "width": 70})
    large.reset(seed=0)
    assert large.render().shape == (50, 70, 3)
    env.close()
    large.close()


def test_an_episode_of_a_task_ends_by_its_time_limit():
    env = cartpole(task_kwargs={"time_limit": 0.1})
    env.reset(seed=0)
    # Ten steps.
    assert [env.step(np.zeros(1))[2:4] for _ in range(5)] == [(False, False)] * 4 + [(False, True)]
    env.close()


def test_spec_seed_and_sb3s_checks():
    env = cartpole()
    check_env(env)
    again = gym.make(env.spec)
    assert str(again) == str(env)
    for seed in (1, 2):
        assert np.array_equal(again.reset(seed=seed)[0], env.reset(seed=seed)[0])
    action = np.array([0.3], np.float32)
    assert np.array_equal(env.step(action)[0], again.step(action)[0])
    assert not np.array_equal(env.reset(seed=1)[0], env.reset(seed=2)[0])
    env.close()
    again.close()


def test_closing_frees_what_drawing_took_and_the_next_picture_takes_it_again():
    env = cartpole()
    first, _ = env.reset(seed=0)
    context = env._frames._offscreen._context
    assert context in type(context).everyone
    env._frames.close()
    assert context not in type(context).everyone
    assert np.array_equal(env.reset(seed=0)[0], first)
    again = env._frames._offscreen._context
    assert again is not context
    # Also of an environment that nobody closed, a little later.
    del env
    cartpole().reset()
    assert again not in type(again).everyone
