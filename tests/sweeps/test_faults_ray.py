"""Studies on Ray whose processes, nodes and command are killed: all runs finish, with the same bits."""

import os
import random
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.sweeps import small

pytest.importorskip("ray")
# Ray leaves sockets and files to be collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*ray.*:FutureWarning"),
]

OPTIONS = ("--folder", "studies", "--no-estimate", "--backend", "ray")
KILLS = 10


@pytest.fixture
def here(tmp_path):
    """A folder with a plan."""
    small.write_plan(tmp_path)
    return tmp_path


def study_in(folder):
    return folder / "studies" / small.STUDY


def test_two_runs_on_this_machine(here, tmp_path):
    undisturbed = small.undisturbed(tmp_path / "undisturbed", seeds=1)
    text = small.sweep("plan.yml", *OPTIONS, "--jobs", 2, "--only", "seed=0", cwd=here)
    assert "2 of 2 runs are done" in text
    small.assert_same(study_in(here), undisturbed, 2)
    # Nothing that was started for it is left.
    small.wait_for(lambda: not ray_processes(here), 30)


def ray_processes(folder):
    """What the command has started from a folder, and is still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cwd"):
        try:
            is_there = os.readlink(path).startswith(str(folder))
        except OSError:
            continue
        if is_there and small.is_alive(int(path.parent.name)):
            found.append(int(path.parent.name))
    return found


def tasks(folder):
    """Those of them that make a run."""
    return [pid for pid in ray_processes(folder) if small.command_of(pid).startswith(b"ray::_run")]


@pytest.mark.full
def test_a_node_that_ends_stops_its_runs_which_go_on(four_runs, here):
    """It sends SIGTERM to its processes, whatever they are at."""
    study = study_in(here)
    with small.started("plan.yml", *OPTIONS, "--jobs", 2, cwd=here) as driver:
        for n in range(4):
            small.wait_for(lambda n=n: len(small.done(study)) >= n // 2 and tasks(here))
            time.sleep(random.SystemRandom().uniform(0, 3))
            for pid in tasks(here)[:1]:
                small.kill(pid, signal.SIGTERM)
        assert driver.wait(timeout=300) == 0, small.said(here)
    small.assert_same(study, four_runs, 4)


@pytest.mark.full
def test_a_request_to_stop_ends_with_checkpoints_and_status_75(four_runs, here):
    study = study_in(here)
    for by_terminal in (True, False):
        with small.started("plan.yml", *OPTIONS, "--jobs", 2, cwd=here) as driver:
            small.wait_for(lambda: sum((run / "lock.json").exists() for run in small.with_checkpoints(study)) == 2)
            if by_terminal:
                os.killpg(driver.pid, signal.SIGINT)
            else:
                driver.send_signal(signal.SIGTERM)
            assert driver.wait(timeout=90) == 75
        for run in small.with_checkpoints(study):
            assert small.status(run)["tries"][-1]["outcome"] == "stopped"
            assert not (run / "lock.json").exists()
        small.wait_for(lambda: not ray_processes(here), 30)
        assert "Traceback" not in small.said(here)
    small.sweep("plan.yml", *OPTIONS, "--jobs", 2, "--max-hours", 5e-3, cwd=here, status=75)
    small.sweep("plan.yml", *OPTIONS, "--jobs", 2, cwd=here)
    small.assert_same(study, four_runs, 4)


@pytest.mark.full
def test_what_is_kept_elsewhere_goes_on_at_another_place(four_runs, here):
    """The command is killed; somebody who has the plan alone goes on, from checkpoints, and gets what was finished."""
    storage = here / "store of runs"
    args = ("plan.yml", "--no-estimate", "--backend", "ray", "--jobs", 2, "--storage", f"file://{storage}")
    there = storage / small.STUDY
    with small.started(*args, cwd=here) as driver:
        small.wait_for(lambda: small.done(there) and small.with_checkpoints(there))
        driver.kill()
        driver.wait()
    # Agents of Ray live for a minute more, and do nothing.
    small.wait_for(lambda: not tasks(here), 30)
    finished, begun = small.done(there), small.with_checkpoints(there)
    other = here / "other"
    small.write_plan(other)
    small.sweep(*args, "--folder", "studies", cwd=other)
    small.assert_same(study_in(other), four_runs, 4)
    small.assert_same(there, four_runs, 4)
    for run in begun:
        if run not in finished:
            assert small.status(run)["tries"][-1]["from"] > 0
    for run in finished:
        assert len(small.status(run)["tries"]) == 1
    # Here, what was finished before comes with the next command, which makes nothing.
    assert "4 runs, 4 done" in small.sweep(*args, cwd=here)
    small.assert_same(here / "logs" / "sweeps" / small.STUDY, four_runs, 4)


@pytest.mark.full
@pytest.mark.parametrize("is_stored", [False, True])
def test_a_run_that_ends_its_process_is_given_up(is_stored, here):
    kinds = {"well": None, "exits": {"callbacks": [{f"{small.FAULTY}.Exits": {"at": 20}}]}}
    small.write_plan(here, axes={"kind": kinds})
    storage = ("--storage", f"file://{here}/store") if is_stored else ()
    text = small.sweep("plan.yml", *OPTIONS, "--jobs", 2, *storage, cwd=here, status=1)
    assert "1 of 2 runs are done" in text
    assert "its process ended 3 times without a word after 0 steps" in text
    assert "Traceback" not in text
    small.assert_clean(study_in(here))


@pytest.mark.full
def test_what_this_machine_cannot_hold_is_said_at_once(here):
    small.write_plan(here, memory=1e6)
    text = small.sweep("plan.yml", *OPTIONS, "--jobs", 2, cwd=here, status=1)
    assert (
        "sb3-sparse sweep: Ray has no machine that can hold one run, which needs 1 CPU, 1000000.0 GB; there is 2 CPU, " in text
    )
    assert "Traceback" not in text


@contextmanager
def cluster():
    """A head that makes no runs, and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    try:
        yield made
    finally:
        made.shutdown()


@pytest.mark.full
@pytest.mark.parametrize("is_stored", [False, True])
def test_ten_kills_at_random_on_two_nodes(is_stored, twelve_runs, here, monkeypatch, capsys):
    """Of a process that makes a run, then of a node, which another one takes the place of."""
    for name, value in small.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    draw, killed = random.Random(seed), {"process": 0, "node": 0}
    small.write_plan(here, axes={**small.PLAN["axes"], "seed": 6})
    storage = ("--storage", f"file://{here}/store") if is_stored else ()
    there = here / "store" / small.STUDY if is_stored else study_in(here)
    with cluster() as nodes:
        add = lambda: nodes.add_node(num_cpus=1, object_store_memory=80_000_000, wait=False)  # noqa: E731
        ours = [add(), add()]
        with small.started("plan.yml", *OPTIONS, *storage, "--address", nodes.address, cwd=here) as driver:
            while sum(killed.values()) < KILLS and driver.poll() is None:
                # All over the study, not all of them at its beginning.
                small.wait_for(lambda: len(small.done(there)) >= sum(killed.values()) and makers(ours), 300)
                time.sleep(draw.uniform(0, 2))
                if killed["process"] <= killed["node"]:
                    if (found := makers(ours)) and small.kill(draw.choice(found)):
                        killed["process"] += 1
                else:
                    node = ours.pop(draw.randrange(len(ours)))
                    raylet = node.all_processes["raylet"][0].process
                    raylet.kill()
                    killed["node"] += 1
                    nodes.remove_node(node, allow_graceful=False)
                    ours.append(add())
            at_that_time = len(small.done(there))
            assert driver.wait(timeout=500) == 0, small.said(here)
    with capsys.disabled():
        print(f" seed {seed}: {killed}, {at_that_time} of 12 done by then")
    assert sum(killed.values()) == KILLS
    small.assert_same(there, twelve_runs, 12)
    small.assert_same(study_in(here), twelve_runs, 12)


def makers(nodes):
    """Processes of some nodes that make a run."""
    found = []
    for node in nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        found += [pid for pid in small.children(raylet) if small.command_of(pid).startswith(b"ray::_run")]
    return found
