"""``sb3-sparse`` itself: which command it is, and what becomes of errors."""

from tests.cli.running import run


def test_unknown_command_is_named(tmp_path):
    result = run("trian", cwd=tmp_path, check=False)
    assert result.returncode != 0
    assert "unknown command 'trian'" in result.stderr
    assert "usage: sb3-sparse" in run("--help", cwd=tmp_path).stdout
