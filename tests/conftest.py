"""For every test: facts are kept in a folder of this run alone."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def facts_of_this_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HETEROSIS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
