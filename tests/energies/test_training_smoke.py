"""Every energy of the registry trains a network: Adam through `Objective.cost` lowers the energy and the
error that it stands for.

The network predicts the parameters of a state (or depth maps, or a position map) from a fixed input and
starts at wrong ones. The error is that of the vertices where the energy asks for a shape or a place, of the
depth map for depth networks, and for priors the size of what they hold down.
"""

import pytest
from scenes import SCENES, scene, train

from fitkit.energies.registry import REGISTRY

# Depth maps of 64 px say the same in half the time.
SMALL = {"photo_warp_depth", "normal_sup", "ssim_xview", "depth_xview"}
# What may be left after 40 steps of (cost, error), as a share of the start: a tenth of the cost and half of
# the error but for these. What compares resampled pictures does not vanish at the truth, lid points say
# little about the rest of the face, and only a part of a depth map is seen by another frame.
LEFT = {
    "census_xview": (0.6, 0.7),
    "sem_feat": (0.6, 0.6),
    "mask_parse": (0.2, 0.6),
    "lmk2d_eye": (0.1, 0.7),
    "ssim_xview": (0.5, 0.5),
    "lmk3d_align": (0.3, 0.5),
    "photo_xview": (0.1, 0.6),
    "photo_pairs": (0.4, 0.7),
    "depth_xview": (0.1, 0.8),
}


def test_every_energy_has_a_scene():
    assert set(SCENES) == {row.name for row in REGISTRY}


@pytest.mark.parametrize("row", REGISTRY, ids=lambda r: r.name)
def test_training(row):
    example = scene(row.name, 64 if row.name in SMALL else 96)
    energy = example.prepare(example.observations)
    assert type(energy) is row.cls and energy.name == row.name and energy.reduction == row.reduction
    costs, state, network = train(example, 40, 0.05)
    assert float(network.weight.grad.abs().max()) > 0
    share = costs[-1] / costs[0], example.error(state) / example.error(example.make(example.start))
    limits = LEFT.get(row.name, (0.1, 0.5))
    assert share[0] < limits[0] and share[1] < limits[1], share
