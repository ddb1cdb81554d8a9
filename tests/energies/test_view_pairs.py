"""Which photos are compared: neighbours by yaw, within moments first."""

from dataclasses import replace

import pytest
import torch
from helpers import tiny_model, tiny_state

from fitkit.energies.flow_correspondence import FlowOptions, view_pairs
from fitkit.energies.flow_magnitude import both_ways
from fitkit.energies.view_pairs import neighbor_views
from fitkit.geometry.rotation import so3_exp
from fitkit.scene.pose import Pose

MODEL = tiny_model()


def turned(yaw_deg, subject=None):
    """People whose views see the head from these sides."""
    B, yaw = len(yaw_deg), torch.deg2rad(torch.tensor(yaw_deg, dtype=torch.float32))
    turn = torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ so3_exp(torch.stack([0 * yaw, yaw, 0 * yaw], 1))
    state = tiny_state(MODEL, B)
    state = state.replace(pose=Pose(turn, torch.zeros(B, 3)))
    return state if subject is None else replace(state, subject=torch.tensor(subject))


def pairs(state, neighbors=1, moment=None):
    found = neighbor_views(state, neighbors, None if moment is None else torch.tensor(moment))
    assert len({frozenset(n[:2]) for n in found}) == len(found)  # each once
    return {frozenset(n[:2]) for n in found}


def test_neighbours_in_yaw():
    order = [2, 0, 3, 1]  # view i has the yaw rank order[i]
    state = turned([30.0 * rank for rank in order])
    for k in (1, 2):
        near = [(i, j) for i in range(4) for j in range(i) if abs(order[i] - order[j]) <= k]
        assert pairs(state, k) == set(map(frozenset, near))


def test_pairs_stay_within_moments_and_one_link_joins_them():
    # three cameras at -40, 0 and 40 degrees, the head turned by 5 degrees in the second moment
    state = turned([-40, 0, 40, -35, 5, 45])
    inside = {(0, 1), (1, 2), (3, 4), (4, 5)}
    assert pairs(state, 1, [7, 7, 7, 9, 9, 9]) == {frozenset(p) for p in inside | {(0, 3)}}
    assert pairs(state, 2, [7, 7, 7, 9, 9, 9]) == {frozenset(p) for p in inside | {(0, 2), (3, 5), (0, 3)}}
    assert pairs(state, 1, [7] * 6) == pairs(state)  # one moment


@pytest.mark.parametrize("moments", [3, 10])
def test_as_few_links_as_lead_to_all_moments(moments):
    yaw = [c + 3 * m for m in range(moments) for c in (-60, -20, 20, 60)]
    moment = [m for m in range(moments) for _ in range(4)]
    found = pairs(turned(yaw), 1, moment)
    across = [tuple(moment[v] for v in pair) for pair in found if len({moment[v] for v in pair}) > 1]
    assert len(found) == 3 * moments + moments - 1 and len(across) == moments - 1
    reached = {0}
    for _ in range(moments):
        reached |= {m for pair in across if reached & set(pair) for m in pair}
    assert reached == set(range(moments))


def test_photos_that_are_alone_in_their_moments_are_paired_as_without_moments():
    state = turned([10, -30, 50, -5, 33])
    for k in (1, 2, 3):
        assert neighbor_views(state, k, torch.tensor([4, 0, 2, 8, 1])) == neighbor_views(state, k)
    # beside a moment of two views: three single photos, and one link
    assert pairs(state, 1, [0, 1, 2, 3, 0]) == {frozenset(p) for p in ((0, 4), (1, 3), (3, 2), (3, 0))}


def test_nobodys_moment_is_another_persons():
    state = turned([-20, 0, 20, -20, 0, 20], [0, 0, 0, 1, 1, 1])
    assert pairs(state, 1, [0, 0, 1, 0, 0, 1]) == {frozenset(p) for p in ((0, 1), (1, 2), (3, 4), (4, 5))}


def test_flow_pairs_keep_to_moments():
    state, moment = turned([-40, 0, 40, -35, 5, 45]), torch.tensor([0, 0, 0, 1, 1, 1])
    inside = {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3)}
    ways = {*inside, *((b, a) for a, b in inside)}
    assert set(view_pairs(state, FlowOptions(), moment)) == set(both_ways(state, 1, "any", moment)) == ways
    one = view_pairs(state, FlowOptions(both_ways=4), moment)
    assert {tuple(sorted(p)) for p in one} == inside and len(one) == 5
    # those two places apart of a moment lie 80 degrees apart
    wider = view_pairs(state, FlowOptions(neighbors=2, max_angle_deg=85), moment)
    assert set(wider) == ways | {(0, 2), (2, 0), (3, 5), (5, 3)}
    assert set(view_pairs(state, FlowOptions(neighbors=2), moment)) == ways
