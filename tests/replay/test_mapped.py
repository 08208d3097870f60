"""A buffer in a file holds what its twin in memory does, bit by bit, also when it is opened anew and goes back."""

import copy
import gc
import io
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from sb3_sparse.replay import FrameReplayBuffer, cut_off
from sb3_sparse.replay.mapped.file import DamagedStore
from sb3_sparse.replay.mapped.lock import StoreInUse
from tests.replay.mapped_twins import ACTIONS, Steps, add, assert_same, cut, make, reopened
from tests.resume.pictures import PictureEnv


@pytest.mark.parametrize("how", ["zeros", "repeats", "anything"])
@pytest.mark.parametrize(
    ("size", "n_envs", "flush_every", "rewind"), [(20, 1, 7, 0), (7, 3, 1, 5), (12, 2, 1000, 30), (2, 1, 3, 9)]
)
def test_it_is_its_twin_in_memory(how, size, n_envs, flush_every, rewind, tmp_path):
    options = dict(path=tmp_path / "store", channels=3, flush_every=flush_every, rewind=rewind)
    ours, twin = make(size, n_envs, **options), make(size, n_envs, channels=3)
    steps = Steps(size, n_envs, how, channels=3)
    for i in range(70):
        add([ours, twin], steps())
        if i % 5 == 0 or i < size:
            assert_same(ours, twin)
        if i % 17 == 0:
            ours.close()
            ours = reopened(size, n_envs, **options)
            # Nothing that can be drawn has changed, but for what will follow.
            cut(twin)
            assert_same(ours, twin)


def test_ends_at_every_offset_from_the_wrap(tmp_path):
    size = 9
    for offset in range(size):
        options = dict(path=tmp_path / str(offset), flush_every=4, rewind=3)
        ours, twin, steps = make(size, **options), make(size), Steps(offset)
        for i in range(3 * size):
            add([ours, twin], steps(p_done=float(i % size == offset), p_jump=0.0))
            assert_same(ours, twin)
        ours.close()
        cut(twin)
        assert_same(reopened(size, **options), twin)


def test_opened_anew_it_says_so_and_windows_end_where_the_run_did(tmp_path):
    options = dict(path=tmp_path / "store", flush_every=100, rewind=0)
    first, steps = make(20, **options), Steps(0)
    for _ in range(5):
        first.add(*steps(p_done=0.0, p_jump=0.0))
    first.close()
    with pytest.warns(UserWarning, match="store holds 5 transitions of an earlier run"):
        second = make(20, **options)
    steps = Steps(1)
    for _ in range(5):
        second.add(*steps(p_done=0.0, p_jump=0.0))
    for buffer in (second, None):
        if buffer is None:
            second.close()
            buffer = reopened(20, **options)
        batch = buffer._at(np.arange(3, 8), np.zeros(5, dtype=int), None)
        discounts = [round(float(x), 3) for x in batch.discounts]
        assert discounts == [0.81, 0.9, 0.729, 0.729, 0.729]
        assert batch.dones.sum() == 0


def test_a_trajectory_cut_off_after_its_last_step_was_flushed(tmp_path):
    options = dict(path=tmp_path / "store", flush_every=100, rewind=30)
    ours, twin, steps = make(20, **options), make(20), Steps(0)
    for _ in range(5):
        add([ours, twin], steps(p_done=0.0, p_jump=0.0))
    ours.flush()
    reference, uncut = ours.store.reference(), copy.deepcopy(twin)
    assert cut_off(ours)
    assert cut_off(twin)
    for _ in range(5):
        add([ours, twin], steps(p_done=0.0, p_jump=0.0))
    ours.close()
    cut(twin)
    again = reopened(20, **options)
    assert_same(again, twin)
    assert again.timeouts[:5].sum() == 1
    # At the flush it had not been cut off.
    again.rewind(reference)
    assert_same(again, uncut)


def test_it_goes_back_to_a_flush_however_far_it_has_gone_on(tmp_path):
    size, rewind = 10, 30
    for further in (0, 1, 9, 10, 11, 29, 30):
        options = dict(path=tmp_path / str(further), flush_every=4, rewind=rewind)
        ours, twin, steps = make(size, **options), make(size), Steps(further, how="anything")
        for _ in range(17):
            add([ours, twin], steps())
        ours.flush()
        reference, state = ours.store.reference(), (copy.deepcopy(steps), copy.deepcopy(twin))
        for _ in range(further):
            ours.add(*steps())
        if further % 2:
            ours.close()
            ours = reopened(size, **options)
        ours.rewind(reference)
        steps, twin = state
        assert_same(ours, twin)
        for _ in range(25):
            add([ours, twin], steps())
            assert_same(ours, twin)
        ours.close()
        ours = reopened(size, **options)
        cut(twin)
        assert_same(ours, twin)


def test_what_it_cannot_go_back_to_is_refused(tmp_path):
    options = dict(path=tmp_path / "store", flush_every=4, rewind=20)
    ours, steps = make(10, **options), Steps(0)

    def go_on(n):
        for _ in range(n):
            ours.add(*steps())
        ours.flush()
        return ours.store.reference()

    early, later = go_on(10), go_on(10)
    # Another history of the same length.
    ours.rewind(early)
    go_on(10)
    with pytest.raises(DamagedStore, match="overwritten"):
        ours.rewind(later)
    go_on(30)
    with pytest.raises(
        DamagedStore, match="further than the checkpoint, and can go back by 32: make the buffer with a larger"
    ):
        ours.rewind(early)
    late = ours.store.reference()
    ours.reset()
    assert ours.size() == 0
    with pytest.raises(DamagedStore, match="made anew"):
        ours.rewind(late)
    with pytest.raises(DamagedStore, match="made anew"):
        make(10, **{**options, "path": tmp_path / "other"}).rewind(late)


def test_after_a_reset_nothing_of_before_is_left(tmp_path):
    options = dict(path=tmp_path / "store", flush_every=4, rewind=5)
    ours, twin, steps = make(10, **options), make(10), Steps(0, how="anything")
    for _ in range(25):
        ours.add(*steps())
    ours.reset()
    for _ in range(7):
        add([ours, twin], steps())
        assert_same(ours, twin)
    ours.close()
    cut(twin)
    assert_same(reopened(10, **options), twin)


def test_copies_and_pickles_stand_alone_and_hold_no_more_than_they_have_to(tmp_path):
    ours, twin, steps = make(15, 2, tmp_path / "store", rewind=100), make(15, 2), Steps(0, 2, "anything")
    for _ in range(40):
        add([ours, twin], steps())
    saved = io.BytesIO()
    save_to_pkl(saved, ours)
    saved.seek(0)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), load_from_pkl(saved)]
    ours.close()
    for each in copies:
        assert each.store is None
        assert each.nbytes == twin.nbytes
        assert len(pickle.dumps(each)) < len(pickle.dumps(twin)) + 1000
    for _ in range(20):
        step = steps()
        add([twin, *copies], step)
        for each in copies:
            assert_same(each, twin)


def test_an_agent_that_is_loaded_without_its_buffer_touches_no_file(tmp_path):
    path = tmp_path / "store"
    model = DQN(
        "CnnPolicy",
        VecFrameStack(DummyVecEnv([PictureEnv]), 4),
        buffer_size=100,
        learning_starts=10,
        replay_buffer_class=FrameReplayBuffer,
        replay_buffer_kwargs=dict(storage_path=path, rewind=0),
        policy_kwargs=dict(features_extractor_kwargs=dict(features_dim=8), net_arch=[8]),
    ).learn(32)
    model.save(tmp_path / "agent")
    loaded = DQN.load(tmp_path / "agent", buffer_size=1)
    assert loaded.replay_buffer.store is None
    with pytest.raises(StoreInUse, match=f"{path} is in use by another buffer of this process: .* pass buffer_size=1"):
        DQN.load(tmp_path / "agent")
    model.replay_buffer.close()
    with pytest.warns(UserWarning, match="32 transitions of an earlier run"):
        assert DQN.load(tmp_path / "agent").replay_buffer.size() == 32


def test_its_room_is_reserved_and_no_more_than_it_needs(tmp_path):
    make(1000, 2, tmp_path, flush_every=100, rewind=300)
    facts = (tmp_path / "steps.bin").stat()
    assert facts.st_blocks * 512 >= facts.st_size
    # Of each step of an environment: a frame, two bytes, an action of two, three numbers.
    row = 12 * 12 + 2 + 8 + 12
    n_steps = 1000 + 2 + 150 + 3 * 50
    assert 0 <= facts.st_size - 2 * n_steps * row <= 73728 + 7 * 4096


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells whose pages they are")
def test_the_frames_are_pages_of_the_file(tmp_path):
    def memory():
        lines = Path("/proc/self/status").read_text().splitlines()
        return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Rss")}

    images = spaces.Box(0, 255, (9, 84, 84), np.uint8)
    buffer = FrameReplayBuffer(4000, images, ACTIONS, device="cpu", n_stack=3, storage_path=tmp_path, rewind=0)
    obs = np.random.default_rng(0).integers(0, 256, (1, 9, 84, 84), dtype=np.uint8)
    before = memory()
    for _ in range(3000):
        following = np.concatenate([obs[:, 3:], obs[:, :3] ^ 1], axis=1)
        buffer.add(obs, following, np.zeros((1, 2)), np.zeros(1), np.zeros(1), [{}])
        obs = following
    after = memory()
    # 61 MB of frames.
    assert after["RssFile"] + after["RssShmem"] - before["RssFile"] - before["RssShmem"] > 50
    assert after["RssAnon"] - before["RssAnon"] < 12


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(flush_every=0), "flush_every=0"),
        (dict(rewind=-1), "rewind=-1"),
        (dict(n_stack=2), "expected 2 frames"),
    ],
)
def test_bad_values_are_refused_before_anything_is_made(options, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        make(10, path=tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def pictures(path, **kwargs):
    """An agent with its frames in a file, after some steps."""
    settings = dict(buffer_size=100, learning_starts=10, replay_buffer_class=FrameReplayBuffer)
    policy = dict(features_extractor_kwargs=dict(features_dim=8), net_arch=[8])
    options = dict(storage_path=path, rewind=0)
    env = VecFrameStack(DummyVecEnv([PictureEnv]), 4)
    return DQN("CnnPolicy", env, replay_buffer_kwargs=options, policy_kwargs=policy, **settings, **kwargs).learn(32)


def test_a_deleted_agent_gives_its_folder_back(tmp_path):
    model = pictures(tmp_path / "store")
    model.save(tmp_path / "agent")
    gc.disable()
    try:
        del model
        with pytest.warns(UserWarning, match="transitions of an earlier run"):
            DQN.load(tmp_path / "agent")
    finally:
        gc.enable()


def test_a_saved_agent_finds_its_folder_from_everywhere(tmp_path, monkeypatch):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path, folder in (("store", tmp_path / "here/store"), ("~/mine", tmp_path / "mine")):
        monkeypatch.chdir(tmp_path / "here")
        model = pictures(path)
        assert model.replay_buffer.store.folder == folder
        model.save(tmp_path / "agent")
        model.replay_buffer.close()
        monkeypatch.chdir(tmp_path / "there")
        with pytest.warns(UserWarning, match="32 transitions of an earlier run"):
            loaded = DQN.load(tmp_path / "agent")
        assert not list((tmp_path / "there").iterdir())
        loaded.replay_buffer.close()
        folder.rename(tmp_path / "moved")
        with pytest.warns(UserWarning, match="is new: an agent that has made 32 steps"):
            DQN.load(tmp_path / "agent").replay_buffer.close()
        shutil.rmtree(tmp_path / "moved")
