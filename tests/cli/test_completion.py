"""Shells complete commands, options, algorithms, files and folders."""

import shutil
import subprocess
import sys

import pytest

from sb3_sparse.cli import COMMANDS, main

pytest.importorskip("rl_zoo3")
pytest.importorskip("shtab")
BASH = shutil.which("bash")

# Prints what bash would offer for the last of some words.
ASK = """
source completion.bash
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"$(complete -p sb3-sparse | sed 's/.*-F //; s/ .*//')"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch, (folder / "completion.bash").open("w") as file:
        patch.setattr(sys, "stdout", file)
        main(["completion", "bash"])
    for name in ("agent.zip", "agent.safetensors", "settings.yml"):
        (folder / name).touch()
    (folder / "agents").mkdir()
    return folder


@pytest.mark.skipif(BASH is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("e", {"evaluate", "enjoy", "export"}),
        ("", {*COMMANDS}),
        ("--v", {"--version"}),
        ("train --algo str", {"stream_ac", "stream_q", "stream_sarsa"}),
        ("train --exact-checkpoint-", {f"--exact-checkpoint-{name}" for name in ("freq", "keep", "patience")}),
        ("train --resu", {"--resume"}),
        ("train --eval-e", {"--eval-episodes", "--eval-env-kwargs"}),
        ("train -conf set", {"settings.yml"}),
        ("train -f age", {"agents"}),
        ("tune --sampler r", {"random"}),
        ("enjoy -i agent.s", {"agent.safetensors"}),
        ("enjoy --load-", {"--load-best", "--load-checkpoint", "--load-last-checkpoint"}),
        ("evaluate agent", {"agent.zip", "agent.safetensors", "agents"}),
        ("evaluate agent.zip --ep", {"--episodes", "--epsilon"}),
        ("export --to s", {"sb3", "safetensors"}),
        ("sweep set", {"settings.yml"}),
        ("report age", {"agents"}),
        ("completion z", {"zsh"}),
    ],
)
def test_bash_offers_what_can_follow(words, offered, folder):
    asked = ["sb3-sparse", *words.split(" ")]
    done = subprocess.run([BASH, "-c", ASK, "bash", *asked], cwd=folder, capture_output=True, text=True)
    # `compopt` only works while bash completes something.
    assert not [line for line in done.stderr.splitlines() if "compopt" not in line]
    assert set(done.stdout.split()) == offered


@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_knows_the_command_after_the_script_was_read(folder):
    ask = "source completion.bash; complete -p sb3-sparse"
    done = subprocess.run([BASH, "-c", ask], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" sb3-sparse\n")


@pytest.mark.parametrize(("shell", "begins"), [("zsh", "#compdef sb3-sparse"), ("tcsh", "# AUTOMATICALLY GENERATED")])
def test_other_shells(shell, begins, capsys):
    main(["completion", shell])
    script = capsys.readouterr().out
    assert script.startswith(begins)
    assert "stream_sarsa" in script
    assert "exact-checkpoint-freq" in script


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit, match=r'^sb3-sparse completion: .*pip install "sb3-sparse\[completion\]"\.$'):
        main(["completion", "bash"])
