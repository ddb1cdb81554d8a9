"""A protocol is one file."""

import inspect
from pathlib import Path

import layouts
import pytest
from click.testing import CliRunner
from helpers import tiny_model

from fitkit.cli.main import main
from fitkit.evaluate import protocols
from fitkit.evaluate.protocols import PROTOCOLS, find_protocols
from fitkit.models.io import save_model_file

ECHO = '''
"""Only for a test."""

from functools import partial

from fitkit.data.samples import EvaluationSample, no_truth, people_in
from fitkit.evaluate.protocols.base import Protocol, Scored
from fitkit.io.subject import load_subject


class Width(Protocol):
    """How wide predicted faces are.

    Data: a folder of subject folders.
    Metric: width of the neutral mesh, mm.
    Source: none.
    """

    units = {"width": "mm"}

    def samples(self, folder, options):
        return [EvaluationSample(p.name, partial(load_subject, p), no_truth) for p in people_in(folder, 1)]

    def score(self, sample, prediction, options, context):
        prediction.need("vertices")
        return Scored({"width": float(prediction.vertices[:, 0].max() - prediction.vertices[:, 0].min())})


PROTOCOL = Width()
'''


@pytest.mark.parametrize("name", PROTOCOLS)
def test_each_says_its_data_metric_and_source(name):
    protocol = PROTOCOLS[name]
    assert Path(inspect.getfile(type(protocol))).stem == name
    text = inspect.getdoc(type(protocol))
    assert all(f"\n{part}: " in text for part in ("Data", "Metric", "Source"))


def test_a_new_file_is_a_new_protocol(tmp_path, monkeypatch):
    """Nothing else is touched: no table, no recipe."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "face_width.py").write_text(ECHO)
    monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(tmp_path / "code")])
    found = find_protocols()
    assert found.keys() == {*PROTOCOLS, "face_width"}
    monkeypatch.setitem(PROTOCOLS, "face_width", found["face_width"])
    model = save_model_file(tiny_model(), tmp_path / "tiny.npz")
    people = layouts.held_out(tmp_path / "people", layouts.person())
    arguments = ["face_width", people, "predictor=mean", "--model", model, "-o", tmp_path / "out"]
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    mean = tiny_model().mean[:, 0]
    assert f"{float(mean.max() - mean.min()):.4g} ± 0" in result.output
