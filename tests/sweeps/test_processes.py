"""Processes that make runs, when no more of them can be started."""

import errno
import os
import subprocess
import sys

import pytest

from sb3_sparse.sweeps.backends import processes
from sb3_sparse.sweeps.backends.processes import MAX_SILENT, run_in_processes
from sb3_sparse.sweeps.runs.execute import How

# A process that makes the first run, and does not end before the others have.
HEALTHY = """
import json, pathlib, sys, time
given = json.loads(sys.stdin.readline())
name, runs = given["names"][0], pathlib.Path(given["runs"])
print(json.dumps({"begins": name}), flush=True)
while not (runs / "others").exists():
    time.sleep(0.01)
(runs / name / "done.json").write_text("{}")
print(json.dumps({"ends": name, "kind": "done", "error": ""}), flush=True)
"""


@pytest.mark.parametrize("is_started", [False, True])
def test_those_that_live_come_to_their_end(is_started, tmp_path, monkeypatch):
    """Mistake of ours: they were killed, and each lost what it had trained since its last checkpoint."""
    names = ["first", "second"]
    for name in names:
        (tmp_path / name).mkdir()
    start, started, told = subprocess.Popen, [], []

    def popen(command, **kwargs):
        if started and not is_started:
            (tmp_path / "others").touch()
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        code = "raise SystemExit(3)" if started else HEALTHY
        started.append(start([sys.executable, "-c", code], **kwargs))
        return started[-1]

    def tell(event):
        told.append(event)
        # Somebody has seen that the last one has ended.
        if len(started) > MAX_SILENT and started[-1].returncode is not None:
            (tmp_path / "others").touch()

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    said = "5 in a row .status 3." if is_started else "no more processes can be started: .* Cannot allocate memory"
    with pytest.raises(RuntimeError, match=said):
        run_in_processes(tmp_path, names, How("study", "command"), 2, tell)
    assert (tmp_path / "first" / "done.json").is_file()
    assert [event["ends"] for event in told if "ends" in event] == ["first"]
    assert len(started) == (1 + MAX_SILENT if is_started else 1)
