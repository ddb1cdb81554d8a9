import os
import shutil

# Before torch loads: the tests are many small operations, for which threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from helpers import rendered_subject

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request):
    """Each device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


@pytest.fixture(scope="session")
def _rendered(tmp_path_factory):
    return rendered_subject(tmp_path_factory.mktemp("rendered") / "anna")


@pytest.fixture
def anna(_rendered, tmp_path):
    """A subject folder of three rendered 192 px views with .pts files; a fresh copy for each test."""
    return shutil.copytree(_rendered, tmp_path / "anna")
