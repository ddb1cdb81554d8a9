import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.errors import InputError
from fitkit.geometry.rotation import so3_exp
from fitkit.scene.layout import BLOCKS, ParameterLayout, retract
from fitkit.scene.state import SceneState


def state():
    return tiny_state(tiny_model(dtype=torch.float64), views=3)


def test_blocks_owned_by_a_view_and_shared_ones():
    s = state()
    plain = ParameterLayout.of(s, BLOCKS)
    assert plain.shared == ("identity", "landmarks", "rig_scale")
    assert plain.own == ("expression", "pose", "principal", "focal", "aspect", "illumination")
    assert plain.num_shared == 8 + 204 + 1 and plain.num_own == 6 + 6 + 2 + 1 + 1 + 9
    assert plain.total == 8 + 204 + 1 + 3 * 25
    one = torch.zeros(3)
    rig = ParameterLayout.of(
        s, BLOCKS, {"expression": one, "pose": one, "focal": torch.tensor([0, 0, 1]), "illumination": None}
    )
    assert rig.shared == ("identity", "landmarks", "expression", "pose", "rig_scale", "focal")
    assert rig.own == ("principal", "aspect", "illumination")
    assert rig.num_shared == 8 + 204 + 6 + 6 + 1 + 2 and rig.total == 227 + 36


@pytest.mark.parametrize(
    "owners", [{}, {"expression": torch.zeros(3), "pose": torch.zeros(3), "focal": torch.tensor([4, 9, 4])}]
)
def test_every_step_position_is_used_and_own_ones_once(owners):
    layout = ParameterLayout.of(state(), ("identity", "expression", "pose", "focal"), owners)
    assert sorted(set(layout.index.flatten().tolist())) == list(range(layout.total))
    own = layout.index[:, layout.index.shape[1] - layout.num_own :]
    assert len(own.unique()) == own.numel()


def test_what_one_moment_owns_is_no_longer_shared():
    s = tiny_state(tiny_model(), views=5)
    moment, camera = torch.tensor([3, 3, 8, 8, 8]), torch.tensor([0, 1, 0, 1, 2])
    owners = {"expression": moment, "pose": moment, "focal": camera}
    free = ("identity", "expression", "pose", "focal", "illumination")
    layout = ParameterLayout.of(s, free, owners, moment)
    assert layout.shared == ("identity", "focal") and layout.own == ("expression", "pose", "illumination")
    # Room for the light of three views each, though the first moment has two.
    assert layout.num_moments == 2 and layout.num_shared == 8 + 3 and layout.num_own == 6 + 6 + 3 * 9
    assert ParameterLayout.of(s, free, owners).own == ("illumination",)
    change = layout.split(torch.arange(layout.total))
    for name, owner in (*owners.items(), ("illumination", torch.arange(5))):
        same = (change[name][:, None] == change[name]).all(-1)
        assert torch.equal(same, owner[:, None] == owner)
    assert len(layout.index.unique()) == layout.total - 9
    assert torch.equal(
        (layout.index[:, 9:] - 11) // layout.num_own, (moment > 3).long()[:, None].expand(-1, 21)
    )


def test_split_and_retract_follow_the_groups():
    s = state()
    layout = ParameterLayout.of(s, BLOCKS, {"focal": torch.tensor([0, 0, 1])})
    step = 0.1 * torch.randn(layout.total, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    change = layout.split(step)
    assert torch.equal(change["identity"][0], change["identity"][2])
    assert torch.equal(change["focal"][0], change["focal"][1]) and not torch.equal(
        change["focal"][0], change["focal"][2]
    )
    new = retract(s, step, layout)
    torch.testing.assert_close(new.identity, s.identity + change["identity"][:1])
    torch.testing.assert_close(new.expression, s.expression + change["expression"])
    torch.testing.assert_close(new.landmark_offset, change["landmarks"][:1].reshape(1, 68, 3))
    torch.testing.assert_close(retract(new, step, layout).landmark_offset, 2 * new.landmark_offset)
    torch.testing.assert_close(new.camera.focal, s.camera.focal * change["focal"][:, 0].exp())
    torch.testing.assert_close(new.camera.aspect, s.camera.aspect * change["aspect"][:, 0].exp())
    torch.testing.assert_close(new.illumination, s.illumination + change["illumination"].reshape(3, 9, 1))
    torch.testing.assert_close(new.pose.rotation, s.pose.rotation @ so3_exp(change["pose"][:, :3]))
    there, away = s.pose.retract(change["pose"]).translation, change["rig_scale"].exp()
    torch.testing.assert_close(new.pose.translation, there * away)
    shift = change["principal"] * s.camera.focal[:, None]
    torch.testing.assert_close(new.camera.principal, s.camera.principal + shift)


def test_blocks_that_are_not_free_stay():
    s = state()
    layout = ParameterLayout.of(s, ("pose",))
    new = retract(s, torch.ones(layout.total, dtype=torch.float64), layout)
    assert (
        new.identity is s.identity
        and new.expression is s.expression
        and new.camera is s.camera
        and new.illumination is s.illumination
    )


def test_one_view_owns_everything_but_the_identity():
    s = tiny_state(tiny_model(), views=1)
    layout = ParameterLayout.of(s, BLOCKS, {"expression": torch.zeros(1), "focal": torch.zeros(1)})
    assert layout.shared == ("identity", "landmarks", "rig_scale")


def test_refusals():
    s = state()
    with pytest.raises(
        InputError,
        match="expected some of identity, landmarks, expression, joints, pose, rig_scale, .*; got 'depth'",
    ):
        ParameterLayout.of(s, ("pose", "depth"))
    with pytest.raises(InputError, match="expected some of identity, .*; got 'head'"):
        ParameterLayout.of(s, ("pose",), {"head": torch.zeros(3)})
    with pytest.raises(
        InputError, match=r"owner of 'pose': expected a number for each of the 3 views, got \[2\]"
    ):
        ParameterLayout.of(s, ("pose",), {"pose": torch.zeros(2)})
    with pytest.raises(InputError, match="owner of 'identity': the person owns it; name no other owner"):
        ParameterLayout.of(s, ("identity",), {"identity": torch.arange(3)})
    with pytest.raises(InputError, match=r"moments: expected a number for each of the 3 views, got \[4\]"):
        ParameterLayout.of(s, ("pose",), moment=torch.arange(4))
    two = s.replace(identity=s.identity.expand(2, -1))
    with pytest.raises(InputError, match="people: expected a view of each of the 2, got views of 1"):
        ParameterLayout.of(two, ("pose",))


def test_people_have_their_own_parameters():
    parts = [tiny_state(tiny_model(dtype=torch.float64), views=n, seed=n) for n in (3, 1, 2)]
    owners = [{"focal": torch.tensor([0, 0, 1])}, {}, {"focal": torch.zeros(2)}]
    layouts = [ParameterLayout.of(s, BLOCKS, o) for s, o in zip(parts, owners)]
    whole = SceneState.join(parts)
    joined = ParameterLayout.of(whole, BLOCKS, {"focal": torch.tensor([0, 0, 1, 0, 0, 0])})
    assert joined.num_people == 3 and joined.num_moments == 3 and joined.total == 3 * joined.each
    # Two people share a focal length between photos: it is of none of the moments, in the third one neither.
    assert joined.shared == ("identity", "landmarks", "rig_scale", "focal") and layouts[1].own[-3:] == (
        "focal",
        "aspect",
        "illumination",
    )
    step = torch.zeros(joined.total, dtype=torch.float64)
    alone, first = [], 0
    for number, (layout, state) in enumerate(zip(layouts, parts)):
        mine = 0.1 * torch.randn(layout.total, generator=torch.Generator().manual_seed(number)).double()
        views = torch.arange(first, first + state.num_views)
        for name in layout.sizes:
            step[joined.columns([name])[views]] = mine[layout.columns([name])]
        alone.append(retract(state, mine, layout))
        first += state.num_views
    moved = retract(whole, step, joined)
    for name in ("identity", "expression", "landmark_offset", "illumination"):
        assert torch.equal(getattr(moved, name), torch.cat([getattr(s, name) for s in alone]))
    assert torch.equal(moved.camera.focal, torch.cat([s.camera.focal for s in alone]))
    assert torch.equal(moved.pose.translation, torch.cat([s.pose.translation for s in alone]))
