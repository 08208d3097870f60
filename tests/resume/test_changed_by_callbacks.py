"""What callbacks share, change and know, beside numbers of their own."""

import itertools
import threading
from collections import deque
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_sparse import FrameReplayBuffer, Rainbow, StreamAC
from sb3_sparse.replay.buffer import ComposedReplayBuffer
from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.files.folder import checkpoints
from sb3_sparse.resume.files.manifest import manifest_bytes, read_manifest
from sb3_sparse.resume.files.rows import RowFiles
from sb3_sparse.resume.state.buffers import BufferWriter
from sb3_sparse.resume.state.model import _placed
from sb3_sparse.resume.state.ring import Ring
from tests.resume.cases import CASES, pictures, sac
from tests.resume.comparing import differences, everything
from tests.resume.test_exact import Interrupted


class Talks(BaseCallback):
    """Counts in a box that others have, too."""

    def __init__(self, box):
        super().__init__()
        self.shared = box

    def _on_training_start(self):
        # As stop rules do.
        self.infos = self.model.ep_info_buffer
        self.tree = {"children": [], "parent": None}
        self.tree["children"].append({"parent": self.tree})

    def _on_step(self):
        self.shared["n"] = self.shared.get("n", 0) + 1
        self.shared.setdefault("last", deque(maxlen=3)).append(len(self.infos))
        return True


class Knows(Talks):
    """One that is known by another one, and knows it."""

    other: "Knows"


def talking():
    box = {}
    first, second = Knows(box), Knows(box)
    first.other, second.other = second, first
    return [first, second]


def test_what_callbacks_share_with_each_other_and_the_model_stays_shared(tmp_path):
    def make():
        return A2C("MlpPolicy", "CartPole-v1", n_steps=5, seed=0, device="cpu", policy_kwargs={"net_arch": [4]})

    undisturbed = talking()
    expected = everything(make().learn(300, callback=undisturbed))
    with pytest.raises(StoppedOnRequest):
        make().learn(300, callback=[Interrupted(tmp_path / "run", 120), *talking()])
    callbacks = talking()
    model = resume_exact(tmp_path / "run", callback=callbacks)
    assert not differences(expected, everything(model))
    first, second = callbacks
    assert first.shared is second.shared
    assert first.infos is second.infos is model.ep_info_buffer
    assert first.shared == undisturbed[0].shared
    assert first.shared["n"] == 600


class Nested(BaseCallback):
    """Knows parts of what it was made with, and of what the model has."""

    def __init__(self, rng, busy, quiet):
        super().__init__()
        self.rng, self.busy, self.quiet = rng, busy, quiet
        self.counts, self.late = busy["counts"], quiet["late"]
        self.found = []

    def _on_training_start(self):
        self.model.notes = getattr(self.model, "notes", {"inside": ([],)})
        self.notes = self.model.notes["inside"][0]

    def _on_step(self):
        self.busy["counts"].append(self.num_timesteps)
        self.model.notes["inside"][0].append(self.num_timesteps)
        if self.num_timesteps > 60:
            self.quiet["late"].append(self.num_timesteps)
        self.found.append((self.rng.random(), len(self.counts), len(self.late), len(self.notes)))
        return True


def test_what_is_shared_inside_of_something_else_stays_shared(tmp_path):
    """Mistake of ours: two had a generator each, and what was in a collection of another one was a copy."""

    def nested():
        busy, quiet = {"counts": []}, {"late": []}
        # A tree that changes, and knows its root.
        busy["children"] = [{"parent": busy}]
        rng = np.random.default_rng(0)
        return [Nested(rng, busy, quiet), Nested(rng, busy, quiet)]

    def make():
        return A2C("MlpPolicy", "CartPole-v1", n_steps=5, seed=0, device="cpu", policy_kwargs={"net_arch": [4]})

    undisturbed = nested()
    make().learn(100, callback=undisturbed)
    with pytest.raises(StoppedOnRequest):
        make().learn(100, callback=[Interrupted(tmp_path / "run", 50), *nested()])
    callbacks = nested()
    quiet = callbacks[0].quiet
    model = resume_exact(tmp_path / "run", callback=callbacks)
    assert [each.found for each in callbacks] == [each.found for each in undisturbed]
    for each in callbacks:
        assert each.rng is callbacks[0].rng
        assert each.counts is callbacks[0].busy["counts"]
        # What had not changed is what it was made with.
        assert each.late is quiet["late"]
        assert each.notes is model.notes["inside"][0]


class Relabels(BaseCallback):
    """Rewards in the buffer that a later reward function would have given."""

    def __init__(self, at=150):
        super().__init__()
        self.at = at

    def _on_training_start(self):
        self.rewards = self.model.replay_buffer.rewards

    def _on_step(self):
        if self.num_timesteps == self.at:
            self.rewards += 1000
        return True


@pytest.mark.parametrize("at", [150, 310])
def test_rows_that_a_callback_changes_are_written_again(at, tmp_path):
    """Before the run goes on, and after: the buffer had old rewards in one part, and new ones in the other."""

    def make():
        return sac(buffer_size=260)

    expected = everything(make().learn(420, callback=Relabels(at)))
    with pytest.raises(StoppedOnRequest):
        make().learn(420, callback=[Ends(tmp_path / "run", 100, after=2), Relabels(at)])
    with pytest.raises(StoppedOnRequest):
        resume_exact(tmp_path / "run", callback=[Ends(tmp_path / "run", 100, after=2), Relabels(at)])
    found = resume_exact(tmp_path / "run", callback=[Relabels(at)])
    assert not differences(expected, everything(found))
    # The array is the buffer's own, and was not written a second time.
    run = checkpoints(tmp_path / "run")[0]
    assert (run / "run.pkl").stat().st_size < 20_000


class Demonstrates(BaseCallback):
    """Fills the buffer with transitions of somebody else before training."""

    def _on_training_start(self):
        model, n = self.model, self.model.n_envs
        obs, action = (np.zeros((n, *space.shape), space.dtype) for space in (model.observation_space, model.action_space))
        for reward in range(30):
            model.replay_buffer.add(obs, obs, action, np.full(n, reward), np.zeros(n, bool), [{}] * n)

    def _on_step(self):
        return True


@pytest.mark.parametrize("kind", ["rows", "whole", "frames in a file"])
def test_what_a_callback_adds_when_training_starts_is_there_once(kind, tmp_path):
    """Mistake of ours: a run that went on had demonstrations twice."""

    def make(folder):
        if kind == "frames in a file":
            return CASES["dqn stored"].make(folder)
        whole = dict(optimize_memory_usage=True, replay_buffer_kwargs={"handle_timeout_termination": False})
        return sac(**(whole if kind == "whole" else {}))

    expected = everything(make(tmp_path / "1").learn(150, callback=Demonstrates()))
    with pytest.raises(StoppedOnRequest):
        make(tmp_path / "2").learn(150, callback=[Interrupted(tmp_path / "run", 120), Demonstrates()])
    assert not differences(expected, everything(resume_exact(tmp_path / "run", callback=Demonstrates())))


class Ends(ExactCheckpoint):
    """The run, with a checkpoint that is not the first."""

    def __init__(self, *args, after):
        super().__init__(*args)
        self.left = after

    def save(self):
        super().save()
        self.left -= 1
        if not self.left:
            raise StoppedOnRequest


def test_what_is_unchanged_is_written_once(tmp_path, monkeypatch):
    written = []
    write = RowFiles._write_file
    monkeypatch.setattr(RowFiles, "_write_file", lambda self, ring, *rows: written.append(rows) or write(self, ring, *rows))
    sac(buffer_size=130).learn(420, callback=ExactCheckpoint(tmp_path / "run", 100))
    assert written == [(0, 100), (100, 200), (200, 300), (300, 400)]


@pytest.mark.parametrize("when", ["later", "after a resume", "after a full disk"])
@pytest.mark.parametrize("make", [ReplayBuffer, partial(FrameReplayBuffer, n_stack=2)])
def test_a_row_that_changes_is_noticed_whatever_became_of_others(make, when, tmp_path, monkeypatch):
    """Mistake of ours: rows were looked at by the thousand, and no longer when the first of them was overwritten."""
    spaces = gym.spaces.Box(0, 255, (2, 8, 8), np.uint8), gym.spaces.Box(-1, 1, (3,))
    buffer, again = make(100, *spaces), make(100, *spaces)
    files, rng, n_added = RowFiles(tmp_path), np.random.default_rng(0), itertools.count()

    def add(n):
        for _ in range(n):
            obs = np.full((1, 2, 8, 8), next(n_added) % 5, np.uint8)
            buffer.add(obs, obs, rng.normal(size=(1, 3)), rng.normal(size=1), np.array([False]), [{}])

    def ring(buffer, n):
        found = Ring(buffer)
        found.count_from(n)
        return found

    def fails(self, ring, first, stop):
        if first >= 40:
            raise OSError("full")
        return write(self, ring, first, stop)

    add(90)
    write = RowFiles._write_file
    if when == "after a full disk":
        monkeypatch.setattr("sb3_sparse.resume.files.rows._MAX_BYTES", 20 * Ring(buffer).row_bytes)
        monkeypatch.setattr(RowFiles, "_write_file", fails)
        with pytest.raises(OSError, match="full"):
            files.write(ring(buffer, 90))
        monkeypatch.setattr(RowFiles, "_write_file", write)
    else:
        files.write(ring(buffer, 90))
    if when == "after a resume":
        add(20)
        files = RowFiles(tmp_path, files.write(ring(buffer, 110)), ring(buffer, 110))
    Ring(buffer).arrays["rewards"][35] += 1
    if when != "after a full disk":
        add(20)
    count = ring(buffer, next(n_added)).count
    rows = files.write(ring(buffer, count))
    found = ring(again, count)
    found.count = count
    for name in sorted(rows, key=lambda name: name.split("-")[1]):
        first, stop = map(int, name.split("-")[1:3])
        with np.load(tmp_path / name) as content:
            found.put_rows(first, stop, dict(content))
    for name in ("rewards", "actions"):
        assert np.array_equal(found.arrays[name], Ring(buffer).arrays[name])


@pytest.mark.parametrize(("size", "every"), [(50, 20), (199, 50), (50, 60)])
def test_rows_of_a_ring_of_frames_are_written_once(size, every, tmp_path, monkeypatch):
    """It is longer than the rings of what is small, whose oldest rows are overwritten before."""
    written = []
    write = RowFiles._write_file
    monkeypatch.setattr(RowFiles, "_write_file", lambda self, ring, *rows: written.append(rows) or write(self, ring, *rows))
    space = gym.spaces.Box(0, 255, (4, 8, 8), np.uint8)
    buffer = FrameReplayBuffer(size, space, gym.spaces.Discrete(2), n_stack=4)
    files, rng = RowFiles(tmp_path), np.random.default_rng(0)
    obs = np.zeros((1, 4, 8, 8), np.uint8)
    for i in range(600):
        new = np.concatenate([obs[:, 1:], rng.integers(0, 255, (1, 1, 8, 8), dtype=np.uint8)], axis=1)
        buffer.add(obs, new, rng.integers(2, size=(1, 1)), rng.normal(size=1), np.array([False]), [{}])
        obs = new
        if (i + 1) % every == 0:
            files.write(Ring(buffer))
    # None twice, but where all of the ring is new.
    assert all(first >= before for (_, before), (first, _) in itertools.pairwise(written)) or every > size


def test_a_frame_buffer_that_is_emptied_during_a_run(tmp_path):
    """Its frames lie elsewhere then: counting on as before, later checkpoints had frames of other steps."""
    env = pictures(1)
    buffer = FrameReplayBuffer(50, env.observation_space, env.action_space, n_stack=4)
    model = sac(buffer_size=10)
    model.replay_buffer, writer = buffer, BufferWriter(tmp_path)
    rng = np.random.default_rng(0)
    model.num_timesteps = 0
    obs = env.reset()
    for steps, empties in ((70, False), (10, False), (0, True), (20, False), (20, False), (15, False)):
        if empties:
            buffer.reset()
            obs = env.reset()
            continue
        for _ in range(steps):
            action = np.array([env.action_space.sample()])
            new, reward, done, infos = env.step(action)
            shown = np.stack([infos[0]["terminal_observation"]]) if done[0] else new
            buffer.add(obs, shown, action, reward, done, infos)
            obs = new
            model.num_timesteps += 1
        state, _, rows = writer.write(model)
        again = FrameReplayBuffer(50, env.observation_space, env.action_space, n_stack=4)
        ring = Ring(again)
        ring.count = state["count"]
        vars(again).update(state["attributes"])
        for name in sorted(rows, key=lambda name: name.split("-")[1]):
            first, stop = map(int, name.split("-")[1:3])
            with np.load(tmp_path / name) as content:
                ring.put_rows(first, stop, dict(content))
        again.storage.set_state(state["frames"])
        places = rng.permutation(buffer.size())[:40]
        ours, theirs = (each._get_samples(places) for each in (buffer, again))
        assert th.equal(ours.observations, theirs.observations)
        assert th.equal(ours.next_observations, theirs.next_observations)


class Named(gym.ObservationWrapper):
    """Observations in a dictionary."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = gym.spaces.Dict({"all": self.env.observation_space})

    def observation(self, observation):
        return {"all": observation}


def test_a_composed_buffer_is_written_in_rows(tmp_path):
    """Of DrQ-v2 with single pictures, and Rainbow with dictionaries: all of its capacity was written each time."""

    def make():
        kwargs = dict(prioritized=False, n_steps=3, buffer_size=200, learning_starts=10, policy_kwargs={"net_arch": [4]})
        return Rainbow("MultiInputPolicy", Named(), seed=0, device="cpu", **kwargs)

    model = make()
    assert type(model.replay_buffer) is ComposedReplayBuffer
    expected = everything(model.learn(400))
    with pytest.raises(StoppedOnRequest):
        make().learn(400, callback=[Ends(tmp_path / "run", 125, after=2)])
    (newest, _) = checkpoints(tmp_path / "run")
    assert not (newest / "buffer.pkl").exists()
    assert not differences(expected, everything(resume_exact(tmp_path / "run")))


def test_the_end_of_a_streaming_run_needs_no_checkpoint(tmp_path):
    """An episode begins where all is done: what went on from there had statistics and tables of a new environment."""
    StreamAC("MlpPolicy", "Pendulum-v1", seed=0).learn(600, callback=ExactCheckpoint(tmp_path / "run", 200))
    assert [path.name.partition("-at-")[2] for path in checkpoints(tmp_path / "run")] == ["400", "200"]


def test_a_checkpoint_at_the_end_is_the_end(tmp_path):
    """As earlier versions wrote them: all is put back, though nothing is trained."""
    env = VecNormalize(make_vec_env("Pendulum-v1", monitor_dir=str(tmp_path / "monitor")))
    model = sac(env)
    with pytest.raises(StoppedOnRequest):
        model.learn(500, callback=[Interrupted(tmp_path / "run", 250), Talks({})])
    path = checkpoints(tmp_path / "run")[0] / "manifest.json"
    manifest = read_manifest(path)
    path.write_bytes(manifest_bytes({**manifest, "total_timesteps": manifest["timesteps"]}))
    table = (tmp_path / "monitor/0.monitor.csv").read_text()
    found = resume_exact(tmp_path / "run", callback=Talks({}))
    assert not differences(everything(model), everything(found))
    assert found.env.obs_rms.count == env.obs_rms.count > 250
    assert found.env.ret_rms.var == env.ret_rms.var
    assert (tmp_path / "monitor/0.monitor.csv").read_text() == table
    for each in (model, found):
        each.env.close()


def test_who_has_stopped_once_has_not_been_asked_again(tmp_path):
    callback = ExactCheckpoint(tmp_path / "run", 100)
    callback.stop_requested = True
    with pytest.raises(StoppedOnRequest):
        sac().learn(250, callback=callback)
    assert resume_exact(tmp_path / "run", callback=callback).num_timesteps == 250


def test_tensors_of_a_device_that_is_not_there_come_to_the_cpu():
    assert _placed(th.ones(2), "cuda:7").device.type == "cpu"


class Holds(BaseCallback):
    """Two names of a list, made late, of what cannot be written."""

    def _on_step(self):
        if not hasattr(self, "all"):
            self.all = self.recent = [threading.Lock()]
        return True


@pytest.mark.filterwarnings("ignore:.*ot exact if it matters")
def test_what_is_shared_and_cannot_be_written_ends_no_resume(tmp_path):
    with pytest.raises(StoppedOnRequest):
        sac().learn(300, callback=[Interrupted(tmp_path / "run", 120), Holds()])
    assert resume_exact(tmp_path / "run", callback=Holds()).num_timesteps == 300


@pytest.mark.filterwarnings("ignore:.*ot exact if it matters")
def test_a_request_that_came_too_late_is_forgotten(tmp_path):
    callback, model = ExactCheckpoint(tmp_path / "run", 1000), sac()
    asks = lambda variables, _: setattr(callback, "stop_requested", True) or True  # noqa: E731
    model.learn(1, callback=[callback, ConvertCallback(asks)])
    assert not callback.stop_requested
