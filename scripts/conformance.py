"""
Run the test suites of SB3 and sb3-contrib on our policies, SB3's tests of DQN on Rainbow and DER, and those of TD3 on DrQ-v2.

Fetches the source distributions of the installed versions into ``.conformance/`` (once) and runs their test files
unmodified, with ``upstream_plugin.py``, ``rainbow_plugin.py`` and ``drqv2_plugin.py`` in ``tests/conformance/``. ``--fast``
takes the tests about saving and loading only, and on DrQ-v2 those about images.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".conformance"

# Files that construct off-policy algorithms; the others do not.
SUITES = {
    "stable_baselines3": [
        "test_callbacks.py",
        "test_cnn.py",
        "test_custom_policy.py",
        "test_deterministic.py",
        "test_dict_env.py",
        "test_gae.py",
        "test_her.py",
        "test_identity.py",
        "test_logger.py",
        "test_n_step_replay.py",
        "test_predict.py",
        "test_run.py",
        "test_save_load.py",
        "test_sde.py",
        "test_spaces.py",
        "test_tensorboard.py",
        "test_train_eval_mode.py",
        "test_utils.py",
        "test_vec_normalize.py",
    ],
    "sb3_contrib": [
        "test_cnn.py",
        "test_deterministic.py",
        "test_dict_env.py",
        "test_identity.py",
        "test_run.py",
        "test_save_load.py",
        "test_train_eval_mode.py",
    ],
}
FAST = {
    "stable_baselines3": [
        "test_save_load.py::test_save_load",
        "test_save_load.py::test_save_load_q_net",
        "test_save_load.py::test_set_env",
        "test_save_load.py::test_exclude_include_saved_params",
        "test_custom_policy.py",
        "test_train_eval_mode.py",
    ],
    "sb3_contrib": ["test_save_load.py::test_save_load", "test_save_load.py::test_save_load_policy"],
}
# So many tests of the whole suites have to pass, by package or by what stands for DQN or TD3: fewer were not all looked at.
PASSED = {
    "stable_baselines3": 488,
    "sb3_contrib": 96,
    "Rainbow": 57,
    "Uniform": 67,
    "DER": 57,
    "AllOff": 68,
    "DrQ-v2": 38,
}
# What stands for DQN in SB3's own tests of it, see rainbow_plugin.py.
STAND_INS = ("Rainbow", "Uniform", "DER", "AllOff")
FAST_OF_DQN = [
    "test_save_load.py::test_save_load",
    "test_save_load.py::test_save_load_q_net",
    "test_save_load.py::test_save_load_replay_buffer",
    "test_callbacks.py::test_eval_callback_logs_are_written_with_the_correct_timestep",
    "test_train_eval_mode.py",
]

# DrQ-v2 stands for TD3, see drqv2_plugin.py.
FAST_OF_TD3 = ["test_save_load.py::test_save_load"]


def fetch(package: str) -> Path:
    """The folder with the tests of a package's installed version."""
    name = f"{package}-{version(package)}"
    tests = FOLDER / name / "tests"
    if not tests.is_dir():
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as download:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            subprocess.run([*pip, "--dest", download, f"{package}=={version(package)}"], check=True)
            (archive,) = Path(download).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                members = [m for m in tar.getmembers() if m.name.startswith(f"{name}/tests/")]
                # Only the tests: beside its package, a suite would import that instead of the installed one.
                tar.extractall(download, members=members, filter="data")
            (FOLDER / name).mkdir(exist_ok=True)
            (Path(download) / name / "tests").rename(tests)
    return tests


def main() -> None:
    """Run the suites; exit with 1 if one failed, or if tests were missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few minutes' worth instead of everything")
    parser.add_argument("--workers", default="2", help="processes of pytest-xdist")
    options, extra = parser.parse_known_args()
    # Of its own, so that neither ours nor that of a suite is found.
    settings = FOLDER / "pytest.ini"
    FOLDER.mkdir(exist_ok=True)
    settings.write_text("[pytest]\nmarkers =\n    expensive\n    slow\n")
    workers = ["-n", options.workers, *extra]
    results = {}
    for package, files in (FAST if options.fast else SUITES).items():
        results[package] = run(package, files, "upstream_plugin", settings, workers)
    for stand_in in STAND_INS[:2] if options.fast else STAND_INS:
        files = FAST_OF_DQN if options.fast else SUITES["stable_baselines3"]
        os.environ["SB3_SPARSE_DQN"] = stand_in
        print(f"== {stand_in} for DQN", flush=True)
        results[stand_in] = run("stable_baselines3", files, "rainbow_plugin", settings, workers)
    files = FAST_OF_TD3 if options.fast else SUITES["stable_baselines3"]
    print("== DrQ-v2 for TD3", flush=True)
    results["DrQ-v2"] = run("stable_baselines3", files, "drqv2_plugin", settings, workers)
    failed = [name for name, (status, _) in results.items() if status]
    if not options.fast and not extra:
        missing = [f"{name}: {passed} of {PASSED[name]}" for name, (_, passed) in results.items() if passed < PASSED[name]]
        print("== fewer tests than there are: " + ", ".join(missing) if missing else "== all tests that there are", flush=True)
        failed += missing
    sys.exit(bool(failed))


def run(package: str, files: list[str], plugin: str, settings: Path, options: list[str]) -> tuple[int, int]:
    """The exit status of a package's tests with one of our plugins, and how many have passed."""
    tests = fetch(package)
    print(f"== {package} {version(package)}", flush=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "conformance"), str(ROOT)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", plugin, "-c", str(settings), "--rootdir", str(tests), *options]
    paths = [str(tests / file) for file in files]
    passed = 0
    with subprocess.Popen([*command, *paths], cwd=tests.parent, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if found := re.match(r"(?:\d+ failed, )?(\d+) passed", line):
                passed = int(found[1])
    return process.returncode, passed


if __name__ == "__main__":
    main()
