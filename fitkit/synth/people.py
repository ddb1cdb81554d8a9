"""What a synthetic subject's age and sex mean for hair and skin, for models that know them; the others draw
everything freely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fitkit.models.face_model import FaceModel
from fitkit.models.makehuman import ANCESTRIES, MakeHumanModel, Traits
from fitkit.synth.paint import HairLook, SkinLook
from fitkit.synth.random_faces import FaceVariation, is_cap

ADULT = 17.0  # years
MELANIN = {"african": (0.6, 1.0), "asian": (0.12, 0.6), "caucasian": (0.0, 0.4)}
CUT = 2.7  # standard deviations of a coefficient


def random_identity(
    model: FaceModel, rng: np.random.Generator, vary: FaceVariation
) -> tuple[np.ndarray, Traits | None]:
    """Coefficients [K_id] of somebody, and who that is where the model knows it.

    Standard-normal ones spread by `variation.identity`; a model of MakeHuman draws people in its own way and
    leaves that out.
    """
    if isinstance(model, MakeHumanModel):
        return model.random_person(rng)
    return np.clip(rng.normal(size=model.num_identity) * rng.uniform(*vary.identity), -CUT, CUT), None


def suited(vary: FaceVariation, traits: Traits) -> FaceVariation:
    """The variation with shares of beard, make-up, bald heads, ... and skin that suit this person; a share of
    0 stays 0."""
    man, grown = traits.male > 0.5, traits.years >= ADULT

    def share(value: float, suits: bool, factor: float = 2.0) -> float:
        return min(0.9, factor * value) if suits else 0.0

    old = float(np.interp(traits.years, [30, 75], [0, 1]))
    low, high = (
        sum(part * MELANIN[name][k] for name, part in zip(ANCESTRIES, traits.ancestry)) for k in (0, 1)
    )
    least, span = vary.melanin[0], vary.melanin[1] - vary.melanin[0]
    return replace(
        vary,
        melanin=(least + low * span, least + high * span),
        stubble=share(vary.stubble, man and grown),
        beard=share(vary.beard, man and grown),
        make_up=share(vary.make_up, not man and grown),
        bald=share(vary.bald, man and grown, 1.0 + 2.0 * old),
        long_hair=vary.long_hair * (0.35 if man else 1.7) if vary.long_hair < 0.5 else vary.long_hair,
        gray=share(vary.gray, traits.years > 35, 1.0 + 5.0 * old),
    )


def aged(person: SkinLook, traits: Traits) -> SkinLook:
    """The same colours with the folds, the tired eyes and the brows of this age; a child's skin is smooth."""
    years = traits.years
    folds = float(np.interp(years, [10, 25, 45, 80], [0.0, 0.25, 0.6, 1.0]))
    return replace(
        person,
        age=min(0.35, folds * (0.12 + person.age)),
        tired=person.tired * (0.4 + folds),
        blotch=person.blotch * (0.6 + 0.7 * folds),
        pore=0.02 + person.pore,
        lid_crease=0.35 * person.lid_crease,  # the mesh has a fold of its own there
        brow=person.brow * (0.7 if years < ADULT else 1.0),
    )


def other_day(rng: np.random.Generator, hair: HairLook, vary: FaceVariation) -> HairLook:
    """The same hair on another day: combed, cut or grown; colour, hairline and baldness stay."""
    if hair.bald or is_cap(hair):
        return hair
    fringe = hair.fringe
    if rng.random() < 0.4:
        fringe = rng.uniform(52, 88) if rng.random() < vary.fringe else None
    return replace(
        hair,
        thickness=hair.thickness * rng.uniform(0.6, 1.4),
        length=hair.length * rng.uniform(0.55, 1.15),
        open_angle=float(np.clip(hair.open_angle + rng.normal() * 8, 50, 100)),
        fringe=fringe,
        fringe_middle=hair.fringe_middle + rng.normal() * 8,
        ragged=hair.ragged * rng.uniform(0.7, 1.3),
    )
