"""What tests of the chooser share."""

import itertools
import json

import pytest
import torch as th

from sb3_sparse.sparse.kernels.backends import BACKENDS
from sb3_sparse.sparse.kernels.choosing import choices, chooser, measure

CPU = th.device("cpu")
LAYER = ((64, 64), 400, 0)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No choices in memory, an empty cache folder, and a machine on which nothing else runs."""
    monkeypatch.setenv(choices.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(measure.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    chooser.forget_choices()
    yield tmp_path / "cache"
    chooser.forget_choices()


def pretend(monkeypatch, **seconds):
    """Let each backend take a given time, or the next one of a list."""
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    times = {name: itertools.cycle(s if isinstance(s, list) else [s]) for name, s in seconds.items()}
    for name, backend in BACKENDS.items():

        def forward(x, values, topology, bias, batch, name=name):
            clock[0] += next(times[name])

        for method in ("grad_input", "grad_values"):
            monkeypatch.setattr(backend, method, lambda *args: None)
        monkeypatch.setattr(backend, "forward", forward)


def stored():
    return json.loads(choices._cache_file().read_text())


def forbid_measuring(monkeypatch):
    def fail(*args):
        raise AssertionError("measured")

    monkeypatch.setattr(chooser, "measure", fail)
