import shutil

import pytest
from helpers import rendered_subject


@pytest.fixture(scope="session")
def _rendered(tmp_path_factory):
    return rendered_subject(tmp_path_factory.mktemp("rendered") / "anna")


@pytest.fixture
def anna(_rendered, tmp_path):
    """A subject folder of three rendered 192 px views with .pts files; a fresh copy for each test."""
    return shutil.copytree(_rendered, tmp_path / "anna")
