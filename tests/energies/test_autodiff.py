"""Derivatives by automatic differentiation: checked like those written by hand, and equal to them."""

import pytest
import torch
import torch.nn.functional as F
from derivatives import check_jacobian, check_system, layouts, whole_jacobian
from scenes import person, scene
from test_section8 import KINKS

from fitkit.energies import autodiff
from fitkit.energies.base import PlainEnergy, Residuals
from fitkit.energies.kernels import Kernel
from fitkit.energies.objective import Objective, Term, linearization
from fitkit.energies.registry import REGISTRY
from fitkit.errors import InputError
from fitkit.scene.layout import BLOCKS, ParameterLayout
from fitkit.scene.state import SceneState

ALSO = {
    "lmk2d": BLOCKS,
    "landmark_prior": BLOCKS,
    "photo_model": BLOCKS[:1] + BLOCKS[2:],
    "light_mono": BLOCKS,
    "light_prior": BLOCKS,
}
OF_SCENES = [s for s in REGISTRY if s.in_fit and s.takes == "state"]  # the others: test_rendered_depth.py
SLOW = {"flow_mag", "sem_feat", "mask_parse", "photo_pairs"}  # whose passes take time
FREE = ("identity", "expression", "pose", "principal", "focal", "aspect")


class Differentiated(PlainEnergy):
    """An energy as `Objective` sees one without derivatives of its own, and with them as `check_jacobian`
    asks for them."""

    def __init__(self, energy, free):
        self.energy, self.free, self.name, self.reduction = energy, free, energy.name, energy.reduction

    def residuals(self, state, observations):
        return self.energy.residuals(state, observations)

    def linearize(self, state, observations):
        return autodiff.linearize(self.energy, state, observations, self.free)


def frozen(name, size=64):
    example = scene(name, size)
    state = example.make(example.start)
    assert isinstance(state, SceneState)
    return example.objective(example.start).terms[0].energy, state, example.observations


@pytest.mark.parametrize("name", [s.name for s in OF_SCENES if not s.least_squares])
def test_derivatives_of_energies_that_write_none(name):
    energy, state, observations = frozen(name)
    free = ("pose",) if name in SLOW else FREE
    differentiated = Differentiated(energy, free)
    for layout in layouts(state, free):
        check_jacobian(differentiated, state, observations, layout, name in KINKS)
    layout = ParameterLayout.of(state, free)
    check_system(differentiated, state, observations, layout, Kernel("huber", 1.0))
    assert torch.equal(
        Objective([Term(energy)]).linearize(state, observations, layout).dense(),
        Objective([Term(differentiated)]).linearize(state, observations, layout).dense(),
    )


@pytest.mark.parametrize("name", [s.name for s in OF_SCENES if s.least_squares])
def test_they_are_those_written_by_hand(name):
    energy, state, observations = frozen(name)
    blocks = tuple(b for b in BLOCKS if b in ALSO.get(name, FREE))
    theirs, ours = (
        linearization(energy, state, observations, ParameterLayout.of(state, blocks)),
        autodiff.linearize(energy, state, observations, blocks),
    )
    rows = theirs.residuals.valid
    if (
        theirs.residuals.value.shape != ours.residuals.value.shape
    ):  # census: other rows, the same normal equations
        return
    for layout in layouts(state, blocks):
        torch.testing.assert_close(
            whole_jacobian(ours, layout)[rows], whole_jacobian(theirs, layout)[rows], rtol=1e-7, atol=1e-7
        )


def test_a_block_that_is_not_free_takes_no_pass():
    energy, state, observations = frozen("pose_sup")
    slots = autodiff.linearize(energy, state, observations, ("identity", "pose")).slots
    assert len(slots) == 1 and set(slots[0].columns) == {"identity", "pose"}
    assert float(slots[0].columns["identity"].abs().max()) == 0


class FirstOrder(PlainEnergy):
    """Something whose operation has no forward derivative."""

    name = "first_order"

    def residuals(self, state, observations):
        grid = state.pose.translation[None, None, :, :2].expand(1, 9, -1, -1) / 1000
        read = F.grid_sample(torch.arange(16, dtype=grid.dtype).reshape(1, 1, 4, 4), grid, align_corners=True)
        return Residuals(read[0, 0, :, :, None], torch.ones(9, state.num_views, dtype=torch.bool))


def test_an_operation_without_a_forward_derivative_is_refused_with_what_to_do():
    state = person()
    layout = ParameterLayout.of(state, ("pose",))
    with pytest.raises(
        InputError, match=r"energy 'first_order': .* grid_sampler_2d .*; use solver 'adam' for it"
    ):
        Objective([Term(FirstOrder())]).linearize(state, None, layout)
