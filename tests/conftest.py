import os
import random
import shutil

# Before torch loads: the tests are many small operations, for which threads cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch
from helpers import rendered_subject

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def seed_all():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, alone and after any others."""
    seed_all()


def pytest_fixture_setup(fixturedef):
    """So do fixtures that tests share, whichever of them asks first."""
    if fixturedef.scope != "function":
        seed_all()


@pytest.fixture(scope="session", autouse=True)
def small_pictures():
    """Results that are written in this process have textures of 128 px instead of 1024, previews half as wide
    and high, and overlays no larger than the small photos of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fitkit.export.folder.texture_size", lambda result: 128)
        patch.setattr("fitkit.export.folder.TILE", (192, 160))
        patch.setattr("fitkit.export.overlay.SHORT_LONG_SIDE", 256)
        yield


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
