"""Where the 68 points lie on the mesh of the detector `mediapipe`, and how exact they are there.

    python benchmarks/mediapipe_points.py FRAMES RENDERED -o assets/mediapipe_points.csv

FRAMES: a tree of pictures with .pts files, one folder for each person. In pictures from the front (yaw
below 10 degrees) of people who are not held out the labelled points are brought, by the affine map that
takes the mesh of each picture to the mean mesh, into the plane of that one; the median over the pictures
is the place of a point, in the triangle of a Delaunay triangulation that it falls into (at the rim of the
mesh where it lies outside). The standard deviation from the front is that of people held out, robustly.
RENDERED: a folder of `fitkit synth` with `jaw=surface landmark_noise=0` and all yaws. Its points are
those of a face model, which lie somewhat apart from where people set them; all standard deviations are
raised by one factor so that they hold there, too. It also tells how the errors grow with yaw. Both
numbers are of points 17 to 67.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from scipy.spatial import Delaunay

from fitkit.data.landmark_frames import held_out, list_frames
from fitkit.io.atomic import written_whole
from fitkit.io.images import read_image
from fitkit.io.landmark_files import read_landmarks
from fitkit.observe.landmarks.face_crop import square_of_points
from fitkit.observe.landmarks.mediapipe import (
    COUNT,
    DEGREES,
    LOOKS,
    WIDER,
    FaceSquare,
    MeshNetwork,
    head_yaw,
    mesh_radius,
)

FRONT, NARROW = 10.0, 15.0  # degrees of yaw: of the pictures that say where a point is, and how exact it is
HALF = 1.4826  # standard deviation over median distance from the median
EACH = 3  # every so many frames


def meshes(pairs, network):
    """(meshes [N, 468, 3], labelled points [N, 68, 2]) px of pictures with their landmark files."""
    out, labels = [], []
    for image, marks in pairs:
        points = read_landmarks(marks)[:, :2]
        known = np.isfinite(points).all(1)
        if not known[17:].all():
            continue
        picture = read_image(image)[0]
        square = square_of_points(points, known)
        square = FaceSquare(square.center, square.side * WIDER)
        for _ in range(LOOKS):
            mesh = network(picture, square)
            across = mesh[263] - mesh[33]
            square = square_of_points(mesh[:, :2], angle=float(np.arctan2(across[1], across[0])))
        out.append(mesh)
        labels.append(points)
    return np.array(out), np.array(labels)


def mean_mesh(found):
    """[468, 2], the mean of some meshes after the affine maps that fit best."""
    mean = found[0, :, :2] - found[0, :, :2].mean(0)
    scale = np.sqrt((mean**2).sum(1).mean())
    for _ in range(5):
        moved = np.mean([flattened(mesh, mesh[:, :2], mean) for mesh in found], 0)
        mean = moved - moved.mean(0)
        mean *= scale / np.sqrt((mean**2).sum(1).mean())
    return mean


def flattened(mesh, points, mean):
    """Points [N, 2] of a picture, moved as its mesh is onto the mean one."""
    rows = np.column_stack([mesh[:, :2], np.ones(COUNT)])
    return np.column_stack([points, np.ones(len(points))]) @ np.linalg.lstsq(rows, mean, rcond=None)[0]


def places(found, labels):
    """Corners [68, 3] and weights [68, 3]."""
    mean = mean_mesh(found)
    at = np.nanmedian([flattened(m, p, mean) for m, p in zip(found, labels)], 0)
    net, corner, weight = Delaunay(mean), [], []
    for point in at:
        while net.find_simplex(point) < 0:  # beyond the rim: straight inwards
            point = 0.995 * point
        place = int(net.find_simplex(point))
        inverse = net.transform[place]
        two = inverse[:2] @ (point - inverse[2])
        corner.append(net.simplices[place])
        weight.append([*two, 1 - two.sum()])
    return np.array(corner), np.array(weight)


def misses(found, labels, corner, weight):
    """Distances of the placed from the labelled points, [N, 68, 2] radii of the mesh."""
    placed = np.einsum("kc,nkcd->nkd", weight, found[:, corner])[..., :2]
    return (placed - labels) / np.array([mesh_radius(m) for m in found])[:, None, None]


def spread(miss, axis):
    """Robust standard deviation of a coordinate about 0: a wrong place is an error, too."""
    return HALF * np.nanmedian(np.abs(miss), axis)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("frames", type=Path)
    parser.add_argument("rendered", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    network = MeshNetwork()
    frames = list_frames(given.frames)[::EACH]
    parts = {}
    for held in (False, True):
        mine = [(f.image, f.landmarks) for f in frames if held_out(f.person) == held]
        found, labels = meshes(mine, network)
        yaw = np.abs([head_yaw(p) for p in labels])
        parts[held] = found, labels, yaw
    found, labels, yaw = parts[False]
    corner, weight = places(found[yaw < FRONT], labels[yaw < FRONT])
    found, labels, yaw = parts[True]
    miss = misses(found, labels, corner, weight)
    front = spread(miss[yaw < NARROW].swapaxes(0, 1).reshape(68, -1), 1)
    rendered = [
        (p, p.with_suffix(".pts"))
        for folder in sorted(given.rendered.glob("subject_*"))
        for p in sorted(folder.glob("*.jpg"))
    ]
    found, labels = meshes(rendered, network)
    yaw, miss = np.abs([head_yaw(p) for p in labels]), misses(found, labels, corner, weight)
    there = spread((miss[yaw < NARROW] / front[:, None])[:, 17:].ravel(), 0)
    print(f"rendered people, from the front: {there:.2f} of these standard deviations")
    front *= max(1.0, there)
    half = DEGREES[1] / 2
    near = [np.abs(yaw - d) <= half for d in DEGREES[:-1]] + [yaw > DEGREES[-1] - half]
    at = np.array([spread(miss[n][:, 17:].ravel(), 0) for n in near])
    count = [int(n.sum()) for n in near]
    growth = np.maximum.accumulate(at / at[0])
    print("yaw", DEGREES, "pictures", count, "growth", growth.round(2))
    print("front, radii:", front.round(3))
    with written_whole(given.output) as part, open(part, "w", newline="", encoding="utf-8") as file:
        file.write("# See assets/README.md. sigma_N: at N degrees of yaw, over the radius of the mesh.\n")
        writer = csv.writer(file, lineterminator="\n")
        names = ["corner_1", "corner_2", "corner_3", "weight_1", "weight_2", "weight_3"]
        writer.writerow(["point", *names, *(f"sigma_{d:.0f}" for d in DEGREES)])
        for k in range(68):
            numbers = [*weight[k], *(front[k] * growth)]
            writer.writerow([k, *corner[k], *(f"{v:.4f}" for v in numbers)])


if __name__ == "__main__":
    main()
