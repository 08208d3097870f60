"""What is read from the folder of a run."""

import inspect
from collections import OrderedDict

import numpy as np
import pytest
from stable_baselines3.common.atari_wrappers import AtariWrapper, MaxAndSkipEnv

from sb3_sparse import DMCWrapper, DopamineAtari, PixelObservations, cli
from sb3_sparse.results.groups import group_runs
from sb3_sparse.results.runs import REPEATING, EmptyRun, read_run, read_runs
from tests.results.made import monitor_run, zoo_run

yaml = pytest.importorskip("yaml")


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
        ("sb3_sparse.pixels.PixelObservations", 2),
        ([{"sb3_sparse.pixels.PixelObservations": {"size": 84, "action_repeat": None}}], 2),
        ([{"stable_baselines3.common.atari_wrappers.AtariWrapper": {"frame_skip": 2}}], 2),
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


@pytest.mark.parametrize(
    "wrapper", [DMCWrapper, PixelObservations, DopamineAtari, AtariWrapper, MaxAndSkipEnv], ids=lambda kind: kind.__name__
)
def test_defaults_are_those_of_the_wrappers(wrapper):
    argument, default = REPEATING[wrapper.__name__]
    assert inspect.signature(wrapper.__init__).parameters[argument].default == default


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


def test_clocks_that_began_again(tmp_path):
    """Mistake of ours: hours went back, and episodes of a continued monitor file were mixed."""
    (tmp_path / "csv").mkdir()
    rows = "".join(f"{64 * (i + 1)},{10 * (i % 3) + 1},{i}\n" for i in range(6))
    (tmp_path / "csv/progress.csv").write_text("time/total_timesteps,time/time_elapsed,rollout/ep_rew_mean\n" + rows)
    assert (read_run(str(tmp_path / "csv")).clock.y * 3600).round(6).tolist() == [1, 11, 21, 22, 32, 42]
    folder = tmp_path / "monitor"
    folder.mkdir()
    first = "".join(f"10,5,{t}\n" for t in range(1, 201))
    second = "".join(f"50,5,{t}\n" for t in range(1, 201))
    (folder / "0.monitor.csv").write_text('#{"t_start": 1000.0, "env_id": "a"}\nr,l,t\n' + first + second)
    run = read_run(str(folder))
    assert run.returns["monitor"].y[[0, 199, -1]].tolist() == [10, 10, 50]
    assert (run.clock.y[[200, -1]] * 3600).round(6).tolist() == [200, 400]


def test_a_clock_that_began_again_several_times(tmp_path):
    """Each time counts once: hours grew as powers of two."""
    rows = "".join(f"{64 * (i + 1)},{1800 * (i % 2 + 1)},{i}\n" for i in range(10))
    (tmp_path / "progress.csv").write_text("time/total_timesteps,time/time_elapsed,rollout/ep_rew_mean\n" + rows)
    np.testing.assert_allclose(read_run(str(tmp_path)).clock.y, np.arange(1, 11) / 2)


def test_several_tables_of_plasticity_and_what_was_logged_are_one(tmp_path):
    (tmp_path / "plasticity.csv").write_text("timesteps,critic_srank\n10,1\n20,2\n")
    (tmp_path / "plasticity1.csv").write_text("timesteps,critic_srank,critic_interference_mean\n20,7,0.5\n")
    (tmp_path / "progress.csv").write_text("time/total_timesteps,plasticity/own,plasticity/critic_srank\n10,3,9\n")
    found = read_run(str(tmp_path)).plasticity
    assert {name: series.y.tolist() for name, series in found.items()} == {
        "critic_srank": [1, 2],
        "critic_interference_mean": [0.5],
        "own": [3],
    }


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


def test_empty_runs_are_left_out_and_named(tmp_path):
    full = zoo_run(tmp_path / "full", 1)
    (tmp_path / "begun").mkdir()
    runs, left_out = read_runs([str(tmp_path / "begun"), full])
    assert [str(run.folder) for run in runs] == [full]
    (reason,) = left_out
    assert reason.startswith(f"nothing to draw in '{tmp_path / 'begun'}'")
    with pytest.raises(EmptyRun, match=r"nothing to draw in .*begun"):
        read_runs([str(tmp_path / "begun")])
    with pytest.raises(EmptyRun, match="no run is named"):
        read_runs([])
    # What is wrong with a folder in another way is still an error.
    with pytest.raises(ValueError, match="is not a folder"):
        read_runs([full, str(tmp_path / "nowhere")])
    (tmp_path / "begun/evaluations.npz").write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot be read"):
        read_runs([full, str(tmp_path / "begun")])
