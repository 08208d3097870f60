"""README and docs: tables, links, options and code blocks are what they seem."""

import ast
import contextlib
import inspect
import io
import re
import runpy
import sys
from functools import cache
from pathlib import Path

import pytest

from sb3_sparse import cli
from tests.written_blocks import BLOCK

pytest.importorskip("rl_zoo3")

ROOT = Path(__file__).parent.parent
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]
pages = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
COMMANDS = ("train", "tune", "enjoy", "evaluate", "describe", "export", "sweep", "plot", "report")


def blocks(page, language):
    return [code for kind, code in BLOCK.findall(page.read_text()) if kind == language]


def without_blocks(text):
    return BLOCK.sub("", text)


def cells(row):
    # A bar inside code, or after a backslash, is none of the table's.
    return len(re.sub(r"\\\||`[^`]*`", "x", row).strip().strip("|").split("|"))


@pages
def test_every_row_of_a_table_has_as_many_cells_as_its_head(page):
    lines = without_blocks(page.read_text()).splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line):
            rows = [lines[number - 1], line]
            for row in lines[number + 1 :]:
                if not row.startswith("|"):
                    break
                rows.append(row)
            for row in rows:
                assert row.rstrip().endswith("|"), row
                assert cells(row) == cells(line), row


def test_the_check_of_tables_finds_a_missing_bar():
    assert cells("| DQN | LunarLander-v3 211, 219 | 1 |") == 3
    assert cells("| DQN | `a|b` | \\| | 1 |") == 4


@pages
def test_relative_links_lead_somewhere(page):
    text = without_blocks(page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", without_blocks(file.read_text()), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pages
def test_files_that_are_named_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:examples|benchmarks|scripts|hyperparams|docs|tests|sb3_sparse)/[\w./-]*)`", text):
        assert (ROOT / path).exists() or list(ROOT.glob(path + "*")), path
    for path in re.findall(r"python ((?:examples|benchmarks|scripts)/[\w./-]+\.py)", text):
        assert (ROOT / path).is_file(), path


def printed(run):
    """What a program prints that stops by itself."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as end:
        run()
    assert not end.value.code
    return output.getvalue()


@cache
def help_of(command):
    return printed(lambda: cli.main([command, "--help"]))


@cache
def help_of_script(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((ROOT / path).parent))
        patch.setattr(sys, "argv", [path, "--help"])
        return printed(lambda: runpy.run_path(str(ROOT / path), run_name="__main__"))


def has_option(help_text, option):
    return re.search(rf"(^|[\s,\[]){re.escape(option)}([\s,\]=]|$)", help_text, re.MULTILINE) is not None


def calls(text):
    """Command lines that call ours, one line each."""
    return re.findall(rf"sb3-sparse ({'|'.join(COMMANDS)})\b([^`\n#;|]*)", text.replace("\\\n", " "))


def options(arguments):
    return re.findall(r"(?<![\w-])(--?[a-zA-Z][\w-]*)", arguments)


@pages
def test_options_of_the_command_exist(page):
    for command, arguments in calls(page.read_text()):
        for option in options(arguments):
            assert has_option(help_of(command), option), f"sb3-sparse {command} has no {option}"


def test_options_in_the_makefile_and_in_examples_exist():
    text = (ROOT / "Makefile").read_text() + "".join(
        path.read_text() for path in (ROOT / "examples").iterdir() if path.is_file()
    )
    found = calls(text)
    assert len(found) >= 2
    for command, arguments in found:
        for option in options(arguments):
            assert has_option(help_of(command), option), f"sb3-sparse {command} has no {option}"


@pages
def test_options_of_scripts_exist(page):
    # What is behind the first one is the command line of another.
    text = page.read_text().replace("\\\n", " ").replace("benchmarks/best_dense.py ", "")
    for script, arguments in re.findall(r"python ((?:examples|benchmarks|scripts)/[\w./-]+\.py)([^`\n#;|]*)", text):
        for option in options(arguments):
            assert has_option(help_of_script(script), option), f"{script} has no {option}"


def test_the_page_about_the_command_has_a_row_for_each_part():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/cli.md").read_text(), re.MULTILINE)
    assert set(cli.COMMANDS) <= set(rows)


def test_a_page_about_a_command_names_its_options():
    for command in ("plot", "evaluate"):
        text = (ROOT / f"docs/{command}.md").read_text()
        found = re.findall(r"^\| `(--?[\w-]+)", text, re.MULTILINE)
        assert found
        for option in found:
            assert has_option(help_of(command), option), option
    line = next(line for line in (ROOT / "docs/cli.md").read_text().splitlines() if line.startswith("`describe` takes"))
    for option in re.findall(r"`(-[\w-]+)`", line):
        assert has_option(help_of("describe"), option), option


@pages
def test_python_compiles(page):
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")


@pages
def test_what_python_imports_exists_and_takes_the_keywords(page):
    names = {}
    trees = [ast.parse(code) for code in blocks(page, "python")]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(compile(ast.Module([node], []), str(page), "exec"), names)
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            called = names[node.func.id]
            known = inspect.signature(called).parameters
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
                for keyword in node.keywords:
                    assert keyword.arg is None or keyword.arg in known, f"{node.func.id} has no {keyword.arg}"


@pages
def test_yaml_is_yaml(page):
    yaml = pytest.importorskip("yaml")
    for code in blocks(page, "yaml"):
        assert yaml.safe_load(code) is not None
