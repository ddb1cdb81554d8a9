"""Blend shapes of two models that have the same name."""

import torch

from fitkit.models.coefficients import shapes_by_name


def test_both_spellings_are_one_name():
    names = ("browDown_L", "browDown_R", "jawOpen", "jawLeft", "mouthRight", "eyeBlink_L")
    other = ("browDownLeft", "brow_down_right", "JawOpen", "jawLeft", "mouthRight", "eyeBlink.L")
    assert torch.equal(shapes_by_name(names, other), torch.eye(6))
    assert torch.equal(shapes_by_name(other, names), torch.eye(6))


def test_sides_and_wholes():
    whole, sides = ("browInnerUp", "tongueOut"), ("browInnerUp_L", "browInnerUp_R")
    assert shapes_by_name(sides, whole).tolist() == [[0.5, 0.5], [0, 0]]
    assert shapes_by_name(whole, sides).tolist() == [[1, 0], [1, 0]]
    assert shapes_by_name(("browInnerUp_L",), whole).tolist() == [[0], [0]]
