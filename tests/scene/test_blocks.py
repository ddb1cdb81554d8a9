from dataclasses import replace

import pytest
import torch
from helpers import tiny_joints, tiny_skinned_model, tiny_state

from fitkit.errors import InputError
from fitkit.scene.blocks import BLOCKS, UNKNOWNS, Unknown
from fitkit.scene.layout import ParameterLayout, retract

MODEL = tiny_skinned_model(dtype=torch.float64)
PLAIN = tiny_state(MODEL, views=3)
STATE = PLAIN.replace(joints=tiny_joints(MODEL, 3))


def test_every_block_moves_what_it_declares_and_nothing_else():
    fields = ("identity", "landmark_offset", "expression", "joints", "pose", "pose")
    fields += ("camera", "camera", "camera", "illumination")
    assert len(UNKNOWNS) == len(fields)
    for unknown, field in zip(UNKNOWNS, fields):
        block = unknown.block(STATE)
        change = 0.1 * torch.ones(3, block.width, dtype=torch.float64)
        moved = block.retract(STATE, change)
        for other in fields:
            assert (getattr(moved, other) is getattr(STATE, other)) == (other != field)
        assert block.name == unknown.name and block.step.shape == (block.width,)
        assert bool((block.step > 0).all())


def test_the_joints_of_a_state_without_any_are_no_numbers():
    layout = ParameterLayout.of(PLAIN, ("joints", "pose"))
    assert layout.order == ("pose",) and layout.total == 18
    assert retract(PLAIN, torch.zeros(18).double(), layout).joints is None
    with pytest.raises(InputError, match="free parameters: the state has no numbers for joints"):
        ParameterLayout.of(PLAIN, ("joints",))
    step = torch.zeros(3 * 12, dtype=torch.float64)
    step[12 + 4] = 0.25
    moved = retract(STATE, step, ParameterLayout.of(STATE, ("joints",)))
    expected = STATE.joints.clone()
    expected[1, 1, 1] += 0.25
    assert torch.equal(moved.joints, expected)


def test_owners_are_numbered_without_gaps():
    pose = UNKNOWNS[BLOCKS.index("pose")]
    block = pose.block(STATE, torch.tensor([7, 3, 7]))
    assert block.owner.tolist() == [1, 0, 1] and block.copies == 2
    assert pose.block(STATE).owner.tolist() == [0, 1, 2]
    assert UNKNOWNS[0].block(STATE).owner.tolist() == [0, 0, 0]


def test_a_new_unknown_is_one_declaration():
    def thinner(state, change):
        focal, aspect = state.camera.focal + change[:, 0], state.camera.aspect + change[:, 1]
        return state.replace(camera=replace(state.camera, focal=focal, aspect=aspect))

    lens = Unknown("lens", lambda s: 2, (5.0, 3.0), thinner)
    blocks = (UNKNOWNS[0].block(STATE), lens.block(STATE, torch.tensor([0, 0, 1])))
    layout = ParameterLayout(blocks, torch.arange(3), STATE.subject)
    assert layout.shared == ("identity", "lens") and layout.total == 8 + 4
    step = torch.arange(12, dtype=torch.float64)
    moved = retract(STATE, step, layout)
    torch.testing.assert_close(moved.camera.focal - STATE.camera.focal, step[[8, 8, 10]])
    torch.testing.assert_close(moved.camera.aspect - STATE.camera.aspect, step[[9, 9, 11]])
    assert layout.steps.tolist() == [1.0] * 8 + [5.0, 3.0] * 2
