"""Fits of pictures that a face model itself made: what was rendered must be found again."""

from dataclasses import replace

import torch
from helpers import observe, photograph, tiny_state

from fitkit.fitting.recipe import load_recipe
from fitkit.fitting.run import fit_observed
from fitkit.geometry.alignment import similarity_align
from fitkit.io.subject import Subject, View


def fit_of_own_renders(
    model, expression=0.3, joints=0.5, recipe="landmarks", size=320, views=3
) -> tuple[float, float]:
    """Mean distance in mm of the vertices of the face, in each photo after a similarity, of a random person
    of `model` from the fit, and from the model's mean.

    expression, joints: their spread, in standard deviations.
    """
    gen = torch.Generator().manual_seed(0)
    kinds = model.coefficients
    truth = tiny_state(model, views, size)
    weights = expression * torch.randn(views, model.num_expression, generator=gen)
    if kinds["expression"].kind == "blend_shape":
        weights = weights.abs()
    truth = truth.replace(expression=kinds["expression"].unit(weights) * weights)
    if model.num_joints:
        turned = joints * model.joint_sigma * torch.randn(views, model.num_joints, 3, generator=gen)
        truth = truth.replace(joints=turned)
    pictures = photograph(model, truth, size).permute(0, 2, 3, 1)
    photos = Subject(
        "test", tuple(View(f"view{i}", p) for i, p in enumerate((pictures * 255).round().byte().numpy()))
    )
    points = observe(model, truth, size).landmarks
    marks = replace(points, sigma=torch.full(points.points.shape[:2], torch.nan))
    result = fit_observed(photos, marks, model, load_recipe(recipe))
    wanted, mean = truth.vertices(model)[:, model.face], model.mean[model.face]
    return distance(result.state.vertices(model)[:, model.face], wanted), distance(mean, wanted)


def distance(found, wanted) -> float:
    """Mean over vertices [views, N, 3] after the similarity that is best for each view."""
    found = found.expand_as(wanted)
    best = similarity_align(found, wanted, torch.ones(found.shape[:2], dtype=torch.bool))
    moved = best.scale[:, None, None] * found @ best.rotation.transpose(1, 2) + best.translation[:, None]
    return float((moved - wanted).norm(dim=-1).mean())
