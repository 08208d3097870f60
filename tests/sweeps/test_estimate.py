"""What a study costs, said before."""

import pytest

from sb3_sparse.sparse import sparsity_report
from sb3_sparse.sweeps.planning import estimate
from sb3_sparse.sweeps.planning.estimate import cost_of, kind_of, measure_kinds, overview
from sb3_sparse.sweeps.planning.measure import Measured, measure
from sb3_sparse.sweeps.planning.plan import make_plan
from sb3_sparse.zoo import WrongSettingError, untrained_agent
from tests.sweeps.plans import cartpole

MEASURED = Measured(
    {"actor": {"total": 10, "learnable": 4}, "critic": {"total": 5, "learnable": 5}}, 0.5, 2.0, 10**9, 100.0, 10**6
)


def test_cost_of_a_run():
    plan = make_plan(cartpole(n_timesteps=10_050, evaluation={"every": 1000, "episodes": 3, "final_episodes": 5}))
    cost = cost_of(plan.runs[0], MEASURED)
    # 50 steps are taken at random, without updates; ten evaluations of three episodes, and the last one of five.
    assert cost.hours == pytest.approx((10_000 * 0.5 + (10 * 3 + 5) * 2.0) / 3600)
    # The replay buffer holds 1,000.
    assert cost.memory == 10**9 + 100 * 1000
    assert cost.disk == 10**6 + 10**6
    assert cost.disk_meanwhile == 2 * 10**6 + 100 * 1000
    without = make_plan(cartpole(evaluation={"every": 0, "final_episodes": 5}))
    assert cost_of(without.runs[0], MEASURED).hours == pytest.approx((150 * 0.5 + 5 * 2.0) / 3600)


def test_measured_are_a_few_seconds_of_the_run_itself():
    plan = make_plan(
        {
            **{"algo": "sac", "env": "Pendulum-v1", "device": "cpu"},
            "hyperparams": {"policy_kwargs": {"width_scale": 0.25, "sparsity": 0.5}, "batch_size": 32, "buffer_size": 100_000},
            # It acts in a whole run, not in these seconds, and does not warn of that.
            "callbacks": [{"sb3_sparse.PlasticityCallback": {"log_freq": 10_000}}],
        }
    )
    settings = plan.runs[0].settings
    found = measure(settings, 1, 0.5)
    agent = untrained_agent("sac", "Pendulum-v1", hyperparams=settings["hyperparams"], device="cpu")
    for name in ("actor", "critic"):
        report = sparsity_report(getattr(agent.policy, name))
        assert found.parameters[name] == {"total": report.total_parameters, "learnable": report.learnable_parameters}
        assert report.learnable_parameters < report.total_parameters
    # Two observations of three floats, an action, a reward, done and timeout of four bytes.
    assert found.bytes_per_transition == pytest.approx(4 * (2 * 3 + 1 + 3), rel=0.01)
    # An update of this network takes milliseconds, an episode has 200 steps.
    assert 1e-4 < found.seconds_per_step < 1.0
    assert 0.005 < found.seconds_per_episode < 10.0
    assert found.agent > 4 * 3 * report.learnable_parameters
    assert found.memory > 50e6


def test_each_kind_of_run_is_measured_once(tmp_path, monkeypatch):
    plan = make_plan(cartpole(axes={"gamma": [0.9, 0.99], "seed": 3}))
    asked = []

    def measured(plan, run, seconds):
        asked.append((run.settings["hyperparams"]["gamma"], run.settings["seed"]))
        return MEASURED

    monkeypatch.setattr(estimate, "_measure", measured)
    for _ in range(2):
        found = measure_kinds(plan, plan.runs, tmp_path)
        assert asked == [(0.9, 0), (0.99, 0)]
        assert found == dict.fromkeys([kind_of(plan.runs[0], plan), kind_of(plan.runs[1], plan)], MEASURED)
    (tmp_path / estimate.ESTIMATES_FILE).write_text("{")
    measure_kinds(plan, plan.runs, tmp_path)
    assert len(asked) == 4


def test_overview(tmp_path, monkeypatch):
    plan = make_plan(cartpole(n_timesteps=7250, axes={"gamma": [0.9, 0.99], "seed": 3}))
    measured = {kind_of(run, plan): MEASURED for run in plan.runs}
    monkeypatch.setattr(estimate, "free_memory", lambda: 1.5e9)
    text = overview(plan, plan.runs, measured, 2, tmp_path)
    hours = (7200 * 0.5 + (72 * 2 + 3) * 2.0) / 3600
    row = [line.split() for line in text.splitlines() if line.startswith("dqn CartPole-v1 gamma=0.9 ")]
    assert row == [["dqn", "CartPole-v1", "gamma=0.9", "3", "15", "9", f"{hours:.2f}", "1.00"]]
    assert (
        f"about {6 * hours / 2:.1f} hours with 2 at a time ({6 * hours:.1f} in all), 2.0 GB of memory (1.5 are free)" in text
    )
    assert "WARNING: more memory than is free" in text
    assert "on the disk" not in text.splitlines()[-1]


def test_a_run_that_cannot_be_built_is_named(tmp_path):
    plan = make_plan(cartpole(hyperparams={"gama": 1}))
    with pytest.raises(WrongSettingError, match=r"dqn CartPole-v1 cannot be trained: .*unknown hyperparameter 'gama'"):
        measure_kinds(plan, plan.runs, tmp_path)


def test_free_memory():
    assert 1e6 < estimate.free_memory() < 1e15


def machine(root, cgroup, **files):
    """A file system that says how much memory there is: ``MemAvailable`` is 64 GB."""
    written = {"proc/meminfo": "MemTotal: 99 kB\nMemAvailable: 62500000 kB\n", "proc/self/cgroup": cgroup}
    written |= {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    for name, content in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def group(limit, used, inactive=0):
    return {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": f"anon 1\ninactive_file {inactive}\n"}


def old_group(limit, used, inactive=0):
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": f"inactive_file 7\ntotal_inactive_file {inactive}\n",
    }


G = 10**9


@pytest.mark.parametrize(
    ("cgroup", "groups", "free"),
    [
        ("", {}, 64 * G),
        ("0::/\n", {"": group(8 * G, 2 * G)}, 6 * G),
        # A job of a scheduler, or what systemd limits: not at the root.
        ("0::/slurm/job\n", {"slurm/job": group(8 * G, 2 * G)}, 6 * G),
        ("0::/slurm/job/step\n", {"slurm/job/step": group("max", 2 * G), "slurm/job": group(9 * G, 4 * G)}, 5 * G),
        # What was read from files is in the count, and can be had.
        ("0::/job\n", {"job": group(8 * G, 7 * G, 4 * G)}, 5 * G),
        ("0::/job\n", {"job": group("max", 7 * G)}, 64 * G),
        # Of the first version, in a container that sees its own group at the root.
        ("5:cpu:/a\n4:memory:/a/b\n0::/\n", {"memory/a/b": old_group(8 * G, 7 * G, 4 * G)}, 5 * G),
        ("4:cpu,memory:/docker/c\n", {"memory": old_group(8 * G, 2 * G)}, 6 * G),
        ("4:memory:/a\n", {"memory/a": old_group(2**63 - 4096, 2 * G)}, 64 * G),
        ("nothing that is known\n", {}, 64 * G),
    ],
)
def test_memory_of_control_groups(tmp_path, cgroup, groups, free):
    """Mistake of ours: the limit was looked for at the root alone, and files that were read counted as used."""
    files = {f"{place}/{name}": content for place, those in groups.items() for name, content in those.items()}
    assert estimate.free_memory(machine(tmp_path, cgroup, **files)) == free
