import pytest


@pytest.fixture(autouse=True, scope="session")
def _backend_choices_of_its_own(tmp_path_factory):
    """Tests neither read nor write the user's measured backend choices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SB3_SPARSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
