"""
What an allow-list of SB3 would need of ours (its pull request #2264): the globals that pickles in our agents' zips name.

Safe files need no such list of anybody: theirs is in ``resume/safe/allowed.py``.
"""

import base64
import io
import json
import pickletools
import zipfile

import pytest

from sb3_sparse.resume.safe.allowed import Allowed
from tests.resume.safe_agents import KINDS

OURS = {
    *(f"sb3_sparse.simba.policies.{name}" for name in ("SparseSimBaPolicy", "SparseSimBaTD3Policy", "SparseSimBaTQCPolicy")),
    *(f"sb3_sparse.simba.policies.{name}" for name in ("SparseSimBaCrossQPolicy", "SparseSimBaDQNPolicy")),
    "sb3_sparse.simba.policies.SparseSimBaQRDQNPolicy",
    *(f"sb3_sparse.streaming.policies.{name}" for name in ("StreamACPolicy", "StreamACCnnPolicy")),
    *(f"sb3_sparse.streaming.policies.{name}" for name in ("StreamQPolicy", "StreamQCnnPolicy")),
    *(f"sb3_sparse.rainbow.policies.{name}" for name in ("RainbowPolicy", "RainbowCnnPolicy", "RainbowMultiInputPolicy")),
    "sb3_sparse.rainbow.simba.SparseSimBaRainbowPolicy",
    "sb3_sparse.drqv2.policies.DrQv2Policy",
    "sb3_sparse.replay.buffer.ComposedReplayBuffer",
    "sb3_sparse.replay.prioritized.PrioritizedReplayBuffer",
    "sb3_sparse.replay.frame_buffer.FrameReplayBuffer",
}


def globals_of(pickled):
    """Full names of what a pickle asks for, by its instructions, without running any."""
    strings, found, memo, last = [], set(), {}, None
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name in ("SHORT_BINUNICODE", "BINUNICODE", "UNICODE"):
            last = argument
            strings.append(argument)
        elif operation.name == "MEMOIZE":
            memo[len(memo)] = last
        elif operation.name in ("BINGET", "LONG_BINGET"):
            if isinstance(memo.get(argument), str):
                strings.append(memo[argument])
        elif operation.name == "GLOBAL":
            found.add(argument.replace(" ", "."))
            last = None
        elif operation.name == "STACK_GLOBAL":
            found.add(".".join(strings[-2:]))
            last = None
        else:
            last = None
    return found


def test_the_search_finds_what_a_pickle_names():
    import pickle
    from collections import OrderedDict, deque

    from sb3_sparse.rainbow import Rainbow, RainbowPolicy

    found = globals_of(pickle.dumps([RainbowPolicy, deque(), OrderedDict(), Rainbow, RainbowPolicy, "a.b"], protocol=4))
    assert found == {
        "sb3_sparse.rainbow.policies.RainbowPolicy",
        "sb3_sparse.rainbow.algo.Rainbow",
        "collections.deque",
        "collections.OrderedDict",
    }


@pytest.fixture(scope="module")
def named():
    """By agent, what the pickles in its zip name."""
    found = {}
    for name, maker in KINDS.items():
        file = io.BytesIO()
        maker().save(file)
        with zipfile.ZipFile(file) as archive:
            data = json.loads(archive.read("data"))
        pickles = [value[":serialized:"] for value in data.values() if isinstance(value, dict) and ":serialized:" in value]
        found[name] = set().union(*(globals_of(base64.b64decode(text)) for text in pickles))
    return found


def test_what_a_list_of_others_would_need_of_ours(named):
    found = {name for names in named.values() for name in names if name.startswith("sb3_sparse.")}
    assert found == OURS


def test_each_of_them_is_on_our_list(named):
    allowed = Allowed()
    for name in OURS:
        assert allowed.named(name).__name__ == name.rpartition(".")[2]
    assert not [name for name in set().union(*named.values()) if name.split(".")[0] not in KNOWN_ROOTS]


# Of the libraries of which there is something in a zip.
KNOWN_ROOTS = {"sb3_sparse", "stable_baselines3", "sb3_contrib", "gymnasium", "numpy", "torch", "collections", "builtins"}
