"""Fits of a model whose expressions are signed Gaussian coefficients, as those of BFM and FLAME."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import observe, tiny_model, tiny_state

from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.report import FitReport
from fitkit.fitting.run import fit_observed
from fitkit.io.subject import Subject, View
from fitkit.models.io import load_model_file, save_model_file

SIZE, VIEWS, PEOPLE = 400, 3, 4
SIGMA = torch.tensor([0.1, 0.3, 1.0, 1.0, 3.0, 10.0])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The tiny model: a standard deviation of a shape is half of its blend shape, whatever the units."""
    tiny = tiny_model(num_identity=4)
    basis = 0.5 * tiny.expression_basis / SIGMA[:, None, None]
    model = replace(tiny, expression_kind="gaussian", expression_sigma=SIGMA, expression_basis=basis)
    return load_model_file(save_model_file(model, tmp_path_factory.mktemp("model") / "tiny.npz"))


def as_blend_shapes(model):
    """The same faces at the same numbers of standard deviations, said to be weights of 0 to 1."""
    basis = model.expression_basis * SIGMA[:, None, None]
    return replace(model, expression_kind="blend_shape", expression_sigma=None, expression_basis=basis)


def fitted(model, truth):
    marks = replace(observe(model, truth, SIZE).landmarks, sigma=torch.full((VIEWS, 68), torch.nan))
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    photos = Subject("test", tuple(View(f"view{i}", grey) for i in range(VIEWS)))
    return fit_observed(photos, marks, model, load_recipe("landmarks"))


@pytest.fixture(scope="module")
def people(model):
    """Truth in standard deviations [VIEWS, K] and the fits as Gaussian coefficients and as blend shapes."""
    out = []
    for seed in range(PEOPLE):
        gen = torch.Generator().manual_seed(seed)
        sigmas = torch.randn(VIEWS, len(SIGMA), generator=gen)
        truth = tiny_state(model, VIEWS, SIZE, seed)
        results = [
            fitted(m, truth.replace(expression=m.coefficients["expression"].unit(sigmas) * sigmas))
            for m in (model, as_blend_shapes(model))
        ]
        out.append((sigmas, *results))
    return out


def test_negative_coefficients_are_found_as_positive_ones(people):
    truth = torch.cat([t for t, _, _ in people])
    gaussian = torch.cat([r.state.expression for _, r, _ in people]) / SIGMA
    blend = torch.cat([r.state.expression for _, _, r in people])

    def share(found, sign):
        """What is found of coefficients of this sign, slope through 0."""
        where = sign * truth > 0
        return float((found * truth)[where].sum() / truth[where].square().sum())

    assert share(gaussian, -1) > 0.97 and abs(share(gaussian, -1) - share(gaussian, 1)) < 0.03
    assert abs(float((gaussian - truth).mean())) < 0.03
    # The prior of blend shapes pulls negative ones up.
    assert share(blend, -1) < 0.5 < 0.8 < share(blend, 1) and float((blend - truth).mean()) > 0.1


def test_the_verdict_counts_standard_deviations(people):
    for truth, gaussian, blend in people:
        assert gaussian.status == "ok" and gaussian.warnings == ()
        assert blend.status == "doubtful" and any("weights lie outside of" in w for w in blend.warnings)
        said = gaussian.metrics["expression"]
        assert said["beyond_3_sigma"] == said["out_of_range"] == 0.0
        assert said["largest"] == pytest.approx(float(truth.abs().max()), rel=0.15)
        assert "beyond_3_sigma" not in blend.metrics["expression"]


def test_coefficients_that_hardly_anybody_has_are_doubtful(model):
    truth = tiny_state(model, VIEWS, SIZE)
    far = SIGMA * torch.tensor([-4.5, 0.0, 4.5, 0.0, 0.0, -4.5])
    result = fitted(model, truth.replace(expression=far.expand(VIEWS, -1).clone()))
    assert result.status == "doubtful"
    assert FitReport.from_metrics(result.metrics).expression == result.report.expression
    assert [f.code for f in result.report.verdict.findings if f.code.startswith("expression")] == [
        "expression_beyond_3_sigma"
    ]
