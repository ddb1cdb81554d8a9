"""Fit one face to a folder of photos and save everything.

python examples/01_fit_folder.py [PHOTOS] [OUTPUT]
"""

import sys
from pathlib import Path

import fitkit

photos = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "sample"
output = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("sample_result")
result = fitkit.fit(photos)
print(
    f"{result.subject.name}: {result.status}, {len(result.subject.views)} views, solved in "
    f"{result.metrics['time_s']['solve']:.2f} s"
)
for view in result.metrics["views"]:
    print(
        f"  {view['name']}: landmarks {view['reprojection_px']:.1f} px off, yaw "
        f"{view['yaw_pitch_roll_deg'][0]:.0f} degrees"
    )
print("written:", result.save(output, overwrite=True))
