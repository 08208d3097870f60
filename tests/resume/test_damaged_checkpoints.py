"""Checkpoints that are damaged in 500 ways: refused by name, or an older one is taken and it is said; never another state."""

import json
import os
import random
import shutil
import warnings

import pytest

from sb3_sparse.resume import ExactCheckpoint, resume_exact
from sb3_sparse.resume.files.checksum import checksum_of
from sb3_sparse.resume.files.folder import checkpoints
from tests.resume.cases import sac
from tests.resume.comparing import differences, everything

TOTAL = 110


def model(seed=0):
    return sac(buffer_size=60, learning_starts=30, learning_rate=1e-3 * (1 + seed))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of two runs with two checkpoints each, and what the first one comes to."""
    folders = [tmp_path_factory.mktemp("runs") / f"run {seed}" for seed in range(2)]
    ends = []
    for seed, folder in enumerate(folders):
        agent = model(seed)
        agent.learn(TOTAL, callback=ExactCheckpoint(folder, every=50))
        ends.append(everything(agent))
        assert [path.name.partition("-at-")[2] for path in checkpoints(folder)] == ["100", "50"]
    return *folders, ends[0]


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def of_newest(folder, draw):
    return draw.choice([path for path in files(checkpoints(folder)[0])])


# Each damages a folder in one way, drawn at random, and says what it did. Most damages are to the newest checkpoint.


def flip(folder, other, draw):
    path = of_newest(folder, draw)
    content = bytearray(path.read_bytes())
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {path.name}"


def flip_rows(folder, other, draw):
    path = draw.choice(sorted((folder / "rows").iterdir()))
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return f"byte {place} of {path.name}"


def truncate(folder, other, draw):
    path = draw.choice([of_newest(folder, draw), *(folder / "rows").iterdir()])
    content = path.read_bytes()
    length = draw.randrange(len(content))
    path.write_bytes(content[:length])
    return f"{path.name} cut off at {length}"


def lengthen(folder, other, draw):
    path = of_newest(folder, draw)
    path.write_bytes(path.read_bytes() + draw.randbytes(draw.randrange(1, 99)))
    return f"{path.name} longer"


def empty(folder, other, draw):
    path = draw.choice([of_newest(folder, draw), *(folder / "rows").iterdir()])
    path.write_bytes(b"")
    return f"{path.name} empty"


def remove(folder, other, draw):
    path = draw.choice([of_newest(folder, draw), *(folder / "rows").iterdir()])
    path.unlink()
    return f"{path.name} removed"


def overwrite(folder, other, draw):
    path = of_newest(folder, draw)
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    content[place : place + 16] = draw.randbytes(len(content[place : place + 16]))
    path.write_bytes(content)
    return f"16 bytes at {place} of {path.name}"


def swap_with_older(folder, other, draw):
    newest, older = checkpoints(folder)
    name = draw.choice(["manifest.json", "model.zip", "run.pkl"])
    (newest / name).rename(folder / "aside")
    (older / name).rename(newest / name)
    (folder / "aside").rename(older / name)
    return f"{name} of the two checkpoints exchanged"


def take_from_another_run(folder, other, draw):
    name = draw.choice(["manifest.json", "model.zip", "run.pkl"])
    shutil.copy(checkpoints(other)[0] / name, checkpoints(folder)[0] / name)
    return f"{name} of another run"


def take_rows_from_another_run(folder, other, draw):
    rows = sorted((folder / "rows").iterdir())
    path, theirs = draw.choice(rows), draw.choice(sorted((other / "rows").iterdir()))
    shutil.copy(theirs, path)
    return f"{path.name} of another run"


def swap_rows(folder, other, draw):
    a, b = draw.sample(sorted((folder / "rows").iterdir()), 2)
    a.rename(folder / "aside")
    b.rename(a)
    (folder / "aside").rename(b)
    return f"{a.name} and {b.name} exchanged"


def put_something_else(folder, other, draw):
    path = draw.choice([of_newest(folder, draw), *(folder / "rows").iterdir()])
    what = draw.choice(["folder", "pipe", "device", "loop", "nowhere", "another"])
    size = path.stat().st_size
    path.unlink()
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    else:
        (folder / "noise").write_bytes(draw.randbytes(size))
        os.symlink({"device": "/dev/zero", "loop": path, "nowhere": "/nowhere", "another": folder / "noise"}[what], path)
    return f"{path.name} is a {what}"


def put_something_else_for_a_checkpoint(folder, other, draw):
    path = checkpoints(folder)[0]
    shutil.rmtree(path)
    what = draw.choice(["file", "pipe", "device", "loop", "nowhere", "empty"])
    if what == "file":
        path.write_bytes(draw.randbytes(9))
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "empty":
        path.mkdir()
    else:
        os.symlink({"device": "/dev/zero", "loop": path, "nowhere": "/nowhere"}[what], path)
    return f"a checkpoint is a {what}"


def edit(folder, other, draw):
    """Of the manifest, as somebody would who also writes the checksum anew."""
    newest, older = checkpoints(folder)
    path = newest / "manifest.json"
    manifest = json.loads(json.loads(path.read_text())["manifest"])
    theirs = json.loads(json.loads((older / "manifest.json").read_text())["manifest"])
    kind, name = draw.choice(["parts", "rows"]), draw.choice(["manifest", *manifest])
    what = draw.choice(["less", "older", "renamed", "size", "checksum", "no entry", "null", "swapped"])
    if what == "no entry":
        manifest.pop(name, None)
    elif what == "null":
        manifest["parts" if name in ("manifest", "timesteps", "no_recipe", "not_exact") else name] = None
    elif what == "older":
        manifest["parts"] = theirs["parts"]
    else:
        part, another = draw.sample(sorted(manifest[kind]), 2)
        size, checksum = manifest[kind][part]
        if what in ("less", "renamed"):
            del manifest[kind][part]
        if what == "renamed":
            manifest[kind][draw.choice([f"../{part}", f"{part}x", "rows/rows-0-1-x.npz"])] = [size, checksum]
        if what in ("size", "checksum"):
            manifest[kind][part] = [size + 1, checksum] if what == "size" else [size, checksum[::-1]]
        if what == "swapped":
            manifest[kind][part], manifest[kind][another] = manifest[kind][another], manifest[kind][part]
    body = json.dumps(manifest)
    path.write_text(json.dumps({"checksum": checksum_of(body.encode()), "manifest": body}))
    return f"manifest: {what}, {kind}, {name}"


def edit_without_checksum(folder, other, draw):
    path = checkpoints(folder)[0] / "manifest.json"
    old, new = draw.choice([("100", "101"), ("1", "2"), ('"', "'"), ("{", "["), ("model.zip", "run.pkl"), ("rows", "row")])
    path.write_text(path.read_text().replace(old, new))
    return f"manifest: {new} for {old}"


def swap_names(folder, other, draw):
    newest, older = checkpoints(folder)
    newest.rename(folder / "aside")
    older.rename(newest)
    (folder / "aside").rename(older)
    return "the two checkpoints exchanged"


KINDS = {
    flip: 14, flip_rows: 7, truncate: 12, lengthen: 3, empty: 7, remove: 7, overwrite: 7, swap_with_older: 5,
    take_from_another_run: 5, take_rows_from_another_run: 5, swap_rows: 3, put_something_else: 8,
    put_something_else_for_a_checkpoint: 4, edit: 9, edit_without_checksum: 3, swap_names: 1,
}  # fmt: skip


def outcome(folder):
    """The agent that goes on, or None; and what was said."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            agent = resume_exact(folder)
        except (ValueError, FileNotFoundError) as error:
            return None, [str(error)]
    return agent, [str(each.message) for each in found]


def test_500_damaged_folders(runs, tmp_path, request):
    run, other, expected = runs
    n_each, draw = (5 if request.config.getoption("--full") else 0), random.Random(0)
    plan = [kind for kind, share in KINDS.items() for _ in range(share * n_each or 1)]
    assert not n_each or len(plan) == 500
    counts = {"refused": 0, "older": 0, "newest": 0}
    folder = tmp_path / "run"
    for kind in plan:
        shutil.copytree(run, folder)
        what = kind(folder, other, draw)
        agent, said = outcome(folder)
        if agent is None:
            counts["refused"] += 1
            assert str(folder) in said[0], what
        else:
            took_older = any("An older checkpoint is taken" in each and str(folder) in each for each in said)
            counts["older" if took_older else "newest"] += 1
            # Of what does not matter to the state: the newest one without a word.
            assert took_older or kind in (swap_names, edit), what
            assert not differences(everything(agent), expected), what
            agent.env.close()
        shutil.rmtree(folder)
    print(counts)
    assert min(counts["refused"], counts["older"]) > len(plan) / 8
    assert counts["newest"] <= len(plan) / 10
