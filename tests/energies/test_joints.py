"""Energies of a face model with joints: derivatives by all that moves a point."""

from dataclasses import replace

import pytest
import torch
from derivatives import check_everything
from helpers import LucasKanade, observe, photograph, tiny_joints, tiny_skinned_model, tiny_state

from fitkit.energies.census import CensusOptions, CrossViewCensus
from fitkit.energies.flow_correspondence import FlowCorrespondence, FlowImages, FlowOptions
from fitkit.energies.flow_triangulated import TriangulatedFlow, TriangulationOptions
from fitkit.energies.kernels import Kernel
from fitkit.energies.landmarks import LandmarkReprojection, eye_offsets
from fitkit.energies.landmarks3d import lmk3d_align, lmk_guided
from fitkit.energies.photo_model import ModelPhotometric, ModelPhotometricOptions
from fitkit.energies.photometric import CrossViewPhotometric, PhotometricOptions
from fitkit.observe.labels import Labels
from fitkit.tensors import move

MODEL = tiny_skinned_model(dtype=torch.float64)
TRUTH = tiny_state(MODEL, 3).replace(joints=tiny_joints(MODEL, 3))
AT = TRUTH.replace(joints=TRUTH.joints + tiny_joints(MODEL, 3, 0.02, seed=1), identity=0.9 * TRUTH.identity)
OBS = observe(MODEL, TRUTH, images=photograph(MODEL, TRUTH, 160))
OBS = replace(OBS, labels=Labels(points3d=1.1 * MODEL.landmark_points(*TRUTH.coefficients()) + 3))
SIGMA = torch.full((3, 68), 1.5, dtype=torch.float64)
FLOW = FlowOptions(size=96, points=30, sigma_px=1.0)


def matcher(options=FLOW):
    return FlowCorrespondence(MODEL, options, LucasKanade(), 1.3, FlowImages.of(OBS, options))


ENERGIES = {
    "lmk2d, outline": lambda: LandmarkReprojection(MODEL, SIGMA, "outline"),
    "lmk2d, surface": lambda: LandmarkReprojection(MODEL, SIGMA, "surface"),
    "lmk2d_eye": lambda: eye_offsets(MODEL, SIGMA),
    "lmk3d_align": lambda: lmk3d_align(MODEL),
    "lmk_guided": lambda: lmk_guided(MODEL),
    "flow_corr": matcher,
    "flow_triangulated": lambda: TriangulatedFlow(
        matcher(), TriangulationOptions(**vars(FLOW) | {"max_gap": 1e9, "min_parallax_deg": 0.1})
    ),
    "census_xview": lambda: CrossViewCensus.prepare(MODEL, OBS, CensusOptions(points=40)),
    "photo_xview": lambda: CrossViewPhotometric.prepare(MODEL, OBS, PhotometricOptions(points=40)),
    "photo_model": lambda: ModelPhotometric.prepare(MODEL, OBS, ModelPhotometricOptions(points=40)),
    "photo_model, pixels": lambda: ModelPhotometric.prepare(
        MODEL, OBS, ModelPhotometricOptions(points=0, level=4, blur=0.0)
    ),
}
FREE = ("identity", "expression", "joints", "pose", "focal")


@pytest.mark.parametrize("name", list(ENERGIES))
def test_derivatives(name):
    energy = move(ENERGIES[name]().freeze(AT, OBS), dtype=torch.float64)  # weights of the flow are single
    r = energy.residuals(AT, OBS)
    assert int(r.valid.sum()) > 10 and float(r.value[r.valid].abs().max()) > 1e-3
    away = AT.replace(
        pose=AT.pose.retract(torch.tensor([[0.004, 0.003, 0.002, 0.7, -0.5, 1.0]]).double().expand(3, 6))
    )
    kinks = "photo" in name or "census" in name
    check_everything(energy, away, OBS, FREE, kinks, kernels=(Kernel("sq"), Kernel("cauchy", 1.5)))


def test_derivatives_by_a_displacement_of_the_mean_face():
    energy = matcher().freeze(AT, OBS)
    residuals, by_corner, corner = energy.linearize_surface(AT)
    offset = torch.randn(MODEL.mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def value(size):
        moved = replace(energy, model=MODEL.with_mean(MODEL.mean + size * offset))
        return moved.residuals(AT, OBS).value

    expected = torch.func.jacfwd(value)(torch.zeros((), dtype=torch.float64))
    got = (by_corner * offset[corner][:, :, None]).sum((-1, -2))
    torch.testing.assert_close(got[residuals.valid], expected[residuals.valid])


def test_the_same_as_the_linear_model_while_nothing_turns():
    linear = replace(matcher().freeze(AT, OBS), model=MODEL)
    rest = AT.replace(joints=torch.zeros_like(AT.joints))
    plain = AT.replace(joints=None)
    for energy in (linear, ENERGIES["lmk2d, outline"]().freeze(rest, OBS)):
        torch.testing.assert_close(energy.residuals(rest, OBS).value, energy.residuals(plain, OBS).value)
        for with_joints, without in zip(
            energy.linearize(rest, OBS).slots, energy.linearize(plain, OBS).slots
        ):
            for name, columns in without.columns.items():
                torch.testing.assert_close(with_joints.columns[name], columns)
