import os
import shutil

# Before torch loads: the tests are many small operations, for which threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest  # noqa: E402
from helpers import rendered_subject  # noqa: E402


@pytest.fixture(scope="session")
def _rendered(tmp_path_factory):
    return rendered_subject(tmp_path_factory.mktemp("rendered") / "anna")


@pytest.fixture
def anna(_rendered, tmp_path):
    """A subject folder of three rendered 192 px views with .pts files; a fresh copy for each test."""
    return shutil.copytree(_rendered, tmp_path / "anna")
