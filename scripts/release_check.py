"""
Before a release: what is built is installed from scratch, on each Python, and used as a user would.

    python scripts/release_check.py                   # newest versions of what is needed, every Python that is found
    python scripts/release_check.py --python 3.12     # one of them, or the path of one
    python scripts/release_check.py --lowest          # the oldest versions that pyproject.toml allows

Builds the source distribution, and the wheel from it. Then, for each Python: a new environment, the wheel, ``sb3-sparse
--version``; ``release_user.py`` run, and read by mypy in strict mode, in a folder without this repository; whether all extras
can be had together; the command, with the extra ``zoo``. ``--lowest`` installs the extras, too, and runs tests of what needs
something that has a bound, against the installed wheel. An environment is deleted before the next one is made: with pip's own
torch for Linux it has 5 GB. A Python that pyproject.toml promises and that is not found is an error, unless one is named.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
USER = Path(__file__).with_name("release_user.py")
# What the tests need that the package does not, and which of them run with the oldest versions.
TEST_TOOLS = ["pytest", "scipy", "gymnasium[classic-control]"]
TESTS = ["tests/sparse", "tests/simba", "tests/export", "tests/results", "tests/pixels", "tests/cli"]
TESTS += ["tests/test_dmc.py", "tests/test_atari.py"]
# What would let a new environment see this one.
HIDDEN = ("PYTHONPATH", "MYPYPATH", "VIRTUAL_ENV")


class Failed(Exception):
    """A program ended with an error; the message is what it printed last."""


@dataclass
class Row:
    """What came of one Python: for each step its outcome and seconds."""

    python: str
    steps: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def step(self, name: str, action: Callable[[], str]) -> bool:
        """Do something and keep what it says. Returns whether it worked."""
        start, worked = time.monotonic(), True
        try:
            text = action()
        except Failed as error:
            text, worked, self.failed = "**failed**", False, True
            print(f"{self.python}: {name}\n{error}\n", file=sys.stderr)
        self.steps[name] = f"{text}, {time.monotonic() - start:.0f} s"
        print(f"{self.python}: {name}: {self.steps[name]}", flush=True)
        return worked


def call(*command: str | Path, folder: Path) -> str:
    """
    What a program prints, with one thread and without a view of this environment.

    :raises Failed: If it ends with an error.
    """
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}\n" + "\n".join((done.stdout + done.stderr).splitlines()[-100:]))
    return done.stdout.strip()


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel, and the folder in the source distribution from which it was built."""
    call(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
    (archive,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    shutil.unpack_archive(archive, folder)
    return wheel, folder / archive.name.removesuffix(".tar.gz")


@dataclass
class Plan:
    """What is installed in every environment."""

    wheel: Path
    torch: str
    # Exact versions, in the way of pip's constraints.
    pins: list[str]
    # From which the tests come, and which of them run.
    sources: Path
    tests: list[str]


def make_plan(wheel: Path, sources: Path, torch: str | None, lowest: bool, tests: list[str]) -> tuple[Plan, SpecifierSet]:
    """From what the wheel says that it needs; also the Pythons that it is for."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    needed = with_extras([Requirement(entry) for entry in metadata.get_all("Requires-Dist", [])], metadata["Name"])
    bounds = {each.name: bound.version for each in needed for bound in each.specifier if bound.operator == ">="}
    if torch is None and lowest:
        torch = f"torch=={bounds['torch']}"
    elif torch is None:
        (torch,) = re.findall(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    pins = [f"{name}=={version}" for name, version in bounds.items() if name != "torch"] if lowest else []
    return Plan(wheel, torch, pins, sources, tests if lowest else []), SpecifierSet(metadata["Requires-Python"])


def with_extras(entries: list[Requirement], name: str) -> list[Requirement]:
    """Those of what a package needs that are for no extra, or for one that the extra ``all`` stands for."""
    extras, todo = [""], ["all"]
    while todo:
        extras.append(todo.pop())
        for each in entries:
            if each.name == name and each.marker is not None and each.marker.evaluate({"extra": extras[-1]}):
                todo += each.extras - {*extras, *todo}
    needed = [each for each in entries if each.name != name]
    return [each for each in needed if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras)]


def interpreters(allowed: SpecifierSet) -> dict[str, Path]:
    """For each minor version that is allowed and found, on the path or among those of pyenv, an interpreter."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found: dict[str, Path] = {}
    for version in (f"3.{minor}" for minor in range(100) if f"3.{minor}" in allowed):
        places = [shutil.which(f"python{version}"), *sorted(root.glob(f"versions/{version}.*/bin/python"))]
        # Pyenv has a name on the path for each version that it knows, also for one that is not switched on.
        works = [place for place in places if place and not subprocess.run([place, "-c", ""], capture_output=True).returncode]
        if works:
            found[version] = Path(works[-1])
    return found


def check(python: Path, plan: Plan, folder: Path) -> Row:
    """All steps with one Python, in a folder that is empty."""
    row = Row(call(python, "-c", "import platform; print(platform.python_version())", folder=folder))
    inside = folder / "environment" / "bin" / "python"
    user, constraints = folder / "user.py", folder / "constraints.txt"
    shutil.copy(USER, user)
    constraints.write_text("\n".join(plan.pins))
    pip = (inside, "-m", "pip", "install", "--constraint", constraints)

    def install() -> str:
        call(python, "-m", "venv", folder / "environment", folder=folder)
        call(*pip, "--upgrade", "pip", folder=folder)
        call(*pip, plan.torch, folder=folder)
        call(*pip, plan.wheel, "mypy", folder=folder)
        return call(inside.with_name("sb3-sparse"), "--version", folder=folder).partition("(")[2].rstrip(")")

    def types() -> str:
        return call(inside, "-m", "mypy", "--strict", "--config-file=", user, folder=folder).partition(":")[0]

    def extras() -> str:
        call(*pip, *([] if plan.tests else ["--dry-run"]), f"{plan.wheel}[all]", folder=folder)
        return "installed" if plan.tests else "can be had"

    def command() -> str:
        # Trained by it is what finds a package that is imported and that nobody asked for.
        call(*pip, f"{plan.wheel}[zoo]", folder=folder)
        options = ("--algo", "sac", "--env", "Pendulum-v1", "-n", "120", "--eval-freq", "100", "--eval-episodes", "1")
        call(inside.with_name("sb3-sparse"), "train", *options, folder=folder)
        return "trains"

    def tests() -> str:
        call(*pip, *TEST_TOOLS, folder=folder)
        # Of the source distribution, all but the package: the tests find the one that is installed.
        sources = shutil.copytree(plan.sources, folder / "sources", ignore=shutil.ignore_patterns("sb3_sparse"))
        # Old libraries call newer ones by names that those give up.
        options = ("--maxfail", "10", "--tb", "short", "-v", "-W", "default::DeprecationWarning")
        done = call(inside, "-m", "pytest", *options, *plan.tests, folder=sources)
        return done.splitlines()[-1].strip("= ")

    if row.step("installed", install):
        row.step("a user's script", lambda: call(inside, user, folder, folder=folder))
        row.step("its types", types)
        # Before the extras, which might bring what it lacks.
        row.step("the command", command)
        row.step("all extras", extras)
        if plan.tests:
            row.step("tests", tests)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="3.12, or a path; several times for several")
    parser.add_argument("--torch", help="installed first; by default that of the Makefile, with --lowest the oldest")
    parser.add_argument("--lowest", action="store_true", help="the oldest versions, if no Python is named on the oldest")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="which tests run with the oldest versions")
    parser.add_argument("--folder", type=Path, help="where everything is made, and deleted afterwards; needs about 6 GB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        plan, allowed = make_plan(*build(Path(name)), options.torch, options.lowest, options.tests)
        found = interpreters(allowed)
        promised = [f"3.{minor}" for minor in range(100) if f"3.{minor}" in allowed]
        wanted = options.python or promised[: 1 if options.lowest else None]
        if missing := [each for each in wanted if each not in found and not Path(each).exists()]:
            parser.error(f"no Python {missing}: found are {list(found)}, of {allowed}.")
        print(f"{plan.wheel.name}, {plan.torch}, {' '.join(plan.pins) or 'newest versions'}", flush=True)
        rows = []
        for each in wanted:
            with tempfile.TemporaryDirectory(dir=name) as folder:
                rows.append(check(found.get(each, Path(each)), plan, Path(folder)))
    steps = list(rows[0].steps)
    print(f"\n| Python | {' | '.join(steps)} |\n|---{'|---' * len(steps)}|")
    for row in rows:
        print(f"| {row.python} | {' | '.join(row.steps.get(step, '') for step in steps)} |")
    sys.exit(any(row.failed for row in rows))


if __name__ == "__main__":
    main()
