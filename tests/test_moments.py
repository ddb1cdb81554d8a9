"""The fit of benchmarks/moments.py, with two moments."""

import importlib.util
import re
from pathlib import Path

import pytest

from fitkit.models.registry import load_model

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "moments.py"


@pytest.mark.skipif(not SCRIPT.exists(), reason="needs the repository's benchmarks/")
def test_eliminated_moments_lead_to_the_same_face():
    spec = importlib.util.spec_from_file_location("moments", SCRIPT)
    moments = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(moments)
    lines = [moments.fit(load_model(), 2, eliminate) for eliminate in (True, False)]
    assert re.search("2 moments .* converged after", lines[0])
    ends = [line[line.index("converged") :] for line in lines]
    assert ends[0] == ends[1]
