"""The fits of benchmarks/moments.py, with two moments, and with three photos."""

import importlib.util
import re
from pathlib import Path

import pytest

from fitkit.models.registry import load_model

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "moments.py"


pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="needs the repository's benchmarks/")


@pytest.fixture(scope="module")
def moments():
    spec = importlib.util.spec_from_file_location("moments", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_photos_of_one_camera_share_a_focal_length(moments, tmp_path):
    subject = moments.photographed(tmp_path / "people", 4, 96)
    assert len(subject.views) == 4 and all(v.camera is None for v in subject.views)
    line = moments.fit_photos(subject, 3, "landmarks")
    assert re.search(r"^ +3 photos .* s a photo, .* focal lengths 0.000 % apart$", line)


def test_eliminated_moments_lead_to_the_same_face(moments):
    lines = [moments.fit(load_model(), 2, eliminate) for eliminate in (True, False)]
    assert re.search("2 moments .* converged after", lines[0])
    ends = [line[line.index("converged") :] for line in lines]
    assert ends[0] == ends[1]
