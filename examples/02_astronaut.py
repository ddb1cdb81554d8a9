"""Fit a single real photograph: the public-domain picture of Eileen Collins that scikit-image carries.

    python examples/02_astronaut.py [OUTPUT] [MODEL]

The 68 points in astronaut.pts were placed by eye. With one view there is nothing to compare pictures with, so
the default recipe does what `landmarks` does, and the depth of the face comes mostly from the model.
"""

import sys
from pathlib import Path

import skimage.data

import fitkit

output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("astronaut_result")
model = sys.argv[2] if len(sys.argv) > 2 else None
result = fitkit.fit(
    [skimage.data.astronaut()], landmarks=[Path(__file__).parent / "astronaut.pts"], model=model
)
view = result.metrics["views"][0]
print(
    f"{result.status}: landmarks {view['reprojection_px']:.1f} px off "
    f"({100 * view['reprojection_share']:.1f} % of the face), yaw, pitch, roll "
    f"{', '.join(f'{a:.0f}' for a in view['yaw_pitch_roll_deg'])} degrees"
)
for warning in result.warnings:
    print("  " + warning)
print("written:", result.save(output, overwrite=True))
