"""Fit a data set, plot the expected errors, export the good faces.

python examples/05_data_set.py DATA [OUTPUT]   # DATA: a folder of subject folders, a .csv, or KIND:PATH
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import fitkit

if __name__ == "__main__":
    data, output = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "fits")
    table = fitkit.batch(data, output, recipe="landmarks", light=True, resume=True)
    print(table)
    errors = [row.expected_mm for row in table if row.expected_mm is not None]
    plt.hist(errors, bins=20)
    plt.xlabel("expected error of the face, mm")
    plt.savefig(output / "errors.png")
    for row, result in table.results(status=("ok",)):  # one face in memory at a time
        print(row.subject, result.save(output / "exported" / row.subject, overwrite=True, pictures=False))
