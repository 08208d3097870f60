import os

# One thread for each of pytest's workers and the processes that they start: more would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch as th

# Programs, which the search for doctests would import.
collect_ignore = [
    *("compatibility/make_files.py", "compatibility/make_pickles.py"),
    *("conformance/upstream_plugin.py", "conformance/rainbow_plugin.py", "conformance/drqv2_plugin.py"),
]


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run the tests that take long, too")


def pytest_collection_modifyitems(config, items):
    reasons = {}
    if not th.cuda.is_available():
        reasons["cuda"] = f"no GPU: torch {th.__version__} finds no CUDA device"
    if not config.getoption("--full"):
        reasons["full"] = "takes long: make full, or pytest --full"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    th.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _backend_choices_of_its_own(tmp_path_factory):
    """Tests neither read nor write the user's measured backend choices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_SPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
