"""``sb3-sparse`` itself: which command it is, its version, and the help of all."""

import contextlib
import io
import platform
import re
import shlex
import signal
import subprocess
import sys
from importlib import metadata

import pytest
import stable_baselines3

import sb3_sparse
from sb3_sparse.cli import COMMANDS, main
from tests.cli.running import run


def test_unknown_command_is_named(tmp_path):
    result = run("trian", cwd=tmp_path, check=False)
    assert result.returncode != 0
    (line,) = result.stderr.splitlines()
    assert "unknown command 'trian', expected one of train, " in line
    assert line.endswith("See sb3-sparse --help.")
    assert "usage: sb3-sparse" in run("--help", cwd=tmp_path).stdout


def test_the_help_names_every_command(capsys):
    main([])
    without = capsys.readouterr().out
    main(["-h"])
    assert capsys.readouterr().out == without
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", without, re.MULTILINE), command


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_versions_in_one_line(option, capsys):
    main([option])
    assert capsys.readouterr().out == (
        f"sb3-sparse {sb3_sparse.__version__} (torch {metadata.version('torch')}, stable-baselines3 "
        f"{stable_baselines3.__version__}, Python {platform.python_version()})\n"
    )


@pytest.fixture
def help_of(capsys):
    def show(*args):
        with pytest.raises(SystemExit) as stopped:
            main([*args, "--help"])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    return show


@pytest.mark.parametrize("command", [*COMMANDS, "sweep status"])
def test_every_help_is_in_one_style(command, help_of):
    """Its name, what it does, examples, options that are explained."""
    pytest.importorskip("rl_zoo3")
    text = help_of(*command.split())
    usage, does, examples, *_ = text.split("\n\n")
    assert re.fullmatch(rf"usage: sb3-sparse {command}( [A-Z\[\]. ]+)? \[options\]", usage)
    assert re.match(r"[A-Z]", does)
    assert does.endswith(".")
    assert "``" not in text
    head, *lines = examples.splitlines()
    assert head == "examples:"
    assert len(lines) >= 4
    for comment, line in zip(lines[::2], lines[1::2], strict=True):
        assert comment.startswith("  # ")
        assert line.startswith("  sb3-sparse ")
    assert max(map(len, [*does.splitlines(), *lines])) <= 100


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_examples_exist(command, help_of):
    pytest.importorskip("rl_zoo3")
    for line in re.findall(r"^  sb3-sparse (.*)$", help_of(command), re.MULTILINE):
        called, *args = shlex.split(line)
        for option in (arg for arg in args if arg.startswith("-")):
            assert re.search(rf"(^|[\s,]){option}([\s,]|$)", help_of(called), re.MULTILINE), line


@pytest.mark.parametrize("command", ["train", "tune", "enjoy"])
def test_our_own_options_come_before_those_of_rl_zoo3(command, help_of):
    pytest.importorskip("rl_zoo3")
    text = help_of(command)
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    ours = {"train": ["runs that can go on exactly (docs/resume.md)"], "enjoy": ["options with -i FILE.safetensors"]}
    assert titles == ["examples", *ours.get(command, []), "options of rl-zoo3"]
    assert "--algo {a2c," in text.partition("options of rl-zoo3:")[2]


def test_whoever_has_seen_enough_of_the_output_is_told_nothing(tmp_path):
    command = [sys.executable, "-m", "sb3_sparse.cli", "describe", "--algo", "sac", "--env", "Pendulum-v1"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        # Nobody reads a line of it, as if by `| head -0`.
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE
    assert "roken pipe" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["completion", "bash"]])
def test_nor_is_whoever_closes_the_output_at_once(arguments, tmp_path):
    command = [sys.executable, "-u", "-m", "sb3_sparse.cli", *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (128 + signal.SIGPIPE, "")


def test_without_an_output_there_is_nothing_to_say(monkeypatch):
    """Mistake of ours: what had gone well ended with a traceback, as of a service without an output."""
    monkeypatch.setattr(sys, "stdout", None)
    main(["--version"])


def test_pipes_to_others_are_no_output(monkeypatch):
    def broken(args):
        raise BrokenPipeError(32, "a worker has died")

    monkeypatch.setattr("sb3_sparse.cli.evaluate.evaluate", broken)
    for output in (io.StringIO(), sys.stdout):
        with contextlib.redirect_stdout(output), pytest.raises(BrokenPipeError, match="a worker has died"):
            main(["evaluate", "agent.zip", "--env", "Pendulum-v1"])


def test_ctrl_c_ends_the_loop_of_a_shell(tmp_path):
    """Mistake of ours: an exit status says that Ctrl-C was dealt with, and the shell went on with the next run."""
    code = (
        "import sys, sb3_sparse.cli.evaluate as module\nfrom sb3_sparse.cli import main\n"
        "def interrupted(args): raise KeyboardInterrupt\n"
        "module.evaluate, sys.argv = interrupted, ['sb3-sparse', 'evaluate']\nmain()"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == "sb3-sparse evaluate: interrupted\n"


def test_errors_of_the_program_around_it_are_still_shown(tmp_path):
    """Mistake of ours: after Ctrl-C, a program that had called the command went down without a word."""
    code = (
        "import sys, sb3_sparse.cli.evaluate as module\nfrom sb3_sparse.cli import main\n"
        "def interrupted(args): raise KeyboardInterrupt\n"
        "module.evaluate, sys.argv = interrupted, ['sb3-sparse', 'evaluate']\n"
        "try: main()\nexcept KeyboardInterrupt: pass\nraise RuntimeError('its own')"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (1, "RuntimeError: its own")


def test_ctrl_c_is_one_line(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sb3_sparse.cli.evaluate.evaluate", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "agent.zip", "--env", "Pendulum-v1"])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "sb3-sparse evaluate: interrupted\n"
