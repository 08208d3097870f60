"""Evaluations as files, tables and scores."""

import json
from dataclasses import replace

import pytest

from sb3_sparse.results.evaluations import (
    Evaluation,
    evaluations_table,
    game_scores,
    read_evaluations,
    run_means,
    write_evaluations,
)


def made(agent="a.zip", env="ALE/Pong-v5", seed=0, returns=(1.0, 2.0), suite="atari-100k", checksum=None):
    lengths = [10 * (i + 1) for i in range(len(returns))]
    return Evaluation(str(agent), "DER", env, seed, True, 0.001, suite, None, list(returns), lengths, checksum)


def test_a_file_holds_all_of_it(tmp_path):
    path = tmp_path / "new/returns.json"
    evaluations = [made(), made(seed=1, returns=[-20.5]), made(agent="b.zip", env="CartPole-v1", suite=None)]
    write_evaluations(path, evaluations)
    assert read_evaluations(path) == evaluations
    assert [file.name for file in path.parent.iterdir()] == ["returns.json"]
    assert json.loads(path.read_text())["evaluations"][1]["returns"] == [-20.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("format"), "is no file of sb3-sparse evaluate --json"),
        (lambda content: content.pop("evaluations"), "is damaged .KeyError: 'evaluations'"),
        (lambda content: content["evaluations"].clear(), "holds no evaluation"),
        (lambda content: content["evaluations"][0].pop("seed"), "is damaged .TypeError.*'seed'"),
        (lambda content: content["evaluations"][0].update(new=1), "is damaged .TypeError.*'new'"),
        (lambda content: content["evaluations"][0].update(returns=[]), "0 returns and 2 lengths of a.zip"),
        (lambda content: content["evaluations"][0].update(returns=[1.0, float("nan")]), "returns of a.zip that are no finite"),
        (lambda content: content["evaluations"][0].update(returns=["x", 1.0]), "is damaged .ValueError: could not convert"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, change, message):
    path = tmp_path / "returns.json"
    write_evaluations(path, [made()])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        read_evaluations(path)
    assert str(path) in str(error.value)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json' cannot be read"):
        read_evaluations(tmp_path / "nothing.json")
    (tmp_path / "text.json").write_text("text")
    with pytest.raises(ValueError, match=r"text\.json' cannot be read"):
        read_evaluations(tmp_path / "text.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json' is no file of"):
        read_evaluations(tmp_path / "list.json")


def test_a_run_is_the_mean_of_all_of_its_episodes():
    evaluations = [made(returns=[1.0]), made(seed=1, returns=[4.0, 7.0]), made(agent="b.zip", returns=[9.0])]
    assert run_means(evaluations) == {"ALE/Pong-v5": {"a.zip": 4.0, "b.zip": 9.0}}
    other = made(agent="c.zip", env="ALE/Qbert-v5", returns=[2.0])
    # In the order of the files' names, whichever came first.
    assert game_scores([evaluations[2], other, *evaluations[:2]]) == {"Pong": [4.0, 9.0], "Qbert": [2.0]}
    with pytest.raises(ValueError, match=r"a\.zip is there twice, in ALE/Pong-v5 with seed 0"):
        run_means([*evaluations, made(returns=[3.0])])
    with pytest.raises(ValueError, match=r"a\.zip was not evaluated by the protocol"):
        game_scores([replace(made(), suite=None)])
    with pytest.raises(ValueError, match="'CartPole-v1' is no game of Atari-100k"):
        game_scores([made(env="CartPole-v1")])
    # Mistake of ours: those of the other name were left out.
    with pytest.raises(ValueError, match="Pong was evaluated as ALE/Pong-v5 and as PongNoFrameskip-v4"):
        game_scores([made(env="ALE/Pong-v5"), made("b.zip", env="PongNoFrameskip-v4")])


def test_the_table():
    evaluations = [made(suite=None), made(agent="long/name.zip", returns=[1000.0, 2000.0], suite=None)]
    assert evaluations_table(evaluations).splitlines() == [
        "agent          algorithm  environment  seed  episodes             return  length",
        "--------------------------------------------------------------------------------",
        "a.zip          DER        ALE/Pong-v5     0         2        1.50 ± 0.50    15.0",
        "long/name.zip  DER        ALE/Pong-v5     0         2  1,500.00 ± 500.00    15.0",
        "ALE/Pong-v5: 750.75 [1.50, 1,500.00], the mean of 2 agents",
    ]
    assert "mean of" not in evaluations_table(evaluations[:1])
    normalised = replace(evaluations[0], statistics="vec.pkl")
    assert evaluations_table([normalised]).endswith("\nobservations of a.zip are normalised by vec.pkl")


def test_an_agent_by_several_names_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked.zip").symlink_to(tmp_path / "a.zip")
    # Also where the file is no longer there.
    names = ["a.zip", "./a.zip", tmp_path / "a.zip", "folder/../a.zip", "linked.zip"]
    for name in names[1:]:
        with pytest.raises(ValueError, match=r"is there twice \(also as a\.zip\), in ALE/Pong-v5 with seed 0"):
            run_means([made("a.zip"), made(name)])
    seeds = [made(name, seed=seed, returns=[float(seed)]) for seed, name in enumerate(names)]
    assert run_means([*seeds, made("b.zip")]) == {"ALE/Pong-v5": {"a.zip": 2.0, "b.zip": 1.5}}
    assert game_scores([*seeds, made("b.zip")]) == {"Pong": [2.0, 1.5]}


def test_a_copy_of_an_agent_is_the_same():
    with pytest.raises(ValueError, match=r"copy\.zip is there twice \(also as a\.zip\)"):
        run_means([made("a.zip", checksum="1"), made("copy.zip", checksum="1")])
    # As far as it is known.
    different = [made("a.zip", checksum="1"), made("b.zip", checksum="2"), made("c.zip"), made("d.zip")]
    assert len(run_means(different)["ALE/Pong-v5"]) == 4


def test_other_agents_of_the_same_name_are_not_it():
    """Of several machines, or trained anew in the same folder: content tells."""
    same_place = [made("logs/Pong.zip", checksum=str(i) * 64, seed=i, returns=[float(i)]) for i in range(3)]
    found = run_means(same_place)["ALE/Pong-v5"]
    assert found == {"logs/Pong.zip": 0.0, f"logs/Pong.zip ({'1' * 8})": 1.0, f"logs/Pong.zip ({'2' * 8})": 2.0}
    assert game_scores([replace(each, seed=0) for each in same_place]) == {"Pong": [0.0, 1.0, 2.0]}
    # What was evaluated before there were checksums may be either: it is not counted as one of them.
    assert len(run_means([*same_place, made("logs/Pong.zip", seed=7)])["ALE/Pong-v5"]) == 4


def test_files_from_before_have_no_checksums(tmp_path):
    path = tmp_path / "returns.json"
    write_evaluations(path, [made()])
    content = json.loads(path.read_text())
    del content["evaluations"][0]["checksum"]
    path.write_text(json.dumps(content))
    assert read_evaluations(path) == [made()]
