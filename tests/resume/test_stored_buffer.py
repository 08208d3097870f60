"""A replay buffer in a file of its own: checkpoints refer to it, and a run that goes on finds it as it was."""

import shutil

import pytest

from sb3_sparse.replay.mapped.file import DamagedStore
from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.checkpoint import StoppedOnRequest
from sb3_sparse.resume.files.folder import checkpoints
from tests.resume.cases import CASES, stored
from tests.resume.comparing import differences, everything

CASE = CASES["dqn stored"]


class EndsLater(ExactCheckpoint):
    """The run ends by itself, at some step after its checkpoints."""

    def __init__(self, *args, at, **kwargs):
        super().__init__(*args, **kwargs)
        self.at = at

    def _on_step(self) -> bool:
        if self.model.num_timesteps >= self.at:
            raise StoppedOnRequest
        return super()._on_step()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    model = CASE.make(tmp_path_factory.mktemp("undisturbed"))
    return everything(model.learn(CASE.total))


def interrupted(folder, at, **kwargs):
    model = CASE.make(folder)
    with pytest.raises(StoppedOnRequest):
        model.learn(CASE.total, callback=EndsLater(folder / "run", **{"every": CASE.every, "at": at, **kwargs}))
    return model


def test_a_run_with_its_buffer_in_a_file_is_the_one_in_memory(undisturbed):
    assert not differences(undisturbed, everything(stored(None).learn(CASE.total)))


@pytest.mark.parametrize(("at", "has_wrapped"), [(180, False), (330, True), (345, True), (500, True), (599, False)])
def test_it_goes_on_exactly_though_the_ring_has_wrapped_since_the_checkpoint(at, has_wrapped, undisturbed, tmp_path):
    model = interrupted(tmp_path, at)
    newest = checkpoints(tmp_path / "run")[0]
    n_since = model.num_timesteps - int(newest.name.rpartition("-")[2])
    # None of the transitions that could be drawn then can be drawn now.
    assert (n_since >= model.buffer_size) == has_wrapped
    if at % 2:
        model.replay_buffer.close()
    assert not differences(undisturbed, everything(resume_exact(tmp_path / "run")))


def test_from_an_older_checkpoint_and_never_again_from_the_newer_one(undisturbed, tmp_path):
    interrupted(tmp_path, 400)
    newer, older = checkpoints(tmp_path / "run")
    kept = shutil.copytree(newer, tmp_path / "kept" / newer.name)
    # More than a whole ring was added since the older one.
    assert not differences(undisturbed, everything(resume_exact(older)))
    with pytest.raises(DamagedStore, match="a run that went on from an older checkpoint has overwritten them"):
        resume_exact(kept)


def test_a_checkpoint_holds_no_frames(tmp_path):
    interrupted(tmp_path, 400)
    in_memory = stored(None)
    with pytest.raises(StoppedOnRequest):
        in_memory.learn(CASE.total, callback=EndsLater(tmp_path / "other", every=CASE.every, at=400))
    assert list((tmp_path / "other").glob("rows/*"))
    assert not list((tmp_path / "run").glob("rows/*"))
    ours, theirs = ((checkpoints(tmp_path / name)[0] / "run.pkl").stat().st_size for name in ("run", "other"))
    assert ours < theirs


def test_checkpoints_farther_apart_than_the_file_can_go_back_are_refused(tmp_path):
    model = CASE.make(tmp_path)
    with pytest.raises(ValueError, match=r"cannot go back by every \* keep = 502 transitions, .* pass rewind=502"):
        model.learn(10, callback=ExactCheckpoint(tmp_path / "run", every=251))
    assert not (tmp_path / "run").exists()
    model.learn(10, callback=ExactCheckpoint(tmp_path / "run", every=250))


def test_a_file_that_is_gone_or_of_another_run_is_named(tmp_path):
    model = interrupted(tmp_path, 200)
    model.replay_buffer.close()
    shutil.move(tmp_path / "store", tmp_path / "moved")
    with pytest.raises(DamagedStore, match=r"store/steps\.bin is missing: the checkpoint refers to it"):
        resume_exact(tmp_path / "run")
    assert not (tmp_path / "store").exists()
    CASE.make(tmp_path).replay_buffer.close()
    with pytest.raises(DamagedStore, match="holds other steps than those that the checkpoint refers to"):
        resume_exact(tmp_path / "run")
