"""``sb3-sparse plot``: what is read from a run, how runs are put together, and what is written."""

import base64
import json
import re
import sys
from collections import OrderedDict

import numpy as np
import pytest

from sb3_sparse import cli
from sb3_sparse.results.groups import collect, group_runs
from sb3_sparse.results.runs import RETURNS, read_run
from sb3_sparse.results.statistics import Series, bootstrap_interval, mean_curve, rolling_mean

pytest.importorskip("matplotlib")
yaml = pytest.importorskip("yaml")
PNG = b"\x89PNG\r\n\x1a\n"


def zoo_run(folder, seed, sparsity=0.8, steps=(100, 200, 300), plasticity=True):
    """What rl-zoo3 leaves behind, with returns that are easy to predict."""
    settings = folder / "Pendulum-v1"
    settings.mkdir(parents=True)
    config = OrderedDict(n_timesteps=300, policy_kwargs={"sparsity": sparsity, "net_arch": (8,)}, seed=seed)
    (settings / "config.yml").write_text(yaml.dump(config))
    arguments = OrderedDict(algo="sac", env="Pendulum-v1", seed=seed, log_folder=str(folder))
    (settings / "args.yml").write_text(yaml.dump(arguments))
    steps = np.array(steps)
    np.savez(folder / "evaluations.npz", timesteps=steps, results=np.stack([steps + seed, steps + seed + 2.0], axis=1))
    if plasticity:
        rows = "".join(f"{t},{t / 10 + seed},{0.1 * seed}\n" for t in steps)
        (folder / "plasticity.csv").write_text("timesteps,critic_srank,actor_dormant\n" + rows)
    return str(folder)


def monitor_run(folder):
    """Two environments side by side, ten steps each episode, the second one later by a second."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(2):
        header = json.dumps({"t_start": 1000.0, "env_id": "x"})
        rows = "".join(f"{float(2 * k + i)},10,{3600.0 * (k + 1) + i}\n" for k in range(3))
        (folder / f"{i}.monitor.csv").write_text(f"#{header}\nr,l,t\n{rows}")
    return str(folder)


def test_a_zoo_run(tmp_path):
    run = read_run(zoo_run(tmp_path / "Pendulum-v1_1", seed=3))
    np.testing.assert_array_equal(run.returns["evaluations"].x, [100, 200, 300])
    np.testing.assert_array_equal(run.returns["evaluations"].y, [104, 204, 304])
    np.testing.assert_array_equal(run.plasticity["critic_srank"].y, [13, 23, 33])
    assert set(run.plasticity) == {"critic_srank", "actor_dormant"}
    assert run.settings == {
        "algo": "sac",
        "env": "Pendulum-v1",
        "n_timesteps": 300,
        "policy_kwargs": {"sparsity": 0.8, "net_arch": [8]},
    }


def test_episodes_of_all_environments_count(tmp_path):
    run = read_run(monitor_run(tmp_path / "run"))
    series = run.returns["monitor"]
    np.testing.assert_array_equal(series.x, [10, 20, 30, 40, 50, 60])
    np.testing.assert_allclose(series.y, [np.mean(range(k + 1)) for k in range(6)])
    np.testing.assert_allclose(run.clock.y, [0, 1, 1 + 1 / 3600, 2, 2 + 1 / 3600, 3, 3 + 1 / 3600])


@pytest.mark.parametrize(
    ("wrapper", "frames"),
    [
        ([{"sb3_sparse.dmc.DMCWrapper": {"action_repeat": 2}}], 2),
        ("stable_baselines3.common.atari_wrappers.AtariWrapper", 4),
        (["sb3_sparse.dmc.DMCWrapper"], 2),
        (["some.Wrapper", {"some.FrameSkip": {"frame_skip": 5}}, {"some.Other": None}], 5),
    ],
)
def test_a_monitor_below_repeated_actions(tmp_path, wrapper, frames):
    folder = tmp_path / "run"
    monitor_run(folder)
    (folder / "Env").mkdir()
    (folder / "Env/config.yml").write_text(yaml.dump(OrderedDict(env_wrapper=wrapper)))
    run = read_run(str(folder))
    np.testing.assert_allclose(run.returns["monitor"].x, np.arange(10, 70, 10) / frames)
    np.testing.assert_array_equal(run.clock.x[1:], run.returns["monitor"].x)


def test_saved_python_objects_are_read_without_running_code(tmp_path):
    folder, mark = tmp_path / "run", tmp_path / "ran"
    monitor_run(folder)
    (folder / "Env").mkdir()
    (folder / "Env/config.yml").write_text(
        f"""!!python/object/apply:collections.OrderedDict
- - - activation_fn
    - !!python/name:torch.nn.modules.activation.ReLU ''
  - - harmful
    - !!python/object/apply:os.mkdir
      - {mark}
"""
    )
    settings = read_run(str(folder)).settings
    assert settings == {"activation_fn": "name:torch.nn.modules.activation.ReLU", "harmful": [str(mark)]}
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_what_sb3s_logger_writes(tmp_path, kind):
    from stable_baselines3.common.logger import configure

    logger = configure(str(tmp_path), [kind])
    for step in (10, 20, 30):
        logger.record("time/total_timesteps", step, exclude="tensorboard")
        logger.record("rollout/ep_rew_mean", step / 2)
        if step > 10:
            logger.record("plasticity/critic_srank", step + 1.0)
        logger.record("train/loss", 1.0)
        logger.dump(step)
    logger.close()
    run = read_run(str(tmp_path))
    np.testing.assert_allclose(run.returns["logger"], ([10, 20, 30], [5, 10, 15]))
    assert list(run.plasticity) == ["critic_srank"]
    np.testing.assert_allclose(run.plasticity["critic_srank"], ([20, 30], [21, 31]))
    assert run.settings is None


def test_numbers_that_are_missing_or_repeated(tmp_path):
    rows = "10,1,\n20,nan,5\n30,3,6\n30,4,inf\n"
    (tmp_path / "plasticity.csv").write_text("timesteps,a,b\n" + rows)
    run = read_run(str(tmp_path))
    np.testing.assert_array_equal(run.plasticity["a"], ([10, 30], [1, 4]))
    np.testing.assert_array_equal(run.plasticity["b"], ([20, 30], [5, 6]))


def test_a_run_that_is_just_being_written(tmp_path):
    folder = tmp_path / "run"
    monitor_run(folder)
    (folder / "2.monitor.csv").write_text("")
    with (folder / "0.monitor.csv").open("a") as file:
        file.write("7.0,1")
    np.savez(folder / "evaluations.npz", timesteps=np.array([]), results=np.zeros((0, 2)))
    run = read_run(str(folder))
    assert list(run.returns) == ["monitor"]
    assert run.returns["monitor"].x[-1] == 60


@pytest.mark.parametrize("name", ["evaluations.npz", "Pendulum-v1/config.yml", "Pendulum-v1/args.yml", "monitor.csv"])
@pytest.mark.parametrize("content", [b"", b"{: x", b"PK\x03\x04 half"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    zoo_run(tmp_path / "run", 1)
    (tmp_path / "run" / name).write_bytes(content)
    if name == "monitor.csv" and not content:
        assert read_run(str(tmp_path / "run")).returns  # an environment that was just made
        return
    with pytest.raises(ValueError, match=rf"(?s){name}' cannot be read .*try again"):
        read_run(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("plasticity.csv", "timesteps,a\n10,1\n20,oops\n30,3\n", "line 3: a is 'oops', which is no number"),
        ("plasticity.csv", "timesteps,a\n10,1\nx,2\n30,3\n", "line 3: timesteps is 'x', which is no number"),
        ("plasticity.csv", "timesteps,a\n10,1\n20\n30,3\n", "line 3: 1 cells, and 2 columns"),
        ("plasticity.csv", "timesteps,a\n10,1,9\n30,3\n", "line 2: 3 cells, and 2 columns"),
        ("plasticity.csv", b"timesteps,a\n10,\xff\n30,3\n", "codec can't decode"),
        ("progress.csv", "time/total_timesteps,plasticity/a\n10,1\nx,2\n30,3\n", "line 3: time/total_timesteps is 'x'"),
        ("0.monitor.csv", '#{"t_start": 1.0}\nr,l,t\n1,2,3\n1,?,4\n1,2,5\n', r"line 4: l is '\?', which is no number"),
        ("0.monitor.csv", '#{"t_start": 1.0}\nr,l,t\n1,2\n1,2,4\n', "line 3: 2 cells, and 3 columns"),
        ("0.monitor.csv", "#{}\nr,l,t\n1,2,3\n", "t_start"),
    ],
    ids=str,
)
def test_the_line_of_a_damaged_table_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"(?s){name}' cannot be read .*{message}"):
        read_run(str(tmp_path))
    with pytest.raises(SystemExit, match=f"(?s){name}"):
        cli.main(["plot", str(tmp_path)])


def test_text_that_a_user_logs_and_the_line_that_is_being_written_are_left_out(tmp_path):
    (tmp_path / "progress.csv").write_text("time/total_timesteps,note,plasticity/a\n10,hello,1\n20,,2\n30,so")
    run = read_run(str(tmp_path))
    np.testing.assert_array_equal(run.plasticity["a"], ([10, 20], [1, 2]))


def test_equal_signs_in_labels_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monitor_run(tmp_path / "S=0.9")
    found = [read_run(argument) for argument in ("S=0.9", "sparse=S=0.9", "sparsity=0.9=./S=0.9")]
    assert [run.label for run in found] == [None, "sparse", "sparsity=0.9"]
    with pytest.raises(ValueError, match="is given twice"):
        group_runs(found)


def test_errors_say_what_is_looked_for(tmp_path):
    with pytest.raises(ValueError, match="'nowhere' is not a folder"):
        read_run("sparse=nowhere")
    zoo_run(tmp_path / "logs/Pendulum-v1_1", seed=0)
    with pytest.raises(ValueError, match=r"looked for evaluations.npz, .*\['Pendulum-v1_1'\] are runs"):
        read_run(str(tmp_path / "logs"))
    (tmp_path / "plasticity.csv").write_text("step,a\n1,2\n")
    with pytest.raises(ValueError, match="no column 'timesteps'"):
        read_run(str(tmp_path))
    (tmp_path / "plasticity.csv").rename(tmp_path / "progress.csv")
    with pytest.raises(ValueError, match="nothing to draw"):
        read_run(str(tmp_path))
    with pytest.raises(SystemExit, match=r"sb3-sparse plot: 'nowhere' is not a folder"):
        cli.main(["plot", "nowhere"])


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path):
    folders = [zoo_run(tmp_path / f"Pendulum-v1_{seed}", seed) for seed in (1, 2)]
    folders += [zoo_run(tmp_path / f"Pendulum-v1_{seed}", seed, sparsity=0.0) for seed in (3, 4)]
    folders += [monitor_run(tmp_path / name) for name in ("other", "another")]
    groups = group_runs([read_run(folder) for folder in folders])
    sizes = {name: len(members) for name, members in groups.items()}
    assert sizes == {"sac Pendulum-v1 sparsity=0.8": 2, "sac Pendulum-v1 sparsity=0.0": 2, "other": 1, "another": 1}
    assert len(group_runs([read_run(folder) for folder in folders[:1]])) == 1
    groups = group_runs([read_run(f"mine={folder}") for folder in folders])
    assert {name: len(members) for name, members in groups.items()} == {"mine": 6}


def test_groups_that_would_share_a_name_stay_two(tmp_path):
    folders = [zoo_run(tmp_path / "a", 1), "sac Pendulum-v1=" + zoo_run(tmp_path / "b", 1)]
    assert [len(members) for members in group_runs([read_run(folder) for folder in folders]).values()] == [1, 1]


def test_rolling_mean():
    y = np.random.default_rng(0).normal(size=50)
    by_hand = [y[max(0, i - 6) : i + 1].mean() for i in range(50)]
    np.testing.assert_allclose(rolling_mean(y, 7), by_hand)
    np.testing.assert_allclose(rolling_mean(y, 1), y)


def test_mean_and_band_equal_a_plain_bootstrap():
    rng = np.random.default_rng(1)
    runs = [Series(np.arange(5.0), rng.normal(size=5)) for _ in range(4)]
    curve = mean_curve(runs)
    values = np.stack([run.y for run in runs])
    np.testing.assert_allclose(curve.mean, values.mean(axis=0))
    # Other draws, more of them: the ends agree up to the noise of the bootstrap.
    draws = np.random.default_rng(5).integers(4, size=(20_000, 4))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5], axis=0)
    spread = values.std(axis=0)
    assert np.all(np.abs(curve.low - low) < 0.1 * spread)
    assert np.all(np.abs(curve.high - high) < 0.1 * spread)
    again = mean_curve(runs)
    np.testing.assert_array_equal(curve.low, again.low)


def test_runs_measured_at_other_places_are_interpolated_where_all_are_known():
    first = Series(np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    second = Series(np.array([5.0, 25.0]), np.array([15.0, 35.0]))
    curve = mean_curve([first, second])
    np.testing.assert_array_equal(curve.x, [5, 10, 20])
    np.testing.assert_allclose(curve.mean, [10, 15, 25])
    apart = mean_curve([first, Series(np.array([30.0]), np.array([1.0]))])
    assert len(apart.x) == len(apart.mean) == len(apart.low) == 0
    alone = mean_curve([second])
    assert alone.low is None
    np.testing.assert_array_equal(alone.mean, second.y)


def test_returns_are_compared_in_kind(tmp_path):
    both = tmp_path / "both"
    zoo_run(both, 1)
    monitor_run(both)
    only_monitor = monitor_run(tmp_path / "only_monitor")
    runs = [read_run(str(both)), read_run(only_monitor)]
    curves = collect(group_runs(runs))
    assert list(curves) == [RETURNS["monitor"], "actor_dormant", "critic_srank"]
    assert len(curves[RETURNS["monitor"]]) == 2
    assert len(curves["critic_srank"]) == 1
    assert next(iter(collect(group_runs(runs[:1])))) == RETURNS["evaluations"]


def test_chosen_series(tmp_path):
    groups = group_runs([read_run(zoo_run(tmp_path / "run", 1))])
    assert list(collect(groups, patterns=["critic_*"])) == [RETURNS["evaluations"], "critic_srank"]
    with pytest.raises(ValueError, match=r"'critic_rank' fits nothing: the runs have \['actor_dormant', 'critic_srank'\]"):
        collect(groups, patterns=["actor_*", "critic_rank"])


def test_hours_and_smoothing(tmp_path):
    folder = tmp_path / "run"
    zoo_run(folder, 0, steps=(20, 40, 60))
    monitor_run(folder)
    curves = collect(group_runs([read_run(str(folder))]), x="hours", smooth=2)
    (curve,) = curves[RETURNS["evaluations"]].values()
    np.testing.assert_allclose(curve.x, np.array([1, 2, 3]) + 1 / 3600)
    np.testing.assert_allclose(curve.mean, [21, 31, 51])
    with pytest.raises(ValueError, match="smooth=0"):
        collect({}, smooth=0)
    with pytest.raises(ValueError, match="does not say when"):
        collect(group_runs([read_run(zoo_run(tmp_path / "no_clock", 0))]), x="hours")


def test_picture_and_page(tmp_path, monkeypatch, capsys):
    folders = [zoo_run(tmp_path / f"logs/sac/Pendulum-v1_{seed}", seed) for seed in (1, 2, 3)]
    odd = zoo_run(tmp_path / "logs/<b>", 9, sparsity=0.5, plasticity=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    cli.main(["plot", *folders, f"dense & small={odd}"])
    assert capsys.readouterr().out.split() == ["plot.png", "plot.html"]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["plot.html", "plot.png"]
    png = (tmp_path / "work/plot.png").read_bytes()
    assert png.startswith(PNG)
    page = (tmp_path / "work/plot.html").read_text()
    (embedded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(embedded) == png
    assert "dense &amp; small" in page
    assert "&lt;b&gt;" in page
    assert "<script" not in page
    assert "http" not in page
    # Seeds 1, 2, 3 end at 302, 303, 304, and the mean of three is between the extremes of the bootstrap.
    assert re.search(r"303 \[302(\.3)?, 30(3\.7|4)\]<br><small>3 run\(s\), 300 timesteps", page), page[-3000:]
    assert "310<br><small>1 run(s)" in page
    assert page.count("–</td>") == 2, "the second group has no plasticity series"


def test_output_may_name_either_file(tmp_path):
    run = zoo_run(tmp_path / "run", 1)
    cli.main(["plot", run, "-o", str(tmp_path / "new/v1.5.png")])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["v1.5.html", "v1.5.png"]


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    run = zoo_run(tmp_path / "run", 1)
    (tmp_path / "afile").write_text("")
    with pytest.raises(SystemExit, match=r"afile/x.png.*name another file"):
        cli.main(["plot", run, "-o", str(tmp_path / "afile/x")])
    for command in (["plot", run, "-o", "."], ["describe", "--env", "Pendulum-v1", "--plot", "weights.pdf"]):
        with pytest.raises(SystemExit, match="2"):
            cli.main(command)


def test_a_missing_matplotlib_is_named(tmp_path, monkeypatch):
    run = zoo_run(tmp_path / "run", 1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (["plot", run], ["describe", "--env", "Pendulum-v1", "--plot"]):
        with pytest.raises(SystemExit, match=r"sb3-sparse\[zoo\]"):
            cli.main(command)
