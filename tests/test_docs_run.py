"""The code in README and docs runs: page by page, block after block, as a reader would, but for less long."""

import glob
import shlex
import subprocess
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from sb3_sparse import cli
from sb3_sparse.plasticity import METRICS
from tests.test_docs import PAGES
from tests.written_blocks import Block, read_blocks, tell

pytest.importorskip("rl_zoo3")

ROOT = Path(__file__).parent.parent
# Pages that take more than some seconds.
LONG = {"docs/drqv2.md"}
# Warnings are for the reader, and some belong to what a page shows.
pytestmark = pytest.mark.filterwarnings("default")


def runs(page):
    """Whether there is anything on a page to run."""
    return any(is_python(block) or commands(block) for block in read_blocks(page))


def is_python(block):
    return block.language == "python" and not block.skip


def commands(block):
    """The calls of our command in a block of the shell, in words; none if it is not to be run."""
    if block.language != "bash" or block.skip:
        return []
    lines = [shlex.split(line, comments=True) for line in block.shortened().replace("\\\n", " ").splitlines()]
    return [words[1:] for words in lines if words and words[0] == "sb3-sparse"]


def shortened(words):
    """A command that trains and plays for as long as is enough to see that it works."""
    command, *options = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    if command in ("train", "tune") and not {"-n", "--n-timesteps", "--resume"} & set(options):
        options += ["-n", "150"]
    if command == "enjoy":
        options += ["-n", "50"]
    short = {
        "--episodes": "1",
        "--n-trials": "1",
        "--eval-freq": "100",
        "--eval-episodes": "1",
        "--exact-checkpoint-freq": "60",
    }
    return [command, *(short.get(before, word) for before, word in zip(["", *options], options, strict=False))]


@pytest.fixture
def left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SB3_SPARSE_BACKEND", "deterministic")
    metrics, environments, threads = dict(METRICS), dict(gym.registry), torch.get_num_threads()
    yield
    for registry, before in ((METRICS, metrics), (gym.registry, environments)):
        registry.clear()
        registry.update(before)
    torch.set_num_threads(threads)


NAMES = [str(page.relative_to(ROOT)) for page in PAGES if runs(page)]


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full) if name in LONG else name for name in NAMES])
def test_a_page_runs(name, left_as_it_was, capsys):
    names = {"__name__": "page"}
    for block in read_blocks(ROOT / name):
        if block.file:
            Path(block.file).write_text(block.shortened())
        if block.skip:
            continue
        if block.before:
            exec(compile(block.before, f"before line {block.line} of {name}", "exec"), names)
        if is_python(block):
            # Lines of a traceback are those of the page.
            exec(compile("\n" * block.line + block.shortened(), ROOT / name, "exec"), names)
        for words in commands(block):
            cli.main(shortened(words))


@pytest.mark.parametrize("name", [str(page.relative_to(ROOT)) for page in PAGES])
def test_the_shell_reads_what_is_written_for_it(name):
    for block in read_blocks(ROOT / name):
        if block.language == "bash":
            result = subprocess.run(["bash", "-n"], input=block.code, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr


def test_nearly_every_block_runs():
    blocks = [block for page in PAGES for block in read_blocks(page) if block.language == "python"]
    assert len(blocks) > 70
    assert sum(map(is_python, blocks)) >= len(blocks) - 2


def test_what_comments_tell():
    block = Block("python", "model.learn(1_000_000)\nwait(10)\n", 1)
    tell(block, "replace: 10) -> 1)\nbefore:\nx = 1\n")
    assert block.shortened() == "model.learn(110)\nwait(1)\n"
    assert block.before == "x = 1\n"
    for wrong, what in (("replace: 10", "arrow"), ("slip: it", "none of")):
        with pytest.raises(AssertionError, match=what):
            tell(block, wrong)
    tell(block, "replace: 99 -> 1")
    with pytest.raises(AssertionError, match="no '99'"):
        block.shortened()


def test_comments_are_found_and_nothing_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n<!-- test skip: why -->\n```python\nx\n```\n<!-- test skip: no -->\n\n```{toctree}\na\n```\n```\nb\n```\n"
    )
    found = [(block.language, block.code, block.skip, block.line) for block in read_blocks(page)]
    assert found == [("python", "x\n", "why", 3), ("{toctree}", "a\n", "", 8), ("", "b\n", "", 11)]
