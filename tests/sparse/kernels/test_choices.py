"""Measured choices: in memory, and in the file that processes share."""

import json
import logging
import multiprocessing
import os
import time

import pytest
import torch as th

from sb3_sparse.sparse import Topology
from sb3_sparse.sparse.kernels import choose_backend
from sb3_sparse.sparse.kernels.backends import BACKENDS
from sb3_sparse.sparse.kernels.choosing import choices, chooser, measure
from tests.sparse.kernels.conftest import CPU, LAYER, forbid_measuring, pretend, stored


def test_choices_are_kept_in_memory_and_on_disk(fresh, monkeypatch, caplog):
    pretend(monkeypatch, dense=3.0, csr=1.0, compiled=2.0, blocked=2.0)
    topology = Topology.random(*LAYER)
    with caplog.at_level(logging.INFO, "sb3_sparse"):
        first = choose_backend(CPU, th.float32, topology, 200)
    assert "64x64:400 training: chose" in caplog.text
    assert "batch 256" in caplog.text
    assert list(stored().values()) == [first.name]
    forbid_measuring(monkeypatch)
    assert choose_backend(CPU, th.float32, topology, 256) is first
    chooser.forget_choices()
    assert choose_backend(CPU, th.float32, topology, 130) is first
    with pytest.raises(AssertionError, match="measured"):
        choose_backend(CPU, th.float32, topology, 1)


@pytest.mark.parametrize(
    "content",
    [b"{ not json", b"", b"\xff\xfe", b"[1, 2]", b'"blocked"', b"null", b"[" * 100_000, b'{"a": 1, "b": [], "c": null}'],
    ids=["no JSON", "empty", "no text", "list", "name", "null", "deep", "no names"],
)
def test_a_damaged_file_is_named_and_replaced(fresh, caplog, monkeypatch, content):
    pretend(monkeypatch, dense=3.0, csr=1.0, compiled=2.0, blocked=2.0)
    fresh.mkdir()
    path = choices._cache_file()
    path.write_bytes(content)
    assert choose_backend(CPU, th.float32, Topology.random(*LAYER)).name == "csr"
    assert "ignoring" in caplog.text
    assert str(path) in caplog.text
    assert list(stored().values()) == ["csr"]
    assert {file.name for file in fresh.iterdir()} == {path.name, path.name + ".lock"}


@pytest.mark.parametrize("wrong", ["fastest", "", 3, None, ["blocked"], {"name": "blocked"}])
def test_an_entry_that_names_no_backend_is_measured_anew(fresh, monkeypatch, wrong):
    pretend(monkeypatch, dense=3.0, csr=1.0, compiled=2.0, blocked=2.0)
    topology = Topology.random(*LAYER)
    choose_backend(CPU, th.float32, topology)
    (kind,) = stored()
    choices._cache_file().write_text(json.dumps({kind: wrong, "another": "dense"}))
    chooser.forget_choices()
    assert choose_backend(CPU, th.float32, topology).name == "csr"
    assert stored() == {kind: "csr", "another": "dense"}


def test_a_folder_that_cannot_be_written_is_no_error(fresh, monkeypatch, caplog):
    pretend(monkeypatch, dense=3.0, csr=1.0, compiled=2.0, blocked=2.0)
    (fresh.parent / "file").write_text("")
    monkeypatch.setenv(choices.CACHE_VARIABLE, str(fresh.parent / "file" / "folder"))
    assert choose_backend(CPU, th.float32, Topology.random(*LAYER)).name == "csr"
    assert "cannot keep the backend choices" in caplog.text


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_file_and_nothing_else(fresh, monkeypatch, caplog, function):
    choices.store_choice("first", "dense", BACKENDS)

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(choices.os, function, fail)
        assert choices.store_choice("second", "csr", BACKENDS) == "csr"
    assert "No space left on device" in caplog.text
    assert stored() == {"first": "dense"}
    path = choices._cache_file()
    assert {file.name for file in fresh.iterdir()} == {path.name, path.name + ".lock"}
    # This process goes on with it; the next one measures again.
    assert choices.known_choice("second", BACKENDS) == "csr"


def test_no_folder_no_file(fresh, monkeypatch):
    pretend(monkeypatch, dense=3.0, csr=1.0, compiled=2.0, blocked=2.0)
    monkeypatch.setenv(choices.CACHE_VARIABLE, "")
    assert choose_backend(CPU, th.float32, Topology.random(*LAYER)).name == "csr"
    assert not fresh.exists()


def test_the_first_process_decides(fresh, monkeypatch):
    topology = Topology.random(*LAYER)

    def measure_while_another_process_stores(*args):
        (kind,) = measured_kinds
        choices._write(choices._cache_file(), {kind: "csr", "of the other": "dense"})
        return measure.Measurement("blocked", {"blocked": 1.0, "dense": 2.0}, True, "")

    measured_kinds = [chooser._kind(chooser._Key("auto", CPU, th.float32, 256, True, th.get_num_threads()), topology)]
    fresh.mkdir()
    monkeypatch.setattr(chooser, "measure", measure_while_another_process_stores)
    assert choose_backend(CPU, th.float32, topology).name == "csr"
    assert stored() == {measured_kinds[0]: "csr", "of the other": "dense"}


def test_what_others_have_learned_meanwhile_is_used(fresh, monkeypatch):
    choices.store_choice("first", "dense", BACKENDS)
    topology = Topology.random(*LAYER)
    kind = chooser._kind(chooser._Key("auto", CPU, th.float32, 256, True, th.get_num_threads()), topology)
    choices._write(choices._cache_file(), {"first": "csr", kind: "csr"})
    forbid_measuring(monkeypatch)
    assert choose_backend(CPU, th.float32, topology).name == "csr"
    # What this process computes with does not change under its feet.
    assert choices.known_choice("first", BACKENDS) == "dense"


def _store_many(me, locks, start, answers):
    if locks == "files":
        choices.fcntl = None
    start.wait()
    shared = []
    for i in range(20):
        choices.store_choice(f"{me} {i}", "dense", ["dense"])
        shared.append(choices.store_choice(f"shared {i}", ["dense", "csr"][me % 2], ["dense", "csr"]))
    answers.put(shared)


@pytest.mark.parametrize("locks", ["flock", "files"])
def test_concurrent_processes_keep_each_others_choices(fresh, locks):
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    start, queue = context.Barrier(4), context.Queue()
    children = [context.Process(target=_store_many, args=(me, locks, start, queue)) for me in range(4)]
    for child in children:
        child.start()
    answers = [queue.get(timeout=120) for _ in children]
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    found = stored()
    assert {kind for kind in found if not kind.startswith("shared")} == {f"{me} {i}" for me in range(4) for i in range(20)}
    # All took the same, which is what the file says.
    assert answers == [[found[f"shared {i}"] for i in range(20)]] * 4
    left = {file.name for file in fresh.iterdir()} - {choices._cache_file().name}
    assert left == ({choices._cache_file().name + ".lock"} if locks == "flock" else set())


@pytest.mark.parametrize("locks", ["flock", "files"])
def test_a_lock_that_is_never_released_is_named(fresh, monkeypatch, caplog, locks):
    if locks == "files":
        monkeypatch.setattr(choices, "fcntl", None)
    monkeypatch.setattr(choices, "_PATIENCE", 0.1)
    fresh.mkdir()
    lock = choices._cache_file().with_name(choices._cache_file().name + ".lock")
    with choices._locked(lock):
        assert choices.store_choice("kind", "dense", BACKENDS) == "dense"
    assert f"{lock} is held by another process" in caplog.text
    assert not choices._cache_file().exists()
    choices.store_choice("kind", "dense", BACKENDS)
    assert stored() == {"kind": "dense"}


def test_a_lock_file_of_a_dead_process_is_removed(fresh, monkeypatch):
    monkeypatch.setattr(choices, "fcntl", None)
    fresh.mkdir()
    lock = choices._cache_file().with_name(choices._cache_file().name + ".lock")
    lock.write_text("")
    os.utime(lock, (time.time() - 3600, time.time() - 3600))
    choices.store_choice("kind", "dense", BACKENDS)
    assert stored() == {"kind": "dense"}


def test_what_is_in_use_stays_when_another_kind_is_asked_for(fresh):
    """Whatever the file says meanwhile, and whatever the other kind allows."""
    choices.use_choice("layer", "compiled")
    fresh.mkdir()
    choices._cache_file().write_text(json.dumps({"layer": "blocked", "convolution": "shifted", "later": "csr"}))
    assert choices.known_choice("convolution", ["dense", "shifted"]) == "shifted"
    assert choices.choices_in_use() == {"layer": "compiled", "convolution": "shifted", "later": "csr"}
    assert choices.known_choice("layer", BACKENDS) == "compiled"
