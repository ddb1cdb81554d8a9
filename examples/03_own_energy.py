"""An energy of your own, in a fit and in the training of a network.

    python examples/03_own_energy.py [OUTPUT]

Photos from unknown distances do not tell how large a head is. Here somebody has measured the distance between
the outer corners of the eyes with a ruler: the energy `eye_distance` holds the face to it. It is written down
once; derivatives come from automatic differentiation, and recipes name it like any other energy.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import fitkit
from fitkit.energies.base import PlainEnergy, Residuals
from fitkit.energies.spec import EnergyDoc, EnergyOptions, EnergySpec
from fitkit.io.options import Positive
from fitkit.models.face_model import FaceModel
from fitkit.train.regressor import train_regressor
from fitkit.train.regressor_recipe import parse_regressor_training

CORNERS = (36, 45)  # outer eye corners among the 68 points


@dataclass(frozen=True)
class EyeDistanceOptions(EnergyOptions):
    """What a recipe can say, beside weight and kernel."""

    distance_mm: Positive = 90.0  # as measured
    sigma_mm: Positive = 0.5  # how exact that is


@dataclass(frozen=True)
class EyeDistance(PlainEnergy):
    """(distance of the outer eye corners of the face at rest - the measured one) / sigma_mm, [S, 1, 1].
    Sums."""

    model: FaceModel
    distance_mm: float
    sigma_mm: float
    name = "eye_distance"

    def residuals(self, state, observations):
        distance = corner_distance(self.model, state.identity)  # [S]
        value = ((distance - self.distance_mm) / self.sigma_mm)[:, None, None]
        return Residuals(value, valid=value[..., 0].isfinite())


def corner_distance(model, identity):
    """Distance of the outer eye corners without expression, [S] mm; identity: [S, K_id]."""
    neutral = identity.new_zeros(len(identity), model.num_expression)
    points = model.landmark_basis.points(identity, neutral)  # [S, 68, 3]
    return (points[:, CORNERS[0]] - points[:, CORNERS[1]]).norm(dim=-1)


fitkit.register_energy(
    EnergySpec(
        name="eye_distance",
        cls=EyeDistance,
        make=lambda context, options: EyeDistance(context.model, options.distance_mm, options.sigma_mm),
        role="prior",
        doc=EnergyDoc("d - measured d", unit="mm", gradient="exact"),
        options=EyeDistanceOptions,
    )
)


def fit(measured_mm):
    """A shipped recipe with the measured distance in place of the usual size of heads."""
    changes = []
    for stage in fitkit.load_recipe("landmarks").stages:
        changes += [
            f"stages.{stage.name}.energies.size_prior=false",
            f"stages.{stage.name}.energies.eye_distance.distance_mm={measured_mm}",
        ]
    return fitkit.fit(Path(__file__).parent / "sample", recipe="landmarks", overrides=changes)


def train(folder):
    """Two steps of a tiny network: enough to see the energy beside the others."""
    recipe = parse_regressor_training(
        {
            "name": "tiny",
            "net": {"options": {"size": 48, "width": 0.12}},
            "data": [{"name": "people", "kind": "synthetic", "options": {"count": 4, "recipe": "clean"}}],
            "batch": 2,
            "pictures": 0,
            "validation": {"share": 0.0},
            "stages": [
                {
                    "name": "supervised",
                    "steps": 2,
                    "energies": {"lmk2d": {}, "eye_distance": {"distance_mm": 95.0, "sigma_mm": 2.0}},
                }
            ],
        },
        "03_own_energy.py",
    )
    train_regressor(recipe, folder, step_done=lambda step, values: print(f"  step {step}:", values))


if __name__ == "__main__":
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("own_energy")
    for measured in (85.0, 95.0):
        result = fit(measured)
        found = float(corner_distance(result.model, result.state.identity)[0])
        print(f"measured {measured:.1f} mm, fitted {found:.1f} mm, {result.status}")
    print("training:", flush=True)
    train(output)
