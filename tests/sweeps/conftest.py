import pytest

from tests.sweeps import small


@pytest.fixture(scope="session")
def four_runs(tmp_path_factory):
    """The small study, undisturbed."""
    return small.undisturbed(tmp_path_factory.mktemp("four"), seeds=2)


@pytest.fixture(scope="session")
def twelve_runs(tmp_path_factory):
    """The small study with more seeds, undisturbed."""
    return small.undisturbed(tmp_path_factory.mktemp("twelve"), seeds=6)
