from dataclasses import replace

import torch
from helpers import tiny_model, tiny_state

from fitkit.scene.blocks import BLOCKS, UNKNOWNS, Unknown
from fitkit.scene.layout import ParameterLayout, retract

STATE = tiny_state(tiny_model(dtype=torch.float64), views=3)


def test_every_block_moves_what_it_declares_and_nothing_else():
    fields = ("identity", "landmark_offset", "expression", "pose", "camera", "illumination")
    assert len(UNKNOWNS) == len(fields)
    for unknown, field in zip(UNKNOWNS, fields):
        block = unknown.block(STATE)
        change = 0.1 * torch.ones(3, block.width, dtype=torch.float64)
        moved = block.retract(STATE, change)
        for other in fields:
            assert (getattr(moved, other) is getattr(STATE, other)) == (other != field)
        assert block.name == unknown.name and block.step.shape == (block.width,)
        assert bool((block.step > 0).all())


def test_owners_are_numbered_without_gaps():
    pose = UNKNOWNS[BLOCKS.index("pose")]
    block = pose.block(STATE, torch.tensor([7, 3, 7]))
    assert block.owner.tolist() == [1, 0, 1] and block.copies == 2
    assert pose.block(STATE).owner.tolist() == [0, 1, 2]
    assert UNKNOWNS[0].block(STATE).owner.tolist() == [0, 0, 0]


def test_a_new_unknown_is_one_declaration():
    def shifted(state, change):
        return state.replace(camera=replace(state.camera, principal=state.camera.principal + change))

    principal = Unknown("principal", lambda s: 2, (5.0, 3.0), shifted)
    blocks = (UNKNOWNS[0].block(STATE), principal.block(STATE, torch.tensor([0, 0, 1])))
    layout = ParameterLayout(blocks, torch.arange(3), STATE.subject)
    assert layout.shared == ("identity", "principal") and layout.total == 8 + 4
    step = torch.arange(12, dtype=torch.float64)
    moved = retract(STATE, step, layout)
    torch.testing.assert_close(
        moved.camera.principal - STATE.camera.principal, step[[8, 9, 8, 9, 10, 11]].reshape(3, 2)
    )
    assert layout.steps.tolist() == [1.0] * 8 + [5.0, 3.0] * 2
